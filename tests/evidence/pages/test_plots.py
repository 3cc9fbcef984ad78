from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from hnm.evidence.evaluation import Evaluation, evaluate_rounds
from hnm.evidence.pages import plots
from hnm.evidence.pages.charts import CHARTS, Chart, Panel, Series, auc_by_round, roc
from hnm.params import Evaluate
from tests.support import evidence as tiny


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))


class TestTables:
    def test_roc_is_the_chosen_rounds(self, evaluation: Evaluation) -> None:
        # 0.91 positive, 0.58 negative, 0.41 positive, 0.22 negative
        table = plots.tables_of(evaluation)["roc"]
        assert table["false_positive_rate"].tolist() == [0, 0, 0.5, 0.5, 1]
        assert table["true_positive_rate"].tolist() == [0, 0.5, 0.5, 1, 1]
        assert table["threshold"].tolist() == pytest.approx([1, 0.91, 0.58, 0.41, 0.22])

    def test_all_rounds_have_a_roc(self, evaluation: Evaluation) -> None:
        table = plots.tables_of(evaluation)["roc_by_round"]
        assert table["round"].unique().tolist() == ["0", "1", "2"]
        assert (
            table[table["round"] == "1"]
            .drop(columns="round")
            .reset_index(drop=True)
            .equals(plots.tables_of(evaluation)["roc"])
        )

    def test_precision_and_recall(self, evaluation: Evaluation) -> None:
        table = plots.tables_of(evaluation)["precision_recall"].set_index("threshold")
        by_threshold = {
            round(threshold, 2): (row["recall"], round(row["precision"], 4))
            for threshold, row in table.iterrows()
        }
        assert by_threshold == {
            0.22: (1, 0.5),
            0.41: (1, 0.6667),
            0.58: (0.5, 0.5),
            0.91: (0.5, 1),
            1.0: (0, 1),
        }

    def test_auc_by_round(self, evaluation: Evaluation) -> None:
        table = plots.tables_of(evaluation)["auc_by_round"]
        assert table[["round", "validation_auc", "test_auc"]].to_numpy().tolist() == [
            ["0", 0, 0.5],
            ["1", 1, 0.75],
            ["2", 1, 1],
        ]
        assert (table["test_auc_low"] <= table["test_auc"]).all()

    def test_test_slides_come_worst_first(self, evaluation: Evaluation) -> None:
        table = plots.tables_of(evaluation)["test_slides"]
        assert table["slide_id"].tolist() == ["te3", "te4", "te2", "te1"]
        assert table["called"].tolist() == [0, 1, 0, 1]
        assert table["loss"].tolist() == pytest.approx(
            [-np.log(0.41), -np.log(0.42), -np.log(0.78), -np.log(0.91)]
        )

    def test_histories_stand_behind_each_other(self, evaluation: Evaluation) -> None:
        tables = plots.tables_of(evaluation)
        assert tables["head_history"][["step", "round", "epoch"]].to_numpy().tolist()[1:4] == [
            [2, "0", 2],
            [3, "1", 1],
            [4, "1", 2],
        ]
        assert tables["encoder_history"]["round"].tolist() == ["1"] * 3 + ["2"] * 3

    def test_one_class_has_empty_curves_but_all_figures(self, tmp_path: Path) -> None:
        cohort = tiny.cohort()
        labels = {**cohort.labels, "test": pd.DataFrame({"slide_id": ["te2"], "label": [0]})}
        evaluation = evaluate_rounds(
            replace(cohort, labels=labels, annotations={}), tiny.rounds(1), Evaluate(resamples=100)
        )
        assert plots.tables_of(evaluation)["roc"].empty
        assert plots.tables_of(evaluation)["encoder_history"].empty
        plots.write_plots(evaluation, tmp_path)
        assert {path.stem for path in tmp_path.glob("*.png")} == set(CHARTS)


class TestBytes:
    def test_scores_come_back_as_they_were(self, evaluation: Evaluation, tmp_path: Path) -> None:
        plots.write_plots(evaluation, tmp_path)
        read = pd.read_csv(tmp_path / "test_slides.csv")
        assert (
            np.float32(read["score"]).tolist()
            == plots.tables_of(evaluation)["test_slides"]["score"].tolist()
        )
        assert "te3,p8,1,0.41,0," in (tmp_path / "test_slides.csv").read_text()

    def test_are_equal_for_equal_input(self, evaluation: Evaluation, tmp_path: Path) -> None:
        for folder in ("first", "second"):
            plots.write_plots(evaluation, tmp_path / folder)
        first = {path.name: path.read_bytes() for path in sorted((tmp_path / "first").iterdir())}
        assert first == {
            path.name: path.read_bytes() for path in sorted((tmp_path / "second").iterdir())
        }
        assert set(first) == {f"{name}.csv" for name in plots.tables_of(evaluation)} | {
            f"{name}.png" for name in CHARTS
        }

    def test_hold_no_date_and_no_program(self, evaluation: Evaluation) -> None:
        png, svg = plots.png(roc(evaluation)), plots.svg(roc(evaluation))
        assert b"tEXt" not in png
        assert b"<dc:date>" not in svg
        assert matplotlib.__version__.encode() not in svg

    def test_svg_text_is_text_in_the_readers_font(self, evaluation: Evaluation) -> None:
        svg = plots.svg(auc_by_round(evaluation)).decode()
        assert ">test slides</text>" in svg
        assert "system-ui" in svg
        assert "DejaVu" not in svg


class TestFigures:
    def test_points_lie_where_the_chart_says(self) -> None:
        steps = Series(
            [0, 1, 3],
            [10, 30, 20],
            "#123456",
            width=1,
            shape="hold",
            marker="square",
            bounds=([5, float("nan"), 15], [12, float("nan"), 22]),
        )
        axes = plots._figure(
            Chart([Panel([steps], "x", "y", (0, 4), (0, 40), {1: "one"}, {10: "ten"})], (4, 3))
        ).axes[0]
        assert axes.lines[0].get_drawstyle() == "steps-post" and axes.lines[
            0
        ].get_xydata().tolist() == [[0, 10], [1, 30], [3, 20]]
        bars, points = axes.collections
        assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
            [5, 12],
            [30, 30],
            [15, 22],
        ]
        assert points.get_offsets().tolist() == [
            [0, 10],
            [1, 30],
            [3, 20],
        ] and points.get_sizes().tolist() == [36]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 4), (0, 40))
        assert [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())] == [
            "one",
            "ten",
        ]

    def test_a_legend_names_each_series_once(self, evaluation: Evaluation) -> None:
        for describe in CHARTS.values():
            figure = plots._figure(describe(evaluation))
            legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
            names = dict.fromkeys(
                series.name
                for panel in describe(evaluation).panels
                for series in panel.series
                if series.name
            )
            assert [text.get_text() for legend in legends for text in legend.get_texts()] == list(
                names
            )
