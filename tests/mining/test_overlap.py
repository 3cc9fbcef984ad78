"""Two mined sets compared, by hand and against sets."""

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.mining.overlap import overlap_by_slide, overlap_of

TILES = st.sets(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(["positive", "hard_negative"]),
        st.integers(0, 4),
    )
)


def table(tiles: set[tuple[str, str, int]]) -> pd.DataFrame:
    return pd.DataFrame(sorted(tiles), columns=["slide_id", "role", "tile"]).astype(
        {"slide_id": "str", "role": "str", "tile": "int32"}
    )


def test_by_hand() -> None:
    before = table(
        {
            ("a", "hard_negative", 0),
            ("a", "hard_negative", 1),
            ("b", "hard_negative", 4),
            ("c", "positive", 2),
        }
    )
    after = table({("a", "hard_negative", 1), ("a", "hard_negative", 3), ("c", "hard_negative", 2)})
    overlap = overlap_of(before, after)
    assert (overlap.stayed, overlap.came, overlap.went, overlap.jaccard, overlap.churn) == (
        1,
        2,
        3,
        1 / 6,
        2 / 3,
    )
    assert overlap_by_slide(before, after).to_dict("split")["data"] == [
        ["a", "hard_negative", 1, 1, 1],
        ["b", "hard_negative", 0, 0, 1],
        ["c", "hard_negative", 0, 1, 0],
        ["c", "positive", 0, 0, 1],
    ]


@settings(max_examples=20)
@given(TILES, TILES)
def test_against_sets(before: set[tuple[str, str, int]], after: set[tuple[str, str, int]]) -> None:
    overlap = overlap_of(table(before), table(after))
    assert (overlap.stayed, overlap.came, overlap.went) == (
        len(before & after),
        len(after - before),
        len(before - after),
    )
    assert overlap.jaccard == (
        len(before & after) / len(before | after) if before | after else None
    )
    assert overlap.churn == (len(after - before) / len(after) if after else None)
