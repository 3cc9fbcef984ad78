"""What a mined set says of itself: by hand, and against the chance in plain loops."""

import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm import params
from hnm.mining.audit import slide_supply, summarise
from hnm.mining.select import mine
from hnm.tables import MINED
from tests.support.scores import labels_of, scores_of

PATIENTS = {"n1": "a", "n2": "b", "n3": "b", "p1": "c"}
SCORES = scores_of(
    {"n1": [0.93, 0.82, 0.71, 0.04], "n2": [0.61, 0.06], "n3": [0.41], "p1": [0.91, 0.83, 0.2]}
)
LABELS = labels_of({"n1": 0, "n2": 0, "n3": 0, "p1": 1})


def test_a_summary_by_hand() -> None:
    section = params.Mining(
        policy="hard",
        positive_fraction=1.0,
        negative_fraction=1.0,
        max_slide_share=0.4,
        max_patient_share=0.4,
    )
    mined = mine(SCORES, LABELS, section, 1, patients=PATIENTS)
    supply = slide_supply(mined.tiles, SCORES, LABELS, PATIENTS, section)
    summary = summarise(mined, MINED.empty(), supply, SCORES, LABELS, section, 1)
    # of 7 negative tiles a slide or patient supplies ceil(2.8) = 3; the positive slide's cap is
    # ceil(0.8) = 1
    assert summary["hard_negative"] == {
        "candidates": 7,
        "tiles": 6,
        "short_of_budget": 1,
        "passed_over": {},
        "candidate_histogram": [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        "score_histogram": [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        "slides": 3,
        "patients": 2,
        "largest_slide_share": 0.5,
        "largest_patient_share": 0.5,
        "highest_score": 0.93,
        "median_score": 0.66,
        "lowest_score": 0.06,
    }
    assert summary["positive"]["candidates"] == 2 and summary["positive"]["short_of_budget"] == 1
    assert (summary["round"], summary["policy"], summary["suspect_slides"]) == (1, "hard", [])
    by_slide = supply.set_index("slide_id")
    assert by_slide["candidates"].to_dict() == {"n1": 4, "n2": 2, "n3": 1, "p1": 2}
    assert by_slide["mined"].to_dict() == {"n1": 3, "n2": 2, "n3": 1, "p1": 1}
    assert by_slide["share"].to_dict() == {"n1": 0.5, "n2": 0.333333, "n3": 0.166667, "p1": 1.0}
    assert by_slide["patient_share"].to_dict() == {
        "n1": 0.5,
        "n2": 0.5,
        "n3": 0.5,
        "p1": 1.0,
    }  # n2 and n3 are one patient's
    assert by_slide["patient_id"].to_dict() == PATIENTS


def test_a_round_that_mines_nothing_has_a_summary_too() -> None:
    section = params.Mining(policy="none")
    mined = mine(SCORES, LABELS, section, 1)
    supply = slide_supply(mined.tiles, SCORES, LABELS, PATIENTS, section)
    summary = summarise(mined, MINED.empty(), supply, SCORES, LABELS, section, 1)
    assert summary["hard_negative"]["tiles"] == 0 and summary["hard_negative"]["candidates"] == 7
    assert (
        summary["hard_negative"]["short_of_budget"] == summary["positive"]["short_of_budget"] == 0
    )
    assert supply["share"].tolist() == [0.0] * 4
    json.dumps(summary, allow_nan=False)


def test_what_semi_hard_skips_is_not_missing_from_its_budget() -> None:
    section = params.Mining(
        policy="semi_hard",
        negative_fraction=0.5,
        skip_fraction=0.7,
        max_slide_share=1,
        max_patient_share=1,
    )
    mined = mine(SCORES, LABELS, section, 1, patients=PATIENTS)
    told = summarise(
        mined,
        MINED.empty(),
        slide_supply(mined.tiles, SCORES, LABELS, PATIENTS, section),
        SCORES,
        LABELS,
        section,
        1,
    )["hard_negative"]
    assert (told["candidates"], told["tiles"], told["short_of_budget"]) == (
        7,
        2,
        0,
    )  # 5 of 7 are above the band, the budget is 4


def many(
    odd: float, slides: int = 20, tiles: int = 40
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Negative slides of `tiles` tiles with even scores; the tiles of n07 score `odd` more."""
    draw = np.random.default_rng(3)
    scores = {
        f"n{i:02d}": (draw.uniform(0.1, 0.5, tiles) + (odd if i == 7 else 0)).tolist()
        for i in range(slides)
    }
    return (
        scores_of({**scores, "p": [0.9]}),
        labels_of({**dict.fromkeys(scores, 0), "p": 1}),
        {slide_id: slide_id for slide_id in [*scores, "p"]},
    )


def supply_of(odd: float) -> pd.DataFrame:
    scores, labels, patients = many(odd)
    section = params.Mining(policy="hard", negative_fraction=0.2)
    return slide_supply(
        mine(scores, labels, section, 1).tiles, scores, labels, patients, section
    ).set_index("slide_id")


def test_the_slide_that_supplies_an_odd_share_of_the_hardest_is_suspect() -> None:
    odd = supply_of(0.4)
    assert odd.index[odd["suspect"]].tolist() == ["n07"]
    assert odd.loc["n07", ["hardest", "expected"]].tolist() == [
        40,
        2.0,
    ]  # 5 % of 800 tiles are 40, spread over 20 slides of equal size
    assert not supply_of(0.0)["suspect"].any()
    assert odd.loc["p", ["hardest", "expected", "chance", "suspect"]].tolist() == [
        0,
        0.0,
        1.0,
        False,
    ]


def supply_with(counts: list[int], tiles: int) -> pd.DataFrame:
    """The supply of negative slides of `tiles` tiles each, of which so many are among the
    hardest.
    """
    scores = {
        f"n{i:02d}": [
            0.9 - tile / 1e4 if tile < count else 0.2 - tile / 1e4 for tile in range(tiles)
        ]
        for i, count in enumerate(counts)
    }
    table, labels = (
        scores_of({**scores, "p": [0.95]}),
        labels_of({**dict.fromkeys(scores, 0), "p": 1}),
    )
    patients = {slide_id: slide_id for slide_id in [*scores, "p"]}
    supply = slide_supply(
        MINED.empty(), table, labels, patients, params.Mining(policy="none")
    ).set_index("slide_id")
    assert supply["hardest"].tolist() == [*counts, 0]
    return supply


@pytest.mark.parametrize(("most", "suspect"), [(7, False), (14, True)])
def test_the_chance_is_that_of_any_slide_of_the_cohort(most: int, suspect: bool) -> None:
    """Of 50 slides some slide has 7 of the 100 hardest tiles by chance (50 x 0.0034 > 0.01), but
    none has 14.
    """
    others = [1 + (place < 100 - most - 49) for place in range(49)]  # one or two each
    supply = supply_with([most, *others], 40)
    tail = sum(comb(40, k) * comb(1960, 100 - k) for k in range(most, 41)) / comb(2000, 100)
    assert (
        supply.loc["n00", "chance"] == pytest.approx(tail, rel=1e-5)
        and tail < 0.01
        and (50 * tail < 0.01) == suspect
    )
    assert most >= 3 * supply.loc["n00", "expected"]
    assert supply["suspect"].tolist() == [suspect] + [False] * 50


def test_a_slide_that_supplies_less_than_thrice_what_its_size_explains_is_not_suspect() -> None:
    """Of 1,600 tiles the hardest are 80, 20 of each slide; 59 by chance would be a wonder, but 60
    alone are thrice as many.
    """
    assert supply_with([59, 7, 7, 7], 400)["chance"].iloc[0] < 1e-12
    assert not supply_with([59, 7, 7, 7], 400)["suspect"].any()
    assert supply_with([60, 7, 7, 6], 400)["suspect"].tolist() == [True, False, False, False, False]


def test_negative_slides_without_a_tile_accuse_nobody() -> None:
    positives = SCORES[SCORES["slide_id"] == "p1"]
    supply = slide_supply(
        MINED.empty(), positives, LABELS, PATIENTS, params.Mining(policy="none")
    ).set_index("slide_id")
    assert supply["chance"].tolist() == [1.0] * 4 and not supply["suspect"].any()


def test_two_slides_accuse_nobody() -> None:
    """One of two slides cannot supply thrice what its size explains."""
    scores, labels = (
        scores_of({"n1": [0.9] * 60, "n2": [0.1] * 60, "p": [0.9]}),
        labels_of({"n1": 0, "n2": 0, "p": 1}),
    )
    assert not slide_supply(
        mine(scores, labels, params.Mining(), 1).tiles,
        scores,
        labels,
        {s: s for s in ("n1", "n2", "p")},
        params.Mining(),
    )["suspect"].any()


@settings(max_examples=12)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(0, 99))
def test_the_chance_is_that_of_drawing_without_putting_back(sizes: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    slides = {f"n{i}": draw.uniform(0.01, 0.99, size).tolist() for i, size in enumerate(sizes)}
    scores, labels = (
        scores_of({**slides, "p": [0.9]}),
        labels_of({**dict.fromkeys(slides, 0), "p": 1}),
    )
    supply = slide_supply(
        MINED.empty(), scores, labels, {s: s for s in [*slides, "p"]}, params.Mining()
    ).set_index("slide_id")
    total = sum(sizes)
    hardest = round(0.05 * total)
    for slide_id, size in zip(slides, sizes, strict=True):
        found = supply.loc[slide_id, "hardest"]
        tail = sum(
            comb(size, k) * comb(total - size, hardest - k) for k in range(found, hardest + 1)
        ) / comb(total, hardest)
        assert supply.loc[slide_id, "chance"] == pytest.approx(tail, rel=1e-5)
    assert supply["hardest"].sum() == hardest
