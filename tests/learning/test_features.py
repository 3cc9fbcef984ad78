"""Features of a slide on disk."""

from pathlib import Path

import numpy as np
import pytest

from hnm.errors import TableError
from hnm.learning import features


def test_some_tiles_in_any_order(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float16).reshape(6, 2)
    features.write(values, np.zeros((6, 2), np.int64), tmp_path / "s.h5")
    read = features.read(tmp_path / "s.h5", np.array([4, 1, 4]))
    assert read.tolist() == [[8, 9], [2, 3], [8, 9]] and read.dtype == np.float32
    assert features.read(tmp_path / "s.h5").tolist() == values.tolist()


def test_a_feature_that_is_not_finite_is_named_by_its_tile(tmp_path: Path) -> None:
    features.write(
        np.float32([[1, 2], [3, 4], [np.inf, 0]]), np.zeros((3, 2), np.int64), tmp_path / "s.h5"
    )
    assert features.read(tmp_path / "s.h5", np.array([1, 0])).tolist() == [[3, 4], [1, 2]]
    with pytest.raises(TableError, match=r"s.h5: the feature of tile 2 is not finite"):
        features.read(tmp_path / "s.h5", np.array([1, 2]))


def test_a_tile_that_the_file_does_not_hold_is_an_error(tmp_path: Path) -> None:
    features.write(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.int64), tmp_path / "s.h5")
    with pytest.raises(
        TableError,
        match=(
            r"s.h5 holds 3 tiles, not tile 3; it is of another index of tiles, run the stage embed"
            r" again"
        ),
    ):
        features.read(tmp_path / "s.h5", np.array([0, 3]))


def test_features_whose_squares_overflow_are_finite(tmp_path):
    rows = np.array([[1e30, -3e38], [2e25, 0.5]], np.float32)
    features.write(rows, np.zeros((2, 2), np.int64), tmp_path / "s.h5")
    assert np.array_equal(features.read(tmp_path / "s.h5"), rows)
