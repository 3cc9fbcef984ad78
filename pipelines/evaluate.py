"""Stage `evaluate`: what each round is worth. It alone opens test labels and annotations."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hnm import params
from hnm.errors import EvidenceError
from hnm.evidence.evaluation import (
    CohortTruth,
    RoundResults,
    evaluate_rounds,
    lesions_among_negatives,
    metrics_of,
)
from hnm.evidence.pages.cards import data_card as make_data_card
from hnm.evidence.pages.cards import model_card as make_model_card
from hnm.evidence.pages.plots import write_plots
from hnm.evidence.pages.report import Origin, render_report
from hnm.evidence.test_ledger import LEDGER, Looks, LedgerEntry, enter, looks, read_ledger
from hnm.evidence.truth import contradictions, drawn_classes
from hnm.files import digest_of, key_of, read_json, whole, write_json
from hnm.learning.history import read_history
from hnm.repository.stages import git_tags, locked_stages
from hnm.slides.annotations import read_annotation
from hnm.slides.cutting.pack import Pack
from hnm.store import project_home, project_root
from hnm.tables import LABELS, MINED, QUARANTINE, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    slides: Path,
    train_labels: Path,
    validation_labels: Path,
    test_labels: Path,
    annotations: Path,
    quarantine: Path,
    index: Path,
    packs: Path,
    scores: Path,
    heads: Path,
    encoders: Path,
    mined: Path,
    metrics: Path,
    plots: Path,
    report: Path,
    model_card: Path,
    data_card: Path,
    *,
    rounds: dict[str, params.Round],
    cohort: params.Cohort,
    tiles: params.Tiles,
    encoder: params.Encoder,
    embed: params.Embed,
    head: params.Head,
    ranking: params.Ranking,
    mining: params.Mining,
    finetune: params.Finetune,
    evaluate: params.Evaluate,
    tracker: Tracker,
) -> None:
    """Writes metrics.json, the plots, the cards and the report of the rounds that params.yaml
    names; most sections are only told in the cards.
    """
    looked, others = _open_test({name: scores / name / "slides.parquet" for name in rounds})
    index_of_tiles = TILES.read(index)
    cut = [Pack(packs / f"{slide_id}.h5") for slide_id in index_of_tiles["slide_id"].unique()]
    truth = CohortTruth(
        SLIDES.read(slides),
        {
            "train": LABELS.read(train_labels),
            "validation": LABELS.read(validation_labels),
            "test": LABELS.read(test_labels),
        },
        QUARANTINE.read(quarantine),
        index_of_tiles,
        {path.stem: read_annotation(path) for path in sorted(annotations.glob("*.geojson"))},
        sum(pack.places for pack in cut),
        sum(pack.lost for pack in cut),
    )
    results = [
        _read_round(name, rounds[name], scores / name, heads / name, encoders / name, mined / name)
        for name in sorted(rounds, key=int)
    ]
    evaluation = evaluate_rounds(truth, results, evaluate)
    numbers = metrics_of(evaluation)
    write_json(numbers, metrics)
    write_plots(evaluation, plots)
    settings = {
        "cohort": cohort,
        "tiles": tiles,
        "encoder": encoder,
        "embed": embed,
        "head": head,
        "ranking": ranking,
        "mining": mining,
        "finetune": finetune,
    }
    cards = {
        model_card: make_model_card(evaluation, settings),
        data_card: make_data_card(evaluation, settings),
    }
    inputs = [
        slides,
        train_labels,
        validation_labels,
        test_labels,
        annotations,
        quarantine,
        index,
        packs,
        scores,
        heads,
        encoders,
        mined,
    ]
    origin = Origin(
        others, cards[model_card], cards[data_card], _lineage(project_root(), inputs, rounds)
    )
    texts = {
        **cards,
        report: render_report(evaluation, lambda slide_id: Pack(packs / f"{slide_id}.h5"), origin),
    }
    for path, text in texts.items():
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    tracker.evaluation(numbers)
    tracker.metrics({"test/openings": looked.times, "test/opened_states": looked.states})
    for path in (metrics, plots, report, model_card, data_card):
        tracker.file(path)
    for own in drawn_classes(truth.annotations, evaluate):
        print(
            f"drawn: {own.name}, {own.regions} regions on {own.slides} slides,"
            f" {'lesion' if own.is_lesion else 'no lesion'}",
            flush=True,
        )
    for disagreement in contradictions(truth.annotations, truth.label_of, evaluate):
        logging.getLogger(__name__).warning(disagreement)
    for evidence in evaluation.rounds:
        if contradiction := lesions_among_negatives(evidence):
            logging.getLogger(__name__).warning(contradiction)
    auc = evaluation.chosen.numbers["test"]["auc"].value
    print(
        f"validation picks round {evaluation.chosen.name}: test AUC"
        f" {'unknown' if auc is None else format(auc, '.3f')}",
        flush=True,
    )


def _open_test(scores: Mapping[str, Path]) -> tuple[Looks, Looks]:
    """Enters into the ledger that the test labels are about to be opened; how often they were, this
    time included, and for other scores than these.
    """
    state = key_of(scores={name: digest_of(path) for name, path in scores.items()})
    settings = digest_of(Path("params.yaml"))
    tags = git_tags(project_root())
    ledger = project_home() / LEDGER
    enter(
        ledger,
        LedgerEntry(
            state,
            settings,
            tags.get("mlflow.source.git.commit", ""),
            tags.get("hnm.git_dirty", ""),
            "evaluate",
        ),
    )
    entries = read_ledger(ledger)
    return looks(entries), looks(entries, other_than=state)


def _lineage(
    root: Path, inputs: Sequence[Path], rounds: Collection[str]
) -> list[tuple[str, str, str]]:
    """(stage, path, md5) of what the stages of these rounds have made of `inputs`, by dvc.lock."""
    return [
        (name, path, md5)
        for name, state in sorted(locked_stages(root).items())
        for path, md5 in sorted(state.outs.items())
        if name.partition("@")[2] in ("", *rounds)
        and any(Path(path).is_relative_to(own) for own in inputs)
    ]


def _read_round(
    name: str, round_: params.Round, scores: Path, head: Path, encoder: Path, mined: Path
) -> RoundResults:
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
        SLIDE_SCORES.read(scores / "slides.parquet"),
        TILE_SCORES.read(scores / "tiles.parquet"),
        _read_history(head),
        MINED.read(mined / "mined.parquet") if round_.previous is not None else None,
        _read_history(encoder) if trained else None,
        records,
    )


def _read_history(folder: Path) -> pd.DataFrame:
    return read_history(
        folder / "history.csv", EvidenceError, "; run the stage that trains it (dvc repro)"
    )


if __name__ == "__main__":
    stage.run(main)
