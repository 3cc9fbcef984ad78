"""The reading and decoding of tiles in the background while the encoder computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = TypeVar("Batch")


def read_ahead(
    read: Callable[[Batch], NDArray[np.uint8]], batches: Iterable[Batch], *, ahead: int = 4
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields each batch with its tiles, in order. Up to `ahead` further batches are read, each by a
    thread, while the caller is busy with one.

    One thread would not be enough for a GPU, which embeds a tile by a network of the size of
    ResNet-50 before the next tile is decoded.
    """
    with ThreadPoolExecutor(max_workers=ahead) as pool:
        waiting: deque[tuple[Batch, Future[NDArray[np.uint8]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(read, batch)))
            if len(waiting) > ahead:
                yield _arrived(waiting)
        while waiting:
            yield _arrived(waiting)


def _arrived(waiting: deque[tuple[Batch, Future[NDArray[np.uint8]]]]) -> tuple[Batch, Tensor]:
    batch, tiles = waiting.popleft()
    return batch, torch.from_numpy(tiles.result())
