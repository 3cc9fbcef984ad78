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
from jinja2 import Environment, PackageLoader, StrictUndefined

from hnm.evidence.evaluation import (
    Evaluation,
    RoundEvidence,
    lesion_share,
    lesions_among_negatives,
    look_alike_share,
    mined_summary,
)
from hnm.evidence.numbers.metrics import FROC_RATES, Number
from hnm.evidence.pages import interactive, plots
from hnm.evidence.pages.cards import METRIC_NAMES, card_html
from hnm.evidence.pages.charts import CHARTS, decisions
from hnm.evidence.pages.heatmap import COLOURS, SlidePicture, slide_picture, tile_picture
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
    known: str
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
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("hnm.evidence.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "signed": lambda value: f"{value:+.2f}".replace("-", "−"),
        "percent": lambda share: "–" if share is None else f"{100 * share:.0f} %",
        "count": lambda value: f"{value:,}".replace(",", "\u202f"),
        "interval": _interval,
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    summaries = [
        mined_summary(evidence.mined)
        for evidence in evaluation.rounds
        if evidence.mined is not None
    ]
    charts = {name: describe(evaluation) for name, describe in CHARTS.items()}
    histories = [evidence.results.encoder_history for evidence in evaluation.rounds]
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        origin=origin,
        looked=origin.looked,
        cards={
            "model-card": ("Model card", card_html(origin.model_card)),
            "data-card": ("Data card", card_html(origin.data_card)),
        },
        effort=[_effort(evaluation, evidence) for evidence in evaluation.rounds],
        chosen=evaluation.chosen,
        first=evaluation.rounds[0],
        funnel=evaluation.cohort.funnel(),
        confidence=f"{100 * evaluation.section.confidence:g} %",
        verdict=_verdict(evaluation),
        stills={name: plots.svg(chart) for name, chart in charts.items()},
        sizes={name: chart.size for name, chart in charts.items()},
        live=interactive.live(charts),
        plotly=interactive.library(),
        metric_names=METRIC_NAMES,
        decided=DECIDED,
        losses=LOSSES,
        tile_notes=TILE_NOTES,
        decisions=list(decisions(evaluation.chosen).itertuples()),
        galleries={
            evidence.name: list(_galleries(evaluation, evidence, open_pack))
            for evidence in evaluation.rounds
            if evidence.mined is not None
        },
        heatmaps=list(_heatmaps(evaluation, open_pack)),
        disagreements=contradictions(
            evaluation.cohort.annotations, evaluation.cohort.label_of, evaluation.section
        ),
        contradictions=[
            text for evidence in evaluation.rounds if (text := lesions_among_negatives(evidence))
        ],
        churn={
            evidence.name: evidence.overlap
            for evidence in evaluation.rounds
            if evidence.mined is not None and evidence.overlap["jaccard"] is not None
        },
        colours=COLOURS,
        is_lesion=partial(is_lesion, section=evaluation.section),
        validation_aucs=[
            _number(evidence.numbers["validation"]["auc"].value) for evidence in evaluation.rounds
        ],
        mined_counts=[
            " + ".join(f"{summary[role]:,}" for role in ("hard_negatives", "positives"))
            for summary in summaries
        ],
        encoder_losses=[
            f"{history['loss'].iloc[-1]:.2f}" for history in histories if history is not None
        ],
        records=flat(evaluation.chosen.results.records),
        froc_rates=[f"1/{round(1 / rate)}" if rate < 1 else rate for rate in FROC_RATES],
        settings=flat({"evaluate": evaluation.section.model_dump(mode="json")}),
    )


def _effort(evaluation: Evaluation, evidence: RoundEvidence) -> Effort:
    tiles, results = evaluation.cohort.tiles, evidence.results
    train = int(tiles["slide_id"].isin(evaluation.cohort.labels["train"]["slide_id"]).sum())
    mined = 0 if results.mined is None else len(results.mined)
    epochs = 0 if results.encoder_history is None else len(results.encoder_history)
    return Effort(
        evidence.name,
        len(tiles),
        mined,
        mined / train if train else 0.0,
        epochs,
        len(results.head_history),
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


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(number: Number) -> str:
    return (
        ""
        if number.low is None or number.high is None
        else f"{number.low:.2f} to {number.high:.2f}".replace("-", "−")
    )


def _galleries(
    evaluation: Evaluation, evidence: RoundEvidence, open_pack: OpenPack
) -> Iterator[Gallery]:
    assert evidence.mined is not None
    train, slides = evaluation.cohort.labels["train"], evaluation.cohort.slides
    patient_of = dict(zip(slides["slide_id"], slides["patient_id"], strict=True))
    for role, label, share in (
        ("hard_negative", 0, look_alike_share),
        ("positive", 1, lesion_share),
    ):
        tiles = evidence.mined[evidence.mined["role"] == role].sort_values("rank")
        pool = evaluation.tile_truth[
            evaluation.tile_truth["slide_id"].isin(train.loc[train["label"] == label, "slide_id"])
        ]
        sources = (
            tiles["slide_id"]
            .value_counts()
            .sort_index()
            .sort_values(ascending=False, kind="stable")
        )
        yield Gallery(
            role,
            (
                "positives"
                if role == "positive"
                else " ".join(
                    [*(NEGATIVES[policy] for policy in tiles["policy"].unique()), "negatives"]
                )
            ),
            len(tiles),
            len(sources),
            [_picture(tile, open_pack) for tile in _spread(tiles, SHOWN_TILES[role]).itertuples()],
            len({patient_of[str(slide_id)] for slide_id in sources.index}),
            [
                (str(slide_id), patient_of[str(slide_id)], int(count), count / len(tiles))
                for slide_id, count in sources.head(SHOWN_SOURCES).items()
            ],
            share(tiles),
            share(pool),
            float(tiles["again"].mean()) if len(tiles) else 0.0,
        )


def _spread(tiles: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows of `tiles`, evenly spread over its ranks, the first included."""
    return tiles.iloc[
        np.unique(np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(int))
    ]


def _picture(tile: Any, open_pack: OpenPack) -> Picture:
    known = "" if pd.isna(tile.region) else tile.region or "nothing drawn"
    return Picture(
        tile_picture(open_pack(tile.slide_id).tiles([tile.tile])[0]),
        tile.rank,
        tile.score,
        tile.slide_id,
        tile.x,
        tile.y,
        known,
    )


def _heatmaps(evaluation: Evaluation, open_pack: OpenPack) -> Iterator[Heatmap]:
    """The worst test slides of each label, then the best."""
    cohort, chosen = evaluation.cohort, evaluation.chosen
    table = decisions(chosen)
    worst, best = (
        table.groupby("label").head(SHOWN_SLIDES),
        table.groupby("label").tail(SHOWN_SLIDES),
    )
    for slide in pd.concat([worst, best.iloc[::-1]]).drop_duplicates("slide_id").to_dict("records"):
        slide_id = str(slide["slide_id"])
        scores = (
            chosen.tiles[chosen.tiles["slide_id"] == slide_id]
            .sort_values("tile")["score"]
            .to_numpy()
        )
        picture = slide_picture(
            open_pack(slide_id),
            scores,
            cohort.aspects[slide_id],
            cohort.annotations.get(slide_id, []),
        )
        yield Heatmap(slide_id, slide["label"], slide["score"], slide["called"], picture)
