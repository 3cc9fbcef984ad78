from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hnm.evidence.evaluation import Evaluation, evaluate_rounds
from hnm.evidence.pages import charts
from hnm.evidence.pages.charts import Series
from hnm.params import Evaluate
from tests.support import evidence as tiny
from tests.support.evidence import detections


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))


def series_of(evaluation: Evaluation, name: str, panel: int = 0) -> dict[str, Series]:
    return {series.name: series for series in charts.CHARTS[name](evaluation).panels[panel].series}


def test_roc_is_of_each_round_and_the_chosen_one_lies_in_front(evaluation: Evaluation) -> None:
    # round 1: 0.91 positive, 0.58 negative, 0.41 positive, 0.22 negative
    series = series_of(evaluation, "roc")
    assert list(series) == ["", "round 0", "round 1 (chosen)", "round 2", "at the threshold"]
    chosen = series["round 1 (chosen)"]
    assert (chosen.x, chosen.y) == ([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])
    assert chosen.said[1] == "round 1, from score 0.910 on: sensitivity 0.500, specificity 1.000"
    assert (
        chosen.layer > series["round 0"].layer == series["round 2"].layer
        and chosen.width > series["round 2"].width
    )
    # validation has 0.75 and 0.35: the threshold lies midway, and cuts test into 0.91, 0.58 and
    # 0.41, 0.22
    assert (series["at the threshold"].x, series["at the threshold"].y) == ([0.5], [0.5])
    assert series["at the threshold"].said == [
        "at the threshold 0.550: sensitivity 0.500, specificity 0.500"
    ]


def test_precision_holds_until_the_next_sensitivity(evaluation: Evaluation) -> None:
    chosen = series_of(evaluation, "precision_recall")["round 1 (chosen)"]
    assert (chosen.shape, chosen.x, chosen.y) == (
        "hold",
        [1, 1, 0.5, 0.5, 0],
        pytest.approx([0.5, 2 / 3, 0.5, 1, 1]),
    )
    assert chosen.said[0] == "round 1, from score 0.220 on: sensitivity 1.000, precision 0.500"


def test_auc_has_intervals_and_the_axis_holds_them(evaluation: Evaluation) -> None:
    series = series_of(evaluation, "auc_by_round")
    test, table = series["test slides"], charts.auc_table(evaluation)
    assert (test.x, test.y) == ([0, 1, 2], [0.5, 0.75, 1])
    assert test.bounds == (table["test_auc_low"].tolist(), table["test_auc_high"].tolist())
    assert test.said[1].startswith("round 1, test slides: AUC 0.750 (")
    low, high = charts.auc_by_round(evaluation).panels[0].y_range or (9, 9)
    assert low < min(min(one.bounds[0]) for one in series.values() if one.bounds) and high == 1.02


def test_calibration_has_a_larger_point_for_more_slides(evaluation: Evaluation) -> None:
    bins = charts.calibration_table(evaluation.chosen)
    assert (
        bins["mean_score"].tolist() == pytest.approx([0.22, 0.41, 0.58, 0.91])
        and bins["slides"].tolist() == [1] * 4
    )
    score = {"te1": 0.91, "te2": 0.22, "te3": 0.93, "te4": 0.94}
    rounds = tiny.rounds(1)
    changed = rounds[0].slide_scores.assign(
        score=lambda table: np.float32(table["slide_id"].map(score).fillna(table["score"]))
    )
    curve = series_of(
        evaluate_rounds(
            tiny.cohort(), [replace(rounds[0], slide_scores=changed)], Evaluate(resamples=100)
        ),
        "calibration",
    )[""]
    assert curve.said == [
        "mean score 0.220, slides 1: 0 % positive",
        "mean score 0.927, slides 3: 67 % positive",
    ]
    assert curve.size == pytest.approx([np.sqrt(18 + 60 / 3), np.sqrt(18 + 60)])


def test_slides_stand_by_label_and_by_whether_they_are_called_rightly(
    evaluation: Evaluation,
) -> None:
    series = series_of(evaluation, "slide_scores")
    assert series["threshold 0.55"].x == pytest.approx([0.55, 0.55])
    rightly, wrongly = series["called rightly"], series["called wrongly"]
    assert rightly.x == pytest.approx([0.22, 0.91]) and wrongly.x == pytest.approx([0.58, 0.41])
    assert [round(y) for y in rightly.y] == [0, 1] and wrongly.said == [
        "te4, patient p9: score 0.580, called wrongly",
        "te3, patient p8: score 0.410, called wrongly",
    ]


def test_froc_falls_from_the_highest_score_to_as_many_false_ones_as_it_asks_for() -> None:
    # one slide and eight false detections at most: 0.05 comes ninth
    false = [0.9, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    table = charts.froc_table(detections([0.95, 0.5, 0.02, -np.inf], "aaaa", false, "a" * 9, "a"))
    assert table.to_numpy().tolist() == [[0, 0, 1], [0, 0.25, 0.95], [4, 0.5, 0.5], [8, 0.5, 0.1]]
    assert charts.froc_table(detections([], "", false, "a" * 9, "a")).empty
    assert charts.froc_table(detections([0.7], "a", [], "", "ab")).to_numpy().tolist() == [
        [0, 0, 1],
        [0, 1, 0.7],
    ]


def test_froc_meets_its_operating_point(evaluation: Evaluation) -> None:
    series = series_of(evaluation, "froc")
    chosen, point = series["round 1 (chosen)"], series["at the threshold of tiles"]
    assert (chosen.shape, chosen.x[0], chosen.y[0], chosen.y[-1]) == ("hold", 0, 0, 1)
    numbers = evaluation.chosen.numbers["test_tiles"]
    assert (point.x, point.y) == (
        [numbers["false_detections"].value],
        [numbers["lesions_hit"].value],
    )
    table = charts.froc_table(evaluation.chosen.detections)
    assert (
        point.y[0]
        == table.loc[table["threshold"] >= evaluation.chosen.tile_threshold, "lesions_found"].max()
    )


def test_tile_scores_are_shares_of_their_own_kind(evaluation: Evaluation) -> None:
    series = series_of(evaluation, "tile_scores")
    tiles = evaluation.chosen.tiles
    assert [name.rpartition(" (")[0] for name in series] == [
        "lesion",
        "normal",
    ]  # test slides have no look-alike drawn
    for name, kind in zip(series, ("lesion", "normal"), strict=True):
        own = tiles[tiles["truth"] == kind]
        assert name == f"{kind} ({len(own)} tiles)" and sum(series[name].y) == pytest.approx(1)
        place = int(own["score"].iloc[0] * charts.BINS)
        assert series[name].y[place] == pytest.approx(
            (own["score"] * charts.BINS).astype(int).eq(place).mean()
        )
        assert (
            series[name]
            .said[place]
            .startswith(
                f"{kind}: {100 * series[name].y[place]:.1f} % score {place / 40:.3f} to"
                f" {(place + 1) / 40:.3f}"
            )
        )


def test_histories_have_a_line_a_round_and_whole_epochs(evaluation: Evaluation) -> None:
    assert list(series_of(evaluation, "head_loss")) == ["round 0", "round 1 (chosen)", "round 2"]
    assert series_of(evaluation, "head_loss", 1)["round 0"].y == [0.5, 0.75]
    chart = charts.encoder_loss(evaluation)
    assert (
        series_of(evaluation, "encoder_loss")["round 2"].said[2]
        == "round 2, epoch 3: loss, negatives as anchors 3.100"
    )
    assert series_of(evaluation, "encoder_loss", 2)["round 1 (chosen)"].y == [0.5, 0.25, 0.125]
    assert chart.panels[0].x_ticks == {1: "1", 2: "2", 3: "3"}
    history = pd.DataFrame(
        {"epoch": range(1, 41), "loss": 0.5, "validation_auc": 0.5, "validation_loss": 0.7}
    )
    long = evaluate_rounds(
        tiny.cohort(), [replace(tiny.rounds(1)[0], head_history=history)], Evaluate(resamples=100)
    )
    assert list(charts.head_loss(long).panels[0].x_ticks or ()) == [5, 10, 15, 20, 25, 30, 35, 40]


def test_one_class_leaves_curves_empty(evaluation: Evaluation) -> None:
    labels = {**tiny.cohort().labels, "test": pd.DataFrame({"slide_id": ["te2"], "label": [0]})}
    alone = evaluate_rounds(
        tiny.cohort(labels=labels, annotations={}), tiny.rounds(1), Evaluate(resamples=100)
    )
    assert series_of(alone, "roc")[
        "round 0 (chosen)"
    ].x == [] and "at the threshold" not in series_of(alone, "roc")
    assert not series_of(alone, "encoder_loss")


def test_every_point_says_something_or_none_does(evaluation: Evaluation) -> None:
    for describe in charts.CHARTS.values():
        for series in (series for panel in describe(evaluation).panels for series in panel.series):
            assert len(series.x) == len(series.y) and len(series.said) in (0, len(series.x))
