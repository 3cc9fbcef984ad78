"""Training an encoder by contrast: the loop that fine-tuning and SimCLR share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hnm import params
from hnm.errors import FinetuneError
from hnm.learning.compute import Machine
from hnm.learning.encoder import TileEncoder, to_input
from hnm.learning.history import OnEpoch
from hnm.learning.read_ahead import read_ahead
from hnm.learning.training.losses import spread
from hnm.learning.training.views import random_views
from hnm.seeds import seed_of

Rows = NDArray[np.int64]
"""Numbers of training tiles, from 0."""

ReadTiles = Callable[[Rows], NDArray[np.uint8]]
"""Rows -> RGB tiles `(rows, height, width, 3)`; called from other threads."""

LossOf = Callable[[Tensor, Rows, int], dict[str, Tensor]]
"""(projected views `(views, features)`, the row of each view, epoch) -> `loss`, and what else of a
step the history is to tell.
"""

SAMPLE = 4096
"""Most tiles whose features set the projection's standardisation."""


def train_by_contrast(
    encoder: TileEncoder,
    read: ReadTiles,
    count: int,
    batches: Callable[[int], Sequence[Rows]],
    loss_of: LossOf,
    section: params.Contrast,
    machine: Machine,
    on_epoch: OnEpoch,
    *,
    name: str,
    frozen_batch_norm: bool,
) -> list[dict[str, float]]:
    """Trains those weights of `encoder` that require a gradient, in place, and returns the history:
    one mapping an epoch.

    A step draws two views of each of its tiles. The loss sees a projection of the features that is
    dropped afterwards (Chen et al. 2020, section 4.2; Khosla et al. 2020, section 3.1); it starts
    from features standardised as the encoder gave them at first, for all tiles share so much of a
    feature that raw ones look alike at a low temperature, and the contrast may then collapse. Tiles
    are read and decoded in the background, a few steps ahead.

    Where several processes train, each takes its share of a step's tiles, and the loss sees the
    views of all: loss and gradients are those of one process with the same views. Each process
    draws views for its own tiles, and batch normalisation that is not frozen takes its statistics
    from them; its running ones are averaged at the end.

    Args:
        encoder: put on the machine's device for the training, and back on the CPU.
        read: reads tiles.
        count: how many tiles there are.
        batches: epoch, from 1 -> the rows of each step.
        loss_of: the loss of a step.
        section: the settings.
        machine: where, in which precision and with how many processes to train; the loss is
        computed in float32. on_epoch: told of each epoch.
        name: the section's name in params.yaml.
        frozen_batch_norm: whether batch normalisation keeps its statistics.

    Raises:
        FinetuneError: the loss is no longer finite, or the processes cannot share a step's tiles
        evenly.
    """
    encoder = encoder.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64)
    projection = _make_projection(
        _features(encoder, read, sample, section.batch_tiles, machine), section
    ).to(machine.device)
    model = nn.Sequential(encoder, projection)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
    )
    only = (machine.rank,) if machine.ranks > 1 else ()
    history: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[machine.device] if machine.device.type == "cuda" else []):
        torch.manual_seed(
            seed_of(section.seed, "dropout", *only)
        )  # of encoders that have it, or stochastic depth
        for epoch in range(1, section.epochs + 1):
            model.train()
            if frozen_batch_norm:
                _freeze_batch_norm(model)
            steps = [shares_of(rows, machine.ranks, name) for rows in batches(epoch)]
            sums: dict[str, Tensor] = {}
            for step, (_, tiles) in enumerate(
                read_ahead(read, [shares[machine.rank] for shares in steps])
            ):
                rate = learning_rate(section, epoch - 1 + step / len(steps))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                pixels = to_input(tiles, machine.device)
                views = [
                    random_views(
                        pixels,
                        section.views,
                        seed_of(section.seed, "views", epoch, step, view, *only),
                    )
                    for view in range(2)
                ]
                optimiser.zero_grad(set_to_none=True)
                parts = differentiate(model, torch.cat(views), steps[step], loss_of, epoch, machine)
                if not torch.isfinite(parts["loss"]):
                    raise FinetuneError(
                        f"the contrastive loss is {parts['loss'].item()} in epoch {epoch}; lower"
                        f" {name}.learning_rate={section.learning_rate:g}"
                    )
                optimiser.step()
                for part, value in parts.items():
                    sums[part] = sums.get(part, torch.zeros((), device=value.device)) + value
            row = {
                "epoch": epoch,
                **{part: (value / len(steps)).item() for part, value in sums.items()},
                "learning_rate": learning_rate(section, epoch - 1),
            }
            history.append(row)
            on_epoch(epoch, row)
    statistics = (
        []
        if frozen_batch_norm
        else [buffer for buffer in encoder.backbone.buffers() if buffer.is_floating_point()]
    )
    _add_up(statistics, machine)
    for buffer in statistics:
        buffer /= machine.ranks
    encoder.to("cpu").eval()
    return history


def differentiate(
    model: nn.Module,
    views: Tensor,
    shares: Sequence[Rows],
    loss_of: LossOf,
    epoch: int,
    machine: Machine,
) -> dict[str, Tensor]:
    """Loss and spread of one step over all processes, and its gradients in `model`.

    Args:
        model: views to projections.
        views: `(views, 3, height, width)` of this process's rows: the first view of each, then the
        second. shares: the rows of each process.
        loss_of: the loss of a step.
        epoch: from 1.
        machine: which of the processes this is.
    """
    with machine.autocast():
        own = model(views.contiguous(memory_format=torch.channels_last))
    projected = _gathered(own, machine)
    parts = loss_of(projected, np.concatenate([np.tile(rows, 2) for rows in shares]), epoch)
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    _add_up([weight.grad for weight in model.parameters() if weight.grad is not None], machine)
    return {
        part: value.detach()
        for part, value in {**parts, "spread": spread(projected.detach())}.items()
    }


def shares_of(rows: Rows, ranks: int, name: str) -> list[Rows]:
    """The rows of a step that each of `ranks` processes takes, as many for each; `name` is the
    section's for the error.
    """
    if len(rows) % ranks:
        raise FinetuneError(
            f"a step of {len(rows)} tiles cannot be shared evenly by compute.processes={ranks};"
            f" make {name}.batch_tiles a multiple of it"
        )
    return [rows[rank::ranks] for rank in range(ranks)]


class _Gather(torch.autograd.Function):
    """The rows of all processes, in the order of their ranks; the gradient of a process's own rows
    goes back to it.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, machine: Machine) -> Tensor:
        context.machine = machine
        parts = [torch.empty_like(rows) for _ in range(machine.ranks)]
        torch.distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # every process computes the same loss of the same rows, so that its own part of the
        # gradient is the whole loss's
        return gradient.chunk(context.machine.ranks)[context.machine.rank], None


def _gathered(rows: Tensor, machine: Machine) -> Tensor:
    """The `rows` `(rows, features)` of all processes behind each other, in float32 where there are
    several; differentiable.
    """
    if machine.ranks == 1:
        return rows
    joint: Tensor = _Gather.apply(rows.float().contiguous(), machine)  # type: ignore[no-untyped-call]
    return joint


@torch.no_grad()
def _add_up(tensors: Sequence[Tensor], machine: Machine) -> None:
    """Puts in place of each tensor its sum over the processes."""
    if machine.ranks == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(
        tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(part.view_as(tensor))


def learning_rate(section: params.Contrast, epochs: float) -> float:
    """The learning rate after so many epochs, a fraction among them; on a cosine it ends at 0."""
    return section.learning_rate * (
        (1 + math.cos(math.pi * epochs / section.epochs)) / 2
        if section.schedule == "cosine"
        else 1.0
    )


class _Standardise(nn.Module):
    """Features less their first mean, over their first deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        deviation = features.std(dim=0, unbiased=False)
        # a feature that no tile of the sample has must not be blown up in the view that shows it
        # first
        self.register_buffer(
            "deviation", torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        )

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def _make_projection(features: Tensor, section: params.Contrast) -> nn.Sequential:
    """Two layers behind the standardisation of `features`; the weights are drawn from the section's
    seed.
    """
    width = features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(section.seed, "projection"))
        return nn.Sequential(
            _Standardise(features),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, section.projection_features),
        )


@torch.no_grad()
def _features(
    encoder: TileEncoder, read: ReadTiles, rows: Rows, batch_tiles: int, machine: Machine
) -> Tensor:
    """The features of the tiles `rows` before the training, on the CPU."""
    encoder.eval()
    made = []
    for _, tiles in read_ahead(
        read, (rows[first : first + batch_tiles] for first in range(0, len(rows), batch_tiles))
    ):
        with machine.autocast():
            features = encoder(
                to_input(tiles, machine.device).contiguous(memory_format=torch.channels_last)
            )
        made.append(features.float().cpu())
    return torch.cat(made)


def _freeze_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
