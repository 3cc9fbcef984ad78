"""Tiles that show nearly the same place, against every pair of rectangles."""

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hnm.mining.twins import twins


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 99),
    st.integers(0, 49),
    st.sampled_from([1.0, 0.5]),
    st.integers(0, 2**32),
)
@example(2, 2, 50, 24, 0.5, 1)
@example(2, 2, 49, 25, 0.5, 1)
@example(3, 1, 20, 10, 1.0, 1)
def test_twins_are_the_later_of_each_pair_that_shares_more_than_half_of_both_sides(
    columns, rows, right, down, aspect, seed
):
    """Tiles of 100 x 100 or 100 x 50 pixels; the last column begins `right` and the last row `down`
    pixels behind the one before.
    """
    height = round(100 * aspect)
    x, y = (
        [100 * n for n in range(columns)] + [100 * (columns - 1) + right],
        [height * n for n in range(rows)] + [height * (rows - 1) + down],
    )
    corners = sorted({(b, a) for a in x for b in y})
    slide = pd.DataFrame(
        {
            "slide_id": "s",
            "tile": range(len(corners)),
            "x": [a for _, a in corners],
            "y": [b for b, _ in corners],
            "side": 100,
        }
    )
    expected = set()
    for i, (top, left) in enumerate(corners):
        for other_top, other_left in corners[:i]:
            if 100 - abs(left - other_left) > 50 and height - abs(top - other_top) > height / 2:
                expected.add(("s", i))
    other = slide.assign(slide_id="r", x=slide["x"] * 1000, y=slide["y"] * 1000)
    shuffled = pd.concat([slide, other]).sample(frac=1, random_state=np.random.default_rng(seed))
    found = twins(shuffled, {"s": aspect, "r": aspect})
    assert set(zip(found["slide_id"], found["tile"], strict=True)) == expected
    assert len(found) == len(expected)


def test_no_tiles_have_no_twins():
    none = pd.DataFrame(
        {"slide_id": pd.Series(dtype=str), "tile": [], "x": [], "y": [], "side": []}
    )
    assert twins(none, {}).empty
