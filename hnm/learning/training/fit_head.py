"""Training a head from slide labels alone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import Head, HeadOutput, Mined, make_head
from hnm.learning.history import OnEpoch
from hnm.learning.training.losses import ranking_loss
from hnm.seeds import seed_of
from hnm.selection import best_epoch

LOSSES = ("loss", "slide_loss", "tile_loss", "ranking_loss")
"""The columns of a history for the loss and its parts."""
COLUMNS = 64
"""Number of features whose mean and deviation are computed at once."""


@dataclass(frozen=True)
class LabelledSlide:
    """A slide with its label, as the training of a head sees it."""

    slide_id: str
    features: Tensor
    """`(tiles, features)` float32"""
    label: int
    """0 or 1"""
    mined: Tensor | None = None
    """`(mined,)`: the numbers of its tiles that were mined for the round. None where no tile of any
    slide was mined, as in round 0. Only the head `mined` learns from it.
    """


def fit_head(
    train: Sequence[LabelledSlide],
    validation: Sequence[LabelledSlide],
    section: params.Head,
    ranking: params.Ranking,
    on_epoch: OnEpoch,
) -> tuple[Head, list[dict[str, float]]]:
    """Returns the head of the best epoch, and the history: one mapping for each epoch.

    A step takes one positive and one negative slide. An epoch shows every slide: those of the
    smaller class are drawn again until the larger one is through. The best epoch is that of
    `hnm.selection.best_epoch`: the highest validation AUC, then the lower log loss, then the
    earlier. Training stops after `head.patience` epochs without a better one. The head `mined` is
    solved and not trained by steps: each of its penalties counts as an epoch.

    Raises:
        HeadError: train, its mined tiles or validation have slides of one label alone, or the loss
            is no longer finite.
    """
    _check_labels(train, "train")
    _check_labels(validation, "validation")
    head = make_head(train[0].features.shape[1], section)
    _standardise(head, train)
    if isinstance(head, Mined):
        epochs = _penalties(head, train)
    else:
        epochs = _epochs(head, train, section, ranking)
    history: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head dropout"))
        for epoch, losses in enumerate(epochs, 1):
            _check_finite(head, losses, epoch, section)
            auc, log_loss = validate(head, validation)
            row = {"epoch": epoch, **losses, "validation_auc": auc, "validation_loss": log_loss}
            history.append(row)
            on_epoch(epoch, row)
            best = int(best_epoch(history)["epoch"])
            if best == epoch:
                best_state = copy.deepcopy(head.state_dict())
            elif epoch - best >= section.patience:
                break
    head.load_state_dict(best_state)
    return head.eval(), history


def _check_labels(slides: Sequence[LabelledSlide], split: str) -> None:
    """Refuses a split that lacks slides of a label."""
    for label in (0, 1):
        if not any(slide.label == label for slide in slides):
            raise HeadError(
                f"no {split} slide with label {label} has tiles; the head needs both classes: add"
                " slides or look into data/tiles/quarantine.csv"
            )


def _check_finite(
    head: Head, losses: Mapping[str, float], epoch: int, section: params.Head
) -> None:
    """Refuses a training that has left the finite numbers."""
    if not np.isfinite(losses["loss"]) or not all(
        torch.isfinite(weight).all() for weight in head.parameters()
    ):
        raise HeadError(
            f"the head's weights or loss are not finite in epoch {epoch}; lower"
            f" head.learning_rate={section.learning_rate:g}"
        )


def _standardise(head: Head, train: Sequence[LabelledSlide]) -> None:
    """Standardises the head's features by the mean and deviation over all train tiles.

    Some columns are taken at a time, so that the features are not held twice.
    """
    means = []
    deviations = []
    for start in range(0, len(head.mean), COLUMNS):
        block = torch.cat([slide.features[:, start : start + COLUMNS] for slide in train])
        means.append(block.mean(dim=0))
        deviations.append(block.std(dim=0, unbiased=False))
    head.standardise(torch.cat(means), torch.cat(deviations))


def _epochs(
    head: Head, train: Sequence[LabelledSlide], section: params.Head, ranking: params.Ranking
) -> Iterator[dict[str, float]]:
    """Trains the head epoch by epoch. Yields the means over the steps of each epoch of the loss and
    of its unweighted parts, and the learning rate.
    """
    optimiser = torch.optim.Adam(
        head.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
    )
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if section.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, section.epochs)
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    for epoch in range(1, section.epochs + 1):
        head.train()
        losses = []
        for slides in steps_of(train, section.seed, epoch):
            positive, negative = head.together([slide.features for slide in slides])
            slide_loss, tile_loss, rank_loss = step_losses(head, positive, negative, ranking)
            loss = (
                section.slide_weight * slide_loss
                + section.tile_weight * tile_loss
                + ranking.weight * rank_loss
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(torch.stack([loss, slide_loss, tile_loss, rank_loss]).detach())
        means = dict(zip(LOSSES, torch.stack(losses).mean(dim=0).tolist(), strict=True))
        yield {**means, "learning_rate": optimiser.param_groups[0]["lr"]}
        scheduler.step()


def _penalties(head: Mined, train: Sequence[LabelledSlide]) -> Iterator[dict[str, float]]:
    """Solves the head for each of its penalties and yields its losses. It learns from the mined
    tiles, or from all tiles where none were mined.
    """
    slides = [
        slide.features if slide.mined is None else slide.features[slide.mined] for slide in train
    ]
    labels = [slide.label for slide in train]
    for label in (0, 1):
        mined = [tiles for tiles, slide in zip(slides, train, strict=True) if slide.label == label]
        if not any(map(len, mined)):
            raise HeadError(
                f"head.kind=mined, but no tile of a train slide with label {label} was mined; mine"
                " more tiles, or take another kind of head"
            )
    for loss, role_loss in head.solve(slides, labels):
        yield {"loss": loss, "tile_loss": role_loss}


def steps_of(
    train: Sequence[LabelledSlide], seed: int, epoch: int
) -> Iterator[tuple[LabelledSlide, LabelledSlide]]:
    """Yields the steps of an epoch, each a positive and a negative slide.

    No slide is left out; the slides of the smaller class are drawn again.
    """
    generator = np.random.default_rng(seed_of(seed, "head pairs", epoch))
    positives = [slide for slide in train if slide.label == 1]
    negatives = [slide for slide in train if slide.label == 0]
    steps = max(len(positives), len(negatives))
    yield from zip(
        _shuffled(positives, steps, generator), _shuffled(negatives, steps, generator), strict=True
    )


def _shuffled(
    slides: list[LabelledSlide], count: int, generator: np.random.Generator
) -> list[LabelledSlide]:
    """Returns `count` slides: whole random orders of `slides`, one after the other."""
    orders = [generator.permutation(len(slides)) for _ in range(-(-count // len(slides)))]
    return [slides[i] for i in np.concatenate(orders)[:count]]


def step_losses(
    head: Head, positive: HeadOutput, negative: HeadOutput, ranking: params.Ranking
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the slide loss, the tile loss and the ranking loss of one step, each `()` and without
    its weight.

    The slide loss is the cross-entropy of the slide logits (Li et al., CVPR 2021), the tile loss
    that of the kind of head, both the mean over the two slides; the ranking loss is
    `losses.ranking_loss` (Huang et al., MICCAI 2024).

    Args:
        head: the head that gave the outputs.
        positive: what it says of the positive slide of the step.
        negative: what it says of the negative slide.
        ranking: the settings of the ranking loss.
    """
    labels = torch.tensor([1.0, 0.0], device=positive.slide_logit.device)
    slide_loss = binary_cross_entropy_with_logits(
        torch.stack([positive.slide_logit, negative.slide_logit]), labels
    )
    tile_loss = (head.tile_loss(positive, 1) + head.tile_loss(negative, 0)) / 2
    ranked = [positive.tile_logits, negative.tile_logits]
    if ranking.on == "score":
        ranked = [logits.sigmoid() for logits in ranked]
    return slide_loss, tile_loss, ranking_loss(*ranked, margin=ranking.margin, top_k=ranking.top_k)


@torch.inference_mode()
def validate(head: Head, slides: Sequence[LabelledSlide]) -> tuple[float, float]:
    """Returns the AUC and the log loss of a head's slide logits, over slides of both labels."""
    head.eval()
    logits = torch.stack([head(slide.features).slide_logit for slide in slides]).cpu()
    labels = torch.tensor([float(slide.label) for slide in slides])
    return (
        float(roc_auc_score(labels.numpy(), logits.numpy())),
        float(binary_cross_entropy_with_logits(logits, labels)),
    )
