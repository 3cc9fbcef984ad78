"""The evidence on mining: arms on a tiny cohort, and intervals of differences."""

import argparse
import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import mining
from benchmarks import mining_evidence as evidence
from hnm.loop.rounds import Upstream
from hnm.store import Store
from hnm.tables import LABELS, SLIDES, TILES
from tests.support.study import make_upstream, tiny_params

SCORES = {
    "a": {0: [0.9, 0.4, 0.5, 0.1], 1: [0.9, 0.8, 0.5, 0.1]},
    "b": {0: [0.9, 0.4, 0.5, 0.6], 1: [0.1, 0.8, 0.5, 0.1]},
}
"""Arm -> seed -> scores of two positive and two negative slides."""


def scores() -> pd.DataFrame:
    rows = [
        {
            "slide_id": f"s{slide}",
            "label": int(slide < 2),
            "patient_id": f"p{slide}",
            "arm": arm,
            "seed": seed,
            "score": score,
        }
        for arm, by_seed in SCORES.items()
        for seed, own in by_seed.items()
        for slide, score in enumerate(own)
    ]
    return pd.DataFrame(rows)


def auc_difference(
    table: pd.DataFrame, arm: str, against: str
) -> tuple[float | None, float | None, float | None, int]:
    number, seeds = evidence.auc_difference(table, arm, against)
    return number.value, number.low, number.high, seeds


def test_the_difference_of_two_arms_is_the_mean_over_seeds_of_the_difference_of_their_aucs() -> (
    None
):
    # seed 0: 3/4 against 2/4; seed 1: 4/4 against (1/2 + 2 of the second slide + 0)/4 = 2.5/4
    mean, low, high, seeds = auc_difference(scores(), "a", "b")
    assert mean == pytest.approx((0.25 + 0.375) / 2) and seeds == 2
    assert low < mean < high and mean - low == pytest.approx(high - mean)
    assert auc_difference(scores(), "a", "a")[:3] == (0, 0, 0)


def of_patients(gain: np.ndarray) -> float:
    """1.96 standard deviations of the mean of `(2, 2)` gains over every way to draw two positive
    and two negative patients.
    """
    drawn = [
        gain[np.ix_(rows, columns)].mean()
        for rows in itertools.product((0, 1), repeat=2)
        for columns in itertools.product((0, 1), repeat=2)
    ]
    return 1.959964 * float(np.std(drawn))


def test_an_interval_is_for_other_seeds_and_other_patients() -> None:
    # wins of `a` less those of `b`, positive slides by negative ones, of each seed
    gains = np.array([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [0.0, 0.0]]])
    mean, low, high, _ = auc_difference(scores(), "a", "b")
    of_seeds = 12.706205 * 0.0625  # Student's of 0.25 and 0.375
    assert (high - low) / 2 == pytest.approx(
        np.hypot(of_seeds, of_patients(gains.mean(axis=0))), rel=0.02
    )
    first = scores()[lambda table: table["seed"] == 0]
    mean, low, high, seeds = auc_difference(first, "a", "b")
    assert (
        seeds == 1
        and mean == 0.25
        and (high - low) / 2 == pytest.approx(of_patients(gains[0]), rel=0.05)
    )


def test_an_interval_over_seeds_is_students() -> None:
    table = pd.DataFrame(
        {
            "seed": [0, 1, 2] * 2,
            "arm": ["a"] * 3 + ["b"] * 3,
            "purity": [0.5, 0.7, 0.6, 0.4, 0.3, 0.5],
        }
    )
    # differences 0.1, 0.4, 0.1: mean 0.2, standard error 0.1
    number = evidence.difference(table, "purity", "a", "b")
    assert (number.value, number.low, number.high) == pytest.approx(
        (0.2, 0.2 - 4.302653 * 0.1, 0.2 + 4.302653 * 0.1)
    )
    one_seed = evidence.difference(table[table["seed"] == 0], "purity", "a", "b")
    assert one_seed.with_interval("+.3f") == "+0.100"
    none = evidence.difference(table.assign(purity=np.nan), "purity", "a", "b")
    assert none.with_interval("+.3f") == "–"


def test_an_arm_stands_against_random_tiles_of_the_same_budget_where_they_were_run() -> None:
    arms = {"random 0.1", "random 0.2", "random 0.1, 30 epochs"}
    controls = {
        "hard 0.1": "random 0.1",
        "mixed 0.2": "random 0.2",
        "hard 0.05": "random 0.1",
        "hard 0.1, 30 epochs": "random 0.1, 30 epochs",
        "mixed 0.1, cross-fitted": "random 0.1",
        "mixed 0.2, cross-fitted": "random 0.2",
        "random 0.2, 8 epochs": "random 0.2",
        "random 0.2": "random 0.1",
        "all": "random 0.1",
        "none": "random 0.1",
    }
    assert {arm: evidence.control(arm, arms, "random 0.1") for arm in controls} == controls
    others = {
        arm: evidence.control(arm, {"random 0.05", "random 0.2", "random 0.3, cold"}, "random 0.1")
        for arm in ("all", "none", "hard 0.1", "random 0.2")
    }
    assert others == {
        "all": "random 0.2",
        "none": "random 0.2",
        "hard 0.1": "random 0.2",
        "random 0.2": "random 0.05",
    }


def test_the_table_of_differences_names_both_arms_and_leaves_out_what_shares_no_seed() -> None:
    rows = [
        ("random 0.1", 0, 0.5),
        ("random 0.2", 0, 0.6),
        ("hard 0.2", 0, 0.9),
        ("hard 0.1", 1, 0.7),
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "test_tile_auc"]).assign(
        cohort="c", round=1, validation_auc=0.5, validation_log_loss=1.0
    )
    table = table.assign(false_tiles=0.0, purity=float("nan"))
    of_slides = pd.concat(
        [
            scores()[lambda own: (own["arm"] == "a") & (own["seed"] == 0)].assign(
                arm=arm, seed=seed
            )
            for arm, seed, _ in rows
        ]
    )
    lines = evidence.differences(table, of_slides.assign(cohort="c", round=1), "random 0.1")[2:]
    assert lines[:2] == [
        "| c | 1 | hard 0.2 | random 0.2 | 1 | +0.000 (+0.000 to +0.000) | +0.300 | +0.000 | – |",
        "| c | 1 | random 0.2 | random 0.1 | 1 | +0.000 (+0.000 to +0.000) | +0.100 | +0.000 | – |",
    ]
    assert [line.split(" | ")[1] for line in lines] == ["1", "1", "validation's", "validation's"]
    plain = evidence.differences(
        table, of_slides.assign(cohort="c", round=1), "random 0.1", controls=False
    )[2:]
    assert (
        plain[0]
        == "| c | 1 | hard 0.2 | random 0.1 | 1 | +0.000 (+0.000 to +0.000) | +0.400 | +0.000 | – |"
    )


def test_validation_picks_the_round_by_auc_then_loss_then_the_earlier() -> None:
    rows = [(0, 0.8, 0.5), (1, 0.9, 0.6), (2, 0.9, 0.4), (3, 0.9, 0.4)]
    table = pd.DataFrame(rows, columns=["round", "validation_auc", "validation_log_loss"]).assign(
        cohort="c", arm="a", seed=0
    )
    table["purity"] = [0.1, 0.2, float("nan"), 0.4]
    picked = evidence.chosen(table)
    assert (
        picked["round"].tolist() == [2] and picked["purity"].isna().all()
    )  # what the round has not is not another round's


def test_the_policy_none_has_round_0_in_each_round() -> None:
    rows = [
        ("a", 0, 0.6),
        ("a", 1, 0.7),
        ("a", 2, 0.8),
        ("b", 0, 0.6),
        ("b", 1, 0.9),
        ("b", 2, 0.5),
    ]
    table = evidence.with_none(
        pd.DataFrame(rows, columns=["arm", "round", "test_auc"]).assign(cohort="c", seed=3)
    )
    assert table[table["arm"] == "none"][["round", "test_auc"]].to_numpy().tolist() == [
        [0, 0.6],
        [1, 0.6],
        [2, 0.6],
    ]
    assert len(table) == 9 and evidence.with_none(table).equals(table)


def test_round_0_is_that_of_the_common_head_whichever_arm_stands_first() -> None:
    rows = [
        ("random 0.1, mined head", 0, 0.5),
        ("random 0.1, mined head", 1, 0.4),
        ("random 0.1", 0, 0.9),
        ("random 0.1", 1, 0.8),
    ]
    table = evidence.with_none(
        pd.DataFrame(rows, columns=["arm", "round", "test_auc"]).assign(cohort="c", seed=3)
    )
    assert table[table["arm"] == "none"]["test_auc"].tolist() == [0.9, 0.9]


def test_the_means_and_the_figure_of_a_table(tmp_path: Path) -> None:
    rows = [
        (arm, seed, number)
        for arm in ("random 0.1", "hard 0.1", "all", "hard 0.1, cold")
        for seed in (0, 1)
        for number in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "round"]).assign(
        cohort="c", validation_auc=0.5, test_tile_auc=0.6, false_tiles=0.25, finetune_seconds=7.0
    )
    table = table.assign(
        test_auc=0.7 + 0.1 * table["seed"],
        purity=np.where(table["round"] > 0, 0.4, np.nan),
        tile_views=1000 * table["round"],
    )
    table = table.assign(spread=np.where(table["arm"] == "all", 0.3 - 0.1 * table["seed"], np.nan))
    lines = evidence.means(table)[2:]
    assert (
        lines[0]
        == "| c | 0 | before any mining | 2 | 0.500 ± 0.000 | 0.750 ± 0.071 | 0.600 ± 0.000 | 0.25"
        " | – | 0 | 7 | – |"
    )
    assert lines[1].endswith("| 0.40 | 1,000 | 7 | 0.2000 |") and lines[2].endswith("| 7 | – |")
    assert [line.split(" | ")[2] for line in lines[1:]] == [
        "all",
        "hard 0.1",
        "hard 0.1, cold",
        "random 0.1",
    ]
    evidence.draw(table, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_an_arm_with_a_note_is_drawn_where_its_cost_is_another() -> None:
    views = {
        "random 0.1": 100,
        "random 0.1, 30 epochs": 200,
        "random 0.1, cold": 100,
        "hard 0.1, cold": 100,
        "random 0.1, growing": 199,
        "all, one epoch": 50,
    }
    rows = [
        (arm, seed, round_, own)
        for arm, own in {**views, "all": 101}.items()
        for seed in (0, 1)
        for round_ in (1, 2)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "round", "tile_views"])
    table = table.assign(test_auc=table["seed"] / 10 + table["round"])
    drawn = evidence._costs(table)
    # hard 0.1 was not run without its note
    assert dict(zip(drawn["arm"], drawn["cost"], strict=True)) == {
        "all, one epoch": 100,
        "hard 0.1, cold": 200,
        "random 0.1": 200,
        "all": 202,
        "random 0.1, 30 epochs": 400,
    }
    assert drawn["auc"].tolist() == pytest.approx([2.05] * 5) and drawn[
        "error"
    ].tolist() == pytest.approx([0.05] * 5)


def test_false_tiles_outscore_the_best_tile_of_the_median_positive_slide() -> None:
    rows = [
        ("p", 1, 3.0),
        ("p", 1, 9.0),
        ("q", 1, 5.0),
        ("r", 1, 1.0),
        ("m", 0, 5.5),
        ("m", 0, 5.0),
        ("n", 0, 7.0),
        ("n", 0, 6.0),
        ("o", 0, 0.0),
    ]
    tiles = pd.DataFrame(
        rows, columns=["slide_id", "label", "logit"]
    )  # best tiles 9, 5, 1: the median is 5
    assert mining._false_tiles(tiles) == 1.0


def test_an_arm_runs_on_a_tiny_cohort_and_its_rows_say_what_it_cost(tmp_path: Path) -> None:
    make_upstream(tmp_path / "data")
    upstream, params = Upstream(tmp_path), tiny_params()
    paths = upstream.paths
    patients = SLIDES.read(paths.cohort.slides)[["slide_id", "patient_id"]]
    slides = {
        split: LABELS.read(paths.cohort.labels(split)).merge(patients) for split in mining.SPLITS
    }
    index = TILES.read(paths.tiles.index)
    truth = index[["slide_id", "tile"]].assign(
        truth=np.where(index["tile"] % 3 == 0, "lesion", "normal")
    )
    truth = truth.assign(region=np.where(truth["truth"] == "lesion", "lesion", ""))
    cohort = mining.Cohort("tiny", params, upstream, truth, slides)
    arm = mining.Arm("hard 0.3", {"mining.policy": "hard", "mining.negative_fraction": 0.3})
    rows, tested = mining.run(cohort, arm, 1, Store(tmp_path / "store"))
    assert [row["round"] for row in rows] == [0, 1] and {row["seed"] for row in rows} == {1}
    assert (
        rows[0]["tile_views"] == 0 and np.isnan(rows[0]["purity"]) and np.isnan(rows[0]["spread"])
    )
    (history,) = (tmp_path / "store" / "trials" / "encoders").rglob("history.csv")
    assert (
        rows[1]["spread"] == pytest.approx(pd.read_csv(history)["spread"].iloc[-1], abs=1e-6)
        and rows[1]["spread"] > 0
    )
    # the negative train slides have 5 + 7 + 9 tiles, of which 30 % are 7: at least four steps of 2
    # + 2 tiles with two views
    assert rows[1]["tile_views"] >= 4 * 8 and rows[1]["tile_views"] % 8 == 0
    assert 0 < rows[1]["purity"] < 1
    nobody = replace(cohort, truth=truth.assign(region=None))
    assert np.isnan(
        mining.run(nobody, arm, 1, Store(tmp_path / "store"))[0][1]["purity"]
    )  # no slide is annotated
    table = tmp_path / "table.csv"
    assert not mining.is_done(table, cohort, arm, 1)
    beyond, above_all = (
        mining.Arm("hard 0.3, above all", {**arm.values, "mining.threshold": threshold})
        for threshold in (1.0, 0.9999999)
    )
    said = mining.fill(table, cohort, beyond, 1, Store(tmp_path / "store"))
    assert (
        said is not None
        and said.startswith(
            "not in the table: arm 'hard 0.3, above all' of cohort 'tiny', seed 1: "
        )
        and not table.exists()
    )
    said = mining.fill(table, cohort, above_all, 1, Store(tmp_path / "store"))
    assert said is not None and said.startswith(
        "failed in round 1: arm 'hard 0.3, above all' of cohort 'tiny', seed 1: no tile of a"
        " positive train slide"
    )
    assert mining.is_done(table, cohort, above_all, 1)
    whole, failed = evidence.finished(pd.read_csv(table))
    assert (
        whole["round"].tolist() == [0]
        and failed["round"].tolist() == [1]
        and failed["test_auc"].isna().all()
    )
    assert evidence.failures(failed)[2].startswith(
        "| tiny | hard 0.3, above all | 1 | 1 | no tile of a positive train slide scores above"
    )
    for file in (table, table.with_suffix(".parquet")):
        file.unlink()
    assert mining.fill(table, cohort, arm, 1, Store(tmp_path / "store")) is None
    assert mining.is_done(table, cohort, arm, 1) and not mining.is_done(table, cohort, arm, 2)
    with pytest.raises(
        SystemExit,
        match=(
            r"has arm 'hard 0.3' of cohort 'tiny', seed 1, by other settings \(\w{12}, now"
            r" \w{12}\): give the --set"
        ),
    ):
        mining.is_done(
            table, cohort, mining.Arm("hard 0.3", {**arm.values, "finetune.temperature": 0.1}), 1
        )
    second = {"2": type(params.rounds["1"])(previous="1")}
    longer = params.model_copy(
        update={
            "rounds": {**params.rounds, **second},
            "later_rounds": {**params.later_rounds, **second},
        }
    )
    with pytest.raises(
        SystemExit,
        match=(
            r"has arm 'hard 0.3' of cohort 'tiny', seed 1, with rounds 0\.\.1: give another --table"
        ),
    ):
        mining.is_done(table, replace(cohort, params=longer), arm, 1)
    elsewhere = {**slides, "test": slides["test"].assign(slide_id="other")}
    with pytest.raises(
        SystemExit,
        match=(
            r"has cohort 'tiny' with other test slides \(\w+ among them\): name this one otherwise"
        ),
    ):
        mining.is_done(table, replace(cohort, slides=elsewhere), arm, 1)
    mining.append(
        [{**row, "seed": 2} for row in rows], [frame.assign(seed=2) for frame in tested], table
    )
    assert len(pd.read_csv(table)) == 4 and len(
        pd.read_parquet(table.with_suffix(".parquet"))
    ) == 4 * len(slides["test"])
    before, held = pd.read_csv(table), table.with_suffix(".parquet")
    scores_before = pd.read_parquet(held)
    before[before["seed"] == 1].to_csv(
        table, index=False
    )  # killed after the scores of seed 2, before their rows
    mining.append(
        [{**row, "seed": 2} for row in rows], [frame.assign(seed=2) for frame in tested], table
    )
    pd.testing.assert_frame_equal(pd.read_csv(table), before)
    pd.testing.assert_frame_equal(pd.read_parquet(held), scores_before)


def test_the_settings_of_a_row_are_all_params_that_can_change_it() -> None:
    params = tiny_params()
    other = params.model_copy(update={"mining": params.mining.model_copy(update={"growth": 2.0})})
    threads = params.model_copy(
        update={"compute": params.compute.model_copy(update={"threads": 7})}
    )
    assert mining.settings_key(other) != mining.settings_key(params) == mining.settings_key(threads)


def test_arms_are_the_grid_and_those_by_name() -> None:
    options = argparse.Namespace(
        policies=["hard", "all"],
        budgets=[0.05, 0.1],
        arm=["cold: mining.policy=hard finetune.temperature=0.01"],
    )
    arms = {arm.name: dict(arm.values) for arm in mining.arms_of(options)}
    assert arms == {
        "hard 0.05": {"mining.policy": "hard", "mining.negative_fraction": 0.05},
        "hard 0.1": {"mining.policy": "hard", "mining.negative_fraction": 0.1},
        "all": {"mining.policy": "all"},
        "cold": {"mining.policy": "hard", "finetune.temperature": 0.01},
    }
    with pytest.raises(SystemExit, match="--arm 'cold' names no params; write NAME: param=value"):
        mining.arms_of(argparse.Namespace(policies=[], budgets=[], arm=["cold"]))


def test_a_clock_time_is_the_next_such_moment() -> None:
    for clock in ("00:00", "12:00", "23:59"):
        moment = mining.next_time(clock)
        assert moment.strftime("%H:%M") == clock and timedelta(
            0
        ) < moment - datetime.now() <= timedelta(days=1)
