"""The guarded choice of candidates: against plain loops, and what it reads."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm.mining import guards, similarity
from hnm.mining.guards import Caps, GuardedChoice, Guards

LIMIT = 0.8765  # no cosine of small whole numbers


@st.composite
def cases(draw: st.DrawFn) -> tuple[pd.DataFrame, np.ndarray, Caps, int]:
    """Candidates with an index of their own, a whole-number feature and a flaw each, caps, and how
    many to take.
    """
    count = draw(st.integers(1, 24))
    slides = draw(st.lists(st.sampled_from("abcde"), min_size=count, max_size=count))
    flaws = draw(st.lists(st.sampled_from(["", "", "", "pen"]), min_size=count, max_size=count))
    features = np.array(
        draw(st.lists(st.tuples(*[st.integers(-2, 3)] * 3), min_size=count, max_size=count)), float
    )
    frame = pd.DataFrame(
        {
            "slide_id": slides,
            "patient_id": [{"a": "x", "b": "x"}.get(s, s) for s in slides],
            "tile": range(count),
            "flaw": flaws,
        }
    )
    caps = Caps(draw(st.integers(1, 8)), draw(st.integers(1, 12)))
    return frame.set_index(np.arange(count) * 7 % 25), features, caps, draw(st.integers(0, 24))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return float(one @ other) / lengths if lengths else 0.0


@settings(max_examples=40)
@given(cases(), st.integers(0, 10))
def test_against_plain_loops(case: tuple[pd.DataFrame, np.ndarray, Caps, int], first: int) -> None:
    frame, features, caps, count = case
    expected: list[int] = []
    refused: dict[int, str] = {}
    for goal in (
        min(first, count),
        count,
    ):  # as the policy `mixed` goes: a part, then the rest in another order
        for tile in (
            range(len(frame)) if goal != count or first >= count else reversed(range(len(frame)))
        ):
            slides, patients = (
                Counter(frame[column].iloc[t] for t in expected)
                for column in ("slide_id", "patient_id")
            )
            if len(expected) == goal or tile in expected or tile in refused:
                continue
            if (
                slides[frame["slide_id"].iloc[tile]] == caps.slide
                or patients[frame["patient_id"].iloc[tile]] == caps.patient
            ):
                continue
            if frame["flaw"].iloc[tile]:
                refused[tile] = "pen"
            elif any(cosine(features[tile], features[t]) > LIMIT for t in expected):
                refused[tile] = "near_duplicate"
            else:
                expected.append(tile)
    going = GuardedChoice(
        frame,
        caps,
        Guards(lambda tiles: tiles["flaw"].tolist(), lambda _, tiles: features[tiles], LIMIT),
    )
    going.take(frame, min(first, count))
    going.take(frame if first >= count else frame.iloc[::-1], count)
    assert going.taken["tile"].tolist() == expected
    assert dict(zip(going.refused["tile"], going.refused["reason"], strict=True)) == refused


def plain(count: int) -> pd.DataFrame:
    return pd.DataFrame({"slide_id": "a", "patient_id": "x", "tile": range(count)})


@pytest.mark.parametrize(("longest", "shortest"), [(1, 1), (5, 2), (1024, 32)])
def test_the_length_of_a_step_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, longest: int, shortest: int
) -> None:
    monkeypatch.setattr(guards, "LONGEST_STEP", longest)
    monkeypatch.setattr(guards, "SHORTEST_STEP", shortest)
    features = np.random.default_rng(5).normal(size=(60, 3))
    going = GuardedChoice(
        plain(60),
        Caps(60, 60),
        Guards(features=lambda _, tiles: features[tiles], max_similarity=0.9),
    )
    going.take(plain(60), 20)
    expected: list[int] = []
    for tile in range(60):
        if len(expected) < 20 and all(cosine(features[tile], features[t]) <= 0.9 for t in expected):
            expected.append(tile)
    assert len(expected) == 20 and going.taken["tile"].tolist() == expected
    assert going.refused["tile"].tolist() == [
        tile for tile in range(expected[-1]) if tile not in expected
    ]


@pytest.mark.parametrize("longest", [1, 1024])
def test_a_candidate_as_like_a_taken_one_as_the_limit_says_is_no_near_duplicate(
    monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """The cosine of (2, 0, 0, 0) and (1, 1, 1, 1) is one half, exactly; they are looked at
    together, and one after the other.
    """
    monkeypatch.setattr(guards, "LONGEST_STEP", longest)
    features = np.array([[2.0, 0, 0, 0], [1, 1, 1, 1]])
    for limit, taken in ((0.5, [0, 1]), (0.4999, [0])):
        going = GuardedChoice(
            plain(2),
            Caps(2, 2),
            Guards(features=lambda _, tiles: features[tiles], max_similarity=limit),
        )
        going.take(plain(2), 2)
        assert going.taken["tile"].tolist() == taken


def test_no_more_is_read_than_the_choice_comes_to() -> None:
    read: list[int] = []

    def flaws_of(tiles: pd.DataFrame) -> list[str]:
        read.extend(tiles["tile"])
        return ["pen" if tile < 40 else "" for tile in tiles["tile"]]

    going = GuardedChoice(plain(5000), Caps(50, 50), Guards(flaws=flaws_of))
    going.take(plain(5000), 50)
    assert going.taken["tile"].tolist() == list(range(40, 90)) and len(going.refused) == 40
    assert read == list(range(90))  # 50 that the budget wants, then the 40 that are missing


def test_tiles_of_full_slides_are_not_read() -> None:
    frame = pd.concat(
        [plain(200), plain(3).assign(slide_id="b", patient_id="y")], ignore_index=True
    )
    read: list[tuple[str, int]] = []

    def features_of(slide_id: str, tiles: np.ndarray) -> np.ndarray:
        read.extend((slide_id, int(tile)) for tile in tiles)
        return np.eye(200)[tiles]

    going = GuardedChoice(frame, Caps(2, 2), Guards(features=features_of, max_similarity=0.99))
    going.take(frame, 4)
    assert going.taken["slide_id"].tolist() == ["a", "a", "b"] and going.refused[
        "tile"
    ].tolist() == [
        0,
        1,
    ]  # b's first two are a's
    assert (
        len([slide_id for slide_id, _ in read if slide_id == "a"]) == 32
    )  # the first step, no further one


def test_the_likest_is_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    features = {"a": draw.normal(size=(7, 4)), "b": draw.normal(size=(5, 4))}
    tiles = pd.DataFrame({"slide_id": ["b", "a", "b", "a", "a"], "tile": [4, 0, 1, 6, 2]})
    others = pd.DataFrame({"slide_id": ["a", "b", "a", "b"], "tile": [1, 3, 5, 0]})
    expected = [
        max(cosine(features[s][t], features[z][u]) for z, u in others.itertuples(index=False))
        for s, t in tiles.itertuples(index=False)
    ]
    for block in (1, 2, 100):
        monkeypatch.setattr(similarity, "BLOCK", block)
        assert similarity.likest(
            tiles, others, lambda slide_id, numbers: features[slide_id][numbers]
        ) == pytest.approx(expected, abs=1e-6)
    assert (
        similarity.likest(
            tiles, others.iloc[:0], lambda slide_id, numbers: features[slide_id][numbers]
        ).tolist()
        == [-1.0] * 5
    )


def test_a_feature_of_zeros_is_like_no_other() -> None:
    alike = similarity.cosines(
        similarity.units(np.array([[0.0, 0.0], [3.0, 4.0]])),
        similarity.units(np.array([[0.0, 0.0], [4.0, 3.0], [-6.0, -8.0]])),
    )
    assert alike == pytest.approx(np.array([[0, 0, 0], [0, 0.96, -1]]), abs=1e-6)
