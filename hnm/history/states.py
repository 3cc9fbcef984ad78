"""Past states of the pipeline: what `evaluate` left behind at a Git revision, in a DVC experiment,
in an MLflow run, or now.

DVC's API finds the version of an output that a revision speaks of. An MLflow summary links the run
of its evaluation, which holds the scores of the test slides and names the cohort by DVC's md5.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hnm.errors import EvidenceError
from hnm.evidence.numbers.comparison import Comparison, State, compare_states
from hnm.params import load_params
from hnm.repository.costs import seconds_by_key
from hnm.repository.outputs import AbsentError, Outputs, taking_apart
from hnm.repository.revision import WORKSPACE, UnknownRevisionError, bytes_of, file_at
from hnm.repository.stages import StageState, current_stages, stages_of
from hnm.tables import read_frame
from hnm.tracking.connection import has_store
from hnm.tracking.lookup import state_run
from hnm.tracking.summary import state_params

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
        state_params(states),
        seconds_by_key(root, {stage: state.key for stage, state in states.items()}),
    )


def _of_run(root: Path, name: str) -> State:
    if not has_store(root):
        raise EvidenceError(
            f"{name} is no Git revision and no DVC experiment, and there are no runs of MLflow"
            " here; git log and dvc exp list show what there is"
        )
    run = state_run(root, name, f"plots/{TEST_SLIDES}", EvidenceError)
    slides_path = next((path for path in run.inputs if path.endswith("/slides.parquet")), None)
    if slides_path is None:
        raise EvidenceError(
            f"the run of the evaluation of {name} names no cohort; name another state, or run hnm"
            " track sync"
        )
    try:
        slides = bytes_of(Outputs(root), slides_path, run.inputs[slides_path])
    except AbsentError:
        raise EvidenceError(
            f"{name}: {slides_path} (md5 {run.inputs[slides_path]}), its cohort, is neither in the"
            " workspace nor in DVC's cache; run dvc fetch --all-commits"
        ) from None
    return State(
        name,
        _slides(slides, f"{slides_path} of {name}"),
        _test_slides(run.file, name),
        run.params,
        run.seconds,
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
