"""Model card and data card: Markdown that says what the model is, what it was made from and what it
is worth. All of it is read from the run.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt

from hnm.evidence.evaluation import CohortTruth, Evaluation, mined_summary
from hnm.evidence.pages.templates import environment
from hnm.evidence.truth import contradictions, drawn_classes
from hnm.files import key_of
from hnm.params import Section, flat
from hnm.tables import SPLITS

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
    "froc": "FROC score",
    "lesions_hit": "share of lesions hit",
    "false_detections": "false detections a slide",
}
_MARKS = re.compile(r"[\\`*\[\]<>&|~]|!(?=\[)|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What means something in Markdown; an underscore within a word does not."""
Settings = Mapping[str, Section]
"""Section of params.yaml by name."""


@dataclass(frozen=True)
class SplitCount:
    """One split of the cohort, without its slides in quarantine."""

    name: str
    slides: int
    positives: int
    patients: int
    tiles: int
    annotated: int


def model_card(evaluation: Evaluation, settings: Settings) -> str:
    """The chosen round's model: what it is, how it was trained, its numbers on test slides, its
    limits, its params.
    """
    mined = {
        evidence.name: mined_summary(evidence.mined)
        for evidence in evaluation.rounds
        if evidence.mined is not None
    }
    of_model = {name: mined[name] for name in mined if int(name) <= int(evaluation.chosen.name)}
    return _render(
        "model_card.md.jinja",
        evaluation=evaluation,
        chosen=evaluation.chosen,
        test=evaluation.chosen.numbers["test"],
        slides=evaluation.chosen.slides["test"],
        metric_names=METRIC_NAMES,
        splits={split.name: split for split in split_counts(evaluation.cohort)},
        mined=of_model,
        records=evaluation.chosen.results.records,
        settings=settings,
        params=flat({name: section.model_dump(mode="json") for name, section in settings.items()}),
    )


def data_card(evaluation: Evaluation, settings: Settings) -> str:
    """The cohort: where its slides come from, how they were split and cut, what was drawn on them,
    and what was left out.
    """
    cohort = evaluation.cohort
    tiles = cohort.tiles.groupby("slide_id").size()
    return _render(
        "data_card.md.jinja",
        funnel=cohort.funnel(),
        splits=split_counts(cohort),
        vendors=sorted(Counter(cohort.slides["vendor"]).items()),
        mpp=(
            cohort.slides[["mpp_x", "mpp_y"]].min().min(),
            cohort.slides[["mpp_x", "mpp_y"]].max().max(),
        ),
        patients=cohort.slides["patient_id"].nunique(),
        crossing=int((cohort.slides.groupby("patient_id")["split"].nunique() > 1).sum()),
        tiles=tiles,
        drawn=drawn_classes(cohort.annotations, evaluation.section),
        contradictions=contradictions(cohort.annotations, cohort.label_of, evaluation.section),
        quarantine=list(cohort.quarantine.itertuples()),
        fingerprint=key_of(
            slides=dict(zip(cohort.slides["slide_id"], cohort.slides["fingerprint"], strict=True))
        ),
        settings=settings,
    )


def split_counts(cohort: CohortTruth) -> list[SplitCount]:
    """What each split holds, without the slides in quarantine."""
    counts = []
    for split in SPLITS:
        labels = cohort.labels[split]
        used = labels[~labels["slide_id"].isin(cohort.quarantine["slide_id"])]
        slides = cohort.slides[cohort.slides["slide_id"].isin(used["slide_id"])]
        counts.append(
            SplitCount(
                split,
                slides=len(used),
                positives=int(used["label"].sum()),
                patients=slides["patient_id"].nunique(),
                tiles=int(cohort.tiles["slide_id"].isin(used["slide_id"]).sum()),
                annotated=int(used["slide_id"].isin(list(cohort.annotations)).sum()),
            )
        )
    return counts


def card_html(card: str) -> str:
    """A card as HTML for a page whose own headings go down to the second level: its headings stand
    one level lower, its title is left out.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(card)
    title = next(place for place, token in enumerate(tokens) if token.type == "heading_close")
    body = tokens[title + 1 :]
    for token in body:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1:]) + 1}"
        if token.type == "th_open":
            token.attrSet("scope", "col")
    return str(parser.renderer.render(body, parser.options, {}))


def _render(template: str, **values: Any) -> str:
    # Markdown, where entities of HTML are no help: each text of a person goes through the filter
    # cell or code; the report shows it with raw HTML off
    filters = {
        "interval": lambda number: number.interval(".3f") or "–",
        "cell": _cell,
        "code": _code,
        "count": lambda value: f"{value:,}",
    }
    return environment(filters, autoescape=False).get_template(template).render(**values)


def _cell(value: Any) -> str:
    """Anybody's text as Markdown that shows it as it is, on one line and inside of a table's cell:
    no HTML, link, picture or code comes of it.
    """
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def _code(value: Any) -> str:
    """Anybody's text as code of Markdown, on one line."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"
