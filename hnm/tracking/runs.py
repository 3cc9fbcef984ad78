"""Runs in MLflow: what each stage logs, under which names, and how it gets there without ever
delaying or stopping a stage.

A stage writes events to a record on disk (`record.py`) and nothing else. A courier, a child process
that alone imports MLflow, follows the record and brings it to the tracking store. When the store is
away, slow, locked or full, the stage does not notice; its record waits in `.hnm/spool` for the next
stage or for `sync`. Bringing a record twice changes nothing, so it can be cut short anywhere. What
MLflow refuses for good stops nothing else: the rest is brought, and the record set aside in
`.hnm/refused`.
"""

import contextlib
import io
import logging
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO

from filelock import FileLock, Timeout

from hnm.errors import TrackingError
from hnm.files import whole
from hnm.params import Params
from hnm.project import project_home, project_root
from hnm.redaction import redacted
from hnm.repository.costs import cost_so_far, dvc_name
from hnm.repository.stages import StageState, current_stages, git_tags, locked_stages, running_stage
from hnm.tracking.artifact_places import mend_places
from hnm.tracking.record import CURE, Event, Record, RecordError, first_line, now, waiting_records
from hnm.tracking.summary import (
    disagreeing,
    flat_params,
    in_reading_order,
    links,
    state_name,
    summary_run,
)
from hnm.tracking.system import SystemWatch
from hnm.tracking.time_limits import LOCK_SECONDS, SETTINGS, PatientClient, within
from hnm.tracking.vocabulary import METRICS, of_epoch, of_evaluation, of_mining

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Param, Run

STAGE_SECONDS = 5.0
"""Longest that tracking may delay a stage, at its end."""
COURIER_SECONDS = 60.0
"""Longest that a courier goes on alone after its stage."""
OTHERS_SECONDS = 20.0
"""Longest that the courier of the last stage waits for those of the stages before it."""
POLL_SECONDS = 0.5

SEES_TEST = ("evaluate", "summary")
"""Whose runs may hold test metrics."""
Kind = Literal["encoder", "head"]
FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""MLflow's error codes of what it will refuse tomorrow as well: a param that has another value
already, a deleted run or experiment.
"""


class Tracker:
    """The run of one stage execution; every method only writes to the run's record."""

    def __init__(self, stage: str, record: Record | None) -> None:
        self._stage = stage
        self._record = record
        self.summary: Mapping[str, Any] | None = None
        """The content of metrics.json, once it was logged."""

    def epoch(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """One row of a history, by its column names; a loop's `on_epoch`."""
        self.metrics(of_epoch(metrics), step=epoch)

    def evaluation(self, content: Mapping[str, Any]) -> None:
        """The content of metrics.json: `round/*` by round, `validation/*` and `test/*` of the
        chosen round.
        """
        self.summary = content
        for step, metrics in of_evaluation(content):
            self.metrics(metrics, step)

    def mining(self, content: Mapping[str, Any], round_: int) -> None:
        """The summary of the tiles that were mined for a round."""
        self.metrics(of_mining(content), step=round_)

    def metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Logs `metrics`; `step` counts what the name says before its slash, None for a single
        number.

        A value that is missing or not finite is not logged but named in the tag `hnm.not_finite`.
        `TrackingError` for a name outside of `METRICS`, or of a test metric outside of `evaluate`.
        """
        for name in metrics:
            if name not in METRICS:
                raise TrackingError(
                    f"metric {name!r} is not in the vocabulary; use one of METRICS in"
                    " hnm/tracking/vocabulary.py or add it there"
                )
            if name.startswith(("test/", "round/test_")) and self._stage not in SEES_TEST:
                raise TrackingError(
                    f"metric {name!r} is for the stage evaluate alone, but {self._stage} logs it"
                )
        finite = {
            name: float(value)
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        if finite:
            self._append("metrics", step=step or 0, values=finite)
        for name in metrics:
            if name not in finite:
                self._append("not_finite", name=name, step=step)

    def file(self, path: Path) -> None:
        """Logs the file or folder at `path` as an artifact of the run."""
        self._keep("file", path)

    def model(self, folder: Path, kind: Kind) -> None:
        """Logs the folder of an encoder or a head (`<kind>.json`, `weights.safetensors`) as the
        run's model.
        """
        self._keep("model", folder, kind=kind)

    def _keep(self, event: str, path: Path, **content: Any) -> None:
        if self._record is None:
            return
        try:
            kept = self._record.keep(path)
        except OSError as error:
            self._record.complain(error)
        else:
            self._append(event, path=kept, **content)

    def _append(self, event: str, **content: Any) -> None:
        if self._record is not None:
            self._record.append(event, **content)


@contextlib.contextmanager
def track_stage(
    stage: str, arguments: Mapping[str, Path | int], sections: Mapping[str, Any], params: Params
) -> Iterator[Tracker]:
    """The run of one execution of `stage`, open as long as the block runs; HNM_TRACKING=off makes
    none.

    Args:
        stage: the stage's name without its round.
        arguments: the stage's flags by name; `round`, where it has one, goes into the run's name.
        sections: the sections of params.yaml that the stage uses; the run's params.
        params: the whole of params.yaml.
    """
    if os.environ.get("HNM_TRACKING") == "off":
        yield Tracker(stage, None)
        return
    began = time.monotonic()
    root = project_home()
    folder = project_root()  # whose dvc.lock tells of this state
    state = running_stage(
        folder, dvc_name(stage, arguments), f"pipelines.{stage}", arguments, sections
    )
    name = run_name(state)
    record = Record.create(root, name)
    with record.alive():
        record.append(
            "start",
            **stage_run(
                state,
                params.cohort.name,
                {"hnm.kind": "stage", **dvc_experiment(), **git_tags(folder)},
            ),
        )
        courier = _send_courier(root, record)
        patience = max(0.0, STAGE_SECONDS - (time.monotonic() - began))
        status = "FAILED"
        tracker = Tracker(stage, record)
        try:
            yield tracker
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            record.append("metrics", step=0, values=cost_so_far().metrics())
            record.append("finish", status=status)
            if status == "FINISHED" and tracker.summary is not None:
                _record_summary(root, folder, state, params.cohort.name, tracker.summary)
            _await_courier(courier, name, record, patience)


def _record_summary(
    root: Path, folder: Path, evaluate: StageState, experiment: str, content: Mapping[str, Any]
) -> None:
    """Writes the record of the run that sums up the state which `evaluate` has just evaluated; its
    courier brings it.

    The state's key is the one that dvc.lock gives once DVC has entered this stage there. Where
    dvc.lock cannot tell the other stages, or one of them ran on older inputs, there is no such
    state, and `hnm track sync` says so.
    """
    try:
        states = current_stages({**locked_stages(folder), evaluate.name: evaluate})
    except TrackingError:
        return
    if evaluate.name != "evaluate" or disagreeing(states):
        return
    record = Record.create(root, "summary")
    record.append(
        "start", **summary_run(states, experiment, {**dvc_experiment(), **git_tags(folder)})
    )
    Tracker("summary", record).evaluation(content)
    record.append("finish", status="FINISHED")


@dataclass(frozen=True)
class StudyTracker:
    """The runs of a study: one for it, a child a trial, a grandchild a round; the study's own run
    is found again when it goes on.

    It can be sent to a worker process. `root` None, or HNM_TRACKING=off, tells nobody.
    """

    root: Path | None
    experiment: str = ""
    study: str = ""
    key: str = ""
    """What tells it from all other studies, of the same name too."""

    @property
    def is_on(self) -> bool:
        """Whether runs are made."""
        return self.root is not None and os.environ.get("HNM_TRACKING") != "off"

    @contextlib.contextmanager
    def running(
        self, sections: Mapping[str, Any], summary: Callable[[], Mapping[str, float]], plots: Path
    ) -> Iterator[None]:
        """The study's run, open as long as the block runs; a courier brings the trials meanwhile.

        Args:
            sections: the sections of params.yaml that all trials share but for the study's space.
            summary: metrics of the study, asked for at its end.
            plots: folder of pictures, kept with the run where it is there at the end.
        """
        if not self.is_on or self.root is None:
            yield
            return
        record = Record.create(self.root, f"study-{self.study}")
        with record.alive():
            tags = {"hnm.kind": "study", **git_tags(self.root)}
            record.append(
                "start",
                **self._start(
                    f"study-{self.study}", self._identity(), None, tags, flat_params(sections)
                ),
            )
            courier = _send_courier(self.root, record)
            status = "FAILED"
            try:
                yield
                status = "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                tracker = Tracker("study", record)
                tracker.metrics(summary())
                if plots.is_dir():
                    tracker.file(plots)
                record.append("finish", status=status)
                _await_courier(courier, f"study-{self.study}", record, STAGE_SECONDS)

    def trial(
        self,
        number: int,
        state: str,
        values: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        rounds: Sequence[Mapping[str, float]],
    ) -> None:
        """A finished trial: its params, what it came to, and the metrics of each of its rounds."""
        name, tags = f"trial-{number}", {"hnm.kind": "trial", "hnm.trial_state": state}
        self._run(
            name,
            self._identity(name),
            self._identity(),
            tags,
            values,
            [(None, metrics), *enumerate(map(_of_round, rounds))],
        )
        for round_, own in enumerate(rounds):
            inner = f"{name}-r{round_}"
            self._run(
                inner,
                self._identity(inner),
                self._identity(name),
                {"hnm.kind": "round", "hnm.round": round_},
                values,
                [(None, own)],
            )

    def _run(
        self,
        name: str,
        identity: str,
        parent: str,
        tags: Mapping[str, Any],
        values: Mapping[str, Any],
        steps: Sequence[tuple[int | None, Mapping[str, Any]]],
    ) -> None:
        """The record of a run that is over."""
        if not self.is_on or self.root is None:
            return
        record = Record.create(self.root, name)
        record.append("start", **self._start(name, identity, parent, tags, values))
        tracker = Tracker("study", record)
        for step, metrics in steps:
            tracker.metrics(metrics, step)
        record.append(
            "finish", status="FINISHED" if tags.get("hnm.trial_state") != "failed" else "FAILED"
        )

    def _start(
        self,
        name: str,
        identity: str,
        parent: str | None,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> dict[str, Any]:
        own = {**tags, "hnm.study": self.study, "hnm.study_key": self.key}
        return {
            "experiment": self.experiment,
            "name": name,
            "tags": own,
            "params": dict(params),
            "inputs": [],
            "identity": identity,
            "parent": parent,
        }

    def _identity(self, *run: str) -> str:
        """What the run's tag `hnm.record` says, whichever record tells of it."""
        return "-".join(("study", self.study, self.key[:16], *run))


def _of_round(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a round's own run as those of the run that holds its rounds."""
    return {
        "round/validation_auc": metrics["validation/auc"],
        "round/validation_log_loss": metrics["validation/loss"],
    }


def run_name(state: StageState) -> str:
    """`head-r2-dsmil-s0`: the stage, its round, and of a stage of a round the kind and the seed of
    its own section.
    """
    if state.round is None:
        return state.stage
    own = state.params.get(state.stage, {})
    parts = [
        state.stage,
        f"r{state.round}",
        own.get("kind"),
        f"s{own['seed']}" if "seed" in own else None,
    ]
    return "-".join(part for part in parts if part is not None)


def stage_run(state: StageState, experiment: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Content of the event `start` of a stage's run: experiment, name, tags, params and inputs."""
    own = {
        "hnm.stage": state.stage,
        "hnm.stage_key": state.key,
        "mlflow.source.name": f"{state.module.replace('.', '/')}.py",
        "mlflow.source.type": "LOCAL",
    }
    round_ = {} if state.round is None else {"hnm.round": state.round}
    flags = {path: flag for flag, path in state.arguments.items()}
    inputs = [[path, md5, flags.get(path, "dependency")] for path, md5 in state.data.items()]
    return {
        "experiment": experiment,
        "name": run_name(state),
        "tags": own | round_ | dict(tags),
        "params": flat_params(state.params),
        "inputs": inputs,
    }


def dvc_experiment() -> dict[str, str]:
    """The tag of the DVC experiment that this process belongs to, if it does."""
    return {"hnm.dvc_experiment": name} if (name := os.environ.get("DVC_EXP_NAME")) else {}


def tracking_uri(root: Path) -> str:
    """The store that runs go to: MLFLOW_TRACKING_URI, or the SQLite file at the repository's
    root.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def store_file(root: Path) -> Path | None:
    """The SQLite file that runs go to; None where they go to a server."""
    uri = tracking_uri(root)
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def has_store(root: Path) -> bool:
    """Whether there is anything to ask for runs: a server, or an SQLite file that exists."""
    database = store_file(root)
    return database is None or database.exists()


def _send_courier(root: Path, record: Record) -> "subprocess.Popen[bytes] | None":
    """Starts the process that brings the record to MLflow; it learns of the stage's end by the end
    of its standard input.
    """
    command = [
        sys.executable,
        "-m",
        "hnm.tracking.runs",
        str(root.resolve()),
        str(record.folder.resolve()),
        str(os.getpid()),
    ]
    try:
        with (record.folder / "courier.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        record.complain(error)
        return None


def _await_courier(
    courier: "subprocess.Popen[bytes] | None", name: str, record: Record, seconds: float
) -> None:
    """Gives the courier a last moment; says in one line where the run is when that was not
    enough.
    """
    if courier is None or courier.stdin is None:
        return
    courier.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        courier.wait(timeout=seconds)
    if courier.returncode != 0:
        reason = (
            "no answer yet"
            if courier.returncode is None
            else record.reason() or "its courier was stopped"
        )
        print(
            redacted(
                f"tracking: the run {name} waits in .hnm/spool ({reason}); the next stage or `hnm"
                " track sync` brings it to MLflow"
            ),
            file=sys.stderr,
        )
    elif aside := record.refused():
        print(
            f"tracking: MLflow refuses a part of the run {name}, which lies in .hnm/refused"
            f" ({aside.reason()}); {CURE}",
            file=sys.stderr,
        )


# ---------------------------------------------------------------- from here on in the courier's
# process


def connect(root: Path) -> "MlflowClient":
    """A client of the tracking store, each call of which ends in time.

    The SQLite store is made first, whole and by one process, where it is missing; one that came
    here with a moved or copied project is mended, so that artifacts go where it is.

    Raises:
        TrackingError: the SQLite file is no store that this version of MLflow can use.
    """
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        **SETTINGS,
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    from alembic.util import CommandError
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DatabaseError

    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.ERROR
    )  # it tells of each of its tries; the last one's error says it all
    uri, database = tracking_uri(root), store_file(root)
    if database is None:
        with within(LOCK_SECONDS):
            client = MlflowClient(uri)
        return PatientClient(client)  # type: ignore[return-value]
    with FileLock(root / ".hnm" / "tracking.lock", timeout=LOCK_SECONDS):
        if not database.exists():
            with whole(database) as temporary:
                MlflowClient(f"sqlite:///{temporary}")
        try:
            if database.resolve().parent == root.resolve():
                for place in mend_places(root.resolve(), uri):
                    print(
                        "tracking: this project was moved or copied; its runs kept their files in"
                        f" {place}, and keep them here from now on",
                        file=sys.stderr,
                    )
            client = MlflowClient(uri)
        except (MlflowException, CommandError, DatabaseError) as error:
            if not _is_not_ours(error):
                raise
            raise TrackingError(
                f"{database} is no store that this version of MLflow can use ({first_line(error)});"
                " if a newer MLflow made it, install that one, else restore the file, or move it"
                " away and run hnm track sync"
            ) from None
        return PatientClient(client)  # type: ignore[return-value]


def _is_not_ours(error: Exception) -> bool:
    """Whether the SQLite file is damaged, or of another version of MLflow; a locked or full one is
    neither.
    """
    return any(
        words in str(error)
        for words in (
            "out-of-date database schema",
            "locate revision",
            "not a database",
            "malformed",
            "no such column",
        )
    )


class Delivery:
    """Brings one record's events to MLflow, in order; what was brought before changes nothing, what
    MLflow refuses for good is passed over.
    """

    def __init__(self, root: Path, record: Record, client: "MlflowClient") -> None:
        self._root = root
        self._record = record
        self._client = client
        self._run_id = ""
        self._experiment_id = ""
        self._refusals: list[str] = []

    @property
    def refusals(self) -> list[str]:
        """What MLflow has said of the parts that it refuses for good, each once."""
        return list(dict.fromkeys(self._refusals))

    @property
    def is_run(self) -> bool:
        """Whether there is a run; where MLflow refuses to make it, all events are passed over."""
        return bool(self._run_id)

    def bring(self, events: Sequence[Event]) -> None:
        """Brings `events`, those of one kind that stand together at once."""
        for kind, group in groupby(events, key=lambda event: event["event"]):
            if kind != "start" and not self.is_run:
                continue
            if kind == "metrics":
                with self._refusable():
                    self._metrics(list(group))
            else:
                for event in group:
                    with self._refusable():
                        getattr(self, f"_{kind}")(event)

    def settle(self) -> None:
        """Drops the record, all of which was brought; or sets it aside, where MLflow has refused a
        part.
        """
        if self._refusals:
            self._record.set_aside(self.refusals)
        else:
            self._record.remove()

    @contextlib.contextmanager
    def _refusable(self) -> Iterator[None]:
        """Notes what MLflow refuses for good in the block; whatever else it raises may be otherwise
        tomorrow, and is raised.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code not in FOR_GOOD:
                raise
            self._refusals.append(first_line(error))

    def _start(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._experiment_id = experiment_id_of(self._client, self._root, event["experiment"])
        identity = event.get("identity", self._record.identity)
        found = self._client.search_runs(
            [self._experiment_id], f"tags.`hnm.record` = '{identity}'", max_results=1
        )
        tags, name = {**event["tags"], "hnm.record": identity}, event["name"]
        if "stages" in event and not found:
            if finished_run(
                self._client,
                event["experiment"],
                "hnm.state_key",
                event["tags"].get("hnm.state_key", ""),
            ):
                return  # another has summed up this state
            name, tags = (
                self._named(event),
                {
                    **tags,
                    **links(runs_of_stages(self._client, event["experiment"], event["stages"])),
                },
            )
        if event.get("parent") and (
            parents := self._client.search_runs(
                [self._experiment_id], f"tags.`hnm.record` = '{event['parent']}'", max_results=1
            )
        ):
            tags["mlflow.parentRunId"] = parents[0].info.run_id
        run = (
            found[0]
            if found
            else self._client.create_run(
                self._experiment_id, start_time=event["time"], tags=tags, run_name=name
            )
        )
        self._run_id = run.info.run_id
        if found and "identity" in event and "stages" not in event:  # a study that goes on
            self._client.update_run(self._run_id, status="RUNNING")
        self._params(
            [Param(name, str(value)) for name, value in event["params"].items()], 100
        )  # MLflow's limit
        inputs = [
            DatasetInput(
                Dataset(
                    name=path,
                    digest=md5,
                    source_type="dvc",
                    source=f'{{"path": "{path}", "md5": "{md5}"}}',
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for path, md5, context in event["inputs"]
        ]
        self._client.log_inputs(self._run_id, inputs)

    def _named(self, event: Event) -> str:
        """What tells the state of a summary from the first one."""
        others = self._client.search_runs(
            [self._experiment_id],
            "tags.`hnm.kind` = 'summary'",
            order_by=["attributes.start_time"],
            max_results=1000,
        )
        params = {name: str(value) for name, value in event["params"].items()}
        return state_name(
            params,
            {other.info.run_name: other.data.params for other in others},
            event["tags"].get("hnm.state_key", ""),
        )

    def _params(self, params: "Sequence[Param]", most: int) -> None:
        """Logs params, at most so many at once; of those among which MLflow refuses one, each by
        itself.
        """
        for first in range(0, len(params), most):
            batch, before = params[first : first + most], len(self._refusals)
            with self._refusable():
                self._client.log_batch(self._run_id, params=batch)
            if len(self._refusals) > before and len(batch) > 1:
                del self._refusals[before:]
                self._params(batch, 1)

    def system(self, values: Mapping[str, float], step: int) -> None:
        """Logs a sample of the system at once; it is in no record, and lost while the store is
        away.
        """
        from mlflow.entities import Metric

        if self.is_run:
            self._client.log_batch(
                self._run_id,
                metrics=[Metric(name, value, now(), step) for name, value in values.items()],
            )

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, event["time"], event["step"])
            for event in events
            for name, value in event["values"].items()
        ]
        for first in range(0, len(metrics), 1000):  # MLflow's limit
            self._client.log_batch(self._run_id, metrics=metrics[first : first + 1000])

    def _not_finite(self, event: Event) -> None:
        step = "" if event["step"] is None else f" at step {event['step']}"
        self._client.set_tag(self._run_id, "hnm.not_finite", f"{event['name']}{step}")

    def _file(self, event: Event) -> None:
        self._client.log_artifact(self._run_id, str(self._record.folder / event["path"]))

    def _model(self, event: Event) -> None:
        name = event["kind"]
        known = self._client.search_logged_models(
            [self._experiment_id], f"source_run_id = '{self._run_id}' AND name = '{name}'"
        )
        if known and known[0].status.value == "READY":
            return
        model = (
            known[0]
            if known
            else self._client.create_logged_model(
                self._experiment_id, name=name, source_run_id=self._run_id, model_type=name
            )
        )
        self._client.log_model_artifacts(model.model_id, str(self._record.folder / event["path"]))
        self._client.finalize_logged_model(model.model_id, "READY")

    def _finish(self, event: Event) -> None:
        self._client.set_terminated(self._run_id, event["status"], event["time"])


def experiment_id_of(client: "MlflowClient", root: Path, name: str) -> str:
    """Id of the experiment `name`, made where it is missing; two processes may try at once."""
    with FileLock(root / ".hnm" / "tracking.lock", timeout=LOCK_SECONDS):
        if existing := client.get_experiment_by_name(name):
            return str(existing.experiment_id)
        location = (
            (root.resolve() / "mlruns" / name).as_uri()
            if tracking_uri(root).startswith("sqlite:")
            else None
        )
        # MLflow's pages then open on runs and models instead of on traces of language models
        return str(
            client.create_experiment(
                name,
                artifact_location=location,
                tags={"mlflow.experimentKind": "custom_model_development"},
            )
        )


def store_errors() -> tuple[type[Exception], ...]:
    """What a store that is away, locked or full raises."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def finished_run(client: "MlflowClient", experiment: str, tag: str, value: str) -> "Run | None":
    """The first finished run of the experiment whose tag has this value; one that a person has
    deleted counts, so that it is not made again.
    """
    from mlflow.entities import ViewType

    if (found := client.get_experiment_by_name(experiment)) is None:
        return None
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    return next(
        iter(
            client.search_runs(
                [found.experiment_id], query, ViewType.ALL, 1, ["attributes.start_time"]
            )
        ),
        None,
    )


def runs_of_stages(
    client: "MlflowClient", experiment: str, keys: Mapping[str, str]
) -> "dict[str, Run]":
    """The finished runs of stages, from the keys of their causes; of those that have one,
    `evaluate` last.
    """
    runs = {
        name: finished_run(client, experiment, "hnm.stage_key", keys[name])
        for name in in_reading_order(list(keys))
    }
    return {name: run for name, run in runs.items() if run is not None}


def bring_waiting(
    root: Path, client: "MlflowClient", *, seconds: float = 0.0, left: list[str] | None = None
) -> list[str]:
    """Brings the records of stages that have ended, oldest first, closing those whose stage was
    killed; the names of what was brought whole.

    One of which MLflow refuses a part is set aside, and so is one that is no record; the others go
    on. They go on too where one alone cannot be brought while the store answers.

    Args:
        root: the repository.
        client: of the tracking store.
        seconds: how long to wait in all for records that another courier is bringing; they are left
        to it then. left: takes a line for each record that could not be brought though the store
        answers; where it is None, the first such error is raised at the end.
    """
    end = time.monotonic() + seconds
    brought: list[str] = []
    errors: list[Exception] = []
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
                    brought.append(name)
            except store_errors() as error:
                record.say_reason(error)
                client.search_experiments(
                    max_results=1
                )  # raises where the store is away: the others then wait as well
                errors.append(error)
                if left is not None:
                    left.append(
                        f"the run {record.name} waits, while MLflow answers: {first_line(error)};"
                        f" run hnm track sync again, or delete {record.folder}"
                    )
    if errors and left is None:
        raise errors[0]
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
    if (keys := events[0].get("stages")) and _wait(root, set(keys.values())):
        return None  # a summary, before the runs that it links
    delivery = Delivery(root, record, client)
    delivery.bring(events)
    delivery.settle()
    return None if delivery.refusals else str(events[0]["name"])


def _wait(root: Path, keys: Set[str]) -> bool:
    """Whether records of stages with these keys still wait; they may be with their couriers."""
    for record in waiting_records(root):
        try:
            events = record.checked_events()
        except RecordError:  # which is told when its turn comes
            continue
        if events and events[0]["tags"].get("hnm.stage_key") in keys:
            return True
    return False


def serve_ui(port: int) -> NoReturn:
    """Becomes MLflow's server of this repository's runs on 127.0.0.1, with job execution and
    telemetry off; brings waiting records first.

    `TrackingError` where the runs are with a server already.
    """
    root = project_home().resolve()
    uri = tracking_uri(root)
    if uri.startswith("http"):
        raise TrackingError(
            f"the runs are at MLFLOW_TRACKING_URI={uri}; open that page, or unset the variable to"
            " see the runs of this repository"
        )
    try:
        left: list[str] = []
        bring_waiting(root, connect(root), left=left)
        for line in left:
            print(redacted(line), file=sys.stderr)
    except store_errors() as error:
        raise TrackingError(f"the runs in {uri} cannot be opened: {first_line(error)}") from None
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": uri,
        "--default-artifact-root": (root / "mlruns").as_uri(),
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(word for option in options.items() for word in option),
    ]
    os.execve(
        sys.executable, command, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )


def _courier(root: Path, record: Record, stage: int) -> bool:
    """Follows a record until its stage, the process `stage`, has ended; whether all of it was
    brought.
    """
    watch = SystemWatch(stage)
    events: list[Event] = []
    with record.courier_lock(0):
        delivery: Delivery | None = None
        brought = 0
        others_brought = False
        stage_runs = True
        while True:
            if stage_runs and select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
                stage_runs = False
                watchdog = threading.Timer(COURIER_SECONDS, os._exit, [1])
                watchdog.daemon = True
                watchdog.start()
                with contextlib.suppress(RecordError):
                    record.close_if_killed(1.0)
            try:
                events = record.events()
                if delivery is None:
                    client = connect(root)
                    delivery = Delivery(root, record, client)
                delivery.bring(events[brought:])
                brought = len(events)
                if stage_runs and brought and watch.due():
                    delivery.system(watch.sample(), watch.samples)
                if not others_brought or events[0].get(
                    "identity"
                ):  # the trials of a study come one by one
                    bring_waiting(root, client, left=[])
                    others_brought = True
            except store_errors() as error:
                record.say_reason(error)
            except (
                TrackingError
            ) as error:  # of a record that is none, or a store of another version
                record.say_reason(error)
            if not stage_runs:
                break
    complete = bool(events) and brought == len(events) and events[-1]["event"] == "finish"
    if complete and delivery is not None:
        delivery.settle()
        try:
            bring_waiting(
                root, client, seconds=OTHERS_SECONDS, left=[]
            )  # the summary, which the stage has written last and which links the other runs
        except (*store_errors(), TrackingError) as error:  # type: ignore[misc]
            print(first_line(error), file=sys.stderr)
    return complete


class _Log(io.TextIOBase):
    """A text stream that holds no secrets: what libraries write to it is redacted line by line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Keeps the last line until it ends."""
        lines = (self._line + text).split("\n")
        self._line = lines.pop()
        for line in lines:
            self._stream.write(redacted(line) + "\n")
        self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing: a line that has not ended may still become a secret."""


if __name__ == "__main__":
    sys.stdout = sys.stderr = _Log(sys.stderr)
    sys.exit(0 if _courier(Path(sys.argv[1]), Record(Path(sys.argv[2])), int(sys.argv[3])) else 1)
