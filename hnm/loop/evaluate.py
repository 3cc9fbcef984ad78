"""The step `evaluate`: what each round is worth. It alone opens test labels and annotations."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hnm import params
from hnm.errors import EvidenceError
from hnm.evidence.evaluation import (
    CohortTruth,
    Evaluation,
    RoundResults,
    evaluate_rounds,
    lesions_among_negatives,
    metrics_of,
)
from hnm.evidence.pages.cards import data_card, model_card
from hnm.evidence.pages.plots import write_plots
from hnm.evidence.pages.report import Origin, render_report
from hnm.evidence.test_ledger import LEDGER, LedgerEntry, Looks, enter, looks, read_ledger
from hnm.evidence.truth import contradictions, drawn_classes
from hnm.files import digest_of, key_of, read_json, whole, write_json
from hnm.learning.history import read_history
from hnm.loop.paths import EvaluateFiles
from hnm.project import project_home
from hnm.slides.annotations import read_annotation
from hnm.slides.cutting.pack import Pack
from hnm.tables import LABELS, MINED, QUARANTINE, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES


@dataclass(frozen=True)
class Settings:
    """The sections of params.yaml that made the rounds, which the cards list."""

    cohort: params.Cohort
    tiles: params.Tiles
    encoder: params.Encoder
    embed: params.Embed
    head: params.Head
    ranking: params.Ranking
    mining: params.Mining
    finetune: params.Finetune


@dataclass(frozen=True)
class Provenance:
    """What made the rounds, by Git and dvc.lock."""

    commit: str
    """Git commit of the code; "" outside of Git."""
    dirty: str
    """`true` where tracked files differ from it, else `false`; "" outside of Git."""
    versions: Sequence[tuple[str, str, str]]
    """Stage, path and md5 of the data that the stages before have made."""


def evaluate(
    files: EvaluateFiles,
    provenance: Provenance,
    *,
    rounds: Mapping[str, params.Round],
    settings: Settings,
    section: params.Evaluate,
) -> tuple[dict[str, Any], Looks]:
    """Writes the metrics, the plots, the cards and the report of the rounds that params.yaml names.

    It logs warnings of labels that contradict the annotations, and prints which classes were drawn.

    Returns:
        The content of metrics.json, and how often the test labels were opened, this time included.
    """
    names = sorted(rounds, key=int)
    scores = {name: files.scores / name / "slides.parquet" for name in rounds}
    looked, others = _open_test(scores, provenance)
    truth = _read_truth(files)
    evaluation = evaluate_rounds(
        truth, [_read_round(files, name, rounds[name]) for name in names], section
    )
    metrics = metrics_of(evaluation)
    write_json(metrics, files.metrics)
    write_plots(evaluation, files.plots)
    model = model_card(evaluation, vars(settings))
    data = data_card(evaluation, vars(settings))
    report = render_report(
        evaluation,
        lambda slide_id: Pack(files.packs / f"{slide_id}.h5"),
        Origin(others, model, data, provenance.versions),
    )
    pages = {files.model_card: model, files.data_card: data, files.report: report}
    for path, text in pages.items():
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    _say(truth, evaluation, section)
    return metrics, looked


def _open_test(scores: Mapping[str, Path], provenance: Provenance) -> tuple[Looks, Looks]:
    """Enters into the ledger that the test labels are about to be opened.

    Returns:
        How often they were opened, this time included, and how often for other scores than these.
    """
    state = key_of(scores={name: digest_of(path) for name, path in scores.items()})
    settings = digest_of(Path("params.yaml"))
    ledger = project_home() / LEDGER
    enter(ledger, LedgerEntry(state, settings, provenance.commit, provenance.dirty, "evaluate"))
    entries = read_ledger(ledger)
    return looks(entries), looks(entries, other_than=state)


def _read_truth(files: EvaluateFiles) -> CohortTruth:
    """Returns the cohort with the labels of all splits and the annotations."""
    tiles = TILES.read(files.index)
    packs = [Pack(files.packs / f"{slide_id}.h5") for slide_id in tiles["slide_id"].unique()]
    annotations = sorted(files.annotations.glob("*.geojson"))
    return CohortTruth(
        slides=SLIDES.read(files.slides),
        labels={
            "train": LABELS.read(files.train_labels),
            "validation": LABELS.read(files.validation_labels),
            "test": LABELS.read(files.test_labels),
        },
        quarantine=QUARANTINE.read(files.quarantine),
        tiles=tiles,
        annotations={path.stem: read_annotation(path) for path in annotations},
        places=sum(pack.places for pack in packs),
        unreadable=sum(pack.lost for pack in packs),
    )


def _read_round(files: EvaluateFiles, name: str, round_: params.Round) -> RoundResults:
    """Returns what the stages of a round left behind."""
    encoder = files.encoders / name
    head = files.heads / name
    mined = files.mined / name
    records = {
        "encoder": read_json(encoder / "encoder.json", EvidenceError),
        "head": read_json(head / "head.json", EvidenceError),
    }
    trained = (encoder / "history.csv").exists()
    if round_.previous is not None:
        records["mine"] = read_json(mined / "summary.json", EvidenceError)
        trained = trained or records["mine"].get("policy") != "none"
    return RoundResults(
        name,
        SLIDE_SCORES.read(files.scores / name / "slides.parquet"),
        TILE_SCORES.read(files.scores / name / "tiles.parquet"),
        _read_history(head),
        MINED.read(mined / "mined.parquet") if round_.previous is not None else None,
        _read_history(encoder) if trained else None,
        records,
    )


def _read_history(folder: Path) -> pd.DataFrame:
    """Returns the history of what was trained into `folder`."""
    cure = "; run the stage that trains it (dvc repro)"
    return read_history(folder / "history.csv", EvidenceError, cure)


def _say(truth: CohortTruth, evaluation: Evaluation, section: params.Evaluate) -> None:
    """Prints the classes that were drawn, and logs what contradicts what."""
    for drawn in drawn_classes(truth.annotations, section):
        print(
            f"drawn: {drawn.name}, {drawn.regions} regions on {drawn.slides} slides,"
            f" {'lesion' if drawn.is_lesion else 'no lesion'}",
            flush=True,
        )
    log = logging.getLogger(__name__)
    for contradiction in contradictions(truth.annotations, truth.label_of, section):
        log.warning(contradiction)
    for evidence in evaluation.rounds:
        if lesions := lesions_among_negatives(evidence):
            log.warning(lesions)
