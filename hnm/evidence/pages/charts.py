"""What the charts of an evaluation show. Each is described once: `plots` draws it still,
`interactive` for a reader who points at it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from hnm.evidence.evaluation import Evaluation, RoundEvidence, predictions
from hnm.evidence.numbers.metrics import FROC_RATES, Detections, reliability
from hnm.evidence.numbers.threshold import ABOVE_ALL, called
from hnm.evidence.truth import LESION, NORMAL

INK, MUTED, LINE, GRID, ACCENT, WARM, OCHRE = (
    "#1f2a37",
    "#667383",
    "#d9dfe5",
    "#edf0f3",
    "#1b5e8c",
    "#b4552d",
    "#8a6d1f",
)
FIRST_ROUND, LAST_ROUND = (0xC6, 0xCE, 0xD6), (0x7D, 0x8A, 0x97)
"""Greys of the rounds that are not chosen."""
WIDE, FLAT, SQUARE = (10.6, 3.7), (10.6, 2.4), (3.6, 3.2)
"""Sizes in inches; the report shows them at 96 pixels an inch or near it."""
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
        values, low, high = table[column], table[f"{column}_low"], table[f"{column}_high"]
        if values.notna().any():
            said = [
                f"round {row[0]}, {name}: AUC {row[1]:.3f}{_between(row[2], row[3])}"
                for row in zip(table["round"], values, low, high, strict=True)
            ]
            x = table.index + (place - 1) * 0.09
            series.append(
                Series(
                    _list(x),
                    _list(values),
                    colour,
                    name,
                    said,
                    1.2,
                    marker=marker,
                    bounds=(_list(low), _list(high)),
                )
            )
    lowest = min(
        (
            value
            for one in series
            for value in [*one.y, *(one.bounds or ((), ()))[0]]
            if value == value
        ),
        default=0.0,
    )
    ticks = {
        float(place): f"round {evidence.name}" for place, evidence in enumerate(evaluation.rounds)
    }
    panel = Panel(
        series,
        y_title="AUC",
        x_range=(-0.4, len(ticks) - 0.6),
        y_range=(max(lowest - 0.03, -0.02), 1.02),
        x_ticks=ticks,
    )
    return Chart([panel], WIDE)


def roc(evaluation: Evaluation) -> Chart:
    """ROC curves of the test slides by round, with the chosen round's operating point."""
    series = [_diagonal()]
    for evidence, style in _by_round(evaluation):
        curve = roc_table(evidence.slides["test"])
        said = [
            f"from score {cut:.3f} on: sensitivity {true:.3f}, specificity {1 - false:.3f}"
            for false, true, cut in curve.itertuples(index=False)
        ]
        series.append(
            Series(
                _list(curve["false_positive_rate"]),
                _list(curve["true_positive_rate"]),
                said=_of_round(evidence, said),
                **style,
            )
        )
    chosen = evaluation.chosen
    sensitivity, specificity = (
        chosen.numbers["test"][name].value for name in ("sensitivity", "specificity")
    )
    if sensitivity is not None and specificity is not None:
        said = [
            f"at the threshold {chosen.threshold:.3f}: sensitivity {sensitivity:.3f}, specificity"
            f" {specificity:.3f}"
        ]
        series.append(
            Series(
                [1 - specificity],
                [sensitivity],
                WARM,
                "at the threshold",
                said,
                marker="circle",
                size=7,
                layer=2,
            )
        )
    return _unit(series, "1 - specificity", "sensitivity", "lower right")


def precision_recall(evaluation: Evaluation) -> Chart:
    """Precision over sensitivity of the test slides by round."""
    series = []
    for evidence, style in _by_round(evaluation):
        curve = precision_recall_table(evidence.slides["test"])
        said = [
            f"from score {cut:.3f} on: sensitivity {recall:.3f}, precision {precision:.3f}"
            for recall, precision, cut in curve.itertuples(index=False)
        ]
        series.append(
            Series(
                _list(curve["recall"]),
                _list(curve["precision"]),
                said=_of_round(evidence, said),
                shape="hold",
                **style,
            )
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
    called: list[tuple[str, pd.DataFrame, str, Marker]] = [
        ("called rightly", table[right], ACCENT, "circle"),
        ("called wrongly", table[~right], WARM, "cross"),
    ]
    for name, own, colour, marker in called:
        said = [
            f"{row.slide_id}, patient {row.patient_id}: score {row.score:.3f}, {name}"
            for row in own.itertuples()
        ]
        series.append(
            Series(_list(own["score"]), _list(own["y"]), colour, name, said, marker=marker)
        )
    ticks = {0.0: "negative", 1.0: "positive"}
    return Chart(
        [
            Panel(
                series,
                "score of the slide",
                x_range=(-0.02, 1.02),
                y_range=(-0.5, 1.5),
                y_ticks=ticks,
            )
        ],
        FLAT,
    )


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
    series = []
    for evidence, style in _by_round(evaluation):
        curve = froc_table(evidence.detections)
        said = [
            f"from tile score {cut:.3f} on: {100 * share:.0f} % of lesions, {false:.2f} false a"
            " slide"
            for false, share, cut in curve.itertuples(index=False)
        ]
        series.append(
            Series(
                _list(curve["false_detections"]),
                _list(curve["lesions_found"]),
                said=_of_round(evidence, said),
                shape="hold",
                **style,
            )
        )
    chosen = evaluation.chosen
    hit, false = (
        chosen.numbers["test_tiles"][name].value for name in ("lesions_hit", "false_detections")
    )
    if hit is not None and false is not None:
        said = [
            f"at the threshold {chosen.tile_threshold:.3f} of tiles: {100 * hit:.0f} % of lesions"
            f" hit, {false:.2f} false a slide"
        ]
        series.append(
            Series(
                [false],
                [hit],
                WARM,
                "at the threshold of tiles",
                said,
                marker="circle",
                size=7,
                layer=2,
            )
        )
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
        reliability(predictions(evidence.slides["test"])),
        columns=["mean_score", "positive_share", "slides"],
    )


def froc_table(found: Detections) -> pd.DataFrame:
    """false_detections a slide and lesions_found with a lower and lower threshold, to the most that
    FROC asks for; without a row where no lesion is.
    """
    columns = ["false_detections", "lesions_found", "threshold"]
    if not len(found.lesion_scores):
        return pd.DataFrame(columns=columns, dtype=float)
    false = np.sort(found.false_scores)[::-1][: int(FROC_RATES[-1] * found.slides)]
    last = [false[-1]] if len(false) else []
    cuts = np.unique([1.0, *found.lesion_scores[np.isfinite(found.lesion_scores)], *last])[::-1]
    table = pd.DataFrame(
        [
            (
                (found.false_scores >= cut).sum() / found.slides,
                (found.lesion_scores >= cut).mean(),
                cut,
            )
            for cut in cuts
        ],
        columns=columns,
    )
    return table[table["false_detections"] <= FROC_RATES[-1]]


def auc_table(evaluation: Evaluation) -> pd.DataFrame:
    """round, and `validation_auc`, `test_auc`, `tile_auc` with `_low` and `_high`; NaN where there
    is none.
    """
    table = pd.DataFrame({"round": [evidence.name for evidence in evaluation.rounds]})
    for group, column in (
        ("validation", "validation_auc"),
        ("test", "test_auc"),
        ("test_tiles", "tile_auc"),
    ):
        numbers = [evidence.numbers[group]["auc"] for evidence in evaluation.rounds]
        bounds = pd.DataFrame(
            [(number.value, number.low, number.high) for number in numbers], dtype=float
        )
        table[[column, f"{column}_low", f"{column}_high"]] = bounds
    return table


def _histories(
    evaluation: Evaluation,
    history_of: Callable[[RoundEvidence], pd.DataFrame | None],
    columns: Mapping[str, str],
) -> Chart:
    known = [
        (evidence, style, history)
        for evidence, style in _by_round(evaluation)
        if (history := history_of(evidence)) is not None
    ]
    epochs = [int(epoch) for _, _, history in known for epoch in history["epoch"]]
    ticks = {
        float(epoch): str(epoch)
        for epoch in range(0, max(epochs, default=0) + 1, max(1, max(epochs, default=0) // 8))
        if epoch >= min(epochs, default=0)
    }
    panels = []
    for column, label in columns.items():
        series = []
        for evidence, style, history in known:
            if column in history:  # SimCLR's has no anchors of a role
                said = [
                    f"epoch {epoch}: {label} {value:.3f}"
                    for epoch, value in zip(history["epoch"], history[column], strict=True)
                ]
                series.append(
                    Series(
                        _list(history["epoch"]),
                        _list(history[column]),
                        said=_of_round(evidence, said),
                        marker="circle",
                        size=2.5,
                        **style,
                    )
                )
        panels.append(Panel(series, "epoch", label, x_ticks=ticks))
    return Chart(panels, WIDE)


def _by_round(evaluation: Evaluation) -> list[tuple[RoundEvidence, dict[str, Any]]]:
    """Each round with the look of its line: the chosen one stands out, later ones are darker."""
    last = max(len(evaluation.rounds) - 1, 1)
    greys = [
        tuple(
            round(a + (b - a) * place / last) for a, b in zip(FIRST_ROUND, LAST_ROUND, strict=True)
        )
        for place in range(last + 1)
    ]
    return [
        (
            (
                evidence,
                {
                    "colour": ACCENT,
                    "width": 2.4,
                    "name": f"round {evidence.name} (chosen)",
                    "layer": 1,
                },
            )
            if evidence is evaluation.chosen
            else (
                evidence,
                {
                    "colour": "#{:02x}{:02x}{:02x}".format(*grey),
                    "width": 1.4,
                    "name": f"round {evidence.name}",
                },
            )
        )
        for evidence, grey in zip(evaluation.rounds, greys, strict=False)
    ]


def _of_round(evidence: RoundEvidence, said: Sequence[str]) -> list[str]:
    return [f"round {evidence.name}, {text}" for text in said]


def _diagonal() -> Series:
    return Series([0, 1], [0, 1], LINE, width=1)


def _unit(series: Sequence[Series], x: str, y: str, legend: Place) -> Chart:
    return Chart([Panel(series, x, y, (-0.02, 1.02), (-0.02, 1.04))], SQUARE, legend)


def _between(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"


def _list(values: Any) -> list[float]:
    return [float(value) for value in values]
