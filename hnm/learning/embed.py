"""The features of the tiles of a cohort, by the forward pass of the encoder."""

from bisect import bisect_right
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

ReadRange = Callable[[int, int, int], NDArray[np.uint8]]
"""(slide, first tile, end) -> RGB tiles `(tiles, height, width, 3)` of the slide."""

Encode = Callable[[Tensor], Tensor]
"""Input tiles `(tiles, 3, height, width)` -> features `(tiles, features)`."""


def embed_tiles(
    encoder: TileEncoder,
    counts: Sequence[int],
    read: ReadRange,
    *,
    batch_tiles: int,
    machine: Machine,
    compiled: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """Yields the features `(tiles, features)` of each slide, in order.

    Batches cross the borders of slides and all have one size; the last one is filled up with zeros.
    So a feature does not depend on which slides are embedded beside it, but for its last bits where
    a processor's kernels round by the place in a batch. The next batches are read and decoded while
    the encoder runs. Where a batch does not fit into the device's memory, the encoder takes it, and
    all later ones, in halves.

    Args:
        encoder: is put on the machine's device and into evaluation mode.
        counts: the number of tiles of each slide, at least 1.
        read: reads the pixels.
        batch_tiles: the size of a batch.
        machine: where, and in which precision, the encoder runs.
        compiled: whether `torch.compile` compiles the encoder for this machine first.

    Raises:
        EncoderError: not even one tile fits into the device's memory, or the encoder cannot be
            compiled here.
    """
    encoder = encoder.to(machine.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    run = torch.compile(encoder) if compiled else encoder
    ends = np.cumsum(counts).tolist()
    total = ends[-1] if ends else 0
    borders = [*range(0, total, batch_tiles), total]

    def read_batch(batch: tuple[int, int]) -> NDArray[np.uint8]:
        return _read_batch(read, counts, ends, *batch)

    room = _Room(batch_tiles)
    waiting: list[NDArray[np.float32]] = []
    slide = 0
    for _, tiles in read_ahead(read_batch, pairwise(borders)):
        waiting.append(_forward(run, tiles, batch_tiles, machine, room))
        if slide == len(counts) or sum(map(len, waiting)) < counts[slide]:
            continue
        features = np.concatenate(waiting)
        while slide < len(counts) and len(features) >= counts[slide]:
            yield features[: counts[slide]]
            features = features[counts[slide] :]
            slide += 1
        waiting = [features]


def _read_batch(
    read: ReadRange, counts: Sequence[int], ends: Sequence[int], first: int, end: int
) -> NDArray[np.uint8]:
    """Returns the tiles from `first` to `end`, counted over all slides; `ends` are the ends of the
    slides in that count.
    """
    parts = []
    for slide in range(bisect_right(ends, first), bisect_right(ends, end - 1) + 1):
        start = ends[slide] - counts[slide]
        parts.append(read(slide, max(first - start, 0), min(end, ends[slide]) - start))
    return np.concatenate(parts)


@dataclass
class _Room:
    """The number of tiles that the encoder takes at once. It falls when the memory of the device
    overflows.
    """

    tiles: int


@torch.inference_mode()
def _forward(
    encoder: Encode, tiles: Tensor, batch_tiles: int, machine: Machine, room: _Room
) -> NDArray[np.float32]:
    """Returns the features of `tiles`, computed in a batch of `batch_tiles`."""
    padding = tiles.new_zeros(batch_tiles - len(tiles), *tiles.shape[1:])
    batch = to_input(torch.cat([tiles, padding]), machine.device)
    with machine.autocast():
        features = _encoded(encoder, batch, room)
    rows: NDArray[np.float32] = features[: len(tiles)].float().cpu().numpy()
    return rows


def _encoded(encoder: Encode, batch: Tensor, room: _Room) -> Tensor:
    """Returns the features of `batch`, computed in parts of `room.tiles`, which is halved until a
    part fits.
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
