"""Figures of an evaluation, and the tables behind them: PNG and CSV for DVC and MLflow, SVG for the
report. Equal input gives equal bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

from hnm.evidence.evaluation import Evaluation
from hnm.evidence.pages.charts import (
    CHARTS,
    GRID,
    INK,
    LINE,
    MUTED,
    Chart,
    Panel,
    Series,
    auc_table,
    calibration_table,
    decisions,
    froc_table,
    precision_recall_table,
    roc_table,
)
from hnm.files import whole
from hnm.tables import write_csv

SYSTEM_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
STYLE: list[str | Path | dict[str, Any]] = [
    "default",  # not what a matplotlibrc of this machine says
    {
        "font.family": "DejaVu Sans",  # shipped with matplotlib: the same layout on every machine
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "hnm",
    },
]
DRAWSTYLES = {"straight": "default", "hold": "steps-post", "step": "steps-mid"}
MARKERS = {"circle": "o", "square": "s", "cross": "X"}


def write_plots(evaluation: Evaluation, folder: Path) -> None:
    """Every table as CSV and every figure as PNG, in `folder`."""
    for name, table in tables_of(evaluation).items():
        with whole(folder / f"{name}.csv") as temporary:
            write_csv(table, temporary, float_format=_float32)
    for name, describe in CHARTS.items():
        with whole(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png(describe(evaluation)))


def tables_of(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """The tables that `dvc plots` draws, by name.

    `roc`, `precision_recall`, `calibration`, `froc` and `test_slides` are of the chosen round, so
    that two states of the project compare line by line; `roc_by_round` and the others hold all
    rounds.
    """
    chosen = evaluation.chosen
    return {
        "auc_by_round": auc_table(evaluation),
        "roc": roc_table(chosen.slides["test"]),
        "roc_by_round": pd.concat(
            [
                roc_table(evidence.slides["test"]).assign(round=evidence.name)
                for evidence in evaluation.rounds
            ],
            ignore_index=True,
        ),
        "precision_recall": precision_recall_table(chosen.slides["test"]),
        "calibration": calibration_table(chosen),
        "froc": froc_table(chosen.detections),
        "test_slides": decisions(chosen),
        "head_history": _joined(
            [(evidence.name, evidence.results.head_history) for evidence in evaluation.rounds]
        ),
        "encoder_history": _joined(
            [(evidence.name, evidence.results.encoder_history) for evidence in evaluation.rounds]
        ),
    }


def png(chart: Chart) -> bytes:
    """The chart as PNG without metadata."""
    stream = io.BytesIO()
    with style_context(STYLE):
        figure = _figure(chart)
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=144, metadata={"Software": None})
    return stream.getvalue()


def svg(chart: Chart) -> bytes:
    """The chart as SVG without metadata; its text stays text, in the reader's own system font."""
    stream = io.BytesIO()
    with style_context(STYLE):
        figure = _figure(chart)
        FigureCanvasSVG(figure)
        figure.savefig(
            stream,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return stream.getvalue().replace(b"'DejaVu Sans'", SYSTEM_FONTS.encode())


def _figure(chart: Chart) -> Figure:
    figure = Figure(figsize=chart.size, layout="constrained")
    panels = figure.subplots(1, len(chart.panels), squeeze=False)[0]
    for axes, panel in zip(panels, chart.panels, strict=True):
        for series in panel.series:
            _draw(axes, series)
        _dress(axes, panel)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles and chart.legend == "above":
        panels[0].legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), borderaxespad=0
        )
    elif handles:
        panels[0].legend(loc=chart.legend)
    return figure


def _draw(axes: Axes, series: Series) -> None:
    x = np.array(series.x)
    y = np.array(series.y)
    name = series.name or None
    order = 2 + series.layer  # matplotlib's default for lines is 2
    if series.bounds:
        low, high = (np.where(np.isnan(bound), y, bound) for bound in series.bounds)
        axes.vlines(x, low, high, color=series.colour, linewidth=2.2, alpha=0.35)
    if series.width:
        line = (0, (4, 3)) if series.dashed else "solid"
        axes.plot(
            x,
            y,
            color=series.colour,
            linewidth=series.width,
            linestyle=line,
            drawstyle=DRAWSTYLES[series.shape],
            label=name,
            zorder=order,
        )
    if series.marker:
        alone: dict[str, Any] = {} if series.width else {"alpha": 0.85, "label": name}
        axes.scatter(
            x,
            y,
            s=np.square(series.size),
            marker=MARKERS[series.marker],
            color=series.colour,
            linewidths=0,
            zorder=order,
            **alone,
        )


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set(xlabel=panel.x_title, ylabel=panel.y_title)
    if panel.x_range:
        axes.set_xlim(*panel.x_range)
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    if panel.x_ticks:
        axes.set_xticks(list(panel.x_ticks), list(panel.x_ticks.values()))
    if panel.y_ticks:
        axes.set_yticks(list(panel.y_ticks), list(panel.y_ticks.values()))


def _joined(histories: Sequence[tuple[str, pd.DataFrame | None]]) -> pd.DataFrame:
    """The rounds' histories behind each other; `step` counts epochs over all rounds."""
    named = [history.assign(round=name) for name, history in histories if history is not None]
    if not named:
        return pd.DataFrame(columns=["step", "round", "epoch", "loss"])
    joined = pd.concat(named, ignore_index=True)
    first = ["step", "round", "epoch"]
    return joined.assign(step=range(1, len(joined) + 1))[
        first + [column for column in joined.columns if column not in first]
    ]


def _float32(value: Any) -> str:
    """The shortest text that gives the same float32, so that scores that are read back tie where
    they tied, and nowhere else.
    """
    return str(np.float32(value))
