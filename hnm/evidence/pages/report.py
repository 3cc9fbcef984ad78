"""The report: one page that says what a run is worth and shows what was mined. It needs no network,
and equal input gives equal bytes.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from hnm.evidence.evaluation import (
    Evaluation,
    RoundEvidence,
    lesion_share,
    lesions_among_negatives,
    look_alike_share,
    mined_summary,
)
from hnm.evidence.numbers.tile_metrics import FROC_RATES
from hnm.evidence.pages import interactive, plots
from hnm.evidence.pages.cards import METRIC_NAMES, card_html
from hnm.evidence.pages.charts import CHARTS, decisions
from hnm.evidence.pages.heatmap import COLOURS, SlidePicture, slide_picture, tile_picture
from hnm.evidence.pages.templates import environment, number
from hnm.evidence.test_ledger import Looks
from hnm.evidence.truth import contradictions, is_lesion
from hnm.params import flat
from hnm.slides.cutting.pack import Pack

OpenPack = Callable[[str], Pack]
"""Slide id to its pack."""

NEGATIVES = {
    "hard": "hard",
    "semi_hard": "semi-hard",
    "mixed": "hard and random",
    "random": "random",
    "all": "all",
}
"""Mining policy -> the negatives that it takes. The role `hard_negative` says what they are mined
for, not how.
"""
SHOWN_TILES = {"hard_negative": 24, "positive": 12}
SHOWN_SLIDES = 2
"""Of the best and of the worst test slides of each label."""
SHOWN_SOURCES = 8
DECIDED = ("accuracy", "f1", "sensitivity", "specificity")
"""Metrics at the threshold that validation chose."""
TILE_NOTES = {
    "auc": "",
    "average_precision": "",
    "froc": "mean of the shares below",
    "lesions_hit": "at the tile threshold",
    "false_detections": "at the tile threshold; less is better",
}
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
    drawn: str
    """Its region, `nothing drawn`, or "" where its slide has no annotation."""


@dataclass(frozen=True)
class Gallery:
    """The mined tiles of one role in one round."""

    role: str
    title: str
    """What its tiles are: positives, or negatives as their policy chose them."""
    tiles: int
    slides: int
    pictures: Sequence[Picture]
    patients: int
    sources: Sequence[tuple[str, str, int, float]]
    """(slide id, patient id, tiles, share of the role's tiles), the largest first."""
    share: float | None
    """Of those on what the role hopes for: a region that is no lesion for negatives, a lesion for
    positives.
    """
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


@dataclass(frozen=True)
class Origin:
    """What the page says beside the evaluation."""

    looked: Looks
    """Openings of the test labels for other states than this one."""
    model_card: str
    """Markdown."""
    data_card: str
    """Markdown."""
    lineage: Sequence[tuple[str, str, str]]
    """(stage, path, md5) of the data that the stages before have made, as dvc.lock names it; empty
    where DVC did not run them.
    """


@dataclass(frozen=True)
class Effort:
    """What one round asked of the machine, told by counts, which are the same on every machine."""

    round: str
    embedded: int
    """Tiles."""
    mined: int
    """Tiles."""
    share: float
    """Of the train slides' tiles that were mined."""
    encoder_epochs: int
    head_epochs: int


def render_report(evaluation: Evaluation, open_pack: OpenPack, origin: Origin) -> str:
    """Returns the page as HTML."""
    filters = {
        "signed": lambda value: _with_minus(f"{value:+.2f}"),
        "percent": lambda share: "–" if share is None else f"{100 * share:.0f} %",
        "count": lambda value: f"{value:,}".replace(",", "\u202f"),
        "interval": lambda number: _with_minus(number.interval()),
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    template = environment(filters, autoescape=True).get_template("report.html.jinja")
    return template.render(
        evaluation=evaluation,
        chosen=evaluation.chosen,
        first=evaluation.rounds[0],
        origin=origin,
        cards={
            "model-card": ("Model card", card_html(origin.model_card)),
            "data-card": ("Data card", card_html(origin.data_card)),
        },
        **_WORDS,
        **_charts(evaluation),
        **_loop(evaluation),
        **_pictures(evaluation, open_pack),
        **_warnings(evaluation),
        **_settings(evaluation),
    )


_WORDS = {
    "metric_names": METRIC_NAMES,
    "decided": DECIDED,
    "losses": LOSSES,
    "tile_notes": TILE_NOTES,
    "colours": COLOURS,
    "froc_rates": [f"1/{round(1 / rate)}" if rate < 1 else rate for rate in FROC_RATES],
}


def _charts(evaluation: Evaluation) -> dict[str, Any]:
    charts = {name: describe(evaluation) for name, describe in CHARTS.items()}
    return {
        "stills": {name: plots.svg(chart) for name, chart in charts.items()},
        "sizes": {name: chart.size for name, chart in charts.items()},
        "live": interactive.live(charts),
        "plotly": interactive.library(),
    }


def _loop(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what the page says of the loop and of its rounds."""
    mined = [
        (evidence, mined_summary(evidence.mined))
        for evidence in evaluation.rounds
        if evidence.mined is not None
    ]
    histories = [evidence.results.encoder_history for evidence in evaluation.rounds]
    return {
        "verdict": _verdict(evaluation),
        "funnel": evaluation.cohort.funnel(),
        "effort": [_effort(evaluation, evidence) for evidence in evaluation.rounds],
        "validation_aucs": [
            number(evidence.numbers["validation"]["auc"].value) for evidence in evaluation.rounds
        ],
        "mined_counts": [
            f"{summary['hard_negatives']:,} + {summary['positives']:,}" for _, summary in mined
        ],
        "encoder_losses": [
            f"{history['loss'].iloc[-1]:.2f}" for history in histories if history is not None
        ],
        "churn": {
            evidence.name: evidence.overlap
            for evidence, _ in mined
            if evidence.overlap["jaccard"] is not None
        },
    }


def _pictures(evaluation: Evaluation, open_pack: OpenPack) -> dict[str, Any]:
    return {
        "decisions": list(decisions(evaluation.chosen).itertuples()),
        "galleries": {
            evidence.name: list(_galleries(evaluation, evidence, open_pack))
            for evidence in evaluation.rounds
            if evidence.mined is not None
        },
        "heatmaps": list(_heatmaps(evaluation, open_pack)),
        "is_lesion": partial(is_lesion, section=evaluation.section),
    }


def _warnings(evaluation: Evaluation) -> dict[str, Any]:
    cohort = evaluation.cohort
    return {
        "disagreements": contradictions(cohort.annotations, cohort.label_of, evaluation.section),
        "contradictions": [
            text for evidence in evaluation.rounds if (text := lesions_among_negatives(evidence))
        ],
    }


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "confidence": f"{100 * evaluation.section.confidence:g} %",
        "records": flat(evaluation.chosen.results.records),
        "settings": flat({"evaluate": evaluation.section.model_dump(mode="json")}),
    }


def _with_minus(text: str) -> str:
    return text.replace("-", "−")


def _effort(evaluation: Evaluation, evidence: RoundEvidence) -> Effort:
    tiles = evaluation.cohort.tiles
    results = evidence.results
    train = int(tiles["slide_id"].isin(evaluation.cohort.labels["train"]["slide_id"]).sum())
    mined = 0 if results.mined is None else len(results.mined)
    return Effort(
        evidence.name,
        embedded=len(tiles),
        mined=mined,
        share=mined / train if train else 0.0,
        encoder_epochs=0 if results.encoder_history is None else len(results.encoder_history),
        head_epochs=len(results.head_history),
    )


def _verdict(evaluation: Evaluation) -> str:
    """What the gain over round 0 allows to say."""
    gain = evaluation.gain
    if evaluation.chosen is evaluation.rounds[0]:
        return (
            "Mining brought nothing that validation could see."
            if len(evaluation.rounds) > 1
            else "Nothing was mined."
        )
    if gain.value is None:
        return f"Whether mining helped cannot be said: {gain.reason}."
    if gain.low is None or gain.high is None:
        return "The test AUC of the two rounds is the same in every resample."
    if gain.low > 0:
        return "The interval of the gain lies above zero: on these patients, mining helped."
    if gain.high < 0:
        return "The interval of the gain lies below zero: on these patients, mining did harm."
    return (
        "The interval of the gain includes zero: so few test slides cannot tell whether mining"
        " helped."
    )


def _galleries(
    evaluation: Evaluation, evidence: RoundEvidence, open_pack: OpenPack
) -> Iterator[Gallery]:
    assert evidence.mined is not None
    train = evaluation.cohort.labels["train"]
    truth = evaluation.tile_truth
    slides = evaluation.cohort.slides
    patient_of = dict(zip(slides["slide_id"], slides["patient_id"], strict=True))
    for role, label, share in (
        ("hard_negative", 0, look_alike_share),
        ("positive", 1, lesion_share),
    ):
        tiles = evidence.mined[evidence.mined["role"] == role].sort_values("rank")
        pool = truth["slide_id"].isin(train.loc[train["label"] == label, "slide_id"])
        counts = tiles["slide_id"].value_counts().sort_index()
        sources = counts.sort_values(ascending=False, kind="stable")
        policies = [NEGATIVES[policy] for policy in tiles["policy"].unique()]
        yield Gallery(
            role,
            title="positives" if role == "positive" else " ".join([*policies, "negatives"]),
            tiles=len(tiles),
            slides=len(sources),
            pictures=[
                _picture(tile, open_pack) for tile in _spread(tiles, SHOWN_TILES[role]).itertuples()
            ],
            patients=len({patient_of[str(slide_id)] for slide_id in sources.index}),
            sources=[
                (str(slide_id), patient_of[str(slide_id)], int(count), count / len(tiles))
                for slide_id, count in sources.head(SHOWN_SOURCES).items()
            ],
            share=share(tiles),
            base=share(truth[pool]),
            again=float(tiles["again"].mean()) if len(tiles) else 0.0,
        )


def _spread(tiles: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows of `tiles`, evenly spread over its ranks, the first included."""
    rows = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int)
    return tiles.iloc[np.unique(rows)]


def _picture(tile: Any, open_pack: OpenPack) -> Picture:
    drawn = "" if pd.isna(tile.region) else tile.region or "nothing drawn"
    jpeg = tile_picture(open_pack(tile.slide_id).tiles([tile.tile])[0])
    return Picture(jpeg, tile.rank, tile.score, tile.slide_id, tile.x, tile.y, drawn)


def _heatmaps(evaluation: Evaluation, open_pack: OpenPack) -> Iterator[Heatmap]:
    """The worst test slides of each label, then the best."""
    cohort = evaluation.cohort
    tiles = evaluation.chosen.tiles.sort_values("tile")
    by_label = decisions(evaluation.chosen).groupby("label")
    worst = by_label.head(SHOWN_SLIDES)
    best = by_label.tail(SHOWN_SLIDES).iloc[::-1]
    for slide in pd.concat([worst, best]).drop_duplicates("slide_id").to_dict("records"):
        slide_id = str(slide["slide_id"])
        picture = slide_picture(
            open_pack(slide_id),
            tiles.loc[tiles["slide_id"] == slide_id, "score"].to_numpy(),
            cohort.aspects[slide_id],
            cohort.annotations.get(slide_id, []),
        )
        yield Heatmap(slide_id, slide["label"], slide["score"], slide["called"], picture)
