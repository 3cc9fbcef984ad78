import json
from typing import Any

import pytest

from hnm.evidence.evaluation import evaluate_rounds
from hnm.evidence.pages.charts import CHARTS, Chart, Panel, Series
from hnm.evidence.pages.interactive import library, live
from hnm.params import Evaluate
from tests.support import evidence as tiny

NAN = float("nan")


def drawn(*panels: Panel, legend: Any = "above") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    figure = json.loads(live({"own": Chart(panels, (4, 3), legend)}))["own"]
    return figure["data"], figure["layout"]


def test_a_series_is_a_trace() -> None:
    steps = Series(
        [0, 1, 3],
        [10, NAN, 20],
        "#123456",
        "steps",
        ["a", "b", "c"],
        1.5,
        "hold",
        marker="square",
        size=6,
        layer=1,
    )
    (trace,), _ = drawn(Panel([steps]))
    assert (trace["x"], trace["y"], trace["mode"], trace["zorder"]) == (
        [0, 1, 3],
        [10, None, 20],
        "lines+markers",
        1,
    )
    assert (trace["name"], trace["showlegend"], trace["hoverinfo"], trace["hovertext"]) == (
        "steps",
        True,
        "text",
        ["a", "b", "c"],
    )
    assert trace["line"] == {
        "color": "#123456",
        "width": 2,
        "shape": "hv",
    }  # 1.5 points are 2 pixels
    assert (trace["marker"]["size"], trace["marker"]["symbol"]) == (8, "square")


def test_intervals_reach_from_the_value_to_their_ends() -> None:
    (trace,), _ = drawn(
        Panel(
            [
                Series(
                    [0, 1],
                    [0.75, 0.5],
                    "#0a0b0c",
                    marker="circle",
                    size=[3, 4.5],
                    bounds=([0.5, NAN], [0.875, NAN]),
                )
            ]
        )
    )
    assert (
        trace["error_y"]["array"],
        trace["error_y"]["arrayminus"],
        trace["error_y"]["color"],
    ) == ([0.125, None], [0.25, None], "rgba(10,11,12,0.35)")
    assert trace["marker"]["size"] == [4, 6] and trace["mode"] == "markers"


def test_what_says_nothing_is_passed_over() -> None:
    (trace,), _ = drawn(Panel([Series([0, 1], [0, 1], "#d9dfe5", width=1, dashed=True)]))
    assert (trace["hoverinfo"], trace["showlegend"], trace["line"]["dash"]) == (
        "skip",
        False,
        "dash",
    ) and "hovertext" not in trace


def test_panels_stand_side_by_side_with_one_legend() -> None:
    series = Series([0], [1], "#123456", "both", ["a"], marker="circle")
    traces, layout = drawn(
        Panel([series], "left", x_range=(0, 2)),
        Panel([series], "right", y_title="up", y_ticks={0.5: "half"}),
        legend="lower right",
    )
    assert [
        (trace["xaxis"], trace["yaxis"], trace["showlegend"], trace["legendgroup"])
        for trace in traces
    ] == [
        ("x", "y", True, "both"),
        ("x2", "y2", False, "both"),
    ]
    assert layout["xaxis"]["domain"][1] < layout["xaxis2"]["domain"][0] and layout["xaxis2"][
        "domain"
    ][1] == pytest.approx(1)
    assert layout["xaxis"]["range"] == [0, 2] and (
        layout["yaxis2"]["tickvals"],
        layout["yaxis2"]["ticktext"],
    ) == ([0.5], ["half"])
    assert (layout["xaxis"]["title"]["text"], layout["yaxis2"]["title"]["text"]) == ("left", "up")
    assert (layout["legend"]["xanchor"], layout["legend"]["yanchor"]) == ("right", "bottom")


def test_texts_from_outside_end_no_script_and_make_no_link() -> None:
    text = live(
        {
            "own": Chart(
                [
                    Panel(
                        [
                            Series(
                                [0],
                                [1],
                                "#123456",
                                said=["p</script><a href='x'>"],
                                marker="circle",
                            )
                        ]
                    )
                ],
                (4, 3),
            )
        }
    )
    assert "</script" not in text and "<" not in text
    assert json.loads(text)["own"]["data"][0]["hovertext"] == ["p&lt;/script&gt;&lt;a href='x'&gt;"]


def test_bytes_are_equal_for_equal_charts() -> None:
    texts = []
    for _ in range(2):
        evaluation = evaluate_rounds(tiny.cohort(), tiny.rounds(), Evaluate(resamples=100))
        texts.append(live({name: describe(evaluation) for name, describe in CHARTS.items()}))
    assert texts[0] == texts[1]


def test_the_library_can_stand_in_a_page() -> None:
    assert library().startswith("/**\n* plotly.js v") and "</script" not in library()
