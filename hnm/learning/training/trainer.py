"""Training an encoder by contrast: the loop that fine-tuning and SimCLR share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""Rows -> RGB tiles `(rows, height, width, 3)`. It is called from other threads."""

LossOf = Callable[[Tensor, Rows, int], dict[str, Tensor]]
"""(projected views `(views, features)`, the row of each view, epoch) -> `loss`, and the other
numbers of a step that the history has.
"""

SAMPLE = 4096
"""Most tiles whose features set the standardisation before the projection."""


@dataclass(frozen=True)
class ContrastTask:
    """What an encoder is trained on: the tiles, the steps and the loss."""

    name: str
    """The section of params.yaml, for errors."""
    read: ReadTiles
    count: int
    """Number of tiles."""
    batches: Callable[[int], Sequence[Rows]]
    """Epoch, from 1 -> the rows of each step."""
    loss_of: LossOf
    """The loss of a step."""
    frozen_batch_norm: bool
    """Whether batch normalisation keeps its statistics."""


def train_by_contrast(
    encoder: TileEncoder,
    task: ContrastTask,
    section: params.Contrast,
    machine: Machine,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Trains, in place, the weights of `encoder` that require a gradient. Returns the history: one
    mapping for each epoch.

    A step draws two views of each of its tiles. The loss sees a projection of the features, which
    is dropped after the training (Chen et al. 2020, section 4.2; Khosla et al. 2020, section 3.1).
    Before the projection, features are standardised by their mean and deviation before the
    training: all tiles share so much of a feature that raw ones look alike at a low temperature,
    and the contrast may then collapse. Tiles are read and decoded in the background, a few steps
    ahead.

    Where several processes train, each takes its share of the tiles of a step, and the loss sees
    the views of all. So loss and gradients are those of one process with the same views. Each
    process draws the views of its tiles. Batch normalisation that is not frozen takes its
    statistics from them; its running statistics are averaged at the end.

    Args:
        encoder: is put on the machine's device for the training, and back on the CPU.
        task: the tiles, the steps and the loss.
        section: the settings.
        machine: where, in which precision and with how many processes to train. The loss is always
            computed in float32.
        on_epoch: is told of each epoch.

    Raises:
        FinetuneError: the loss is no longer finite, or the processes cannot share the tiles of a
            step evenly.
    """
    encoder = encoder.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample = np.linspace(0, task.count - 1, min(task.count, SAMPLE)).astype(np.int64)
    features = _features(encoder, task.read, sample, section.batch_tiles, machine)
    model = nn.Sequential(encoder, _make_projection(features, section).to(machine.device))
    optimiser = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        fused=True,
    )
    history: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[machine.device] if machine.device.type == "cuda" else []):
        # the draws of encoders that have dropout or stochastic depth
        torch.manual_seed(seed_of(section.seed, "dropout", *_rank_of(machine)))
        for epoch in range(1, section.epochs + 1):
            row = {
                "epoch": epoch,
                **_train_epoch(model, optimiser, task, section, machine, epoch),
                "learning_rate": learning_rate(section, epoch - 1),
            }
            history.append(row)
            on_epoch(epoch, row)
    if not task.frozen_batch_norm:
        _average_statistics(encoder.backbone, machine)
    encoder.to("cpu").eval()
    return history


def _train_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    task: ContrastTask,
    section: params.Contrast,
    machine: Machine,
    epoch: int,
) -> dict[str, float]:
    """Trains one epoch and returns the means over its steps of what `differentiate` gives."""
    model.train()
    if task.frozen_batch_norm:
        _freeze_batch_norm(model)
    steps = [shares_of(rows, machine.ranks, task.name) for rows in task.batches(epoch)]
    sums: dict[str, Tensor] = {}
    batches = read_ahead(task.read, [shares[machine.rank] for shares in steps])
    for step, (_, tiles) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(section, epoch - 1 + step / len(steps))
        pixels = to_input(tiles, machine.device)
        seeds = [
            seed_of(section.seed, "views", epoch, step, view, *_rank_of(machine))
            for view in range(2)
        ]
        views = torch.cat([random_views(pixels, section.views, seed) for seed in seeds])
        optimiser.zero_grad(set_to_none=True)
        numbers = differentiate(model, views, steps[step], task.loss_of, epoch, machine)
        if not torch.isfinite(numbers["loss"]):
            raise FinetuneError(
                f"the contrastive loss is {numbers['loss'].item()} in epoch {epoch}; lower"
                f" {task.name}.learning_rate={section.learning_rate:g}"
            )
        optimiser.step()
        for name, number in numbers.items():
            sums[name] = sums[name] + number if name in sums else number
    return {name: (total / len(steps)).item() for name, total in sums.items()}


def _rank_of(machine: Machine) -> tuple[int, ...]:
    """Returns the rank, which tells the draws of several processes apart; one process draws without
    a rank.
    """
    return (machine.rank,) if machine.ranks > 1 else ()


def differentiate(
    model: nn.Module,
    views: Tensor,
    shares: Sequence[Rows],
    loss_of: LossOf,
    epoch: int,
    machine: Machine,
) -> dict[str, Tensor]:
    """Puts the gradients of one step over all processes into `model`. Returns the numbers `()` of
    `loss_of`, and the spread of the projected views.

    Args:
        model: maps views to projections.
        views: `(views, 3, height, width)` of the rows of this process: the first view of each row,
            then the second of each.
        shares: the rows of each process.
        loss_of: the loss of a step.
        epoch: counted from 1.
        machine: says which of the processes this is.
    """
    with machine.autocast():
        projected = model(views.contiguous(memory_format=torch.channels_last))
    projected = _gathered(projected, machine)
    numbers = loss_of(projected, np.concatenate([np.tile(rows, 2) for rows in shares]), epoch)
    numbers["loss"].backward()  # type: ignore[no-untyped-call]
    _add_up([weight.grad for weight in model.parameters() if weight.grad is not None], machine)
    return {
        **{name: number.detach() for name, number in numbers.items()},
        "spread": spread(projected.detach()),
    }


def shares_of(rows: Rows, ranks: int, name: str) -> list[Rows]:
    """Returns the rows of a step that each of `ranks` processes takes; all take equally many. The
    error names the section `name`.
    """
    if len(rows) % ranks:
        raise FinetuneError(
            f"a step of {len(rows)} tiles cannot be shared evenly by compute.processes={ranks};"
            f" make {name}.batch_tiles a multiple of it"
        )
    return [rows[rank::ranks] for rank in range(ranks)]


class _Gather(torch.autograd.Function):
    """Gathers the rows of all processes in the order of their ranks. Backwards, each process gets
    the gradient of the rows that it gave.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, machine: Machine) -> Tensor:
        context.machine = machine
        parts = [torch.empty_like(rows) for _ in range(machine.ranks)]
        torch.distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # every process computes the same loss of the same rows: its part of the gradient is that
        # of the whole loss, and adding up the processes' parts would count it several times
        return gradient.chunk(context.machine.ranks)[context.machine.rank], None


def _gathered(rows: Tensor, machine: Machine) -> Tensor:
    """Returns the rows `(rows, features)` of all processes, differentiably; in float32 where there
    are several processes.
    """
    if machine.ranks == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows.float().contiguous(), machine)  # type: ignore[no-untyped-call]
    return gathered


@torch.no_grad()
def _add_up(tensors: Sequence[Tensor], machine: Machine) -> None:
    """Replaces each tensor by its sum over the processes."""
    if machine.ranks == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(
        tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(part.view_as(tensor))


def _average_statistics(backbone: nn.Module, machine: Machine) -> None:
    """Replaces the running statistics of batch normalisation by their means over the processes."""
    statistics = [buffer for buffer in backbone.buffers() if buffer.is_floating_point()]
    _add_up(statistics, machine)
    for buffer in statistics:
        buffer /= machine.ranks


def learning_rate(section: params.Contrast, epochs: float) -> float:
    """Returns the learning rate after `epochs` epochs, which may be a fraction. The cosine ends
    at 0.
    """
    if section.schedule == "constant":
        return section.learning_rate
    return section.learning_rate * ((1 + math.cos(math.pi * epochs / section.epochs)) / 2)


class _Standardise(nn.Module):
    """Standardises features by the mean and deviation that they had before the training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        deviation = features.std(dim=0, unbiased=False)
        # a feature that is constant in the sample must not be blown up once a view changes it
        self.register_buffer(
            "deviation", torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        )

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def _make_projection(features: Tensor, section: params.Contrast) -> nn.Sequential:
    """Returns the standardisation by `features` `(tiles, features)` and two layers behind it, whose
    weights are drawn from the section's seed.
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
    """Returns the features `(rows, features)` of the tiles `rows` on the CPU."""
    encoder.eval()
    batches = []
    for _, tiles in read_ahead(
        read, (rows[first : first + batch_tiles] for first in range(0, len(rows), batch_tiles))
    ):
        with machine.autocast():
            batches.append(encoder(to_input(tiles, machine.device)).float().cpu())
    return torch.cat(batches)


def _freeze_batch_norm(model: nn.Module) -> None:
    """Has batch normalisation use its running statistics and not change them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
