"""Tiles that are read while the encoder is busy."""

import threading

import numpy as np
import pytest

from hnm.errors import TableError
from hnm.learning.read_ahead import read_ahead


def test_batches_come_in_order_and_no_more_than_asked_for_are_read_ahead() -> None:
    read: list[int] = []
    lock = threading.Lock()

    def tiles(rows: np.ndarray) -> np.ndarray:
        with lock:
            read.append(int(rows[0]))
        return np.full((1, 2, 2, 3), rows[0], np.uint8)

    batches = read_ahead(tiles, [np.array([number]) for number in range(9)], ahead=2)
    for number, (rows, pixels) in enumerate(batches):
        assert rows.tolist() == [number] and pixels.unique().tolist() == [number]
        assert len(read) <= number + 3
    assert sorted(read) == list(range(9))


def test_a_tile_that_cannot_be_read_is_told_to_the_trainer() -> None:
    def torn(rows: np.ndarray) -> np.ndarray:
        raise TableError("tile 3 is no JPEG image")

    with pytest.raises(TableError, match="tile 3 is no JPEG image"):
        next(read_ahead(torn, [np.array([3])]))
