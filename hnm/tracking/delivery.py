"""The way of a record to MLflow.

Bringing a record twice changes nothing, so that it can be cut short anywhere and begun again. What
MLflow refuses for good stops nothing else: the rest is brought, and the record is set aside.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import Timeout

from hnm.files import key_of
from hnm.tracking.connection import experiment_id_of, has_store, store_errors, tracking_uri
from hnm.tracking.lookup import finished_run, runs_of_stages
from hnm.tracking.record import Event, Record, RecordError, first_line, now, waiting_records
from hnm.tracking.summary import links, state_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""MLflow's error codes of what it will refuse tomorrow as well: a param that has another value
already, a deleted run or experiment.
"""
MOST_PARAMS = 100
"""Params that MLflow takes at once."""
MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""


class Delivery:
    """Brings one record's events to MLflow, in order. What was brought before changes nothing, and
    what MLflow refuses for good is passed over.
    """

    def __init__(self, root: Path, record: Record, client: "MlflowClient") -> None:
        self._root = root
        self._record = record
        self.client = client
        self._run_id = ""
        self._experiment_id = ""
        self._stage_key = ""
        self._events_brought = 0
        self._status = ""
        self.refusals: list[str] = []
        """What MLflow has said of the parts that it refuses for good, each once."""

    @property
    def is_run(self) -> bool:
        """Whether there is a run; where MLflow refuses to make it, all events are passed over."""
        return bool(self._run_id)

    @property
    def is_complete(self) -> bool:
        """Whether all of a finished record was brought."""
        return bool(self._status)

    def bring(self, events: Sequence[Event]) -> None:
        """Brings those of `events`, the record's so far, that were not brought yet; metrics that
        stand together go at once.
        """
        fresh = events[self._events_brought :]
        for kind, group in groupby(fresh, key=lambda event: str(event["event"])):
            alike = list(group)
            if kind != "start" and not self.is_run:
                continue
            for part in [alike] if kind == "metrics" else [[event] for event in alike]:
                with self._refusable():
                    self._bring(kind, part)
        self._events_brought = len(events)
        if fresh and fresh[-1]["event"] == "finish":
            self._status = fresh[-1]["status"]

    def settle(self) -> None:
        """Deletes the record, all of which was brought; sets it aside where MLflow has refused a
        part.
        """
        if self.refusals:
            self._record.set_aside(self.refusals)
            return
        if self._stage_key and self._status == "FINISHED":
            mark = _mark(self._root, self._stage_key)
            with contextlib.suppress(OSError):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
        self._record.remove()

    def system(self, values: dict[str, float], step: int) -> None:
        """Logs a sample of the system at once; it is in no record, and lost while the store is
        away.
        """
        if self.is_run:
            self._metrics([{"time": now(), "step": step, "values": values}])

    @contextlib.contextmanager
    def _refusable(self) -> Iterator[None]:
        """Notes what MLflow refuses for good in the block. Other errors may be gone tomorrow, and
        are raised.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code not in FOR_GOOD:
                raise
            reason = first_line(error)
            if reason not in self.refusals:
                self.refusals.append(reason)

    def _bring(self, kind: str, events: list[Event]) -> None:
        """Brings some metrics, or the one event of another kind."""
        event = events[0]
        match kind:
            case "start":
                self._start(event)
            case "metrics":
                self._metrics(events)
            case "not_finite":
                step = "" if event["step"] is None else f" at step {event['step']}"
                self.client.set_tag(self._run_id, "hnm.not_finite", f"{event['name']}{step}")
            case "file":
                place = str(self._record.folder / event["path"])
                self.client.log_artifact(self._run_id, place)
            case "model":
                self._model(event)
            case "finish":
                self.client.set_terminated(self._run_id, event["status"], event["time"])

    def _start(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._stage_key = event["tags"].get("hnm.stage_key", "")
        self._experiment_id = experiment_id_of(self.client, self._root, event["experiment"])
        identity = event.get("identity") or self._record.identity
        run = self._run_of_record(identity)
        if run is None:
            run = self._new_run(event, identity)
            if run is None:
                return
        elif event.get("identity") and not event.get("stages"):  # a study that goes on
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        self._params(event["params"])
        inputs = [
            DatasetInput(
                Dataset(path, md5, "dvc", f'{{"path": "{path}", "md5": "{md5}"}}'),
                [InputTag("mlflow.data.context", context)],
            )
            for path, md5, context in event["inputs"]
        ]
        self.client.log_inputs(self._run_id, inputs)

    def _new_run(self, event: Event, identity: str) -> "Run | None":
        """Makes the run; None of a summary of a state that another run has summed up."""
        name = event["name"]
        tags = {**event["tags"], "hnm.record": identity}
        if stages := event.get("stages"):
            key = tags.get("hnm.state_key", "")
            if finished_run(self.client, event["experiment"], "hnm.state_key", key):
                return None
            name = self._state_name(event["params"], key)
            tags |= links(runs_of_stages(self.client, event["experiment"], stages))
        parent = self._run_of_record(event["parent"]) if event.get("parent") else None
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.info.run_id
        return self.client.create_run(
            self._experiment_id, start_time=event["time"], tags=tags, run_name=name
        )

    def _run_of_record(self, identity: str) -> "Run | None":
        query = f"tags.`hnm.record` = '{identity}'"
        runs = self.client.search_runs([self._experiment_id], query, max_results=1)
        return runs[0] if runs else None

    def _state_name(self, params: dict[str, Any], key: str) -> str:
        summaries = self.client.search_runs(
            [self._experiment_id],
            "tags.`hnm.kind` = 'summary'",
            order_by=["attributes.start_time"],
            max_results=1000,
        )
        others = {other.info.run_name: other.data.params for other in summaries}
        return state_name({name: str(value) for name, value in params.items()}, others, key)

    def _params(self, values: dict[str, Any]) -> None:
        """Logs params. MLflow refuses a batch for one of them, so that they then go one by one."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        params = [Param(name, str(value)) for name, value in values.items()]
        for first in range(0, len(params), MOST_PARAMS):
            batch = params[first : first + MOST_PARAMS]
            try:
                self.client.log_batch(self._run_id, params=batch)
            except MlflowException as error:
                if error.error_code not in FOR_GOOD:
                    raise
                for param in batch:
                    with self._refusable():
                        self.client.log_batch(self._run_id, params=[param])

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, event["time"], event["step"])
            for event in events
            for name, value in event["values"].items()
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            batch = metrics[first : first + MOST_METRICS]
            self.client.log_batch(self._run_id, metrics=batch)

    def _model(self, event: Event) -> None:
        name = event["kind"]
        models = self.client.search_logged_models(
            [self._experiment_id], f"source_run_id = '{self._run_id}' AND name = '{name}'"
        )
        if models and models[0].status.value == "READY":
            return
        model = (
            models[0]
            if models
            else self.client.create_logged_model(
                self._experiment_id, name=name, source_run_id=self._run_id, model_type=name
            )
        )
        self.client.log_model_artifacts(model.model_id, str(self._record.folder / event["path"]))
        self.client.finalize_logged_model(model.model_id, "READY")


def was_delivered(root: Path, stage_key: str) -> bool:
    """Whether this machine has brought a finished run of the stage key to the present store."""
    return has_store(root) and _mark(root, stage_key).exists()


def _mark(root: Path, stage_key: str) -> Path:
    """An empty file that says that the store has a finished run of this key."""
    return root / ".hnm" / "delivered" / key_of(store=tracking_uri(root), stage=stage_key)


class Brought(NamedTuple):
    """What came of bringing the waiting records."""

    names: list[str]
    """The runs that were brought whole."""
    left: list[str]
    """A line for each record that could not be brought though the store answers."""


def bring_waiting(root: Path, client: "MlflowClient", seconds: float = 0.0) -> Brought:
    """Brings the records of stages that have ended, oldest first, and closes those whose stage was
    killed.

    A record of which MLflow refuses a part is set aside, and so is one that is no record; the
    others go on. They go on too where one alone cannot be brought while the store answers.

    Args:
        root: the repository.
        client: of the tracking store.
        seconds: how long to wait in all for records that another courier is bringing; they are
            left to it then.
    """
    end = time.monotonic() + seconds
    brought = Brought([], [])
    for record in waiting_records(root):
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(record.courier_lock(max(0.0, end - time.monotonic())))
            except (Timeout, FileNotFoundError):  # held by its courier, or brought by it meanwhile
                continue
            except (OSError, NotImplementedError) as error:
                record.set_aside([first_line(error)])
                continue
            try:
                if name := _bring_one(root, client, record):
                    brought.names.append(name)
            except store_errors() as error:
                reason = first_line(error)
                record.say_reason(reason)
                # raises where the store is away: then the others have to wait as well
                client.search_experiments(max_results=1)
                brought.left.append(
                    f"the run {record.name} waits, while MLflow answers: {reason};"
                    f" run hnm track sync again, or delete {record.folder}"
                )
    return brought


def _bring_one(root: Path, client: "MlflowClient", record: Record) -> str | None:
    """Brings a waiting record that has ended; its run's name where it was brought whole."""
    try:
        record.close_if_killed()
        events = record.checked_events()
    except RecordError as error:
        record.set_aside([str(error)])
        return None
    if not events or events[-1]["event"] != "finish":
        return None
    stages = events[0].get("stages")
    if stages and run_keys(waiting_records(root)) & set(stages.values()):
        return None  # a summary goes after the runs that it links
    delivery = Delivery(root, record, client)
    delivery.bring(events)
    delivery.settle()
    return None if delivery.refusals else str(events[0]["name"])


def run_keys(records: Sequence[Record]) -> set[str]:
    """The keys of the stages and states whose runs the records hold; what is no record has none."""
    keys: set[str] = set()
    for record in records:
        with contextlib.suppress(RecordError, LookupError):
            tags = record.checked_events()[0]["tags"]
            keys |= {tags[tag] for tag in ("hnm.stage_key", "hnm.state_key") if tag in tags}
    return keys
