"""What a chosen threshold calls, held against the calls that were counted when it was chosen."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnm.evidence.numbers.pooling import out_of_fold, read_predictions, write_predictions
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import choose_threshold
from hnm.evidence.numbers.threshold import ABOVE_ALL, called, midway

SINGLE = st.floats(0, 1, width=32)
ONE = np.float32(1)
BELOW_ONE = np.nextafter(ONE, np.float32(0))


def predictions(labels: list[int], scores: list[float]) -> Predictions:
    return Predictions(
        np.array(labels),
        np.array(scores, dtype=np.float64),
        np.array([f"p{i}" for i in range(len(labels))]),
    )


def best_calls(labels: list[int], scores: list[float]) -> list[bool]:
    """The calls of the highest Youden index by trying every set that a threshold can call, the
    smaller set at ties.
    """
    best, chosen = -1.0, [False] * len(scores)
    for cut in [2.0, *sorted(set(scores), reverse=True)]:
        calls = [score >= cut for score in scores]
        hits = sum(call for call, label in zip(calls, labels, strict=True) if label) / labels.count(
            1
        )
        alarms = sum(
            call for call, label in zip(calls, labels, strict=True) if not label
        ) / labels.count(0)
        if hits - alarms > best + 1e-12:
            best, chosen = hits - alarms, calls
    return chosen


@given(
    st.lists(
        st.tuples(st.integers(0, 1), SINGLE | st.sampled_from([0.0, 1.0, float(BELOW_ONE)])),
        min_size=2,
        max_size=12,
    )
)
@example([(0, 0.0)] * 6 + [(0, 0.5)] * 3 + [(1, 1.0), (1, 0.5), (1, 1.0)])
def test_scores_are_called_as_in_the_choice_in_every_precision_and_from_every_file(
    items: list[tuple[int, float]],
) -> None:
    labels, scores = ([item[i] for item in items] for i in (0, 1))
    if len(set(labels)) < 2:
        return
    threshold = choose_threshold(predictions(labels, scores))
    wanted = best_calls(labels, scores)
    single = np.array(scores, dtype=np.float32)
    assert called(np.array(scores), threshold).tolist() == wanted
    assert (
        called(single, threshold).tolist()
        == called(pd.Series(single), threshold).tolist()
        == wanted
    )
    assert (
        single >= np.float32(threshold)
    ).tolist() == wanted  # as NumPy compares where nobody asks for more
    decimals = [
        repr(score.item()) if isinstance(score, np.float64) else str(score) for score in single
    ]
    assert [float(text) >= float(json.loads(json.dumps(threshold))) for text in decimals] == wanted
    table = io.StringIO()
    csv.writer(table).writerow([threshold])
    assert [bool(called(score, float(table.getvalue()))) for score in scores] == wanted


@pytest.mark.parametrize("highest", [ONE, BELOW_ONE, np.float32(0.25), np.float32(0)])
def test_where_the_best_is_to_call_nothing_positive_nothing_is(highest: np.float32) -> None:
    threshold = choose_threshold(predictions([0, 1], [float(highest), 0.0]))
    assert not called(highest, threshold) and highest < threshold < ABOVE_ALL
    assert np.float32(threshold) > highest


def test_a_score_of_0_is_called_positive_where_everything_was() -> None:
    assert midway(0.0, 0.0) == 0.0 and called(np.float32(0), 0.0)


@given(st.lists(SINGLE, min_size=2, max_size=2, unique=True).map(sorted))
def test_midway_parts_any_two_scores(pair: list[float]) -> None:
    lower, upper = pair
    assert lower < midway(lower, upper) <= upper
    assert midway(lower, upper) == pytest.approx((lower + upper) / 2, rel=1e-15)


def test_neighbours_are_parted_in_single_precision() -> None:
    """Of every second pair the middle rounds down, to the score that is to be negative."""
    first = np.float32(0.7)
    row = [first]
    for _ in range(6):
        row.append(np.nextafter(row[-1], ONE))
    rounded_down = 0
    for lower, upper in pairwise(row):
        threshold = midway(float(lower), float(upper))
        assert (lower >= np.float32(threshold), upper >= np.float32(threshold)) == (False, True)
        rounded_down += np.float32((float(lower) + float(upper)) / 2) == lower
    assert rounded_down == 3
    assert midway(0.5, float(np.nextafter(0.5, 1))) == np.nextafter(
        0.5, 1
    )  # of neighbours in double precision


def test_scores_are_compared_in_double_precision() -> None:
    single = np.array([0.7, 0.1], dtype=np.float32)  # 0.699999988… and 0.100000001…
    assert called(single, 0.7).tolist() == called(pd.Series(single), 0.7).tolist() == [False, False]
    assert called(single, 0.1).tolist() == [True, True]


def test_a_fold_calls_neighbours_as_it_chose_and_its_file_keeps_the_threshold(
    tmp_path: Path,
) -> None:
    """Nine digits, which tell scores apart, do not tell a threshold from the scores beside it."""
    upper = np.nextafter(np.float32(0.7), np.float32(0))
    lower = np.nextafter(upper, np.float32(0))
    rows = [
        (f"{split}{label}", f"{split}{label}", split, label, 0, score)
        for split in ("validation", "test")
        for label, score in ((0, lower), (1, upper))
    ]
    held_out = pd.DataFrame(
        rows, columns=["slide_id", "patient_id", "split", "label", "round", "score"]
    ).astype({"score": np.float32})
    table = out_of_fold(held_out, seed=0, fold=0)
    assert table["called"].tolist() == table["label"].tolist() == [0, 1]
    write_predictions(table, tmp_path / "slides.csv")
    again = read_predictions(tmp_path / "slides.csv")
    assert again["threshold"].tolist() == table["threshold"].tolist()
    assert called(again["score"], again["threshold"][0]).tolist() == [False, True]
