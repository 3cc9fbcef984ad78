"""Mining: by hand, against brute force, and as properties."""

import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnm import params
from hnm.errors import MiningError
from hnm.mining.select import budget, mine, negatives, scorer_of
from hnm.seeds import seed_of
from hnm.tables import MINED, PASSED_OVER
from tests.support.scores import chosen, features_of, labels_of, scores_of

UNCAPPED = {"max_slide_share": 1.0, "max_patient_share": 1.0}
few = settings(
    max_examples=12
)  # an example costs tens of milliseconds, nearly all of them in pandas

SCORES = scores_of(
    {
        "n1": [0.9, 0.2, 0.8],
        "n2": [0.1, 0.85, 0.3],
        "p1": [0.6, 0.95, 0.4, 0.7],
        "p2": [0.5, 0.75],
        "v1": [0.99, 0.98],
    }
)
LABELS = labels_of(
    {"n1": 0, "n2": 0, "p1": 1, "p2": 1}
)  # v1 is a validation slide: it has no train label


def test_mining_by_hand() -> None:
    mined = mine(
        SCORES,
        LABELS,
        params.Mining(
            policy="hard", threshold=0.5, positive_fraction=0.5, negative_fraction=0.5, **UNCAPPED
        ),
        2,
    ).tiles
    # above 0.5: p1 has 0.6, 0.95, 0.7 and p2 has 0.75; the best half of 4 is 2. Half of the 6
    # negative tiles is 3
    assert chosen(mined, "positive") == [("p1", 1), ("p2", 1)]
    assert chosen(mined, "hard_negative") == [("n1", 0), ("n2", 1), ("n1", 2)]
    assert set(mined["round"]) == {2}
    MINED.check(mined, "mined")


def test_no_slide_supplies_more_than_its_share() -> None:
    scores = scores_of(
        {"odd": [0.99, 0.98, 0.97, 0.96], "n1": [0.5, 0.4], "n2": [0.3, 0.2], "p": [0.9]}
    )
    section = params.Mining(policy="hard", negative_fraction=0.5, max_slide_share=0.5)
    mined = mine(scores, labels_of({"odd": 0, "n1": 0, "n2": 0, "p": 1}), section, 1).tiles
    assert chosen(mined, "hard_negative") == [("odd", 0), ("odd", 1), ("n1", 0), ("n1", 1)]


def test_no_patient_supplies_more_than_its_share() -> None:
    scores = scores_of(
        {"n1": [0.99, 0.98], "n2": [0.97, 0.96], "n3": [0.5, 0.4], "n4": [0.3, 0.2], "p": [0.9]}
    )
    labels, section = (
        labels_of({"n1": 0, "n2": 0, "n3": 0, "n4": 0, "p": 1}),
        params.Mining(
            policy="hard", negative_fraction=0.5, max_slide_share=0.5, max_patient_share=0.75
        ),
    )
    mined = mine(
        scores,
        labels,
        section,
        1,
        patients={"n1": "odd", "n2": "odd", "n3": "b", "n4": "c", "p": "d"},
    ).tiles
    assert chosen(mined, "hard_negative") == [
        ("n1", 0),
        ("n1", 1),
        ("n2", 0),
        ("n3", 0),
    ]  # of 4 tiles the patient "odd" supplies 3


def test_a_mined_tile_names_its_policy_and_its_scorer() -> None:
    mined = mine(SCORES, LABELS, params.Mining(policy="mixed", negative_fraction=1.0), 2).tiles
    train = SCORES[
        SCORES["slide_id"].isin(LABELS["slide_id"])
    ]  # tiles of other splits are not mined from, and change no scorer
    assert len(train) < len(SCORES)
    assert set(mined["policy"]) == {"mixed"} and set(mined["scorer"]) == {scorer_of(train)}


def test_another_head_is_another_scorer() -> None:
    swapped = SCORES.assign(logit=SCORES["logit"] * np.float32(1.5))
    assert scorer_of(SCORES) == scorer_of(SCORES.iloc[::-1]) != scorer_of(swapped)
    assert scorer_of(SCORES) != scorer_of(SCORES.iloc[:-1])


def test_ties_go_by_slide_then_tile() -> None:
    scores = scores_of({"b": [0.5, 0.5], "a": [0.5, 0.5], "p": [0.9]})
    mined = mine(
        scores,
        labels_of({"b": 0, "a": 0, "p": 1}),
        params.Mining(policy="hard", negative_fraction=0.75, **UNCAPPED),
        1,
    ).tiles
    assert chosen(mined, "hard_negative") == [("a", 0), ("a", 1), ("b", 0)]


def test_scores_that_are_one_in_single_precision_go_by_their_logits() -> None:
    scores = scores_of({"a": [0.5, 0.5, 0.5], "p": [0.9]})
    surest = scores.assign(
        score=np.float32(1), logit=np.array([20.0, 40.0, 30.0, 50.0], np.float32)
    )
    section = params.Mining(policy="hard", negative_fraction=0.5, **UNCAPPED)
    assert chosen(mine(surest, labels_of({"a": 0, "p": 1}), section, 1).tiles, "hard_negative") == [
        ("a", 1),
        ("a", 2),
    ]


@pytest.mark.parametrize(("round_", "expected"), [(1, 7), (2, 14), (3, 28), (5, 100)])
def test_the_budget_grows_by_round_up_to_everything(round_: int, expected: int) -> None:
    assert budget(0.07, 2.0, round_, 100) == expected


def test_the_schedule_widens_both_roles_by_round() -> None:
    section = params.Mining(
        policy="hard",
        threshold=0.3,
        positive_fraction=0.3,
        negative_fraction=0.2,
        growth=1.5,
        **UNCAPPED,
    )
    mined = [mine(SCORES, LABELS, section, round_).tiles for round_ in (1, 2, 3, 4)]
    # of 6 positive and 6 negative tiles: 0.3, 0.45, 0.675 and all; 0.2, 0.3, 0.45, 0.675
    assert [len(chosen(table, "positive")) for table in mined] == [2, 3, 5, 6]
    assert [len(chosen(table, "hard_negative")) for table in mined] == [2, 2, 3, 5]
    for early, late in pairwise(mined):
        for role in ("positive", "hard_negative"):
            assert chosen(late, role)[: len(chosen(early, role))] == chosen(early, role)


def test_nothing_above_the_threshold_is_an_error_with_the_best_score() -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"no tile of a positive train slide scores above mining.threshold=0.96 \(best: 0.95\);"
            r" lower it or train the head"
        ),
    ):
        mine(SCORES, LABELS, params.Mining(threshold=0.96), 1)


def test_no_negative_slide_is_an_error() -> None:
    with pytest.raises(MiningError, match="no negative train slide has tiles"):
        mine(SCORES, labels_of({"p1": 1}), params.Mining(), 1)


def test_no_positive_slide_is_an_error() -> None:
    with pytest.raises(MiningError, match="there is none"):
        mine(SCORES, labels_of({"n1": 0}), params.Mining(), 1)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame]:
    count = draw(st.integers(2, 6))
    slides = {
        f"s{i}": draw(
            st.lists(
                st.sampled_from([0.125, 0.25, 0.5, 0.625, 0.75, 0.875]), min_size=1, max_size=8
            )
        )
        for i in range(count)
    }
    slides["s1"] = [*slides["s1"], 0.9375]
    return scores_of(slides), labels_of({f"s{i}": i % 2 for i in range(count)})


@few
@given(cohorts(), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 0.9))
def test_mining_is_brute_force(
    cohort: tuple[pd.DataFrame, pd.DataFrame], fraction: float, share: float, threshold: float
) -> None:
    scores, labels = cohort
    section = params.Mining(
        policy="hard",
        threshold=threshold,
        positive_fraction=fraction,
        negative_fraction=fraction,
        max_slide_share=share,
        max_patient_share=1.0,
    )
    mined = mine(scores, labels, section, 1).tiles
    of = dict(zip(labels["slide_id"], labels["label"], strict=True))
    for role, wanted in (("positive", 1), ("hard_negative", 0)):
        pool = [
            (-row.score, row.slide_id, row.tile)
            for row in scores.itertuples()
            if of[row.slide_id] == wanted and (wanted == 0 or row.score > threshold)
        ]
        want = math.ceil(round(fraction * len(pool), 6))
        cap = math.ceil(round(share * want, 6))
        expected: list[tuple[str, int]] = []
        for _, slide_id, tile in sorted(pool):
            if len(expected) < want and sum(s == slide_id for s, _ in expected) < cap:
                expected.append((slide_id, tile))
        assert chosen(mined, role) == expected


def taken_by_hand(
    order: list[tuple[str, int]], want: int, cap: int, taken: list[tuple[str, int]]
) -> list[tuple[str, int]]:
    """`taken`, and what a choice along `order` adds to it until there are `want`, `cap` a slide at
    most.
    """
    for slide_id, tile in order:
        if (
            len(taken) < want
            and (slide_id, tile) not in taken
            and sum(s == slide_id for s, _ in taken) < cap
        ):
            taken = [*taken, (slide_id, tile)]
    return taken


@few
@given(cohorts(), st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 3))
def test_the_other_policies_are_brute_force(
    cohort: tuple[pd.DataFrame, pd.DataFrame],
    fraction: float,
    share: float,
    part: float,
    round_: int,
) -> None:
    scores, labels = cohort
    negative = set(labels.loc[labels["label"] == 0, "slide_id"])
    pool = [
        (-row.score, row.slide_id, row.tile)
        for row in scores.itertuples()
        if row.slide_id in negative
    ]
    hardest = [(slide_id, tile) for _, slide_id, tile in sorted(pool)]
    by_place = sorted(hardest)
    drawn = [
        by_place[i]
        for i in np.random.default_rng(seed_of(4, "mining", round_)).permutation(len(by_place))
    ]
    want = math.ceil(round(fraction * len(pool), 6))
    cap = math.ceil(round(share * want, 6))
    skip = math.ceil(round(part * 0.9 * len(pool), 6))
    expected = {
        "semi_hard": taken_by_hand(hardest[skip:], want, cap, []),
        "random": taken_by_hand(drawn, want, cap, []),
        "mixed": taken_by_hand(
            drawn, want, cap, taken_by_hand(hardest, math.ceil(round(part * want, 6)), cap, [])
        ),
        "all": hardest,
    }
    limits = {
        "negative_fraction": fraction,
        "max_slide_share": share,
        "max_patient_share": 1.0,
        "skip_fraction": part * 0.9,
        "hard_share": part,
    }
    for policy, tiles in expected.items():
        section = params.Mining(policy=policy, threshold=0.0, seed=4, **limits)
        if not tiles:  # semi_hard has skipped them all
            with pytest.raises(
                MiningError,
                match=r"no tile is left to be hard negatives; lower mining\.skip_fraction",
            ):
                mine(scores, labels, section, round_)
            continue
        mined = mine(scores, labels, section, round_).tiles
        assert chosen(mined, "hard_negative") == sorted(tiles, key=hardest.index), policy


@settings(max_examples=6)
@given(cohorts(), st.integers(0, 1000))
def test_mining_does_not_depend_on_the_order_of_rows(
    cohort: tuple[pd.DataFrame, pd.DataFrame], seed: int
) -> None:
    scores, labels = cohort
    shuffled = scores.iloc[np.random.default_rng(seed).permutation(len(scores))]
    section = params.Mining(policy="hard", threshold=0.1, negative_fraction=0.3)
    pd.testing.assert_frame_equal(
        mine(scores, labels, section, 1).tiles, mine(shuffled, labels, section, 1).tiles
    )


@few
@given(cohorts())
def test_a_higher_threshold_mines_a_subset_of_the_positives_when_all_are_taken(
    cohort: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    scores, labels = cohort
    low, high = (
        set(
            chosen(
                mine(
                    scores, labels, params.Mining(threshold=t, positive_fraction=1.0, **UNCAPPED), 1
                ).tiles,
                "positive",
            )
        )
        for t in (0.2, 0.7)
    )
    assert high <= low


MANY = scores_of(
    {
        "n1": [0.9, 0.2, 0.8, 0.15],
        "n2": [0.1, 0.85, 0.3, 0.25],
        "n3": [0.7, 0.6, 0.5, 0.4],
        "p1": [0.95],
    }
)
MANY_LABELS = labels_of({"n1": 0, "n2": 0, "n3": 0, "p1": 1})


def mined_by(**section: object) -> list[tuple[str, int]]:
    return chosen(
        mine(
            MANY,
            MANY_LABELS,
            params.Mining(**{**UNCAPPED, "negative_fraction": 0.25, **section}),
            1,
        ).tiles,
        "hard_negative",
    )


def test_random_draws_the_same_tiles_whatever_the_head() -> None:
    other = MANY.assign(score=1 - MANY["score"] / 2, logit=-MANY["logit"])
    section = params.Mining(
        **{**UNCAPPED, "negative_fraction": 0.25, "policy": "random", "seed": 5}
    )
    own, turned = (
        chosen(mine(scores, MANY_LABELS, section, 1).tiles, "hard_negative")
        for scores in (MANY, other)
    )
    assert len(own) == 3 and set(own) == set(turned)


def test_a_policy_or_a_budget_that_leaves_no_tile_is_refused_with_its_param() -> None:
    scores, labels = scores_of({"n": [0.2], "p": [0.9, 0.8]}), labels_of({"n": 0, "p": 1})
    with pytest.raises(
        MiningError, match=r"no tile is left to be hard negatives; lower mining\.skip_fraction"
    ):
        mine(scores, labels, params.Mining(policy="semi_hard"), 1)
    with pytest.raises(
        MiningError, match=r"no tile is left to be positives; raise mining\.positive_fraction"
    ):
        mine(scores, labels, params.Mining(policy="hard", positive_fraction=1e-7), 1)
    with pytest.raises(
        MiningError, match=r"no tile is left to be hard negatives; raise mining\.negative_fraction"
    ):
        mine(scores, labels, params.Mining(policy="hard", negative_fraction=1e-7), 1)


def test_semi_hard_passes_over_the_hardest() -> None:
    # of 12 tiles the hardest 2 are n1's 0.9 and n2's 0.85; the next 3 are 0.8, 0.7, 0.6
    assert mined_by(policy="semi_hard", skip_fraction=0.15) == [("n1", 2), ("n3", 0), ("n3", 1)]


def test_mixed_takes_its_share_of_the_hardest_and_the_rest_at_random_from_what_is_left() -> None:
    hardest = mined_by(policy="hard", negative_fraction=0.25)
    for seed in range(3):
        mixed = mined_by(policy="mixed", negative_fraction=0.5, hard_share=0.5, seed=seed)
        assert len(set(mixed)) == 6 and set(hardest) <= set(mixed)
    assert mined_by(policy="mixed", hard_share=1.0) == hardest
    assert mined_by(policy="mixed", hard_share=0.0, seed=3) == mined_by(policy="random", seed=3)


def test_random_draws_evenly_and_anew_in_each_round_and_seed() -> None:
    pool = scores_of({"n": [0.05 + 0.9 * i / 300 for i in range(300)]}).assign(patient_id="p")

    def drawn(seed: int, round_: int) -> set[int]:
        return set(
            negatives(
                pool,
                params.Mining(policy="random", negative_fraction=0.5, seed=seed, **UNCAPPED),
                round_,
            )[0]["tile"]
        )

    draws = [drawn(seed, round_) for seed in (0, 1) for round_ in (1, 2)]
    assert all(
        len(draw) == 150 and 55 <= len([tile for tile in draw if tile >= 150]) <= 95
        for draw in draws
    )  # 75, give or take 4.6 deviations
    assert all(
        55 <= len(one & other) <= 95 for one, other in combinations(draws, 2)
    )  # as two draws that know nothing of each other


def test_all_takes_every_negative_tile_and_none_takes_nothing() -> None:
    assert len(mined_by(policy="all", max_slide_share=0.1)) == 12
    assert mine(MANY, MANY_LABELS, params.Mining(policy="none"), 1).tiles.empty


@few
@given(
    policy=st.sampled_from(["hard", "semi_hard", "mixed", "random"]),
    cohort=cohorts(),
    share=st.floats(0.05, 1),
    patient_share=st.floats(0.05, 1),
    fraction=st.floats(0.05, 1),
)
def test_no_policy_breaks_a_cap_or_the_budget(
    policy: str,
    cohort: tuple[pd.DataFrame, pd.DataFrame],
    share: float,
    patient_share: float,
    fraction: float,
) -> None:
    scores, labels = cohort
    limits = {
        "positive_fraction": fraction,
        "negative_fraction": fraction,
        "max_slide_share": share,
        "max_patient_share": patient_share,
    }
    section = params.Mining(
        policy=policy, threshold=0.0, hard_share=1.0, skip_fraction=0.0, **limits
    )
    patients = {slide_id: f"patient{int(slide_id[1:]) // 4}" for slide_id in labels["slide_id"]}
    mined = mine(scores, labels, section, 1, patients=patients).tiles
    for role, label in (("hard_negative", 0), ("positive", 1)):
        own = chosen(mined, role)
        pool = scores.merge(labels[labels["label"] == label], on="slide_id")
        count = budget(fraction, 1.0, 1, len(pool))
        assert len(own) == len(set(own)) <= count
        assert max(Counter(s for s, _ in own).values()) <= math.ceil(round(share * count, 6))
        assert max(Counter(patients[s] for s, _ in own).values()) <= math.ceil(
            round(patient_share * count, 6)
        )
        assert {slide_id for slide_id, _ in own} <= set(pool["slide_id"])


ALIKE = params.Mining(
    policy="hard",
    threshold=0.5,
    positive_fraction=1.0,
    negative_fraction=0.5,
    max_similarity=0.9,
    max_positive_similarity=0.9,
    **UNCAPPED,
)
DIRECTIONS = {
    "n1": [0, 50, 3],
    "n2": [20, 10, 90],
    "p1": [5, 60, 0, 130],
    "p2": [0, 100],
}  # degrees in the plane; the cosine of 25.8 is 0.9
FEATURES = features_of(DIRECTIONS)


def test_near_duplicates_give_way_and_positives_like_a_hard_negative_are_struck_out() -> None:
    # by score: n1's 0 (0 degrees), n2's 1 (10), n1's 2 (3), n2's 2 (90), n1's 1 (50), n2's 0 (20);
    # the budget is 3
    mined, passed_over = mine(SCORES, LABELS, ALIKE, 1, features=FEATURES)
    assert chosen(mined, "hard_negative") == [("n1", 0), ("n2", 2), ("n1", 1)]
    # above 0.5: p1's 1 (60 degrees: 10 from a hard negative), p2's 1 (100: 10), p1's 3 (130: 40),
    # p1's 0 (5: 5)
    assert chosen(mined, "positive") == [("p1", 3)] and mined.loc[
        mined["role"] == "positive", "rank"
    ].tolist() == [1]
    assert sorted(
        passed_over[["role", "slide_id", "tile", "reason"]].itertuples(index=False, name=None)
    ) == [
        ("hard_negative", "n1", 2, "near_duplicate"),
        ("hard_negative", "n2", 1, "near_duplicate"),
        ("positive", "p1", 0, "like_hard_negative"),
        ("positive", "p1", 1, "like_hard_negative"),
        ("positive", "p2", 1, "like_hard_negative"),
    ]
    PASSED_OVER.check(passed_over, "passed over")


def test_a_positive_as_like_a_hard_negative_as_the_limit_says_stays() -> None:
    """The cosine of (2, 0, 0, 0) and (1, 1, 1, 1) is one half, exactly."""
    vectors = {"n": np.array([[2.0, 0, 0, 0]]), "p": np.array([[1.0, 1, 1, 1], [0, 0, 0, 3]])}
    scores, labels = scores_of({"n": [0.9], "p": [0.8, 0.7]}), labels_of({"n": 0, "p": 1})
    for limit, left in ((0.5, [("p", 0), ("p", 1)]), (0.4999, [("p", 1)])):
        section = params.Mining(
            policy="hard",
            threshold=0.5,
            positive_fraction=1.0,
            negative_fraction=1.0,
            max_positive_similarity=limit,
            **UNCAPPED,
        )
        mined = mine(
            scores, labels, section, 1, features=lambda slide_id, tiles: vectors[slide_id][tiles]
        ).tiles
        assert chosen(mined, "positive") == left


def test_limits_of_1_read_no_feature() -> None:
    def unread(slide_id: str, tiles: object) -> np.ndarray:
        raise AssertionError

    mined, passed_over = mine(SCORES, LABELS, params.Mining(), 1, features=unread)
    assert len(mined) and passed_over.empty
    PASSED_OVER.check(passed_over, "passed over")


def test_near_duplicates_of_the_hard_part_are_not_drawn_at_random_either() -> None:
    section = params.Mining(
        policy="mixed",
        hard_share=0.5,
        threshold=0.5,
        negative_fraction=1.0,
        max_similarity=0.9,
        **UNCAPPED,
    )
    mined, passed_over = mine(SCORES, LABELS, section, 1, features=FEATURES)
    assert chosen(mined, "hard_negative") == [
        ("n1", 0),
        ("n2", 2),
        ("n1", 1),
    ]  # three of six: 0, 90 and 50 degrees
    assert sorted(zip(passed_over["slide_id"], passed_over["tile"], strict=True)) == [
        ("n1", 2),
        ("n2", 0),
        ("n2", 1),
    ]  # each told once


def test_a_limit_without_features_is_an_error() -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"mining.max_similarity=0.9 compare features, but none can be read here; pass a reader"
            r" of features, or set 1"
        ),
    ):
        mine(SCORES, LABELS, params.Mining(max_similarity=0.9), 1)


def test_positives_that_are_all_like_hard_negatives_are_an_error_with_the_least_like() -> None:
    section = ALIKE.model_copy(update={"max_positive_similarity": 0.7})
    with pytest.raises(
        MiningError,
        match=(
            r"each of the 4 positives .* mining.max_positive_similarity=0.7 \(the least like:"
            r" 0.766\); raise it"
        ),
    ):
        mine(
            SCORES, LABELS, section, 1, features=FEATURES
        )  # 130 degrees are 40 from 90: cosine 0.766


def inked(slide_id: str, tiles: np.ndarray) -> np.ndarray:
    """Pixels: tile 0 of n1 and tile 3 of p1 are under a green pen."""
    pens = {"n1": 0, "p1": 3}
    pixels = np.full((len(tiles), 16, 16, 3), (214, 140, 190), np.uint8)
    pixels[tiles == pens.get(slide_id, -1)] = (30, 150, 110)
    return pixels


def test_tiles_that_the_screen_refuses_give_way_in_either_role() -> None:
    section = params.Mining(
        policy="hard",
        threshold=0.5,
        positive_fraction=0.5,
        negative_fraction=0.5,
        screen=params.Screen(max_pen_share=0.5),
        **UNCAPPED,
    )
    mined, passed_over = mine(SCORES, LABELS, section, 1, pixels=inked)
    assert chosen(mined, "hard_negative") == [
        ("n2", 1),
        ("n1", 2),
        ("n2", 2),
    ]  # not n1's 0, the best
    assert chosen(mined, "positive") == [
        ("p1", 1),
        ("p2", 1),
    ]  # p1's 3 comes third, and the budget is 2
    assert passed_over[["role", "slide_id", "tile", "reason"]].to_numpy().tolist() == [
        ["hard_negative", "n1", 0, "pen"]
    ]


def test_a_screen_that_refuses_everything_is_an_error_with_the_counts() -> None:
    section = params.Mining(
        policy="hard", negative_fraction=1.0, screen=params.Screen(max_blur=0.99), **UNCAPPED
    )
    with pytest.raises(
        MiningError,
        match=(
            r"mining.screen refuses each of the 6 tiles that could be hard negatives \(blur: 6\);"
            r" raise its limits"
        ),
    ):
        mine(SCORES, LABELS, section, 1, pixels=inked)


def test_a_screen_without_pixels_is_an_error() -> None:
    with pytest.raises(
        MiningError,
        match=(
            r"mining.screen.max_blur=0.5 look at pixels, but none can be read here; pass a reader"
            r" of pixels, or set 1"
        ),
    ):
        mine(SCORES, LABELS, params.Mining(screen=params.Screen(max_blur=0.5)), 1)
