import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from hnm.errors import EvidenceError, TableError
from hnm.evidence.pages import plots
from hnm.evidence.test_ledger import read_ledger
from hnm.loop.evaluate import Settings
from hnm.loop.paths import EvaluateFiles
from hnm.params import Evaluate, Round
from hnm.slides.annotations import Region, write_annotation
from hnm.tables import MINED
from hnm.tracking.runs import Tracker
from hnm.tracking.vocabulary import METRICS
from pipelines.evaluate import main
from tests.support import evidence as tiny

SECTION = Evaluate(resamples=100)


class Recorder(Tracker):
    """What a stage tells its tracker."""

    def __init__(self) -> None:
        super().__init__("evaluate", None)
        self.logged: dict[tuple[str, int | None], float | None] = {}
        self.files: list[str] = []

    def metrics(self, metrics: dict[str, float | None], step: int | None = None) -> None:
        self.logged |= {(name, step): value for name, value in metrics.items()}

    def file(self, path: Path) -> None:
        assert path.exists()
        self.files.append(path.name)


def rounds(count: int) -> dict[str, Round]:
    return {str(r): Round(previous=str(r - 1) if r else None) for r in range(count)}


def run(paths: dict[str, Path], count: int = 2) -> Recorder:
    tracker = Recorder()
    main(
        EvaluateFiles(**paths),
        rounds=rounds(count),
        settings=Settings(**tiny.SETTINGS),
        evaluate=SECTION,
        tracker=tracker,
    )
    return tracker


def outputs(paths: dict[str, Path]) -> dict[str, bytes]:
    root = paths["metrics"].parent
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    (tmp_path / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tiny.write_files(tmp_path)


def test_writes_metrics_plots_and_report_and_tells_the_tracker(paths: dict[str, Path]) -> None:
    tracker = run(paths)
    metrics = json.loads(paths["metrics"].read_text())
    assert (metrics["chosen_round"], metrics["test"]["auc"]) == (1, 0.75)
    assert [
        metrics["funnel"][step] for step in ("places", "little_tissue", "unreadable", "tiles")
    ] == [200, 80, 10, 110]
    assert (paths["plots"] / "roc.csv").exists()
    assert paths["report"].read_text().startswith("<!doctype html>")
    assert {name for name, _ in tracker.logged} <= set(METRICS)
    assert tracker.logged["test/auc", None] == 0.75
    assert tracker.logged["validation/auc", None] == 1.0
    assert tracker.logged["round/test_auc", 0] == 0.5
    assert tracker.logged["round/hard_negatives", 1] == 3
    assert ("round/hard_negatives", 0) not in tracker.logged
    assert tracker.files == [
        "metrics.json",
        "plots",
        "report.html",
        "model_card.md",
        "data_card.md",
    ]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing out, which takes most of the time."""
    monkeypatch.setattr(plots, "png", lambda chart: b"")
    monkeypatch.setattr(plots, "svg", lambda chart: b"")


@pytest.mark.usefixtures("no_figures")
def test_a_round_left_over_on_disk_is_not_read(paths: dict[str, Path]) -> None:
    run(paths, 2)
    before = outputs(paths)
    assert list(json.loads(before["metrics.json"])["rounds"]) == ["0", "1"]
    for folder in ("scores", "heads", "encoders", "mined"):
        for path in (paths[folder] / "2").iterdir():
            path.write_text("not a table")
    run(paths, 2)
    assert outputs(paths) == before


@pytest.mark.usefixtures("no_figures")
def test_every_opening_of_the_test_labels_is_in_the_ledger(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    assert run(paths).logged["test/openings", None] == 1
    first = outputs(paths)
    run(paths)
    assert (
        outputs(paths) == first and "No other state of the project" in first["report.html"].decode()
    )
    third = run(paths, 1).logged
    assert (third["test/openings", None], third["test/opened_states", None]) == (3, 2)
    assert (
        "opened 2 times before for 1 other state of the project: this page is look 2"
        in paths["report"].read_text()
    )
    entries = read_ledger(tmp_path / "test_ledger.csv")
    assert len(entries) == 3 and entries[0] == entries[1]
    assert entries[2].state != entries[0].state and entries[2].params == entries[0].params


@pytest.mark.usefixtures("no_figures")
def test_the_page_names_the_versions_it_comes_from(paths: dict[str, Path], tmp_path: Path) -> None:
    made = {
        "head@0": "scores/0/slides.parquet",
        "head@1": "scores/1/slides.parquet",
        "head@2": "scores/2/slides.parquet",
        "embed@0": "features/0",
    }
    md5 = {name: f"{number}" * 32 for number, name in enumerate(made)}
    outs = {
        name: {"cmd": "python -m pipelines.x", "outs": [{"path": path, "md5": md5[name]}]}
        for name, path in made.items()
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": outs}))
    run({name: path.relative_to(tmp_path) for name, path in paths.items()})
    page = paths["report"].read_text()
    assert "The versions of data that this page comes from: 2" in page
    assert [name for name in made if md5[name] in page] == ["head@0", "head@1"]


@pytest.mark.usefixtures("no_figures")
def test_labels_and_annotations_that_contradict_are_said_in_output_report_and_card(
    paths: dict[str, Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(paths)
    assert (
        "drawn: Tumour, 3 regions on 3 slides, lesion\ndrawn: look-alike, 1 regions on 1 slides, no"
        " lesion\n" in capsys.readouterr().out
    )
    assert (
        not caplog.records
        and "Label and annotation contradict" not in paths["data_card"].read_text()
    )
    box = shapely.box(0, 0, 10, 10)
    write_annotation([Region("Tumor: Positive", box)], paths["annotations"] / "tr4.geojson")
    write_annotation(
        [Region("None", box), Region("<b>x", box)], paths["annotations"] / "te3.geojson"
    )
    run(paths)
    assert "drawn: None, 1 regions on 1 slides, no lesion" in capsys.readouterr().out
    negative, positive = (
        "1 annotated slides of label 0 have lesions drawn on them: tr4",
        "1 annotated slides of label 1 have no lesion among their regions: te3",
    )
    assert [record.message.partition(" (")[0] for record in caplog.records[:2]] == [
        negative,
        positive,
    ]
    page = paths["report"].read_text()
    assert (
        f"Look at this first: {negative}" in page
        and f"Look at this first: {positive}" in page
        and "<b>x" not in page
    )
    assert paths["data_card"].read_text().count("Label and annotation contradict") == 2


@pytest.mark.usefixtures("no_figures")
def test_the_cards_are_files_and_sections(paths: dict[str, Path]) -> None:
    run(paths)
    page = paths["report"].read_text()
    assert paths["model_card"].read_text().startswith("# Model card: tiny, round 1") and paths[
        "data_card"
    ].read_text().startswith("# Data card: tiny")
    assert (
        '<h2 id="model-card-title">Model card</h2>' in page
        and "<h3>Limits</h3>" in page
        and "<h3>Annotations</h3>" in page
    )


@pytest.mark.usefixtures("no_figures")
def test_labels_that_cannot_be_read_were_opened_all_the_same(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    paths["test_labels"].unlink()
    with pytest.raises(TableError, match=r"test\.csv does not exist"):
        run(paths)
    assert len(read_ledger(tmp_path / "test_ledger.csv")) == 1


@pytest.mark.usefixtures("no_figures")
def test_a_round_that_mined_nothing_has_no_history_of_its_encoder(paths: dict[str, Path]) -> None:
    MINED.write(MINED.empty(), paths["mined"] / "1" / "mined.parquet")
    summary = paths["mined"] / "1" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "policy": "none"}))
    (paths["encoders"] / "1" / "history.csv").unlink()
    run(paths)
    mined = json.loads(paths["metrics"].read_text())["rounds"]["1"]["mined"]
    assert (mined["hard_negatives"], mined["positives"]) == (0, 0)


@pytest.mark.usefixtures("no_figures")
def test_order_of_rounds_in_params_does_not_matter(paths: dict[str, Path]) -> None:
    run(paths)
    first = outputs(paths)
    main(
        EvaluateFiles(**paths),
        rounds=dict(reversed(rounds(2).items())),
        settings=Settings(**tiny.SETTINGS),
        evaluate=SECTION,
        tracker=Recorder(),
    )
    assert outputs(paths) == first


@pytest.mark.usefixtures("no_figures")
def test_threshold_and_round_come_from_validation_alone(paths: dict[str, Path]) -> None:
    run(paths)
    before = json.loads(paths["metrics"].read_text())
    for name in ("0", "1"):
        path = paths["scores"] / name / "slides.parquet"
        table = pd.read_parquet(path)
        table["score"] = np.where(
            table["slide_id"].str.startswith("te"), 1 - table["score"], table["score"]
        ).astype(np.float32)
        table.to_parquet(path, index=False)
    run(paths)
    after = json.loads(paths["metrics"].read_text())
    assert (after["chosen_round"], after["threshold"]) == (
        before["chosen_round"],
        before["threshold"],
    )
    assert after["test"]["auc"] == 1 - before["test"]["auc"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            "heads/1/history.csv",
            "history.csv cannot be read: No such file or directory; run the stage that trains it",
        ),
        (
            "encoders/1/history.csv",
            "history.csv cannot be read: No such file or directory; run the stage that trains it",
        ),
        ("heads/0/head.json", "head.json does not exist; run the stage that makes it"),
        (
            "scores/1/tiles.parquet",
            "tiles.parquet does not exist, but a tile scores table is wanted",
        ),
        ("packs/tr3.h5", "tr3.h5 does not exist; run the stage tiles"),
    ],
)
def test_what_is_missing_is_named(
    paths: dict[str, Path], tmp_path: Path, lost: str, message: str
) -> None:
    (tmp_path / lost).unlink()
    with pytest.raises((EvidenceError, TableError), match=message):
        run(paths)
