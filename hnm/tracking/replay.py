"""Every state of the pipeline has its runs: the records that no stage could write are written from
dvc.lock and the outputs.

A stage that DVC skips, or whose outputs DVC takes from its cache or a remote, runs no code and logs
nothing. The files are the truth: the same record can be written from them at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hnm.errors import TrackingError
from hnm.files import read_json
from hnm.learning.history import epochs_of, read_history
from hnm.repository.outputs import Outputs, folder_md5, taking_apart
from hnm.repository.stages import (
    StageState,
    cohort_name,
    current_stages,
    git_tags,
    locked_stages,
    outs_of,
)
from hnm.tracking.connection import connect, store_errors, tracking_uri
from hnm.tracking.courier import COURIER_SECONDS
from hnm.tracking.delivery import bring_waiting, run_keys
from hnm.tracking.lookup import finished_run, runs_of_stages
from hnm.tracking.record import Record, first_line, refused_records
from hnm.tracking.runs import Tracker, run_name, stage_run
from hnm.tracking.summary import disagreeing, in_reading_order, links, state_key, summary_run
from hnm.tracking.time_limits import LOCK_SECONDS
from hnm.tracking.vocabulary import of_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FLAGS = {
    "evaluate": "metrics",
    "mine": "summary",
    "encoder": "folder",
    "finetune": "folder",
    "head": "folder",
}
"""Stage -> flag of the output from which its metrics can be read."""


@dataclass(frozen=True)
class Synced:
    """What a sync did, run names in order."""

    brought: list[str] = field(default_factory=list)
    """Runs that had waited in the spool."""
    replayed: list[str] = field(default_factory=list)
    """Runs made from dvc.lock and the outputs."""
    summary: str | None = None
    """The run that sums up the state, where there was none."""
    missing: list[str] = field(default_factory=list)
    """Why a run could not be made, and the cure."""


def sync(root: Path, *, retry: bool = False) -> Synced:
    """Brings the records that wait, then makes the runs that the current dvc.lock lacks; a second
    sync does nothing.

    What MLflow refuses for good is set aside in `.hnm/refused`; `retry` tries it again.

    Raises:
        TrackingError: the store cannot take the runs; what was brought until then stays.
    """
    root = root.resolve()
    try:
        client = connect(root)
        for record in refused_records(root) if retry else ():
            record.put_back()
        waiting = bring_waiting(root, client, COURIER_SECONDS)
        with FileLock(root / ".hnm" / "sync.lock", timeout=LOCK_SECONDS):
            synced = _replay(root, client)
    except store_errors() as error:
        raise TrackingError(
            f"MLflow at {tracking_uri(root)} does not take the runs: {first_line(error)}; they"
            " wait, sync again when it does"
        ) from None
    return replace(synced, brought=waiting.names, missing=[*waiting.left, *synced.missing])


def _replay(root: Path, client: "MlflowClient") -> Synced:
    """Makes the runs that the store lacks of the stages of dvc.lock, and the summary of the
    state.
    """
    states = current_stages(locked_stages(root))
    if not states:
        return Synced(missing=["dvc.lock holds no evaluation; run dvc repro"])
    experiment = cohort_name(states)
    keys = {name: state.key for name, state in states.items()}
    runs = runs_of_stages(client, experiment, keys)
    refused_keys = run_keys(refused_records(root))
    written: list[str] = []
    missing: list[str] = []
    for name in in_reading_order(states):
        if name in runs or keys[name] in refused_keys:
            continue
        try:
            if _write_record(root, experiment, states[name]):
                written.append(name)
        except TrackingError as error:
            missing.append(f"{name}: {error}")
    if written:
        missing += bring_waiting(root, client).left
        runs = runs_of_stages(client, experiment, keys)
    summary = None
    if "evaluate" in runs and state_key(states) not in refused_keys:
        try:
            summary = _summarise(root, client, states, runs)
        except TrackingError as error:
            missing.append(f"no summary: {error}")
    replayed = [run_name(states[name]) for name in written if name in runs]
    return Synced([], replayed, summary, missing)


def _write_record(root: Path, experiment: str, state: StageState) -> bool:
    """Writes the record of a stage from its outputs; False where they tell nothing."""
    if state.stage not in FLAGS:
        return False
    outputs = Outputs(root)
    path, md5 = state.output(FLAGS[state.stage])
    files = outputs.files(path, md5)
    is_model = FLAGS[state.stage] == "folder"
    if is_model and "history.csv" not in files:
        return False
    with Record.written(root, stage_run(state, experiment, {"hnm.kind": "replay"})) as record:
        tracker = Tracker(state.stage, record)
        with taking_apart(f"{path}/history.csv" if is_model else path):
            if is_model:
                history = read_history(files["history.csv"], TrackingError, "; run dvc repro")
                for step, metrics in of_history(epochs_of(history)):
                    tracker.metrics(metrics, step)
            elif state.stage == "mine":
                tracker.mining(_only_json(files), int(state.argument("round")))
            else:
                tracker.evaluation(_only_json(files))
        if is_model:
            kind = "head" if state.stage == "head" else "encoder"
            record.append("model", path=record.keep_all(Path(path).name, files), kind=kind)
            return True
        kept_outputs = state.outs if state.stage == "evaluate" else {path: md5}
        for output, version in kept_outputs.items():
            name = Path(output).name
            files = outputs.files(output, version)
            if not version.endswith(".dir"):
                files = {".": files[name]}
            record.append("file", path=record.keep_all(name, files))
    return True


def _summarise(
    root: Path,
    client: "MlflowClient",
    states: Mapping[str, StageState],
    runs: Mapping[str, "Run"],
) -> str | None:
    """Makes the run that sums up the state, where there is none; its name. One that lacks links to
    the stages' runs gets them.
    """
    experiment = cohort_name(states)
    key = state_key(states)
    if summary := finished_run(client, experiment, "hnm.state_key", key):
        _mend_links(client, summary, runs)
        return None
    outputs = Outputs(root)
    if late := outdated(states, locked_stages(root), outputs):
        raise TrackingError(f"{', '.join(late)} ran before their inputs changed; run dvc repro")
    content = _only_json(outputs.files(*states["evaluate"].output("metrics")))
    tags = git_tags(root)
    if experiment_of_dvc := runs["evaluate"].data.tags.get("hnm.dvc_experiment"):
        tags["hnm.dvc_experiment"] = experiment_of_dvc
    with (
        Record.written(root, summary_run(states, experiment, tags)) as record,
        taking_apart("metrics.json"),
    ):
        Tracker("summary", record).evaluation(content)
    bring_waiting(root, client)
    summary = finished_run(client, experiment, "hnm.state_key", key)
    return None if summary is None else str(summary.info.run_name)


def _mend_links(client: "MlflowClient", summary: "Run", runs: Mapping[str, "Run"]) -> None:
    """Adds links to runs that were not in MLflow yet when the summary was brought."""
    tags = links(runs)
    if summary.info.lifecycle_stage == "active" and not tags.keys() <= summary.data.tags.keys():
        for tag, value in tags.items():
            client.set_tag(summary.info.run_id, tag, value)


def outdated(
    states: Mapping[str, StageState], locked: Mapping[str, StageState], outputs: Outputs
) -> list[str]:
    """The stages that ran on other inputs than the stages before them have last written.

    A folder that holds the outputs of several stages may also hold those of rounds that are no
    more, which only `locked` still has.
    """
    late = set(disagreeing(states))
    written = outs_of(states)
    for name, state in states.items():
        for path, md5 in state.deps.items():
            if path in written or not any(out.startswith(f"{path}/") for out in written):
                continue
            if md5 not in (
                _folder_md5(path, written, outputs),
                _folder_md5(path, outs_of(locked), outputs),
            ):
                late.add(name)
    return [name for name in states if name in late]


def _folder_md5(folder: str, outs: Mapping[str, str], outputs: Outputs) -> str | None:
    """DVC's md5 of a folder that holds the outputs `outs`; None where one of them is missing."""
    files: dict[str, str] = {}
    for path, md5 in outs.items():
        if not path.startswith(f"{folder}/"):
            continue
        inside = path.removeprefix(f"{folder}/")
        if not md5.endswith(".dir"):
            files[inside] = md5
            continue
        try:
            digests = outputs.digests(path, md5)
        except TrackingError:
            return None
        files |= {f"{inside}/{name}": digest for name, digest in digests.items()}
    return folder_md5(files)


def _only_json(files: Mapping[str, Path]) -> Any:
    (path,) = files.values()
    return read_json(path, TrackingError)
