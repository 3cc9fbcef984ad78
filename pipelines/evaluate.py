"""Stage `evaluate`: what each round is worth. It alone opens test labels and annotations."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hnm import params
from hnm.errors import EvidenceError
from hnm.evidence.evaluation import CohortTruth, RoundResults, evaluate_rounds, metrics_of
from hnm.evidence.openings import LEDGER, Looks, Opening, enter_opening, looks, read_openings
from hnm.evidence.plots import write_plots
from hnm.evidence.report import render_report
from hnm.experiments.state import git_tags
from hnm.experiments.tracking import Tracker
from hnm.slides.annotations import read_annotation
from hnm.slides.pack import Pack
from hnm.store import digest_of, key_of, project_root, read_json, whole, write_json
from hnm.tables import LABELS, MINED, QUARANTINE, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES
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
    *,
    rounds: dict[str, params.Round],
    evaluate: params.Evaluate,
    tracker: Tracker,
) -> None:
    """Writes metrics.json, the plots and the report of the rounds that params.yaml names."""
    looked = _open_test(project_root(), {name: scores / name / "slides.parquet" for name in rounds})
    cohort = CohortTruth(
        SLIDES.read(slides),
        {"train": LABELS.read(train_labels), "validation": LABELS.read(validation_labels), "test": LABELS.read(test_labels)},
        QUARANTINE.read(quarantine),
        TILES.read(index),
        {path.stem: read_annotation(path) for path in sorted(annotations.glob("*.geojson"))},
    )
    results = [_read_round(name, rounds[name], scores / name, heads / name, encoders / name, mined / name) for name in sorted(rounds, key=int)]
    evaluation = evaluate_rounds(cohort, results, evaluate)
    numbers = metrics_of(evaluation)
    write_json(numbers, metrics)
    write_plots(evaluation, plots)
    with whole(report) as temporary:
        temporary.write_text(render_report(evaluation, lambda slide_id: Pack(packs / f"{slide_id}.h5"), looked), encoding="utf-8")
    tracker.evaluation(numbers)
    for path in (metrics, plots, report):
        tracker.file(path)
    auc = evaluation.chosen.numbers["test"]["auc"].value
    print(f"validation picks round {evaluation.chosen.name}: test AUC {'unknown' if auc is None else format(auc, '.3f')}", flush=True)


def _open_test(root: Path, scores: Mapping[str, Path]) -> Looks:
    """Enters into the ledger that the test labels are about to be opened; how often they were for other scores than these."""
    state = key_of(scores={name: digest_of(path) for name, path in scores.items()})
    settings = digest_of(Path("params.yaml"))
    tags = git_tags(root)
    enter_opening(root / LEDGER, Opening(state, settings, tags.get("mlflow.source.git.commit", ""), tags.get("hnm.git_dirty", ""), "evaluate"))
    return looks(read_openings(root / LEDGER), other_than=state)


def _read_round(name: str, round_: params.Round, scores: Path, head: Path, encoder: Path, mined: Path) -> RoundResults:
    trained = round_.previous is not None or (encoder / "history.csv").exists()
    records = {"encoder": read_json(encoder / "encoder.json", EvidenceError), "head": read_json(head / "head.json", EvidenceError)}
    if round_.previous is not None:
        records["mine"] = read_json(mined / "summary.json", EvidenceError)
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
    try:
        return pd.read_csv(folder / "history.csv")
    except FileNotFoundError:
        raise EvidenceError(f"{folder / 'history.csv'} does not exist; run the stage that trains it (dvc repro)") from None


if __name__ == "__main__":
    stage.run(main)
