"""Fine-tuning the encoder on mined tiles by supervised contrast."""

import math
from collections.abc import Mapping, Sequence
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
from hnm.learning.training.trainer import ContrastTask, ReadTiles, Rows, train_by_contrast
from hnm.seeds import seed_of

NEGATIVE = 0
"""The role of a hard negative."""
POSITIVE = 1
"""The role of a positive tile."""


def fit_encoder(
    encoder: TileEncoder,
    read: ReadTiles,
    roles: NDArray[np.int64],
    section: params.Finetune,
    machine: Machine,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Fine-tunes `encoder` in place by `train_by_contrast`. Returns the history: one mapping for
    each epoch.

    A step takes tiles of both roles (`finetune.positive_share`), and two views of each. Tiles of
    one role attract each other and repel those of the other role. In the warm-up hard negatives
    alone are anchors, afterwards the roles that `finetune.anchors` names. Batch normalisation keeps
    its statistics, as the mined tiles are no fair sample of the cohort. With a
    `finetune.adapter_rank`, low-rank adapters of the linear layers are trained and merged at the
    end.

    Args:
        encoder: the encoder of the round before.
        read: reads the RGB tiles of rows of the mined set.
        roles: `(tiles,)`, each `POSITIVE` or `NEGATIVE`.
        section: the settings.
        machine: where, and in which precision, to train. The loss is computed in float32.
        on_epoch: is told of each epoch.

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

    def loss_of(projected: Tensor, rows: Rows, epoch: int) -> dict[str, Tensor]:
        roles_of_rows = torch.from_numpy(roles[rows]).to(projected.device)
        losses = role_losses(projected, roles_of_rows, temperature=section.temperature)
        loss = losses @ anchor_weights(section, epoch).to(losses.device)
        return {"loss": loss, "negative_loss": losses[NEGATIVE], "positive_loss": losses[POSITIVE]}

    task = ContrastTask(
        name="finetune",
        read=read,
        count=len(roles),
        batches=lambda epoch: role_batches(roles, section, epoch),
        loss_of=loss_of,
        frozen_batch_norm=True,
    )
    history = train_by_contrast(encoder, task, section, machine, on_epoch)
    merge_adapters(encoder.backbone)
    return history


def freeze_layers(encoder: TileEncoder, layers: int) -> None:
    """Keeps the weights of the first `layers` layers out of training. Layers are the groups of
    timm, the first of which is the stem.

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
    """Returns the weights `(2,)` in the loss: of hard negatives as anchors and of positives as
    anchors.
    """
    anchors = "negatives" if epoch <= section.warmup_epochs else section.anchors
    return {
        "negatives": torch.tensor([1.0, 0.0]),
        "positives": torch.tensor([0.0, 1.0]),
        "both": torch.tensor([0.5, 0.5]),
    }[anchors]


def collapse_of(history: Sequence[Mapping[str, float]], section: params.Finetune) -> str | None:
    """Returns a warning where the training ended with all views at one point, else None.

    At one point all similarities are the same, so that the loss is ln(rows - 1) and has no gradient
    left. The loss sees similarities in units of the temperature: views lie at one point where their
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
    """Returns the contrastive losses `(2,)` with hard negatives as anchors and with positives as
    anchors. Rows of the other role are contrast alone.

    Args:
        projected: `(rows, features)` projected views.
        roles: `(rows,)`, each `NEGATIVE` or `POSITIVE`.
        temperature: that of `supervised_contrastive_loss`.
    """
    return torch.stack(
        [
            supervised_contrastive_loss(projected, roles, roles == role, temperature=temperature)
            for role in (NEGATIVE, POSITIVE)
        ]
    )


def step_tiles(section: params.Finetune) -> tuple[int, int]:
    """Returns the numbers of hard negatives and of positives in a step."""
    positives = min(
        max(round(section.batch_tiles * section.positive_share), 1), section.batch_tiles - 1
    )
    return section.batch_tiles - positives, positives


def epoch_steps(section: params.Finetune, negatives: int, positives: int) -> int:
    """Returns the number of steps in which every one of so many tiles of each role is shown."""
    return max(
        math.ceil(count / share)
        for count, share in zip((negatives, positives), step_tiles(section), strict=True)
    )


def role_batches(roles: NDArray[np.int64], section: params.Finetune, epoch: int) -> list[Rows]:
    """Returns the rows of each step, hard negatives first. All steps have as many tiles of each
    role.

    The tiles of a role come in one random order after the other, until the steps are filled. So
    every tile comes at least once, and no tile comes a second time before all others of its role
    have come. A tile that ends one order and begins the next may come twice in a step: it has one
    role, so the contrast stays right, and all steps keep one size.
    """
    generator = np.random.default_rng(seed_of(section.seed, "finetune batches", epoch))
    rows_of_roles = [np.flatnonzero(roles == role) for role in (NEGATIVE, POSITIVE)]
    steps = epoch_steps(section, *map(len, rows_of_roles))
    blocks = []
    for rows, share in zip(rows_of_roles, step_tiles(section), strict=True):
        orders = math.ceil(steps * share / len(rows))
        order = np.concatenate([generator.permutation(rows) for _ in range(orders)])
        blocks.append(order[: steps * share].reshape(steps, share))
    return list(np.concatenate(blocks, axis=1))
