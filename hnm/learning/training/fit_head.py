"""Training a head from slide labels alone."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import Head, HeadOutput, Mined, make_head
from hnm.learning.history import OnEpoch
from hnm.learning.training.losses import ranking_loss
from hnm.seeds import seed_of
from hnm.selection import best_epoch

COLUMNS = 64
"""Features whose mean and deviation are taken at once."""


@dataclass(frozen=True)
class LabelledSlide:
    """A slide as a head sees it in training."""

    slide_id: str
    features: Tensor
    """`(tiles, features)` float32"""
    label: int
    mined: Tensor | None = None
    """`(mined,)` the numbers of its tiles that were mined for the round; None where no slide's
    were, as in round 0. Only `Mined` looks at them.
    """


def fit_head(
    train: Sequence[LabelledSlide],
    validation: Sequence[LabelledSlide],
    section: params.Head,
    ranking: params.Ranking,
    on_epoch: OnEpoch,
) -> tuple[Head, list[dict[str, float]]]:
    """The head of the best validation epoch, and the history: one mapping an epoch.

    A step takes one slide of each class, of two a positive and a negative one. An epoch shows every
    slide: those of the smaller classes are drawn again until the largest is through. The best epoch
    has the highest validation AUC; ties go to the lower validation log loss, then to the earlier
    epoch. An epoch of the kind `mined` is one of its penalties.

    There are as many classes as the highest label of the train slides says, at least two. Of more
    than two, each is trained against the rest: the losses are the means over the pairs of a class
    and another, and so is validation's AUC the mean over the classes.

    Raises:
        HeadError: train, its mined tiles or validation lack a class, validation has one more, there
        are more than the
            kind of head tells apart, or the loss is no longer finite.
    """
    classes = max(2, 1 + max((slide.label for slide in train), default=0))
    for split, slides in (("train", train), ("validation", validation)):
        for label in range(classes):
            if not any(slide.label == label for slide in slides):
                raise HeadError(
                    f"no {split} slide with label {label} has tiles; the head needs"
                    f" {'both' if classes == 2 else f'all {classes}'} classes: add slides or look"
                    " into data/tiles/quarantine.csv"
                )
    if strange := [slide for slide in validation if slide.label >= classes]:
        raise HeadError(
            f"validation slide {strange[0].slide_id} has label {strange[0].label}, which no train"
            " slide has; move slides or correct the label"
        )
    head = make_head(train[0].features.shape[1], section, classes)
    _standardise(head, train)
    history: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "head dropout"))
        for epoch, losses in enumerate(
            (
                _penalties(head, train)
                if isinstance(head, Mined)
                else _epochs(head, train, section, ranking)
            ),
            1,
        ):
            if not all(
                torch.isfinite(weight).all() for weight in head.parameters()
            ) or not np.isfinite(losses["loss"]):
                raise HeadError(
                    f"the head's weights or loss are not finite in epoch {epoch}; lower"
                    f" head.learning_rate={section.learning_rate:g}"
                )
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


def _standardise(head: Head, train: Sequence[LabelledSlide]) -> None:
    """By the mean and deviation of all train tiles; some columns at a time, so that the features
    are not held twice.
    """
    means, deviations = [], []
    for start in range(0, len(head.mean), COLUMNS):
        block = torch.cat([slide.features[:, start : start + COLUMNS] for slide in train])
        means.append(block.mean(dim=0))
        deviations.append(block.std(dim=0, unbiased=False))
    head.standardise(torch.cat(means), torch.cat(deviations))


def _epochs(
    head: Head, train: Sequence[LabelledSlide], section: params.Head, ranking: params.Ranking
) -> Iterator[dict[str, float]]:
    """Trains epoch by epoch; yields the learning rate and the mean losses of each."""
    optimiser = torch.optim.Adam(
        head.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
    )
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, section.epochs)
        if section.schedule == "cosine"
        else None
    )
    for epoch in range(1, section.epochs + 1):
        rate = optimiser.param_groups[0]["lr"]
        losses = _train_epoch(
            head, optimiser, steps_of(train, section.seed, epoch, head.classes), section, ranking
        )
        if scheduler:
            scheduler.step()
        yield {**losses, "learning_rate": rate}


def _penalties(head: Mined, train: Sequence[LabelledSlide]) -> Iterator[dict[str, float]]:
    """Solves the head for each of its penalties on the mined tiles, or on all tiles where none were
    mined; yields its losses.
    """
    taught = [
        slide.features if slide.mined is None else slide.features[slide.mined] for slide in train
    ]
    for label in (0, 1):
        if not any(
            len(tiles) for slide, tiles in zip(train, taught, strict=True) if slide.label == label
        ):
            raise HeadError(
                f"head.kind=mined, but no tile of a train slide with label {label} was mined; mine"
                " more tiles, or take another kind of head"
            )
    for loss, cross_entropy_ in head.solve(taught, [slide.label for slide in train]):
        yield {"loss": loss, "tile_loss": cross_entropy_}


def steps_of(
    train: Sequence[LabelledSlide], seed: int, epoch: int, classes: int = 2
) -> Iterator[tuple[LabelledSlide, ...]]:
    """The steps of an epoch: a slide of each label, the highest label first. No slide is left out;
    the smaller classes are drawn again.
    """
    generator = np.random.default_rng(seed_of(seed, "head pairs", epoch))
    of_label = [
        [slide for slide in train if slide.label == label] for label in reversed(range(classes))
    ]
    steps = max(len(slides) for slides in of_label)
    yield from zip(*(_shuffled(slides, steps, generator) for slides in of_label), strict=True)


def _shuffled(
    slides: list[LabelledSlide], count: int, generator: np.random.Generator
) -> list[LabelledSlide]:
    """`count` slides: whole random orders of `slides`, one after the other."""
    orders = [generator.permutation(len(slides)) for _ in range(-(-count // len(slides)))]
    return [slides[i] for i in np.concatenate(orders)[:count]]


def _train_epoch(
    head: Head,
    optimiser: torch.optim.Optimizer,
    steps: Iterator[tuple[LabelledSlide, ...]],
    section: params.Head,
    ranking: params.Ranking,
) -> dict[str, float]:
    """One pass; the means over its steps of the loss and of its unweighted parts."""
    head.train()
    parts = []
    for slides in steps:
        slide_loss, tile_loss, rank_loss = step_losses(
            head, head.together([slide.features for slide in slides]), ranking
        )
        loss = (
            section.slide_weight * slide_loss
            + section.tile_weight * tile_loss
            + ranking.weight * rank_loss
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        parts.append(torch.stack([loss, slide_loss, tile_loss, rank_loss]).detach())
    means = torch.stack(parts).mean(dim=0).tolist()
    return dict(zip(("loss", "slide_loss", "tile_loss", "ranking_loss"), means, strict=True))


def step_losses(
    head: Head, outputs: Sequence[HeadOutput], ranking: params.Ranking
) -> tuple[Tensor, Tensor, Tensor]:
    """Slide, tile and ranking loss of one step, unweighted: the means over the pairs of a label
    that the head has logits for and another.

    Args:
        head: its tile loss is its own.
        outputs: what it says of a slide of each label, the highest label first.
        ranking: the ranking loss's settings.
    """
    of_label = outputs[::-1]
    pairs = [
        (of_label[label].of(label), other.of(label))
        for label in head.labels
        for other in of_label
        if other is not of_label[label]
    ]
    losses = [_pair_losses(head, positive, negative, ranking) for positive, negative in pairs]
    slide, tile, rank = (torch.stack(parts).mean() for parts in zip(*losses, strict=True))
    return slide, tile, rank


def _pair_losses(
    head: Head, positive: HeadOutput, negative: HeadOutput, ranking: params.Ranking
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of a slide of a class and one of another, by the logits of the class; the first
    two are means over the two slides.
    """
    labels = torch.tensor([1.0, 0.0], device=positive.slide_logit.device)
    slide_loss = cross_entropy(torch.stack([positive.slide_logit, negative.slide_logit]), labels)
    tile_loss = (head.tile_loss(positive, 1) + head.tile_loss(negative, 0)) / 2
    ranked = [
        output.tile_logits.sigmoid() if ranking.on == "score" else output.tile_logits
        for output in (positive, negative)
    ]
    return slide_loss, tile_loss, ranking_loss(*ranked, margin=ranking.margin, top_k=ranking.top_k)


@torch.inference_mode()
def validate(head: Head, slides: Sequence[LabelledSlide]) -> tuple[float, float]:
    """Slide AUC and log loss of a head on labelled slides of all classes; of more than two the
    means over the classes, each against the rest.
    """
    head.eval()
    outputs = [head(slide.features) for slide in slides]
    numbers = []
    for label in head.labels:
        logits = torch.stack([output.of(label).slide_logit for output in outputs]).cpu()
        truth = torch.tensor([float(slide.label == label) for slide in slides])
        numbers.append(
            (
                float(roc_auc_score(truth.numpy(), logits.numpy())),
                float(cross_entropy(logits, truth)),
            )
        )
    auc, log_loss = (float(np.mean(values)) for values in zip(*numbers, strict=True))
    return auc, log_loss
