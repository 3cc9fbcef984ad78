"""Tiles to features: the encoder's forward pass over the packs of a cohort."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnm.errors import EncoderError
from hnm.learning.compute import Machine
from hnm.learning.encoder import TileEncoder, to_input
from hnm.learning.read_ahead import read_ahead

ReadTiles = Callable[[int, int, int], NDArray[np.uint8]]
"""(slide, first tile, end) -> RGB tiles `(tiles, height, width, 3)` of the slide."""


Encode = Callable[[Tensor], Tensor]
"""Input tiles `(tiles, 3, height, width)` -> features `(tiles, features)`."""


def embed(
    encoder: TileEncoder,
    counts: Sequence[int],
    read: ReadTiles,
    *,
    batch_tiles: int,
    machine: Machine,
    compiled: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """The features `(tiles, features)` of each slide, in order.

    Batches cross slide borders and all have one size (the last is filled up with zeros), so that a
    feature does not depend on which slides are embedded beside it, but for its last bits where a
    processor's kernels round by the place in a batch. The next batches are read and decoded while
    the encoder runs. Where a batch does not fit into the device's memory, the encoder takes it in
    halves, and all later ones too.

    Args:
        encoder: put on the machine's device and used as it is, in evaluation mode.
        counts: tiles of each slide, at least 1.
        read: reads the pixels.
        batch_tiles: size of a batch.
        machine: where, and in which precision, the encoder runs.
        compiled: whether `torch.compile` makes the encoder anew for this machine first.

    Raises:
        EncoderError: not even one tile fits into the device's memory, or the encoder cannot be
        compiled here.
    """
    encoder = encoder.to(machine.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    run = torch.compile(encoder) if compiled else encoder
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    borders = [*range(0, total, batch_tiles), total]
    starts = ends - np.asarray(counts)

    def read_batch(batch: tuple[int, int]) -> NDArray[np.uint8]:
        first, end = batch
        slides = range(
            int(np.searchsorted(ends, first, side="right")),
            int(np.searchsorted(ends, end - 1, side="right")) + 1,
        )
        parts = [
            read(
                slide,
                max(first - int(starts[slide]), 0),
                min(end, int(ends[slide])) - int(starts[slide]),
            )
            for slide in slides
        ]
        return np.concatenate(parts)

    room = _Room(batch_tiles)
    pending: list[NDArray[np.float32]] = []
    slide = 0
    for _, tiles in read_ahead(read_batch, pairwise(borders)):
        pending.append(_forward(run, tiles, batch_tiles, machine, room))
        if sum(map(len, pending)) < (counts[slide] if slide < len(counts) else math.inf):
            continue
        features = np.concatenate(pending)
        while slide < len(counts) and len(features) >= counts[slide]:
            yield features[: counts[slide]]
            features = features[counts[slide] :]
            slide += 1
        pending = [features]


@dataclass
class _Room:
    """How many tiles the device's memory takes at once, as far as is known."""

    tiles: int


@torch.inference_mode()
def _forward(
    encoder: Encode, tiles: Tensor, batch_tiles: int, machine: Machine, room: _Room
) -> NDArray[np.float32]:
    batch = to_input(tiles, machine.device)
    if len(tiles) < batch_tiles:
        batch = torch.cat([batch, batch.new_zeros(batch_tiles - len(tiles), *batch.shape[1:])])
    with machine.autocast():
        features = _encoded(encoder, batch.contiguous(memory_format=torch.channels_last), room)
    rows: NDArray[np.float32] = features[: len(tiles)].float().cpu().numpy()
    return rows


def _encoded(encoder: Encode, batch: Tensor, room: _Room) -> Tensor:
    """The encoder's output of `batch`, in parts of `room.tiles`, which are halved until they
    fit.
    """
    while True:
        try:
            parts = [
                encoder(batch[start : start + room.tiles])
                for start in range(0, len(batch), room.tiles)
            ]
        except torch.OutOfMemoryError:
            if room.tiles == 1:
                raise EncoderError(
                    f"not even one tile of {tuple(batch.shape[1:])} fits into the memory of"
                    f" {batch.device}; use a smaller encoder or device: cpu"
                ) from None
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).splitlines()[0]
            raise EncoderError(
                f"embed.compile=true, but torch cannot compile the encoder here ({reason}); install"
                " a C++ compiler, or set it to false"
            ) from error
        else:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        room.tiles = (room.tiles + 1) // 2  # after the handler: what failed is freed by then
        print(
            f"out of memory: the encoder now takes {room.tiles} of a batch of {len(batch)} tiles at"
            " once; lower embed.batch_tiles",
            flush=True,
        )
