"""Runs and models that MLflow already holds, found by their tags."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hnm.errors import TrackingError
from hnm.files import Refuse, read_bounded
from hnm.tracking.connection import connect, has_store, store_errors, tracking_uri
from hnm.tracking.record import first_line
from hnm.tracking.summary import in_reading_order

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class StageRun:
    """The run of a stage in MLflow."""

    name: str
    run_id: str
    commit: str | None
    """Git commit of the code that ran; None of a run that was made from the files."""
    stage_key: str | None = None


@dataclass(frozen=True)
class StateRun:
    """The run that sums up a state, with the run of its evaluation."""

    params: dict[str, str]
    """Dotted name -> value, of all stages."""
    seconds: dict[str, float | None]
    """DVC's name of each stage with a run -> what its execution took; None where nobody knows."""
    inputs: dict[str, str]
    """Path -> DVC's md5 of what was evaluated."""
    file: bytes
    """The artifact that was asked for."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    version: int
    aliases: list[str]
    head: str | None
    """DVC's md5 of its head."""

    @property
    def uri(self) -> str:
        """The version's address, `models:/hnm-demo/2`."""
        return f"models:/{self.name}/{self.version}"


def finished_run(client: "MlflowClient", experiment: str, tag: str, value: str) -> "Run | None":
    """The first finished run of the experiment whose tag has this value. One that a person has
    deleted counts, so that it is not made again.
    """
    from mlflow.entities import ViewType

    mlflow_experiment = client.get_experiment_by_name(experiment)
    if mlflow_experiment is None:
        return None
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(
        [mlflow_experiment.experiment_id], query, ViewType.ALL, 1, ["attributes.start_time"]
    )
    return runs[0] if runs else None


def runs_of_stages(
    client: "MlflowClient", experiment: str, keys: Mapping[str, str]
) -> "dict[str, Run]":
    """The finished runs of those stages that have one, `evaluate` last.

    Args:
        client: of the tracking store.
        experiment: the cohort's name.
        keys: stage -> key of its causes.
    """
    runs = {}
    for stage in in_reading_order(keys):
        if run := finished_run(client, experiment, "hnm.stage_key", keys[stage]):
            runs[stage] = run
    return runs


def stage_runs(root: Path, experiment: str, keys: Mapping[str, str]) -> dict[str, StageRun]:
    """The finished runs of those stages that have one; none where there is no store."""
    if not has_store(root):
        return {}
    try:
        runs = runs_of_stages(connect(root), experiment, keys)
    except store_errors() as error:
        raise TrackingError(
            f"the runs at {tracking_uri(root)} cannot be read: {first_line(error)}"
        ) from None
    return {stage: _stage_run(run) for stage, run in runs.items()}


def run_of_id(root: Path, run_id: str) -> StageRun | None:
    """The run of this id; None where there is none."""
    if not has_store(root):
        return None
    try:
        return _stage_run(connect(root).get_run(run_id))
    except store_errors():
        return None


def _stage_run(run: "Run") -> StageRun:
    tags = run.data.tags
    commit = tags.get("mlflow.source.git.commit")
    return StageRun(run.info.run_name, run.info.run_id, commit, tags.get("hnm.stage_key"))


def state_run(root: Path, name: str, artifact: str, refuse: Refuse) -> StateRun:
    """The newest summary of this id or name.

    Args:
        root: the repository.
        name: the summary's id or name.
        artifact: the file of the evaluation's run to bring along.
        refuse: makes the error where there is no such run, or it lacks something.
    """
    try:
        client = connect(root)
        summary = _summary(client, name, refuse)
        runs = {
            tag.removeprefix("hnm.run.").replace(".", "@"): client.get_run(run_id)
            for tag, run_id in summary.data.tags.items()
            if tag.startswith("hnm.run.")
        }
        if "evaluate" not in runs:
            raise refuse(
                f"the summary {name} of MLflow links no evaluation; name another state, or run"
                " hnm track sync"
            )
        evaluate = runs["evaluate"]
        with TemporaryDirectory(prefix="hnm-state-") as folder:
            path = Path(client.download_artifacts(evaluate.info.run_id, artifact, folder))
            content = read_bounded(path, refuse, what=f"{path.name} of the run {name}")
    except store_errors() as error:
        raise refuse(
            f"{name} is no Git revision, no DVC experiment, and MLflow does not give it as a run:"
            f" {error}"
        ) from None
    inputs = evaluate.inputs.dataset_inputs if evaluate.inputs is not None else []
    return StateRun(
        dict(summary.data.params),
        {stage: run.data.metrics.get("cost/seconds") for stage, run in runs.items()},
        {item.dataset.name: item.dataset.digest for item in inputs},
        content,
    )


def _summary(client: "MlflowClient", name: str, refuse: Refuse) -> "Run":
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    summaries = client.search_runs(
        experiments, "tags.`hnm.kind` = 'summary'", order_by=["attributes.start_time DESC"]
    )
    for run in summaries:
        if name in (run.info.run_id, run.info.run_name):
            return run
    names = ", ".join(sorted({str(run.info.run_name) for run in summaries})) or "none"
    raise refuse(
        f"{name} is no Git revision, no DVC experiment and no summary run of MLflow (there:"
        f" {names}); `dvc exp list` and `make ui` show them"
    )


def model_versions(root: Path, name: str) -> list[ModelVersion]:
    """The versions of the registered model `name`, the first first; none where there is no
    store.
    """
    if not has_store(root):
        return []
    try:
        client = connect(root)
        aliases: dict[int, list[str]] = defaultdict(list)
        for model in client.search_registered_models(f"name = '{name}'"):
            for alias, version in model.aliases.items():
                aliases[int(version)].append(alias)
        versions = client.search_model_versions(f"name = '{name}'")
    except store_errors() as error:
        raise TrackingError(
            f"the models at {tracking_uri(root)} cannot be read: {first_line(error)}"
        ) from None
    numbered = {int(version.version): version.tags.get("hnm.head") for version in versions}
    return [
        ModelVersion(name, number, sorted(aliases[number]), head)
        for number, head in sorted(numbered.items())
    ]
