"""Fine-tuning the encoder on mined tiles by supervised contrast."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.adapters import add_adapters, merge_adapters
from hnm.learning.compute import Machine
from hnm.learning.encoder import TileEncoder, import_timm
from hnm.learning.history import OnEpoch
from hnm.learning.training.losses import supervised_contrastive_loss
from hnm.learning.training.trainer import ReadTiles, Rows, train_by_contrast
from hnm.seeds import seed_of

NEGATIVE, POSITIVE = 0, 1


def fit_encoder(
    encoder: TileEncoder,
    read: ReadTiles,
    roles: NDArray[np.int64],
    section: params.Finetune,
    machine: Machine,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Fine-tunes `encoder` in place by `train_by_contrast` and returns the history: one mapping an
    epoch.

    A step takes tiles of both roles (`positive_share`), and two views of each. In the warm-up
    negatives are anchors, with the other negatives as their positives; then those that
    `section.anchors` names. Tiles of no certain label never come here: mining leaves them out.
    Batch normalisation keeps its statistics, as the mined tiles are no fair sample of the cohort.
    With an `adapter_rank` low-rank adapters of the linear layers are trained, and merged at the
    end.

    Args:
        encoder: the encoder of the round before.
        read: reads the RGB tiles of rows of the mined set.
        roles: `(tiles,)` `POSITIVE` or `NEGATIVE` (a hard negative).
        section: the settings.
        machine: where, and in which precision, to train; the loss is always computed in float32.
        on_epoch: told of each epoch.

    Raises:
        FinetuneError: a role has no tile, no layer is left to train, or the loss is no longer
        finite.
    """
    for role, name in ((NEGATIVE, "hard negatives"), (POSITIVE, "positives")):
        if not (roles == role).any():
            raise FinetuneError(
                f"the mined set has no {name}; the contrast needs both roles: see mining.threshold"
                " and the fractions"
            )
    freeze_layers(encoder, section.freeze_layers)
    if section.adapter_rank:
        add_adapters(encoder.backbone, section.adapter_rank, section.seed)

    def batches(epoch: int) -> list[Rows]:
        return list(role_batches(roles, section, epoch))

    def loss_of(projected: Tensor, rows: Rows, epoch: int) -> dict[str, Tensor]:
        losses = role_losses(
            projected,
            torch.from_numpy(roles[rows]).to(projected.device),
            temperature=section.temperature,
        )
        loss = losses @ anchor_weights(section, epoch).to(losses.device)
        return {"loss": loss, "negative_loss": losses[NEGATIVE], "positive_loss": losses[POSITIVE]}

    history = train_by_contrast(
        encoder,
        read,
        len(roles),
        batches,
        loss_of,
        section,
        machine,
        on_epoch,
        name="finetune",
        frozen_batch_norm=True,
    )
    merge_adapters(encoder.backbone)
    return history


def freeze_layers(encoder: TileEncoder, layers: int) -> None:
    """Keeps the weights of the first `layers` layers, as timm groups them (stem first), out of
    training.

    Raises:
        FinetuneError: the encoder has no more layers than that.
    """
    backbone: Any = encoder.backbone
    groups = import_timm().models.group_parameters(backbone, backbone.group_matcher(coarse=True))
    if layers >= len(groups):
        raise FinetuneError(
            f"finetune.freeze_layers={layers} leaves nothing to train: {encoder.record.name} has"
            f" {len(groups)} layers; lower it"
        )
    frozen = {name for layer in sorted(groups)[:layers] for name in groups[layer]}
    for name, weight in encoder.backbone.named_parameters():
        weight.requires_grad_(name not in frozen)


def anchor_weights(section: params.Finetune, epoch: int) -> Tensor:
    """Weights `(2,)` in the loss of the negatives and of the positives as anchors."""
    anchors = "negatives" if epoch <= section.warmup_epochs else section.anchors
    return {
        "negatives": torch.tensor([1.0, 0.0]),
        "positives": torch.tensor([0.0, 1.0]),
        "both": torch.tensor([0.5, 0.5]),
    }[anchors]


def collapse_of(history: Sequence[Mapping[str, float]], section: params.Finetune) -> str | None:
    """What to say of a training that ended with all views at one point, or None.

    There every similarity is the same, so that the loss is ln(rows - 1) and has no gradient left.
    The loss sees similarities in units of the temperature: views lie at one point where their
    spread is below a tenth of it.
    """
    last = history[-1]
    if last["spread"] >= section.temperature / 10:
        return None
    rows = 2 * section.batch_tiles
    return (
        "fine-tuning has collapsed: all views of mined tiles lie at one point (spread"
        f" {last['spread']:.2g}), where the contrastive loss is ln(rows - 1) ="
        f" {math.log(rows - 1):.3f} (it is {last['loss']:.3f}) and nothing more is learnt; the"
        f" roles could not be told apart: raise finetune.freeze_layers={section.freeze_layers} or"
        f" finetune.temperature={section.temperature:g}, lower"
        f" finetune.learning_rate={section.learning_rate:g}, or mine surer tiles (a higher"
        " mining.threshold, smaller fractions, a head trained longer)"
    )


def role_losses(projected: Tensor, roles: Tensor, *, temperature: float) -> Tensor:
    """The contrastive loss with negatives, and with positives, as anchors: `(2,)`. The other role
    is contrast in each.
    """
    return torch.stack(
        [
            supervised_contrastive_loss(projected, roles, roles == role, temperature=temperature)
            for role in (NEGATIVE, POSITIVE)
        ]
    )


def step_tiles(section: params.Finetune) -> tuple[int, int]:
    """Hard negatives and positives of a step."""
    positives = min(
        max(round(section.batch_tiles * section.positive_share), 1), section.batch_tiles - 1
    )
    return section.batch_tiles - positives, positives


def epoch_steps(section: params.Finetune, negatives: int, positives: int) -> int:
    """Steps of an epoch that shows so many mined tiles of each role at least once."""
    return max(
        math.ceil(count / share)
        for count, share in zip((negatives, positives), step_tiles(section), strict=True)
    )


def role_batches(
    roles: NDArray[np.int64], section: params.Finetune, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Rows of each step, negatives first; all steps have as many tiles of each role.

    The tiles of a role come in one random order after the other, until the steps are filled. So
    every tile comes at least once, and no tile comes a second time before all others of its role
    have come. A tile that ends one order and begins the next may come twice in a step: it has one
    role, so the contrast stays right, and all steps keep one size.
    """
    generator = np.random.default_rng(seed_of(section.seed, "finetune batches", epoch))
    rows = [np.flatnonzero(roles == role) for role in (NEGATIVE, POSITIVE)]
    steps, shares = epoch_steps(section, *map(len, rows)), step_tiles(section)
    orders = [
        np.concatenate(
            [generator.permutation(own) for _ in range(math.ceil(steps * share / len(own)))]
        )
        for own, share in zip(rows, shares, strict=True)
    ]
    for step in range(steps):
        yield np.concatenate(
            [
                order[step * share : (step + 1) * share]
                for order, share in zip(orders, shares, strict=True)
            ]
        )
