"""Past states of the pipeline: what `evaluate` left behind at a Git revision, in a DVC experiment,
in an MLflow run, or now.

DVC's API finds the version of an output that a revision speaks of. An MLflow summary links the run
of its evaluation, which holds the scores of the test slides and names the cohort by DVC's md5.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from hnm.errors import EvidenceError
from hnm.evidence.numbers.comparison import Comparison, State, compare_states
from hnm.files import read_bounded
from hnm.params import load_params
from hnm.repository.costs import seconds_by_key
from hnm.repository.outputs import AbsentError, Outputs, taking_apart
from hnm.repository.revision import WORKSPACE, UnknownRevisionError, bytes_of, file_at
from hnm.repository.stages import StageState, current_stages, stages_of
from hnm.tables import read_frame
from hnm.tracking.runs import connect, has_store, store_errors
from hnm.tracking.summary import flat_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TEST_SLIDES = "test_slides.csv"
TEST_COLUMNS = {
    "slide_id": "str",
    "patient_id": "str",
    "label": "int64",
    "score": "float64",
    "called": "int64",
}
"""Columns of `TEST_SLIDES`, and their dtypes."""
COHORT_COLUMNS = ["slide_id", "patient_id", "split", "fingerprint"]


def comparison_of(root: Path, names: Sequence[str]) -> Comparison:
    """Compares the states `names` with the first of them, by the section `evaluate` of params.yaml.

    Raises:
        EvidenceError: there is no such state, or they cannot be compared.
    """
    section = load_params(root / "params.yaml").evaluate
    return compare_states([read_state(root, name) for name in names], section)


def read_state(root: Path, name: str) -> State:
    """Returns the state `name`: `workspace`, a Git revision, a DVC experiment, or the id or name of
    an MLflow summary, in this order.

    Raises:
        EvidenceError: there is no such state, or its outputs are not in DVC's cache.
    """
    try:
        lock = file_at(root, name, "dvc.lock")
    except UnknownRevisionError:
        return _of_run(root, name)
    if lock is None:
        raise EvidenceError(
            f"{name} holds no dvc.lock; name a state that dvc repro has made, and whose dvc.lock is"
            " committed"
        )
    states = current_stages(stages_of(lock, f"dvc.lock of {name}"))
    if not states:
        raise EvidenceError(
            f"dvc.lock of {name} holds no evaluation; name a state that dvc repro has run to"
            " its end"
        )
    return _of_lock(root, name, states)


def _of_lock(root: Path, name: str, states: Mapping[str, StageState]) -> State:
    """Returns the state whose stages dvc.lock names."""
    evaluate = states["evaluate"]
    outputs = Outputs(root)
    slides_path = evaluate.argument("slides")
    if slides_path not in evaluate.deps:
        raise EvidenceError(
            f"dvc.lock of {name} does not say on which slides evaluate ran; run dvc repro"
        )
    try:
        slides = bytes_of(outputs, slides_path, evaluate.deps[slides_path])
        test = bytes_of(outputs, *evaluate.output("plots"), TEST_SLIDES)
    except AbsentError as error:
        cure = (
            "run dvc repro"
            if name == WORKSPACE
            else f"run dvc fetch --all-commits (of a DVC experiment: dvc exp pull origin {name})"
        )
        raise EvidenceError(f"{name}: {str(error).partition(';')[0]}; {cure}") from None
    return State(
        name,
        _slides(slides, f"{slides_path} of {name}"),
        _test_slides(test, name),
        _params(states),
        seconds_by_key(root, {stage: state.key for stage, state in states.items()}),
    )


def _of_run(root: Path, name: str) -> State:
    if not has_store(root):
        raise EvidenceError(
            f"{name} is no Git revision and no DVC experiment, and there are no runs of MLflow"
            " here; git log and dvc exp list show what there is"
        )
    try:
        client = connect(root)
        summary = _summary(client, name)
        runs = {
            tag.removeprefix("hnm.run.").replace(".", "@"): client.get_run(run_id)
            for tag, run_id in summary.data.tags.items()
            if tag.startswith("hnm.run.")
        }
        if "evaluate" not in runs:
            raise EvidenceError(
                f"the summary {name} of MLflow links no evaluation; name another state, or run"
                " hnm track sync"
            )
        test = _artifact(client, runs["evaluate"], name)
    except store_errors() as error:
        raise EvidenceError(
            f"{name} is no Git revision, no DVC experiment, and MLflow does not give it as a"
            f" run: {error}"
        ) from None
    return State(
        name,
        _cohort_of(root, runs["evaluate"], name),
        _test_slides(test, name),
        dict(summary.data.params),
        {stage: run.data.metrics.get("cost/seconds") for stage, run in runs.items()},
    )


def _artifact(client: "MlflowClient", evaluate: "Run", name: str) -> bytes:
    """Returns the table of test slides that the run of the evaluation holds."""
    with TemporaryDirectory(prefix="hnm-state-") as temporary:
        path = client.download_artifacts(evaluate.info.run_id, f"plots/{TEST_SLIDES}", temporary)
        return read_bounded(Path(path), EvidenceError, what=f"{TEST_SLIDES} of the run {name}")


def _cohort_of(root: Path, evaluate: "Run", name: str) -> pd.DataFrame:
    """Returns the slides of the cohort that the run of the evaluation names as its input."""
    inputs = evaluate.inputs.dataset_inputs if evaluate.inputs is not None else []
    digests = {item.dataset.name: item.dataset.digest for item in inputs}
    path = next((path for path in digests if path.endswith("/slides.parquet")), None)
    if path is None:
        raise EvidenceError(
            f"the run of the evaluation of {name} names no cohort; name another state, or run hnm"
            " track sync"
        )
    try:
        slides = bytes_of(Outputs(root), path, digests[path])
    except AbsentError:
        raise EvidenceError(
            f"{name}: {path} (md5 {digests[path]}), its cohort, is neither in the"
            " workspace nor in DVC's cache; run dvc fetch --all-commits"
        ) from None
    return _slides(slides, f"{path} of {name}")


def _summary(client: "MlflowClient", name: str) -> "Run":
    """Returns the newest summary of this id or name."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    summaries = client.search_runs(
        experiments, "tags.`hnm.kind` = 'summary'", order_by=["attributes.start_time DESC"]
    )
    for run in summaries:
        if name in (run.info.run_id, run.info.run_name):
            return run
    names = ", ".join(sorted({str(run.info.run_name) for run in summaries})) or "none"
    raise EvidenceError(
        f"{name} is no Git revision, no DVC experiment and no summary run of MLflow (there:"
        f" {names}); `dvc exp list` and `make ui` show them"
    )


def _slides(content: bytes, what: str) -> pd.DataFrame:
    with taking_apart(what, EvidenceError):
        return pd.read_parquet(io.BytesIO(content), columns=COHORT_COLUMNS)


def _test_slides(content: bytes, name: str = WORKSPACE) -> pd.DataFrame:
    return read_frame(
        content,
        TEST_COLUMNS,
        f"{TEST_SLIDES} of {name}",
        refuse=EvidenceError,
        cure="; run dvc repro",
    )


def _params(states: Mapping[str, StageState]) -> dict[str, str]:
    """Returns the params that the stages of a state use, as MLflow holds them."""
    sections = {name: value for state in states.values() for name, value in state.params.items()}
    return {name: str(value) for name, value in flat_params(sections).items()}
