"""Past states of the pipeline: what `evaluate` left behind at a Git revision, in a DVC experiment, in an MLflow run, or now.

DVC's API finds the version of an output that a revision speaks of. An MLflow summary links the run of its evaluation,
which holds the scores of the test slides and names the cohort by DVC's md5.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import ruamel.yaml

from hnm.errors import EvidenceError, TrackingError
from hnm.experiments.ledger import seconds_by_key
from hnm.experiments.state import Outputs, StageState, current_stages, stages_of
from hnm.experiments.tracking import connect, flat_params, has_store, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WORKSPACE = "workspace"
"""Name of the state that lies in the working tree."""
TEST_SLIDES = "test_slides.csv"
COHORT_COLUMNS = ["slide_id", "patient_id", "split", "fingerprint"]


@dataclass(frozen=True)
class PastState:
    """One state of the pipeline."""

    name: str
    slides: pd.DataFrame
    """slide_id, patient_id, split, fingerprint of the cohort."""
    test: pd.DataFrame
    """slide_id, patient_id, label, score, called of the test slides."""
    params: dict[str, str]
    """Dotted name -> value, of all stages."""
    seconds: dict[str, float | None]
    """DVC's name of each stage -> what its execution took; None where nobody knows."""


def read_state(root: Path, name: str) -> PastState:
    """The state `name`: `workspace`, a Git revision, a DVC experiment, or the id or name of an MLflow summary, in this order.

    Raises:
        EvidenceError: there is no such state, or its outputs are not in DVC's cache.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        return _of_revision(root, name, DVCFileSystem(str(root), rev=None if name == WORKSPACE else name))
    except RevError:
        return _of_run(root, name)
    except (DvcException, OSError) as error:
        cure = "run dvc repro" if name == WORKSPACE else f"run dvc fetch --all-commits (of a DVC experiment: dvc exp pull origin {name})"
        raise EvidenceError(f"{name}: {error}; {cure}") from None


def _of_revision(root: Path, name: str, files: Any) -> PastState:
    """The state in `files`, a file system of DVC's API."""
    try:
        lock = files.read_text("dvc.lock")
    except FileNotFoundError:
        raise EvidenceError(f"{name} holds no dvc.lock; name a state that dvc repro has made, and whose dvc.lock is committed") from None
    states = current_stages(stages_of(ruamel.yaml.YAML(typ="safe").load(lock) or {}))
    if not states:
        raise EvidenceError(f"dvc.lock of {name} holds no evaluation; name a state that dvc repro has run to its end")
    evaluate = states["evaluate"]
    slides, test = (files.read_bytes(path) for path in (evaluate.arguments["slides"], f"{evaluate.arguments['plots']}/{TEST_SLIDES}"))
    return PastState(
        name,
        pd.read_parquet(io.BytesIO(slides), columns=COHORT_COLUMNS),
        _test_slides(test),
        _params(states),
        seconds_by_key(root, {stage: state.key for stage, state in states.items()}),
    )


def _of_run(root: Path, name: str) -> PastState:
    if not has_store(root):
        raise EvidenceError(
            f"{name} is no Git revision and no DVC experiment, and there are no runs of MLflow here; git log and dvc exp list show what there is"
        )
    try:
        client = connect(root)
        summary = _summary(client, name)
        links = {
            tag.removeprefix("hnm.run.").replace(".", "@"): client.get_run(run_id) for tag, run_id in summary.data.tags.items() if tag.startswith("hnm.run.")
        }
        evaluate = links["evaluate"]
        test = Path(client.download_artifacts(evaluate.info.run_id, f"plots/{TEST_SLIDES}")).read_bytes()
    except store_errors() as error:
        raise EvidenceError(f"{name} is no Git revision, no DVC experiment, and MLflow does not give it as a run: {error}") from None
    inputs = evaluate.inputs.dataset_inputs if evaluate.inputs is not None else []
    cohort = {item.dataset.name: item.dataset.digest for item in inputs}
    path = next(path for path in cohort if path.endswith("/slides.parquet"))
    try:
        slides = Outputs(root).files(path, cohort[path])[Path(path).name]
    except TrackingError:
        raise EvidenceError(
            f"{name}: {path} (md5 {cohort[path]}), its cohort, is neither in the workspace nor in DVC's cache; run dvc fetch --all-commits"
        ) from None
    return PastState(
        name,
        pd.read_parquet(slides, columns=COHORT_COLUMNS),
        _test_slides(test),
        dict(summary.data.params),
        {stage: run.data.metrics.get("cost/seconds") for stage, run in links.items()},
    )


def _summary(client: "MlflowClient", name: str) -> "Run":
    """The newest summary of this id or name."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    summaries = client.search_runs(experiments, "tags.`hnm.kind` = 'summary'", order_by=["attributes.start_time DESC"])
    found = next((run for run in summaries if name in (run.info.run_id, run.info.run_name)), None)
    if found is None:
        known = ", ".join(sorted({str(run.info.run_name) for run in summaries})) or "none"
        raise EvidenceError(
            f"{name} is no Git revision, no DVC experiment and no summary run of MLflow (there: {known}); `dvc exp list` and `make ui` show them"
        )
    return found


def _test_slides(content: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content), dtype={"slide_id": str, "patient_id": str}, converters={"score": float})  # exact, in every version of pandas


def _params(states: Mapping[str, StageState]) -> dict[str, str]:
    """The params that the stages of a state use, as MLflow holds them."""
    return {name: str(value) for name, value in flat_params({name: section for state in states.values() for name, section in state.params.items()}).items()}
