"""Figures of an evaluation, and the tables behind them: PNG and CSV for DVC and MLflow, SVG for the report. Equal input gives equal bytes."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from sklearn.metrics import precision_recall_curve, roc_curve

from hnm.evidence.evaluation import Evaluation, RoundEvidence, predictions
from hnm.evidence.metrics import reliability
from hnm.evidence.truth import LESION, NORMAL
from hnm.store import whole

INK, MUTED, LINE, ACCENT, WARM = "#1f2a37", "#667383", "#d9dfe5", "#1b5e8c", "#b4552d"
OTHER_ROUNDS = LinearSegmentedColormap.from_list("rounds", ["#c6ced6", "#7d8a97"])
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
        "grid.color": "#edf0f3",
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
WIDE, FLAT, SQUARE = (10.6, 3.7), (10.6, 2.4), (3.6, 3.2)
"""Sizes in inches; the report shows them at 96 pixels an inch or near it."""


class Chart(Figure):
    """A figure that knows what its points say to a reader who points at them."""

    def __init__(self, size: tuple[float, float]) -> None:
        super().__init__(figsize=size, layout="constrained")
        self._said: list[tuple[Axes, float, float, str]] = []

    def say(self, axes: Axes, xs: Iterable[float], ys: Iterable[float], texts: Iterable[str]) -> None:
        """Each text stands at a point of `axes`; points that are not drawn (NaN) say nothing."""
        self._said += [(axes, x, y, text) for x, y, text in zip(xs, ys, texts, strict=True) if np.isfinite(x) and np.isfinite(y)]

    def points(self) -> list[tuple[float, float, str]]:
        """(x, y, text) in SVG's units, from the upper left; once the figure is drawn."""
        height, scale = self.bbox.height, 72 / self.dpi
        places = [(axes.transData.transform((x, y)), text) for axes, x, y, text in self._said]
        return [(round(float(x) * scale, 1), round(float(height - y) * scale, 1), text) for (x, y), text in places]


Draw = Callable[[Evaluation], Chart]


@dataclass(frozen=True)
class Drawing:
    """A figure for a page."""

    svg: bytes
    width: float
    height: float
    points: Sequence[tuple[float, float, str]]
    """(x, y, text) within `width` x `height`: what a reader is told there."""


def write_plots(evaluation: Evaluation, folder: Path) -> None:
    """Every table as CSV and every figure as PNG, in `folder`."""
    for name, table in tables_of(evaluation).items():
        with whole(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format=_float32)
    for name, draw in FIGURES.items():
        with whole(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png(draw, evaluation))


def tables_of(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """The tables that `dvc plots` draws, by name.

    `roc`, `precision_recall`, `calibration` and `test_slides` are of the chosen round, so that two states of the
    project compare line by line; `roc_by_round` and the others hold all rounds.
    """
    chosen = evaluation.chosen
    return {
        "auc_by_round": _auc_by_round(evaluation),
        "roc": _roc(chosen.slides["test"]),
        "roc_by_round": pd.concat([_roc(evidence.slides["test"]).assign(round=evidence.name) for evidence in evaluation.rounds], ignore_index=True),
        "precision_recall": _precision_recall(chosen.slides["test"]),
        "calibration": _calibration(chosen),
        "test_slides": decisions(chosen),
        "head_history": _joined([(evidence.name, evidence.results.head_history) for evidence in evaluation.rounds]),
        "encoder_history": _joined([(evidence.name, evidence.results.encoder_history) for evidence in evaluation.rounds]),
    }


def decisions(evidence: RoundEvidence) -> pd.DataFrame:
    """slide_id, label, score, called and `loss` (cross-entropy) of the test slides, the worst first."""
    slides = evidence.slides["test"]
    of_label = np.where(slides["label"] == 1, slides["score"], 1 - slides["score"])
    table = slides.assign(called=(slides["score"] >= evidence.threshold).astype(int), loss=-np.log(np.clip(of_label, 1e-7, 1)))
    return table.sort_values(["loss", "slide_id"], ascending=[False, True], ignore_index=True)


def png(draw: Draw, evaluation: Evaluation) -> bytes:
    """The drawn figure as PNG without metadata."""
    stream = io.BytesIO()
    with style_context(STYLE):
        figure = draw(evaluation)
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=144, metadata={"Software": None})
    return stream.getvalue()


def drawing(draw: Draw, evaluation: Evaluation) -> Drawing:
    """The drawn figure as SVG without metadata, and what its points say; its text stays text, in the reader's own system font."""
    stream = io.BytesIO()
    with style_context(STYLE):
        figure = draw(evaluation)
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    return Drawing(stream.getvalue().replace(b"'DejaVu Sans'", SYSTEM_FONTS.encode()), width, height, figure.points())


def auc_by_round(evaluation: Evaluation) -> Chart:
    """Slide AUC of validation and test and tile AUC, with intervals, over the rounds."""
    figure, axes = _figure(WIDE)
    table = _auc_by_round(evaluation)
    series = [("validation_auc", "validation slides", MUTED, "o"), ("test_auc", "test slides", ACCENT, "o"), ("tile_auc", "test tiles", WARM, "s")]
    for place, (column, label, colour, marker) in enumerate(series):
        values = table[column]
        if values.notna().any():
            x = table.index + (place - 1) * 0.09
            axes.vlines(x, table[f"{column}_low"].fillna(values), table[f"{column}_high"].fillna(values), color=colour, linewidth=2.2, alpha=0.35)
            axes.plot(x, values, marker=marker, markersize=6, linewidth=1.2, color=colour, label=label)
            bounds = zip(table["round"], values, table[f"{column}_low"], table[f"{column}_high"], strict=True)
            figure.say(axes, x, values, [f"round {name}, {label}: AUC {value:.3f}{_between(low, high)}" for name, value, low, high in bounds])
    axes.set_xticks(range(len(evaluation.rounds)), [f"round {evidence.name}" for evidence in evaluation.rounds])
    axes.set_xlim(-0.4, len(evaluation.rounds) - 0.6)
    axes.set_ylim(top=1.02)
    axes.set_ylabel("AUC")
    _legend(axes)
    return figure


def roc(evaluation: Evaluation) -> Chart:
    """ROC curves of the test slides by round, with the chosen round's operating point."""
    figure, axes = _figure(SQUARE)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, zorder=0)
    for evidence, style in _by_round(evaluation):
        curve = _roc(evidence.slides["test"])
        axes.plot(curve["false_positive_rate"], curve["true_positive_rate"], **style)
        if evidence is evaluation.chosen:
            figure.say(axes, curve["false_positive_rate"], curve["true_positive_rate"], _cuts(curve))
    sensitivity, specificity = (evaluation.chosen.numbers["test"][name].value for name in ("sensitivity", "specificity"))
    if sensitivity is not None and specificity is not None:
        axes.plot([1 - specificity], [sensitivity], "o", color=WARM, markersize=7, label="at the threshold", zorder=5)
    _unit(axes, "1 - specificity", "sensitivity")
    _legend(axes, loc="lower right")
    return figure


def precision_recall(evaluation: Evaluation) -> Chart:
    """Precision over sensitivity of the test slides by round."""
    figure, axes = _figure(SQUARE)
    for evidence, style in _by_round(evaluation):
        curve = _precision_recall(evidence.slides["test"])
        axes.plot(curve["recall"], curve["precision"], drawstyle="steps-post", **style)
        if evidence is evaluation.chosen:
            said = [f"from score {cut:.3f} on: sensitivity {recall:.3f}, precision {precision:.3f}" for recall, precision, cut in curve.itertuples(index=False)]
            figure.say(axes, curve["recall"], curve["precision"], said)
    _unit(axes, "sensitivity (recall)", "precision")
    _legend(axes, loc="lower left")
    return figure


def calibration(evaluation: Evaluation) -> Chart:
    """Share of positives over mean score, of the test slides in ten bins of score, for the chosen round."""
    figure, axes = _figure(SQUARE)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, zorder=0)
    bins = _calibration(evaluation.chosen)
    axes.plot(bins["mean_score"], bins["positive_share"], color=ACCENT, linewidth=1.2)
    axes.scatter(bins["mean_score"], bins["positive_share"], s=18 + 60 * bins["slides"] / bins["slides"].max() if len(bins) else 18, color=ACCENT)
    said = [f"mean score {mean:.3f}, slides {int(slides)}: {100 * share:.0f} % positive" for mean, share, slides in bins.itertuples(index=False)]
    figure.say(axes, bins["mean_score"], bins["positive_share"], said)
    _unit(axes, "mean score of the slides", "share of positive slides")
    return figure


def slide_scores(evaluation: Evaluation) -> Chart:
    """The score of each test slide in the chosen round, by label, with the threshold."""
    figure, axes = _figure(FLAT)
    table = decisions(evaluation.chosen).sort_values(["label", "score", "slide_id"], ignore_index=True)
    spread = (table.groupby("label").cumcount().to_numpy() % 5 - 2) * 0.09
    right = table["label"] == table["called"]
    axes.axvline(evaluation.chosen.threshold, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"threshold {evaluation.chosen.threshold:.2f}")
    axes.scatter(table["score"][right], (table["label"] + spread)[right], s=34, color=ACCENT, alpha=0.8, label="called rightly", linewidths=0)
    axes.scatter(table["score"][~right], (table["label"] + spread)[~right], s=42, color=WARM, marker="X", label="called wrongly", linewidths=0)
    figure.say(
        axes, table["score"], table["label"] + spread, [f"{row.slide_id}, patient {row.patient_id}: score {row.score:.3f}" for row in table.itertuples()]
    )
    axes.set_yticks([0, 1], ["negative", "positive"])
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("score of the slide")
    _legend(axes, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
    return figure


def tile_scores(evaluation: Evaluation) -> Chart:
    """Scores of the test tiles in the chosen round, by truth."""
    figure, axes = _figure(WIDE)
    tiles = evaluation.chosen.tiles
    other = ~tiles["region"].isna() & ~tiles["region"].isin(["", LESION])
    groups = [
        ("lesion", tiles["truth"] == LESION, WARM),
        ("normal, on another drawn region", (tiles["truth"] == NORMAL) & other, "#8a6d1f"),
        ("normal", (tiles["truth"] == NORMAL) & ~other, MUTED),
    ]
    edges = np.linspace(0, 1, 41)
    for label, rows, colour in groups:
        scores = tiles.loc[rows, "score"].to_numpy()
        if len(scores):
            axes.stairs(np.histogram(scores, edges)[0] / len(scores), edges, color=colour, linewidth=1.5, label=f"{label} ({len(scores):,} tiles)")
    axes.set_xlim(0, 1)
    axes.set_xlabel("score of the tile")
    axes.set_ylabel("share of such tiles")
    _legend(axes)
    return figure


def head_loss(evaluation: Evaluation) -> Chart:
    """Training loss and validation AUC of the head by epoch, for each round."""
    return _histories(evaluation, [(e.name, e.results.head_history) for e in evaluation.rounds], {"loss": "loss", "validation_auc": "validation AUC"})


def encoder_loss(evaluation: Evaluation) -> Chart:
    """Contrastive losses of the encoder by epoch, for each round that trains it."""
    columns = {"negative_loss": "loss, negatives as anchors", "positive_loss": "loss, positives as anchors"}
    return _histories(evaluation, [(e.name, e.results.encoder_history) for e in evaluation.rounds], columns)


FIGURES: Mapping[str, Draw] = {
    draw.__name__: draw for draw in (auc_by_round, roc, precision_recall, calibration, slide_scores, tile_scores, head_loss, encoder_loss)
}


def _histories(evaluation: Evaluation, histories: Sequence[tuple[str, pd.DataFrame | None]], columns: Mapping[str, str]) -> Chart:
    figure = Chart(WIDE)
    styles = {evidence.name: style for evidence, style in _by_round(evaluation)}
    panels = figure.subplots(1, len(columns))
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for name, history in histories:
            if history is not None and column in history:  # SimCLR's has no anchors of a role
                axes.plot(history["epoch"], history[column], marker="o", markersize=2.5, **styles[name])
                said = [f"round {name}, epoch {epoch}: {label} {value:.3f}" for epoch, value in zip(history["epoch"], history[column], strict=True)]
                figure.say(axes, history["epoch"], history[column], said)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(panels[-1])
    return figure


def _by_round(evaluation: Evaluation) -> list[tuple[RoundEvidence, dict[str, Any]]]:
    """Each round with the style of its line: the chosen one stands out, later ones are darker."""
    last = max(len(evaluation.rounds) - 1, 1)
    return [
        (
            evidence,
            {
                "color": ACCENT if evidence is evaluation.chosen else OTHER_ROUNDS(place / last),
                "linewidth": 2.4 if evidence is evaluation.chosen else 1.4,
                "label": f"round {evidence.name}" + (" (chosen)" if evidence is evaluation.chosen else ""),
            },
        )
        for place, evidence in enumerate(evaluation.rounds)
    ]


def _roc(slides: pd.DataFrame) -> pd.DataFrame:
    columns = ["false_positive_rate", "true_positive_rate", "threshold"]
    if slides["label"].nunique() < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    false, true, cuts = roc_curve(slides["label"], slides["score"], drop_intermediate=False)
    return pd.DataFrame(dict(zip(columns, (false, true, np.minimum(cuts, 1)), strict=True)))


def _precision_recall(slides: pd.DataFrame) -> pd.DataFrame:
    columns = ["recall", "precision", "threshold"]
    if slides["label"].nunique() < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    precision, recall, cuts = precision_recall_curve(slides["label"], slides["score"])
    return pd.DataFrame(dict(zip(columns, (recall, precision, np.append(cuts, 1)), strict=True)))


def _calibration(evidence: RoundEvidence) -> pd.DataFrame:
    return pd.DataFrame(reliability(predictions(evidence.slides["test"])), columns=["mean_score", "positive_share", "slides"])


def _auc_by_round(evaluation: Evaluation) -> pd.DataFrame:
    """round, and `validation_auc`, `test_auc`, `tile_auc` with `_low` and `_high`; NaN where there is none."""
    table = pd.DataFrame({"round": [evidence.name for evidence in evaluation.rounds]})
    for group, column in (("validation", "validation_auc"), ("test", "test_auc"), ("test_tiles", "tile_auc")):
        numbers = [evidence.numbers[group]["auc"] for evidence in evaluation.rounds]
        bounds = pd.DataFrame([(number.value, number.low, number.high) for number in numbers], dtype=float)
        table[[column, f"{column}_low", f"{column}_high"]] = bounds
    return table


def _joined(histories: Sequence[tuple[str, pd.DataFrame | None]]) -> pd.DataFrame:
    """The rounds' histories behind each other; `step` counts epochs over all rounds."""
    known = [history.assign(round=name) for name, history in histories if history is not None]
    if not known:
        return pd.DataFrame(columns=["step", "round", "epoch", "loss"])
    joined = pd.concat(known, ignore_index=True)
    first = ["step", "round", "epoch"]
    return joined.assign(step=range(1, len(joined) + 1))[first + [column for column in joined.columns if column not in first]]


def _cuts(curve: pd.DataFrame) -> list[str]:
    return [f"from score {cut:.3f} on: sensitivity {true:.3f}, specificity {1 - false:.3f}" for false, true, cut in curve.itertuples(index=False)]


def _float32(value: Any) -> str:
    """The shortest text that gives the same float32, so that scores that are read back tie where they tied, and nowhere else."""
    return str(np.float32(value))


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"


def _figure(size: tuple[float, float]) -> tuple[Chart, Axes]:
    figure = Chart(size)
    return figure, figure.subplots()


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel=x, ylabel=y)


def _legend(axes: Axes, **place: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**place)
