"""The run of a stage in MLflow: what it logs, under which names, without ever delaying or stopping
the stage.

A stage writes events to a record on disk (`record.py`) and nothing else. A courier, a child process
that alone imports MLflow, follows the record and brings it to the tracking store (`courier.py`,
`delivery.py`). When the store is away, slow, locked or full, the record waits in `.hnm/spool` for
the next stage or for `hnm track sync`.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from hnm.errors import TrackingError
from hnm.params import Params
from hnm.project import project_home, project_root
from hnm.repository.costs import cost_so_far, dvc_name
from hnm.repository.stages import StageState, current_stages, git_tags, locked_stages, running_stage
from hnm.tracking.courier import await_courier, send_courier
from hnm.tracking.delivery import was_delivered
from hnm.tracking.record import Record
from hnm.tracking.summary import disagreeing, flat_params, summary_run
from hnm.tracking.vocabulary import METRICS, of_epoch, of_evaluation, of_mining

STAGE_SECONDS = 5.0
"""Longest that tracking may delay a stage, at its end."""
SEES_TEST = ("evaluate", "summary")
"""Stages whose runs may hold test metrics."""
COST_ALONE = ("cohort", "tiles", "embed")
"""Stages whose runs hold the cost, and nothing that their outputs could tell afterwards."""
Kind = Literal["encoder", "head"]


class Tracker:
    """The run of one stage execution. Every method only writes to the run's record; without a
    record nothing is logged.
    """

    def __init__(self, stage: str, record: Record | None) -> None:
        self._stage = stage
        self._record = record
        self.summary: Mapping[str, Any] | None = None
        """The content of metrics.json, once it was logged."""

    def epoch(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Logs one row of a history, by its column names; a loop's `on_epoch`."""
        self.metrics(of_epoch(metrics), step=epoch)

    def evaluation(self, content: Mapping[str, Any]) -> None:
        """Logs the content of metrics.json: `round/*` by round, `validation/*` and `test/*` of the
        chosen round.
        """
        self.summary = content
        for step, metrics in of_evaluation(content):
            self.metrics(metrics, step)

    def mining(self, content: Mapping[str, Any], round_: int) -> None:
        """Logs the summary of the tiles that were mined for a round."""
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
        if self._record is None:
            return
        finite = {
            name: float(value)
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        if finite:
            self._record.append("metrics", step=step or 0, values=finite)
        for name in metrics:
            if name not in finite:
                self._record.append("not_finite", name=name, step=step)

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
            place = self._record.keep(path)
        except OSError as error:
            self._record.complain(error)
        else:
            self._record.append(event, path=place, **content)


@contextlib.contextmanager
def track_stage(
    stage: str, arguments: Mapping[str, Path | int], sections: Mapping[str, Any], params: Params
) -> Iterator[Tracker]:
    """The run of one execution of `stage`, open as long as the block runs; HNM_TRACKING=off makes
    none.

    A stage of `COST_ALONE` with the causes of an earlier run makes no second one: `cohort` runs
    each time that `dvc repro` does.

    Args:
        stage: the stage's name without its round.
        arguments: the stage's flags by name; `round`, where it has one, goes into the run's name.
        sections: the sections of params.yaml that the stage uses; the run's params.
        params: the whole of params.yaml.
    """
    if not tracking_is_on():
        yield Tracker(stage, None)
        return
    began = time.monotonic()
    root = project_home()
    folder = project_root()  # its dvc.lock is the one of this state
    state = running_stage(
        folder, dvc_name(stage, arguments), f"pipelines.{stage}", arguments, sections
    )
    if stage in COST_ALONE and was_delivered(root, state.key):
        yield Tracker(stage, None)
        return
    tags = {**dvc_experiment(), **git_tags(folder)}
    start = stage_run(state, params.cohort.name, {"hnm.kind": "stage", **tags})
    with live_run(root, start, began) as record:
        tracker = Tracker(stage, record)
        try:
            yield tracker
        finally:
            record.append("metrics", step=0, values=cost_so_far().metrics())
        if tracker.summary is not None:
            _record_summary(root, folder, state, params.cohort.name, tracker.summary)


def tracking_is_on() -> bool:
    """Whether stages and studies log runs."""
    return os.environ.get("HNM_TRACKING") != "off"


@contextlib.contextmanager
def live_run(root: Path, start: Mapping[str, Any], began: float) -> Iterator[Record]:
    """The record of a run, brought to MLflow by a courier while the block runs.

    Args:
        root: the repository.
        start: content of the event `start`.
        began: when tracking began, by `time.monotonic`; what it took so far is not waited for at
            the end.
    """
    record = Record.create(root, start["name"])
    with record.alive():
        record.append("start", **start)
        courier = send_courier(root, record)
        patience = max(0.0, STAGE_SECONDS - (time.monotonic() - began))
        status = "FAILED"
        try:
            yield record
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            record.append("finish", status=status)
            await_courier(courier, start["name"], record, patience)


def _record_summary(
    root: Path, folder: Path, evaluate: StageState, experiment: str, content: Mapping[str, Any]
) -> None:
    """Writes the record of the run that sums up the state which `evaluate` has just evaluated. The
    courier of `evaluate` brings it.

    The state's key is the one that dvc.lock gives once DVC has entered this stage there. Where
    dvc.lock does not have the other stages, or one of them ran on older inputs, there is no such
    state, and `hnm track sync` says so.
    """
    try:
        states = current_stages({**locked_stages(folder), evaluate.name: evaluate})
    except TrackingError:
        return
    if evaluate.name != "evaluate" or disagreeing(states):
        return
    tags = {**dvc_experiment(), **git_tags(folder)}
    with Record.written(root, summary_run(states, experiment, tags)) as record:
        Tracker("summary", record).evaluation(content)


def run_name(state: StageState) -> str:
    """`head-r2-dsmil-s0`: the stage, its round, and of a stage of a round the kind and the seed of
    the section that is called like the stage.
    """
    if state.round is None:
        return state.stage
    section = state.params.get(state.stage, {})
    parts = [state.stage, f"r{state.round}"]
    if "kind" in section:
        parts.append(section["kind"])
    if "seed" in section:
        parts.append(f"s{section['seed']}")
    return "-".join(parts)


def stage_run(state: StageState, experiment: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Content of the event `start` of a stage's run: experiment, name, tags, params and inputs."""
    stage_tags: dict[str, Any] = {
        "hnm.stage": state.stage,
        "hnm.stage_key": state.key,
        "mlflow.source.name": f"{state.module.replace('.', '/')}.py",
        "mlflow.source.type": "LOCAL",
    }
    if state.round is not None:
        stage_tags["hnm.round"] = state.round
    flags = {path: flag for flag, path in state.arguments.items()}
    return {
        "experiment": experiment,
        "name": run_name(state),
        "tags": {**stage_tags, **tags},
        "params": flat_params(state.params),
        "inputs": [[path, md5, flags.get(path, "dependency")] for path, md5 in state.data.items()],
    }


def dvc_experiment() -> dict[str, str]:
    """The tag of the DVC experiment that this process belongs to, if it does."""
    name = os.environ.get("DVC_EXP_NAME")
    return {"hnm.dvc_experiment": name} if name else {}
