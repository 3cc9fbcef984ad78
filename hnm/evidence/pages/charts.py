"""What the charts of an evaluation show. Each is described once: `plots` draws it still,
`interactive` for a reader who points at it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from hnm.evidence.evaluation import Evaluation, RoundEvidence
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import reliability
from hnm.evidence.numbers.threshold import ABOVE_ALL, called
from hnm.evidence.numbers.tile_metrics import FROC_RATES, Detections
from hnm.evidence.truth import LESION, NORMAL

INK = "#1f2a37"
MUTED = "#667383"
LINE = "#d9dfe5"
GRID = "#edf0f3"
ACCENT = "#1b5e8c"
WARM = "#b4552d"
OCHRE = "#8a6d1f"
# greys of the rounds that are not chosen
FIRST_ROUND = (0xC6, 0xCE, 0xD6)
LAST_ROUND = (0x7D, 0x8A, 0x97)
# sizes in inches; the report shows them at 96 pixels an inch or near it
WIDE = (10.6, 3.7)
FLAT = (10.6, 2.4)
SQUARE = (3.6, 3.2)
BINS = 40
"""Of tile scores."""

Values = Sequence[float]
Marker = Literal["circle", "square", "cross"]
Shape = Literal["straight", "hold", "step"]
"""How points are joined: `hold` keeps a value up to the next point, `step` changes it midway."""
Place = Literal["above", "lower left", "lower right"]


@dataclass(frozen=True)
class Series:
    """Points and the line that joins them; sizes and widths in points (1/72 inch). What is NaN is
    not drawn.
    """

    x: Values
    y: Values
    colour: str
    name: str = ""
    """In the legend, where it has one."""
    said: Sequence[str] = ()
    """What a reader is told at each point; empty tells nothing."""
    width: float = 0.0
    """Of the line; 0 joins nothing."""
    shape: Shape = "straight"
    dashed: bool = False
    marker: Marker | None = None
    size: float | Values = 6.0
    """Diameter of the markers."""
    bounds: tuple[Values, Values] | None = None
    """Lower and upper ends of the intervals of `y`."""
    layer: int = 0
    """What has a higher one is drawn over it."""


@dataclass(frozen=True)
class Panel:
    """A pair of axes and what is drawn between them."""

    series: Sequence[Series]
    x_title: str = ""
    y_title: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_ticks: Mapping[float, str] | None = None
    y_ticks: Mapping[float, str] | None = None


@dataclass(frozen=True)
class Chart:
    """Panels side by side. A name has one entry in the legend, however many panels show it."""

    panels: Sequence[Panel]
    size: tuple[float, float]
    legend: Place = "above"


Describe = Callable[[Evaluation], Chart]


def auc_by_round(evaluation: Evaluation) -> Chart:
    """Slide AUC of validation and test and tile AUC, with intervals, over the rounds."""
    table = auc_table(evaluation)
    named: list[tuple[str, str, str, Marker]] = [
        ("validation_auc", "validation slides", MUTED, "circle"),
        ("test_auc", "test slides", ACCENT, "circle"),
        ("tile_auc", "test tiles", WARM, "square"),
    ]
    series = []
    for place, (column, name, colour, marker) in enumerate(named):
        values, low, high = (table[column + end] for end in ("", "_low", "_high"))
        if values.notna().any():
            group = AUC_COLUMNS[column]
            said = [
                f"round {evidence.name}, {name}: AUC"
                f" {evidence.numbers[group]['auc'].with_interval()}"
                for evidence in evaluation.rounds
            ]
            series.append(
                Series(
                    _list(table.index + (place - 1) * 0.09),
                    _list(values),
                    colour,
                    name,
                    said,
                    1.2,
                    marker=marker,
                    bounds=(_list(low), _list(high)),
                )
            )
    lowest = table.drop(columns=["round", *table.filter(like="_high").columns]).min().min()
    ticks = {
        float(place): f"round {evidence.name}" for place, evidence in enumerate(evaluation.rounds)
    }
    panel = Panel(
        series,
        y_title="AUC",
        x_range=(-0.4, len(ticks) - 0.6),
        y_range=(max((lowest if series else 0.0) - 0.03, -0.02), 1.02),
        x_ticks=ticks,
    )
    return Chart([panel], WIDE)


def roc(evaluation: Evaluation) -> Chart:
    """ROC curves of the test slides by round, with the chosen round's operating point."""
    series = [
        _diagonal(),
        *_curves(
            evaluation,
            lambda evidence: roc_table(evidence.slides["test"]),
            lambda false, true, cut: (
                f"from score {cut:.3f} on: sensitivity {true:.3f}, specificity {1 - false:.3f}"
            ),
        ),
    ]
    chosen = evaluation.chosen
    sensitivity = chosen.numbers["test"]["sensitivity"].value
    specificity = chosen.numbers["test"]["specificity"].value
    if sensitivity is not None and specificity is not None:
        said = (
            f"at the threshold {chosen.threshold:.3f}: sensitivity {sensitivity:.3f}, specificity"
            f" {specificity:.3f}"
        )
        series.append(_point(1 - specificity, sensitivity, "at the threshold", said))
    return _unit(series, "1 - specificity", "sensitivity", "lower right")


def precision_recall(evaluation: Evaluation) -> Chart:
    """Precision over sensitivity of the test slides by round."""
    series = _curves(
        evaluation,
        lambda evidence: precision_recall_table(evidence.slides["test"]),
        lambda recall, precision, cut: (
            f"from score {cut:.3f} on: sensitivity {recall:.3f}, precision {precision:.3f}"
        ),
        "hold",
    )
    return _unit(series, "sensitivity (recall)", "precision", "lower left")


def calibration(evaluation: Evaluation) -> Chart:
    """Share of positives over mean score, of the test slides in ten bins of score, for the chosen
    round.
    """
    bins = calibration_table(evaluation.chosen)
    said = [
        f"mean score {mean:.3f}, slides {int(slides)}: {100 * share:.0f} % positive"
        for mean, share, slides in bins.itertuples(index=False)
    ]
    size = _list(np.sqrt(18 + 60 * bins["slides"] / bins["slides"].max()))
    curve = Series(
        _list(bins["mean_score"]),
        _list(bins["positive_share"]),
        ACCENT,
        said=said,
        width=1.2,
        marker="circle",
        size=size,
    )
    return _unit(
        [_diagonal(), curve], "mean score of the slides", "share of positive slides", "lower right"
    )


def slide_scores(evaluation: Evaluation) -> Chart:
    """The score of each test slide in the chosen round, by label, with the threshold."""
    table = decisions(evaluation.chosen).sort_values(
        ["label", "score", "slide_id"], ignore_index=True
    )
    table["y"] = table["label"] + (table.groupby("label").cumcount() % 5 - 2) * 0.09
    threshold = evaluation.chosen.threshold
    series = [
        Series(
            [threshold, threshold],
            [-0.5, 1.5],
            MUTED,
            f"threshold {threshold:.2f}",
            width=1,
            dashed=True,
        )
    ]
    right = table["label"] == table["called"]
    groups: list[tuple[str, pd.DataFrame, str, Marker]] = [
        ("called rightly", table[right], ACCENT, "circle"),
        ("called wrongly", table[~right], WARM, "cross"),
    ]
    for name, slides, colour, marker in groups:
        said = [
            f"{slide.slide_id}, patient {slide.patient_id}: score {slide.score:.3f}, {name}"
            for slide in slides.itertuples()
        ]
        series.append(
            Series(_list(slides["score"]), _list(slides["y"]), colour, name, said, marker=marker)
        )
    panel = Panel(
        series,
        "score of the slide",
        x_range=(-0.02, 1.02),
        y_range=(-0.5, 1.5),
        y_ticks={0.0: "negative", 1.0: "positive"},
    )
    return Chart([panel], FLAT)


def tile_scores(evaluation: Evaluation) -> Chart:
    """Scores of the test tiles in the chosen round, by truth."""
    tiles = evaluation.chosen.tiles
    other = ~tiles["region"].isna() & ~tiles["region"].isin(["", LESION])
    groups = [
        ("lesion", tiles["truth"] == LESION, WARM),
        ("normal, on another drawn region", (tiles["truth"] == NORMAL) & other, OCHRE),
        ("normal", (tiles["truth"] == NORMAL) & ~other, MUTED),
    ]
    edges = np.linspace(0, 1, BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    series: list[Series] = []
    for name, rows, colour in groups:
        scores = tiles.loc[rows, "score"].to_numpy()
        if len(scores):
            shares = np.histogram(scores, edges)[0] / len(scores)
            said = [
                f"{name}: {100 * share:.1f} % score {low:.3f} to {low + 1 / BINS:.3f}"
                for low, share in zip(edges, shares, strict=False)
            ]
            series.append(
                Series(
                    _list(middles),
                    _list(shares),
                    colour,
                    f"{name} ({len(scores):,} tiles)",
                    said,
                    1.5,
                    "step",
                )
            )
    highest = max((share for one in series for share in one.y), default=1.0)
    return Chart(
        [Panel(series, "score of the tile", "share of such tiles", (0, 1), (0, 1.05 * highest))],
        WIDE,
    )


def froc(evaluation: Evaluation) -> Chart:
    """Share of lesions found over false detections a slide by round, with the chosen round's
    operating point.
    """
    series = _curves(
        evaluation,
        lambda evidence: froc_table(evidence.detections),
        lambda false, share, cut: (
            f"from tile score {cut:.3f} on: {100 * share:.0f} % of lesions, {false:.2f} false a"
            " slide"
        ),
        "hold",
    )
    chosen = evaluation.chosen
    hit = chosen.numbers["test_tiles"]["lesions_hit"].value
    false = chosen.numbers["test_tiles"]["false_detections"].value
    if hit is not None and false is not None:
        said = (
            f"at the threshold {chosen.tile_threshold:.3f} of tiles: {100 * hit:.0f} % of lesions"
            f" hit, {false:.2f} false a slide"
        )
        series.append(_point(false, hit, "at the threshold of tiles", said))
    widest = max((x for one in series for x in one.x), default=1.0)
    panel = Panel(
        series,
        "false detections a slide",
        "share of lesions found",
        (-0.01 * widest, 1.02 * widest),
        (-0.02, 1.04),
    )
    return Chart([panel], WIDE)


def head_loss(evaluation: Evaluation) -> Chart:
    """Training loss and validation AUC of the head by epoch, for each round."""
    return _histories(
        evaluation,
        lambda evidence: evidence.results.head_history,
        {"loss": "loss", "validation_auc": "validation AUC"},
    )


def encoder_loss(evaluation: Evaluation) -> Chart:
    """Contrastive losses of the encoder by epoch, and how far apart the views lie, for each round
    that trains it.
    """
    columns = {
        "negative_loss": "loss, negatives as anchors",
        "positive_loss": "loss, positives as anchors",
        "spread": "spread of the views",
    }
    return _histories(evaluation, lambda evidence: evidence.results.encoder_history, columns)


CHARTS: Mapping[str, Describe] = {
    describe.__name__: describe
    for describe in (
        auc_by_round,
        roc,
        precision_recall,
        calibration,
        slide_scores,
        froc,
        tile_scores,
        head_loss,
        encoder_loss,
    )
}


def decisions(evidence: RoundEvidence) -> pd.DataFrame:
    """slide_id, label, score, called and `loss` (cross-entropy) of the test slides, the worst
    first.
    """
    slides = evidence.slides["test"]
    of_label = np.where(slides["label"] == 1, slides["score"], 1 - slides["score"])
    table = slides.assign(
        called=called(slides["score"], evidence.threshold).astype(int),
        loss=-np.log(np.clip(of_label, 1e-7, 1)),
    )
    return table.sort_values(["loss", "slide_id"], ascending=[False, True], ignore_index=True)


def roc_table(slides: pd.DataFrame) -> pd.DataFrame:
    """The ROC curve of slides with label and score; without a row where a class is missing."""
    columns = ["false_positive_rate", "true_positive_rate", "threshold"]
    if slides["label"].nunique() < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    false, true, cuts = roc_curve(slides["label"], slides["score"], drop_intermediate=False)
    return pd.DataFrame(dict(zip(columns, (false, true, np.minimum(cuts, ABOVE_ALL)), strict=True)))


def precision_recall_table(slides: pd.DataFrame) -> pd.DataFrame:
    """Precision and recall of slides with label and score at each threshold; without a row where a
    class is missing.
    """
    columns = ["recall", "precision", "threshold"]
    if slides["label"].nunique() < 2:
        return pd.DataFrame(columns=columns, dtype=float)
    precision, recall, cuts = precision_recall_curve(slides["label"], slides["score"])
    return pd.DataFrame(
        dict(zip(columns, (recall, precision, np.append(cuts, ABOVE_ALL)), strict=True))
    )


def calibration_table(evidence: RoundEvidence) -> pd.DataFrame:
    """mean_score, positive_share and slides of each bin of scores that holds test slides."""
    return pd.DataFrame(
        reliability(Predictions.of(evidence.slides["test"])),
        columns=["mean_score", "positive_share", "slides"],
    )


def froc_table(detections: Detections) -> pd.DataFrame:
    """false_detections a slide and lesions_found with a lower and lower threshold, to the most that
    FROC asks for; without a row where no lesion is.
    """
    columns = ["false_detections", "lesions_found", "threshold"]
    lesion_scores = detections.lesion_scores
    if not len(lesion_scores):
        return pd.DataFrame(columns=columns, dtype=float)
    most = int(FROC_RATES[-1] * detections.slides)
    last = np.sort(detections.false_scores)[::-1][:most][-1:]
    cuts = np.unique([1.0, *lesion_scores[np.isfinite(lesion_scores)], *last])[::-1]
    rows = [
        (
            (detections.false_scores >= cut).sum() / detections.slides,
            (lesion_scores >= cut).mean(),
            cut,
        )
        for cut in cuts
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table[table["false_detections"] <= FROC_RATES[-1]]


AUC_COLUMNS = {"validation_auc": "validation", "test_auc": "test", "tile_auc": "test_tiles"}
"""Column of `auc_table` -> group of a round's numbers."""


def auc_table(evaluation: Evaluation) -> pd.DataFrame:
    """round, and `validation_auc`, `test_auc`, `tile_auc` with `_low` and `_high`; NaN where there
    is none.
    """
    table = pd.DataFrame({"round": [evidence.name for evidence in evaluation.rounds]})
    for column, group in AUC_COLUMNS.items():
        numbers = [evidence.numbers[group]["auc"] for evidence in evaluation.rounds]
        table[[column, f"{column}_low", f"{column}_high"]] = pd.DataFrame(
            [(number.value, number.low, number.high) for number in numbers], dtype=float
        )
    return table


def _histories(
    evaluation: Evaluation,
    history_of: Callable[[RoundEvidence], pd.DataFrame | None],
    columns: Mapping[str, str],
) -> Chart:
    trained = [
        (evidence, style, history)
        for evidence, style in _by_round(evaluation)
        if (history := history_of(evidence)) is not None
    ]
    epochs = [int(epoch) for _, _, history in trained for epoch in history["epoch"]] or [0]
    step = max(1, max(epochs) // 8)
    ticks = {
        float(epoch): str(epoch)
        for epoch in range(0, max(epochs) + 1, step)
        if epoch >= min(epochs)
    }
    panels = []
    for column, label in columns.items():
        series = [
            Series(
                _list(history["epoch"]),
                _list(history[column]),
                said=[
                    f"round {evidence.name}, epoch {epoch}: {label} {value:.3f}"
                    for epoch, value in zip(history["epoch"], history[column], strict=True)
                ],
                marker="circle",
                size=2.5,
                **style,
            )
            for evidence, style, history in trained
            if column in history  # SimCLR's has no anchors of a role
        ]
        panels.append(Panel(series, "epoch", label, x_ticks=ticks))
    return Chart(panels, WIDE)


def _by_round(evaluation: Evaluation) -> list[tuple[RoundEvidence, dict[str, Any]]]:
    """Returns each round with the look of its line: the chosen one stands out, later ones are
    darker.
    """
    last = max(len(evaluation.rounds) - 1, 1)
    looks: list[tuple[RoundEvidence, dict[str, Any]]] = []
    for place, evidence in enumerate(evaluation.rounds):
        name = f"round {evidence.name}"
        grey = [
            round(a + (b - a) * place / last) for a, b in zip(FIRST_ROUND, LAST_ROUND, strict=True)
        ]
        look: dict[str, Any] = {"colour": f"#{bytes(grey).hex()}", "width": 1.4, "name": name}
        if evidence is evaluation.chosen:
            look = {"colour": ACCENT, "width": 2.4, "name": f"{name} (chosen)", "layer": 1}
        looks.append((evidence, look))
    return looks


def _curves(
    evaluation: Evaluation,
    table_of: Callable[[RoundEvidence], pd.DataFrame],
    text_of: Callable[..., str],
    shape: Shape = "straight",
) -> list[Series]:
    """Returns a line for each round.

    Args:
        evaluation: its rounds.
        table_of: gives the curve of a round; its first two columns are x and y.
        text_of: says a point, from the row of the table.
        shape: of the line.
    """
    series = []
    for evidence, style in _by_round(evaluation):
        curve = table_of(evidence)
        said = [f"round {evidence.name}, {text_of(*row)}" for row in curve.itertuples(index=False)]
        x, y, _ = (_list(curve[column]) for column in curve)
        series.append(Series(x, y, said=said, shape=shape, **style))
    return series


def _point(x: float, y: float, name: str, said: str) -> Series:
    """Returns the operating point of the chosen round."""
    return Series([x], [y], WARM, name, [said], marker="circle", size=7, layer=2)


def _diagonal() -> Series:
    return Series([0, 1], [0, 1], LINE, width=1)


def _unit(series: Sequence[Series], x: str, y: str, legend: Place) -> Chart:
    return Chart([Panel(series, x, y, (-0.02, 1.02), (-0.02, 1.04))], SQUARE, legend)


def _list(values: Any) -> list[float]:
    return [float(value) for value in values]
