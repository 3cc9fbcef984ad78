import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hnm.errors import TrackingError
from hnm.history.lineage import Lineage, as_mermaid, as_text, in_order, lineage
from hnm.repository.outputs import md5_of
from hnm.repository.stages import StageState, locked_stages
from hnm.tracking.connection import connect
from hnm.tracking.delivery import Delivery
from hnm.tracking.lookup import StageRun, finished_run
from hnm.tracking.record import Record
from hnm.tracking.runs import stage_run
from hnm.tracking.summary import links
from tests.support import project as tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A project whose head@1 alone has a run, and a registered model."""
    root = tiny.make_project(tmp_path_factory.mktemp("project"))
    shutil.copy(empty_store, root / "mlflow.db")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    record = Record.create(root, "head-r1")
    record.append(
        "start",
        **stage_run(
            locked_stages(root)["head@1"],
            "demo",
            {"hnm.kind": "stage", "mlflow.source.git.commit": "c0ffee"},
        ),
    )
    record.append("finish", status="FINISHED")
    client = connect(root)
    Delivery(root, record, client).bring(record.events())
    client.create_registered_model("hnm-demo")
    for head in ("ab" * 16, md5_of(root / "data" / "heads" / "1")):
        client.create_model_version("hnm-demo", root.as_uri(), tags={"hnm.head": head})
    client.set_registered_model_alias("hnm-demo", "champion", "2")
    return root


def names(states) -> list[str]:
    return [state.name for state in states]


def test_a_mined_set_comes_from_the_round_before_and_leads_to_its_own(project: Path) -> None:
    traced = lineage(project, "data/mined/1/mined.parquet")
    assert traced.stage.name == "mine@1"
    assert names(traced.before) == ["cohort", "tiles", "encoder", "embed@0", "head@0"]
    assert names(traced.after) == ["finetune@1", "embed@1", "head@1", "evaluate"]


def test_a_file_in_an_output_an_absolute_path_and_a_stage_are_found(project: Path) -> None:
    assert lineage(project, "data/tiles/packs/a.h5").stage.name == "tiles"
    assert lineage(project, str(project / "results" / "metrics.json")).stage.name == "evaluate"
    assert names(lineage(project, "head@0").before) == ["cohort", "tiles", "encoder", "embed@0"]


def test_a_run_leads_to_its_stage_and_the_text_to_the_run(project: Path) -> None:
    run = finished_run(connect(project), "demo", "hnm.stage", "head")
    assert run is not None
    traced = lineage(project, run.info.run_id)
    assert traced.stage.name == "head@1" and list(traced.runs) == ["head@1"]
    text = as_text(traced)
    assert f"    run     head-r1-dsmil-s0 {run.info.run_id}, code c0ffee" in text.splitlines()
    assert (
        f"    wrote   data/mined/1/mined.parquet {md5_of(project / 'data/mined/1/mined.parquet')}"
        in text.splitlines()
    )
    assert (
        "mining.threshold=0.5" in text
        and "the slides of the manifest (their table is not here" in text
    )
    assert text.index("  mine@1") < text.index("  tiles") and "of it came\n  evaluate" in text


def test_a_registered_model_leads_to_its_head_and_the_data_to_the_model(project: Path) -> None:
    for name in ("models:/hnm-demo@champion", "models:/hnm-demo/2"):
        assert lineage(project, name).stage.name == "head@1"
    traced = lineage(project, "data/mined/1/mined.parquet")
    assert traced.models == {"models:/hnm-demo/2 (champion)": "head@1"}
    assert as_text(traced).splitlines()[-1] == "  models:/hnm-demo/2 (champion), by head@1"
    assert "    head_r1 --> model0" in as_mermaid(traced).splitlines()
    assert lineage(project, "evaluate").models == {}
    with pytest.raises(
        TrackingError,
        match=(
            r"models:/hnm-demo/1 was made by another state than dvc\.lock; check out the commit"
            r" that has it"
        ),
    ):
        lineage(project, "models:/hnm-demo/1")
    with pytest.raises(
        TrackingError, match=r"models:/hnm-demo@challenger is not registered in sqlite:"
    ):
        lineage(project, "models:/hnm-demo@challenger")


def test_the_flowchart_has_an_arrow_for_each_reading(project: Path) -> None:
    lines = as_mermaid(lineage(project, "mine@1")).splitlines()
    assert lines[0] == "flowchart LR" and "    slides --> cohort" in lines
    assert {
        "    head_r0 --> mine_r1",
        "    mine_r1 --> finetune_r1",
        "    encoder --> finetune_r1",
        "    finetune_r1 --> evaluate",
    } <= set(lines)
    assert lines[-1] == "    style mine_r1 stroke-width:3px"


def test_each_stage_stands_after_those_it_reads(project: Path) -> None:
    order = in_order(locked_stages(project))
    assert (
        order[:2] == ["causes", "cohort"]
        and order[-1] == "evaluate"
        and order.index("mine@1") < order.index("finetune@1") < order.index("embed@1")
    )


def test_what_is_unknown_is_named(project: Path) -> None:
    with pytest.raises(
        TrackingError,
        match=(
            r"data/nothing is no output of dvc\.lock, none of its stages \(causes, cohort, .*\),"
            r" and no run in sqlite:"
        ),
    ):
        lineage(project, "data/nothing")


def test_names_of_a_stranger_are_text_in_a_flowchart_and_on_a_terminal() -> None:
    evil = 'head@1"] --> x["<img src=x onerror=alert(1)>'
    state = StageState(
        evil, "pipelines.head", {}, {"head": {"note": "\x1b[2J"}}, {}, {"data/heads/1": "a" * 32}
    )
    traced = Lineage(
        evil,
        state,
        [],
        [],
        {evil: StageRun("run\x1b]0;owned\x07\nok", "0123456789<b>", None)},
        {'models:/"x"/1': evil},
        "slides",
    )
    chart = as_mermaid(traced)
    assert (
        "<img" not in chart
        and chart.count('["') == chart.count('"]') == 3
        and "#60;img src=x onerror=alert(1)#62;" in chart
    )
    assert all(
        letter.isprintable() or letter == "\n" for letter in as_text(traced)
    ) and "run\\x1b]0;owned\\x07\\x0aok" in as_text(traced)


def test_a_name_in_a_description_is_no_markup() -> None:
    run = SimpleNamespace(
        info=SimpleNamespace(run_name="a](javascript:x) | <b>\n# b", run_id="1", experiment_id="2")
    )
    note = links({"head@1": run})["mlflow.note.content"]  # type: ignore[dict-item]
    assert (
        note.splitlines()[2] == "| head@1 | [a&#93;&#40;javascript:x&#41; &#124; &#60;b&#62; &#35;"
        " b](#/experiments/2/runs/1) |"
    )
