"""Every state of the pipeline has its runs: those that no stage could log are made from DVC's lock
file and the outputs.

A stage that DVC skips, or whose outputs DVC takes from its cache or a remote, runs no code and logs
nothing. The files are the truth: the same run can be made from them at any time, and is made once.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hnm.errors import TrackingError
from hnm.files import read_json
from hnm.learning.history import epochs_of, read_history
from hnm.repository.outputs import Outputs, folder_md5, taking_apart
from hnm.repository.stages import StageState, cohort_name, current_stages, git_tags, locked_stages
from hnm.tracking.record import Record, first_line, refused_records
from hnm.tracking.runs import (
    COURIER_SECONDS,
    Delivery,
    Tracker,
    bring_waiting,
    connect,
    finished_run,
    run_name,
    stage_run,
    store_errors,
    tracking_uri,
)
from hnm.tracking.summary import in_reading_order, links, state_key, summary_run
from hnm.tracking.time_limits import LOCK_SECONDS
from hnm.tracking.vocabulary import of_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COST_ALONE = ("cohort", "tiles", "embed")
"""The stages whose runs hold what they took, and nothing that their outputs could tell
afterwards.
"""


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
    """Brings what waits in the spool, then makes the runs that the current dvc.lock lacks; a second
    sync does nothing.

    What MLflow refuses for good is set aside in `.hnm/refused`; `retry` tries it again.

    `TrackingError` where the store cannot take them; what was brought until then stays.
    """
    root = root.resolve()
    try:
        client = connect(root)
        for record in refused_records(root) if retry else ():
            record.put_back()
        left: list[str] = []
        brought = bring_waiting(root, client, seconds=COURIER_SECONDS, left=left)
        with FileLock(root / ".hnm" / "sync.lock", timeout=LOCK_SECONDS):
            synced = _replay(root, client, current_stages(locked_stages(root)), brought)
        return replace(synced, missing=[*left, *synced.missing])
    except store_errors() as error:
        raise TrackingError(
            f"MLflow at {tracking_uri(root)} does not take the runs: {first_line(error)}; they"
            " wait, sync again when it does"
        ) from None


def _replay(
    root: Path, client: "MlflowClient", states: Mapping[str, StageState], brought: list[str]
) -> Synced:
    if not states:
        return Synced(brought, missing=["dvc.lock holds no evaluation; run dvc repro"])
    outputs = Outputs(root)
    experiment = cohort_name(states)
    replayed: list[str] = []
    missing: list[str] = []
    runs: dict[str, Run] = {}
    for name in in_reading_order(list(states)):
        state = states[name]
        run = finished_run(client, experiment, "hnm.stage_key", state.key)
        if run is None:
            try:
                made = _replay_stage(root, client, outputs, experiment, state)
            except TrackingError as error:
                missing.append(f"{name}: {error}")
                continue
            if not made:
                continue
            replayed.append(run_name(state))
            run = finished_run(client, experiment, "hnm.stage_key", state.key)
        if run is not None:
            runs[name] = run
    return Synced(
        brought,
        replayed,
        _summarise(root, client, outputs, experiment, states, runs, missing),
        missing,
    )


def _replay_stage(
    root: Path, client: "MlflowClient", outputs: Outputs, experiment: str, state: StageState
) -> bool:
    """Makes the run of one stage from its outputs; False where they tell nothing."""
    if state.stage in COST_ALONE or state.stage not in (
        "evaluate",
        "mine",
        "encoder",
        "finetune",
        "head",
    ):
        return False
    start = stage_run(state, experiment, {"hnm.kind": "replay"})
    if state.stage == "evaluate":
        outs = {path: outputs.files(path, md5) for path, md5 in state.outs.items()}
        content = _only_json(outs[state.output("metrics")[0]])
        with _new_run(root, client, start) as record:
            with taking_apart(state.argument("metrics")):
                Tracker(state.stage, record).evaluation(content)
            for path, files in outs.items():
                record.append(
                    "file",
                    path=record.keep_all(
                        Path(path).name,
                        (
                            files
                            if state.outs[path].endswith(".dir")
                            else {".": files[Path(path).name]}
                        ),
                    ),
                )
        return True
    if state.stage == "mine":
        path, md5 = state.output("summary")
        files = outputs.files(path, md5)
        with _new_run(root, client, start) as record:
            with taking_apart(path):
                Tracker(state.stage, record).mining(_only_json(files), int(state.argument("round")))
            record.append(
                "file", path=record.keep_all(Path(path).name, {".": files[Path(path).name]})
            )
        return True
    path, md5 = state.output("folder")
    model = outputs.files(path, md5)
    if "history.csv" not in model:
        return False
    with _new_run(root, client, start) as record:
        history = epochs_of(read_history(model["history.csv"], TrackingError, "; run dvc repro"))
        with taking_apart(f"{path}/history.csv"):
            for step, numbers in of_history(history):
                Tracker(state.stage, record).metrics(numbers, step)
        record.append(
            "model",
            path=record.keep_all(Path(path).name, model),
            kind="head" if state.stage == "head" else "encoder",
        )
    return True


@contextlib.contextmanager
def _new_run(root: Path, client: "MlflowClient", start: dict[str, Any]) -> Iterator[Record]:
    """The record of a run that is made now; brought to MLflow when the block has ended.

    `TrackingError` where MLflow refuses the run for good; nothing is set aside then, as the files
    can tell of it again.
    """
    record = Record.create(root, start["name"])
    with record.alive(), record.courier_lock(0):
        try:
            record.append("start", **start)
            yield record
            record.append("finish", status="FINISHED")
        except BaseException:
            record.remove()
            raise
        delivery = Delivery(root, record, client)
        delivery.bring(record.events())
        if not delivery.is_run:
            record.remove()
            raise TrackingError(
                f"MLflow refuses the run ({delivery.refusals[0]}); mend that, then hnm track sync"
            )
        delivery.settle()


def _summarise(
    root: Path,
    client: "MlflowClient",
    outputs: Outputs,
    experiment: str,
    states: Mapping[str, StageState],
    runs: Mapping[str, "Run"],
    missing: list[str],
) -> str | None:
    """Makes the run that sums up the state, where there is none; its name. One that lacks links to
    the stages' runs gets them.
    """
    if "evaluate" not in runs:
        return None
    key = state_key(states)
    if summary := finished_run(client, experiment, "hnm.state_key", key):
        _mend_links(client, summary, runs)
        return None
    if late := outdated(states, locked_stages(root), outputs):
        missing.append(
            f"no summary: {', '.join(late)} ran before their inputs changed; run dvc repro"
        )
        return None
    content = _only_json(outputs.files(*states["evaluate"].output("metrics")))
    experiment_of_dvc = {
        tag: value
        for tag, value in runs["evaluate"].data.tags.items()
        if tag == "hnm.dvc_experiment"
    }
    try:
        with (
            _new_run(
                root,
                client,
                summary_run(states, experiment, {**git_tags(root), **experiment_of_dvc}),
            ) as record,
            taking_apart("metrics.json"),
        ):
            Tracker("summary", record).evaluation(content)
    except TrackingError as error:
        missing.append(f"no summary: {error}")
        return None
    made = finished_run(client, experiment, "hnm.state_key", key)
    return None if made is None else made.info.run_name


def _mend_links(client: "MlflowClient", summary: "Run", runs: Mapping[str, "Run"]) -> None:
    """Adds links to runs that were not in MLflow yet when the summary was brought."""
    wanted = links({name: runs[name] for name in in_reading_order(list(runs))})
    if summary.info.lifecycle_stage == "active" and any(
        tag not in summary.data.tags for tag in wanted
    ):
        for tag, value in wanted.items():
            client.set_tag(summary.info.run_id, tag, value)


def outdated(
    states: Mapping[str, StageState], locked: Mapping[str, StageState], outputs: Outputs
) -> list[str]:
    """The stages that ran on other inputs than the stages before them have last written.

    A folder that holds the outputs of several stages may also hold those of rounds that are no
    more, which only `locked` still knows.
    """
    made = {path: md5 for state in states.values() for path, md5 in state.outs.items()}
    ever_made = {path: md5 for state in locked.values() for path, md5 in state.outs.items()}

    def fits(path: str, md5: str) -> bool:
        if path in made:
            return made[path] == md5
        inside = [other for other in made if other.startswith(f"{path}/")]
        return (
            not inside
            or _folder_of(path, made, outputs) == md5
            or _folder_of(path, ever_made, outputs) == md5
        )

    return [
        name
        for name, state in states.items()
        if not all(fits(path, md5) for path, md5 in state.deps.items())
    ]


def _folder_of(folder: str, made: Mapping[str, str], outputs: Outputs) -> str | None:
    """DVC's md5 of a folder that holds the outputs `made`; None where one of them is missing."""
    files: dict[str, str] = {}
    for path, md5 in made.items():
        if not path.startswith(f"{folder}/"):
            continue
        inside = path.removeprefix(f"{folder}/")
        try:
            files |= (
                {f"{inside}/{name}": digest for name, digest in outputs.digests(path, md5).items()}
                if md5.endswith(".dir")
                else {inside: md5}
            )
        except TrackingError:
            return None
    return folder_md5(files)


def _only_json(files: Mapping[str, Path]) -> Any:
    (path,) = files.values()
    return read_json(path, TrackingError)
