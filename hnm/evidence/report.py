"""The report: one page that says what a run is worth and shows what was mined. It needs no network, and equal input gives equal bytes."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from hnm.evidence import plots
from hnm.evidence.evaluation import Evaluation, RoundEvidence, lesion_share, look_alike_share, mined_summary
from hnm.evidence.heatmap import COLOURS, SlidePicture, slide_picture, tile_picture
from hnm.evidence.metrics import FROC_RATES, Number
from hnm.evidence.openings import Looks
from hnm.evidence.truth import is_lesion
from hnm.slides.pack import Pack

OpenPack = Callable[[str], Pack]
"""Slide id to its pack."""

SHOWN_TILES = {"hard_negative": 24, "positive": 12}
SHOWN_SLIDES = 2
"""Of the best and of the worst test slides of each label."""
SHOWN_SOURCES = 8
METRIC_NAMES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "sensitivity_at_specificity_90": "sensitivity at 90 % specificity",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "expected calibration error",
}
DECIDED = ("accuracy", "f1", "sensitivity", "specificity")
"""Metrics at the threshold that validation chose."""
LOSSES = ("brier", "log_loss", "ece")
"""Metrics of which less is better."""


@dataclass(frozen=True)
class Picture:
    """A mined tile in the gallery."""

    jpeg: bytes
    rank: int
    score: float
    slide_id: str
    x: int
    y: int
    known: str
    """Its region, `nothing drawn`, or "" where its slide has no annotation."""


@dataclass(frozen=True)
class Gallery:
    """The mined tiles of one role in one round."""

    role: str
    tiles: int
    slides: int
    pictures: Sequence[Picture]
    sources: Sequence[tuple[str, int, float]]
    """(slide id, tiles, share of the role's tiles), the largest first."""
    share: float | None
    """Of those on what the role hopes for: a region that is no lesion for hard negatives, a lesion for positives."""
    base: float | None
    """The same share among all tiles that could have been mined in this role."""
    again: float


@dataclass(frozen=True)
class Heatmap:
    """Where the head looked on one test slide."""

    slide_id: str
    label: int
    score: float
    called: int
    picture: SlidePicture


def render_report(evaluation: Evaluation, open_pack: OpenPack, looked: Looks) -> str:
    """The page as HTML; `looked` counts the openings of the test labels for other states than this one."""
    environment = Environment(loader=PackageLoader("hnm.evidence", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": _number,
        "signed": lambda value: f"{value:+.2f}".replace("-", "−"),
        "percent": lambda share: "–" if share is None else f"{100 * share:.0f} %",
        "count": lambda value: f"{value:,}".replace(",", "\u202f"),
        "interval": _interval,
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    summaries = [mined_summary(evidence.mined) for evidence in evaluation.rounds if evidence.mined is not None]
    histories = [evidence.results.encoder_history for evidence in evaluation.rounds]
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        looked=looked,
        chosen=evaluation.chosen,
        first=evaluation.rounds[0],
        funnel=evaluation.cohort.funnel(),
        confidence=f"{100 * evaluation.section.confidence:g} %",
        verdict=_verdict(evaluation),
        figures={name: plots.svg(draw, evaluation) for name, draw in plots.FIGURES.items()},
        metric_names=METRIC_NAMES,
        decided=DECIDED,
        losses=LOSSES,
        decisions=list(plots.decisions(evaluation.chosen).itertuples()),
        galleries={evidence.name: list(_galleries(evaluation, evidence, open_pack)) for evidence in evaluation.rounds if evidence.mined is not None},
        heatmaps=list(_heatmaps(evaluation, open_pack)),
        colours=COLOURS,
        is_lesion=partial(is_lesion, section=evaluation.section),
        validation_aucs=[_number(evidence.numbers["validation"]["auc"].value) for evidence in evaluation.rounds],
        mined_counts=[" + ".join(f"{summary[role]:,}" for role in ("hard_negatives", "positives")) for summary in summaries],
        encoder_losses=[f"{history['loss'].iloc[-1]:.2f}" for history in histories if history is not None],
        records=_flat(evaluation.chosen.results.records),
        froc_rates=[f"1/{round(1 / rate)}" if rate < 1 else rate for rate in FROC_RATES],
        settings=_flat({"evaluate": evaluation.section.model_dump(mode="json")}),
    )


def _verdict(evaluation: Evaluation) -> str:
    """What the gain over round 0 allows to say."""
    gain = evaluation.gain
    if evaluation.chosen is evaluation.rounds[0]:
        return "Mining brought nothing that validation could see." if len(evaluation.rounds) > 1 else "Nothing was mined."
    if gain.value is None:
        return f"Whether mining helped cannot be said: {gain.reason}."
    if gain.low is None or gain.high is None:
        return "The test AUC of the two rounds is the same in every resample."
    if gain.low > 0:
        return "The interval of the gain lies above zero: on these patients, mining helped."
    if gain.high < 0:
        return "The interval of the gain lies below zero: on these patients, mining did harm."
    return "The interval of the gain includes zero: so few test slides cannot tell whether mining helped."


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(number: Number) -> str:
    return "" if number.low is None or number.high is None else f"{number.low:.2f} to {number.high:.2f}".replace("-", "−")


def _galleries(evaluation: Evaluation, evidence: RoundEvidence, open_pack: OpenPack) -> Iterator[Gallery]:
    assert evidence.mined is not None
    train = evaluation.cohort.labels["train"]
    for role, label, share in (("hard_negative", 0, look_alike_share), ("positive", 1, lesion_share)):
        tiles = evidence.mined[evidence.mined["role"] == role].sort_values("rank")
        pool = evaluation.tile_truth[evaluation.tile_truth["slide_id"].isin(train.loc[train["label"] == label, "slide_id"])]
        sources = tiles["slide_id"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        yield Gallery(
            role,
            len(tiles),
            len(sources),
            [_picture(tile, open_pack) for tile in _spread(tiles, SHOWN_TILES[role]).itertuples()],
            [(str(slide_id), int(count), count / len(tiles)) for slide_id, count in sources.head(SHOWN_SOURCES).items()],
            share(tiles),
            share(pool),
            float(tiles["again"].mean()) if len(tiles) else 0.0,
        )


def _spread(tiles: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows of `tiles`, evenly spread over its ranks, the first included."""
    return tiles.iloc[np.unique(np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int))]


def _picture(tile: Any, open_pack: OpenPack) -> Picture:
    known = "" if pd.isna(tile.region) else tile.region or "nothing drawn"
    with open_pack(tile.slide_id) as pack:
        return Picture(tile_picture(pack.tiles([tile.tile])[0]), tile.rank, tile.score, tile.slide_id, tile.x, tile.y, known)


def _heatmaps(evaluation: Evaluation, open_pack: OpenPack) -> Iterator[Heatmap]:
    """The worst test slides of each label, then the best."""
    cohort, chosen = evaluation.cohort, evaluation.chosen
    table = plots.decisions(chosen)
    worst, best = table.groupby("label").head(SHOWN_SLIDES), table.groupby("label").tail(SHOWN_SLIDES)
    for slide in pd.concat([worst, best.iloc[::-1]]).drop_duplicates("slide_id").to_dict("records"):
        slide_id = str(slide["slide_id"])
        scores = chosen.tiles[chosen.tiles["slide_id"] == slide_id].sort_values("tile")["score"].to_numpy()
        with open_pack(slide_id) as pack:
            picture = slide_picture(pack, scores, cohort.aspects[slide_id], cohort.annotations.get(slide_id, []))
        yield Heatmap(slide_id, slide["label"], slide["score"], slide["called"], picture)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return flat
