"""Charts for a reader who points at them: what plotly.js draws in the page, as JSON. Equal input
gives equal bytes.
"""

import html
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from hnm.evidence.pages.charts import GRID, INK, LINE, MUTED, Chart, Panel, Series
from hnm.evidence.pages.plots import SYSTEM_FONTS

PIXELS = 4 / 3
"""A point, 1/72 inch, at 96 pixels an inch."""
GAP = 0.09
"""Between two panels, as a share of the chart's width."""
SHAPES = {"straight": "linear", "hold": "hv", "step": "hvh"}
SYMBOLS = {"circle": "circle", "square": "square", "cross": "x"}
LEGENDS: Mapping[str, Mapping[str, Any]] = {
    "above": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"},
    "lower left": {"x": 0.02, "xanchor": "left", "y": 0.02, "yanchor": "bottom"},
    "lower right": {"x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom"},
}


def library() -> str:
    """plotly.js, as the Python package brings it."""
    return str(get_plotlyjs())


def live(charts: Mapping[str, Chart]) -> str:
    """What plotly.js draws for each chart, by name: `{name: {data, layout}}` as JSON that may stand
    in a script.
    """
    figures = {name: json.loads(_figure(chart).to_json()) for name, chart in charts.items()}
    return json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _figure(chart: Chart) -> go.Figure:
    """The chart; plotly refuses an attribute that it does not know."""
    width = (1 - GAP * (len(chart.panels) - 1)) / len(chart.panels)
    layout: dict[str, Any] = {
        "template": "none",
        "autosize": True,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "font": {"family": SYSTEM_FONTS, "size": 12.5, "color": MUTED},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "#ffffff",
            "bordercolor": MUTED,
            "font": {"color": INK, "size": 13},
            "align": "left",
        },
        "legend": {
            "font": {"color": INK, "size": 12},
            "bgcolor": "rgba(255,255,255,0)",
            **LEGENDS[chart.legend],
        },
    }
    traces: list[go.Scatter] = []
    named: set[str] = set()
    for place, panel in enumerate(chart.panels):
        axis = str(place + 1) if place else ""
        start = place * (width + GAP)
        # rounding can put the end of the last panel past 1, which plotly refuses
        layout[f"xaxis{axis}"] = {
            **_axis(panel.x_title, panel.x_range, panel.x_ticks),
            "domain": [start, min(start + width, 1.0)],
            "anchor": f"y{axis}",
        }
        layout[f"yaxis{axis}"] = {
            **_axis(panel.y_title, panel.y_range, panel.y_ticks),
            "anchor": f"x{axis}",
        }
        traces += _traces(panel, axis, named)
    return go.Figure(traces, layout)


def _traces(panel: Panel, axis: str, named: set[str]) -> Iterator[go.Scatter]:
    """The panel's series; `named` are the names that the legend has already."""
    for series in panel.series:
        yield go.Scatter(
            x=_finite(series.x),
            y=_finite(series.y),
            xaxis=f"x{axis}",
            yaxis=f"y{axis}",
            mode="+".join(["lines"] * bool(series.width) + ["markers"] * bool(series.marker)),
            name=_shown(series.name),
            legendgroup=series.name,
            showlegend=bool(series.name) and series.name not in named,
            hoverinfo="text" if series.said else "skip",
            zorder=series.layer,
            **_look(series),
        )
        named.add(series.name)


def _look(series: Series) -> dict[str, Any]:
    look: dict[str, Any] = {}
    if series.said:
        look["hovertext"] = [_shown(text) for text in series.said]
    if series.width:
        look["line"] = {
            "color": series.colour,
            "width": round(series.width * PIXELS, 2),
            "shape": SHAPES[series.shape],
        }
        look["line"] |= {"dash": "dash"} if series.dashed else {}
    if series.marker:
        size = np.multiply(series.size, PIXELS).round(2).tolist()
        look["marker"] = {
            "color": series.colour,
            "size": size,
            "symbol": SYMBOLS[series.marker],
            "opacity": 1 if series.width else 0.85,
            "line": {"width": 0},
        }
    if series.bounds:
        low, high = series.bounds
        ends = {
            "array": _finite(np.subtract(high, series.y)),
            "arrayminus": _finite(np.subtract(series.y, low)),
        }
        look["error_y"] = {
            "type": "data",
            "symmetric": False,
            **ends,
            "width": 0,
            "thickness": 3,
            "color": _pale(series.colour),
        }
    return look


def _axis(
    title: str, range_: tuple[float, float] | None, ticks: Mapping[float, str] | None
) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": LINE,
        "showline": True,
        "zeroline": False,
        "title": {"text": _shown(title), "standoff": 8, "font": {"size": 12.5}},
    }
    if range_:
        axis["range"] = list(range_)
    if ticks:
        axis |= {
            "tickmode": "array",
            "tickvals": list(ticks),
            "ticktext": [_shown(text) for text in ticks.values()],
        }
    return axis


def _shown(text: str) -> str:
    """Text that plotly shows as it is: it takes some HTML for its own."""
    return html.escape(text, quote=False)


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _pale(colour: str) -> str:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red},{green},{blue},0.35)"
