"""A record and its way to MLflow: brought once, in pieces or anew, whatever happens on the way."""

import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from hnm.tracking.connection import connect
from hnm.tracking.delivery import Delivery, bring_waiting
from hnm.tracking.record import Record, refusals, refused_records, waiting_records
from hnm.tracking.replay import sync
from tests.support.tracked import runs_of


def a_record(root: Path) -> Record:
    """A finished record that no courier has seen."""
    (root / "model").mkdir()
    (root / "model" / "head.json").write_text("{}")
    record = Record.create(root, "head-r1")
    record.append(
        "start",
        at=1000,
        experiment="demo",
        name="head-r1",
        tags={"hnm.stage": "head"},
        params={"head.seed": 3},
        inputs=[["a", "0" * 32, "index"]],
    )
    record.append("metrics", at=1001, step=1, values={"epoch/loss": 0.5, "epoch/slide_loss": 0.25})
    record.append("metrics", at=1002, step=2, values={"epoch/loss": 0.25})
    record.append("not_finite", at=1003, name="epoch/validation_auc", step=2)
    record.append("file", at=1004, path=record.keep(root / "model" / "head.json"))
    record.append("model", at=1005, path=record.keep(root / "model"), kind="head")
    record.append("finish", at=2000, status="FINISHED")
    return record


def contents(root: Path) -> dict[str, Any]:
    """All that a bringing of `a_record` leaves, but for the ids that MLflow gives."""
    client = connect(root)
    (run,) = runs_of(root)
    models = client.search_logged_models([run.info.experiment_id])
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "start, end": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "loss": [
            (m.step, m.value, m.timestamp)
            for m in client.get_metric_history(run.info.run_id, "epoch/loss")
        ],
        "not finite": run.data.tags["hnm.not_finite"],
        "inputs": [
            (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
        ],
        "artifacts": [file.path for file in client.list_artifacts(run.info.run_id)],
        "models": [
            (
                m.name,
                m.status.value,
                m.source_run_id == run.info.run_id,
                sorted(p.name for p in Path(m.artifact_location[7:]).iterdir()),
            )
            for m in models
        ],
    }


BROUGHT = {
    "name": "head-r1",
    "status": "FINISHED",
    "start, end": (1000, 2000),
    "params": {"head.seed": "3"},
    "loss": [(1, 0.5, 1001), (2, 0.25, 1002)],
    "not finite": "epoch/validation_auc at step 2",
    "inputs": [("a", "0" * 32, "index")],
    "artifacts": ["head.json"],
    "models": [("head", "READY", True, ["head.json"])],
}


def test_a_record_brought_twice_or_in_pieces_is_one_run(root: Path) -> None:
    record = a_record(root)
    events = record.events()
    Delivery(root, record, connect(root)).bring(events[:3])
    Delivery(root, record, connect(root)).bring(events)
    assert contents(root) == BROUGHT
    Delivery(root, record, connect(root)).bring(events)
    assert contents(root) == BROUGHT


class DyingClient:
    """A client whose server dies at the `calls`-th call."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self._client, self._calls = client, calls

    def __getattr__(self, name: str) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise MlflowException("the server has died")
        return getattr(self._client, name)


def test_wherever_the_server_dies_the_next_bringing_completes_the_run(root: Path) -> None:
    record, client = a_record(root), connect(root)
    deaths = 0
    for calls in range(100):
        try:
            Delivery(root, record, DyingClient(client, calls)).bring(record.events())  # type: ignore[arg-type]
        except MlflowException:
            deaths += 1
        else:
            break
    assert deaths >= 10
    assert contents(root) == BROUGHT


def rewrite(record: Record, old: str, new: str) -> None:
    events = record.folder / "events.jsonl"
    assert old in events.read_text()
    events.write_text(events.read_text().replace(old, new))


def test_what_is_refused_for_good_is_set_aside_and_all_else_is_brought(root: Path) -> None:
    record, client = a_record(root), connect(root)
    Delivery(root, record, client).bring(record.events()[:1])
    rewrite(record, '{"head.seed": 3}', '{"head.kind": "dsmil", "head.seed": 4, "head.epochs": 9}')
    later = Record.create(root, "later")
    later.append("start", experiment="demo", name="later", tags={}, params={}, inputs=[])
    later.append("finish", status="FINISHED")
    for brought in (["later"], []):
        assert bring_waiting(root, client).names == brought
        assert waiting_records(root) == []
        (aside,) = refused_records(root)
        assert re.fullmatch(
            r"Changing param values is not allowed\. Params were already .*", aside.reason()
        )
        assert (
            refusals(root)
            == f"1 in .hnm/refused, the first head-r1 ({aside.reason()}); mend the cause and run"
            " `hnm track sync --retry`, or delete what lies there"
        )
        runs = {run.info.run_name: run for run in runs_of(root)}
        assert {name: run.info.status for name, run in runs.items()} == {
            "head-r1": "FINISHED",
            "later": "FINISHED",
        }
        assert runs["head-r1"].data.params == {
            "head.seed": "3",
            "head.kind": "dsmil",
            "head.epochs": "9",
        }
        assert runs["head-r1"].data.metrics == {"epoch/loss": 0.25, "epoch/slide_loss": 0.25}
        assert (aside.folder / aside.events()[4]["path"]).read_text() == "{}"
        aside.put_back()
    client.delete_run(runs["head-r1"].info.run_id)
    assert bring_waiting(root, client).names == ["head-r1"]
    assert refusals(root) == ""


def test_a_run_that_cannot_be_made_is_brought_when_the_cause_is_mended(root: Path) -> None:
    record, client = a_record(root), connect(root)
    experiment = client.create_experiment("demo", artifact_location=(root / "mlruns").as_uri())
    client.delete_experiment(experiment)
    assert bring_waiting(root, client).names == []
    (aside,) = refused_records(root)
    assert aside.identity == record.identity
    assert (
        aside.reason()
        == f"The experiment {experiment} must be in the 'active' state. Current state is deleted."
    )
    client.restore_experiment(experiment)
    assert sync(root, retry=True).brought == ["head-r1"]
    assert contents(root) == BROUGHT
    assert refused_records(root) == []


def test_a_run_that_is_deleted_while_it_is_brought(root: Path) -> None:
    record, client = a_record(root), connect(root)
    delivery = Delivery(root, record, client)
    delivery.bring(record.events()[:2])
    (run,) = runs_of(root)
    client.delete_run(run.info.run_id)
    delivery.bring(record.events())
    delivery.settle()
    assert waiting_records(root) == []
    assert (
        f"The run {run.info.run_id} must be in the 'active' state. Current state is deleted."
        in refused_records(root)[0].reason()
    )


class BusyClient:
    """A client whose store answers no batch in time."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log_batch(self, *_: Any, **__: Any) -> None:
        raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)


def test_what_may_be_taken_tomorrow_waits(root: Path) -> None:
    a_record(root)
    names, (line,) = bring_waiting(root, BusyClient(connect(root)))  # type: ignore[arg-type]
    assert names == [] and "while MLflow answers: database is locked" in line
    assert len(waiting_records(root)) == 1
    assert refused_records(root) == []


def test_a_run_whose_courier_was_killed_too_is_closed_by_the_next_start(root: Path) -> None:
    record = a_record(root)
    lines = (record.folder / "events.jsonl").read_text().splitlines(keepends=True)
    (record.folder / "events.jsonl").write_text("".join(lines[:3]) + '{"event": "met')
    client = connect(root)
    Delivery(root, record, client).bring(record.events())
    assert runs_of(root)[0].info.status == "RUNNING"
    assert bring_waiting(root, client).names == ["head-r1"]
    (run,) = runs_of(root)
    assert (run.info.status, run.info.end_time) == ("KILLED", 1002)
    assert waiting_records(root) == []
