"""The trials of a study: each is the pipeline's rounds with params that Optuna suggests."""

import contextlib
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from hnm.errors import HnmError, StudyError
from hnm.loop.rounds import Fold, Loop, RoundResult
from hnm.params import Params
from hnm.seeds import seed_of
from hnm.studies.files import counted, finished
from hnm.studies.space import Space, Values, plain, space_of, with_seed, with_values
from hnm.studies.storage import STORAGE_ERRORS, file_of, heartbeat_of, open_storage, usable
from hnm.tracking.study_runs import StudyTracker

ALL_FAIL = 5
"""A study stops when so many trials have failed and none has not."""
ATTEMPTS = 100
"""Suggestions in a row that were all tried before: the space is then taken to hold no more."""
MODEL_ATTEMPTS = 5
"""Those of them that learn from values; the rest is random, which finds what is left of a small
space.
"""


@dataclass(frozen=True)
class Job:
    """All that a process needs to run trials of a study; it can be sent to another process."""

    url: str
    name: str
    params: Params
    """With the values that params.yaml had when the study began."""
    loop: Loop
    folds: tuple[Fold, ...]
    starts: tuple[Values, ...]
    """Params that are tried first, in order: params.yaml, then winners of other studies."""
    trials: int | None
    deadline: float | None
    """By `time.monotonic`, which all processes of a machine share."""
    tracker: StudyTracker
    say: Callable[[str], None]

    def wants_more_than(self, trials: Sequence[FrozenTrial]) -> bool:
        """Returns whether a trial is wanted beside these, and may still be started."""
        return (self.trials is None or len(trials) < self.trials) and (
            self.deadline is None or time.monotonic() < self.deadline
        )

    def worker_name(self, number: int) -> str:
        """Returns a name that tells a worker's suggestions from those of others."""
        return (
            str(number) if file_of(self.url) else f"{socket.gethostname()}:{os.getpid()}:{number}"
        )


class SpaceExhaustedError(Exception):
    """No untried suggestion was found."""


def work(job: Job, worker: str) -> bool:
    """Opens the study in this process and runs trials of it, as `run_trials`."""
    with usable(job.url):
        study = optuna.load_study(storage=open_storage(job.url, make=False), study_name=job.name)
        return run_trials(study, job, worker)


def run_trials(study: optuna.Study, job: Job, worker: str) -> bool:
    """Runs trials in this process until the study wants no more.

    Returns:
        Whether it ended because the space holds no more.
    """
    study.pruner = _pruner(job.params)
    while job.wants_more_than(counted(study)):
        stop_when_all_fail(finished(study))
        try:
            trial = _ask(study, job, worker)
        except SpaceExhaustedError:
            return True
        if trial is not None:
            with heartbeat_of(study, trial):
                job.say(_run_trial(study, trial, job))
    return False


def stop_when_all_fail(trials: Sequence[FrozenTrial]) -> None:
    """Raises `StudyError` where several trials have finished and all of them failed."""
    if len(trials) >= ALL_FAIL and all(trial.state == TrialState.FAIL for trial in trials):
        reason, times = Counter(trial.user_attrs["reason"] for trial in trials).most_common(1)[0]
        raise StudyError(
            f"all {len(trials)} trials failed, {times} of them so: {reason}; mend that or narrow"
            " tune.space"
        )


def _pruner(params: Params) -> optuna.pruners.BasePruner:
    if params.tune.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=params.tune.startup_trials)


def _ask(study: optuna.Study, job: Job, worker: str) -> optuna.Trial | None:
    """Returns the next trial, whose params were not tried before; None where another worker has
    started the last one that is wanted.

    A trial that is withdrawn fails without a reason, as a killed one does, and does not count.
    """
    space = space_of(job.params)
    for attempt in range(ATTEMPTS):
        others = counted(study)
        study.sampler = _sampler(job.params, len(others), worker, attempt)
        tried = [values_of(space, trial) for trial in others]
        if start := next((values for values in job.starts if values not in tried), None):
            study.enqueue_trial(start)
        trial = study.ask(space.distributions)
        earlier = [other for other in counted(study) if other.number < trial.number]
        is_wanted = job.wants_more_than(earlier)
        if is_wanted and values_of(space, trial) not in [values_of(space, t) for t in earlier]:
            return trial
        study.tell(trial, state=TrialState.FAIL)
        if not is_wanted:
            return None
    raise SpaceExhaustedError


def values_of(space: Space, trial: FrozenTrial | optuna.Trial) -> Values | None:
    """Returns a trial's params; None while another process still asks for them."""
    params = trial.params
    if params.keys() != space.defaults.keys():
        return None
    return {name: plain(params[name]) for name in space.defaults}


def _sampler(params: Params, trials: int, worker: str, attempt: int) -> optuna.samplers.BaseSampler:
    seed = seed_of(params.tune.seed, "study", trials, worker, attempt) % 2**32
    if attempt < MODEL_ATTEMPTS:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=params.tune.startup_trials)
    return optuna.samplers.RandomSampler(seed)


@dataclass(frozen=True)
class Standing:
    """The standing of a trial after some rounds: means over the folds and seeds, of the best round
    so far of each.
    """

    value: float
    auc: float
    log_loss: float
    cost: float
    """Of a fold and seed, all its rounds together."""
    rounds: int
    """That were run, of all folds and seeds."""

    def __str__(self) -> str:
        return f"validation AUC {self.auc:.4f}, log loss {self.log_loss:.4f}, cost {self.cost:.3g}"

    @property
    def metrics(self) -> dict[str, float]:
        """The standing by the names of MLflow's metrics."""
        return {
            "validation/auc": self.auc,
            "validation/loss": self.log_loss,
            "trial/value": self.value,
            "trial/cost": self.cost,
        }


Histories = Sequence[Sequence[RoundResult]]
"""The rounds of each fold and seed so far: the folds in order, again for each seed."""


def _standing(histories: Histories, folds: Sequence[Fold]) -> Standing:
    steps = [fold.smallest_auc_step for fold, _ in zip(cycle(folds), histories, strict=False)]
    best = [
        max(history, key=lambda result: result.value(step))
        for history, step in zip(histories, steps, strict=True)
    ]
    return Standing(
        fmean(result.value(step) for result, step in zip(best, steps, strict=True)),
        fmean(result.auc for result in best),
        fmean(result.log_loss for result in best),
        fmean(sum(result.cost for result in history) for history in histories),
        sum(map(len, histories)),
    )


def _round_by_round(params: Params, job: Job) -> Iterator[Histories]:
    """Yields the histories after each round of all folds and seeds."""
    runs = [
        job.loop.rounds(with_seed(params, seed), fold)
        for seed in range(params.tune.seeds)
        for fold in job.folds
    ]
    histories: list[list[RoundResult]] = [[] for _ in runs]
    for results in zip(*runs, strict=True):
        histories = [[*history, result] for history, result in zip(histories, results, strict=True)]
        yield histories


@dataclass(frozen=True)
class Outcome:
    """The end of a trial."""

    state: str
    """`complete`, `pruned` or `failed`."""
    line: str
    """For the user."""
    metrics: Mapping[str, float]
    rounds: Sequence[Mapping[str, float]]
    """Metrics by round, means over the folds and seeds."""


def _run_trial(study: optuna.Study, trial: optuna.Trial, job: Job) -> str:
    """Runs one trial, tells the study and MLflow, and returns the line for the user."""
    values = values_of(space_of(job.params), trial)
    assert values is not None
    try:
        params = with_values(job.params, values, where="tune.space")
        outcome = _run_rounds(study, trial, params, job)
    except BaseException as error:
        is_failure = isinstance(error, HnmError) and not isinstance(error, StudyError)
        if not is_failure:
            with contextlib.suppress(*STORAGE_ERRORS):
                study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        outcome = Outcome("failed", f"failed: {error}", {}, [])
    # its place in the table once those that run beside it have ended
    number = sum(other.number < trial.number for other in counted(study))
    job.tracker.trial(number, outcome.state, values, outcome.metrics, outcome.rounds)
    return f"trial {number}: {outcome.line}"


def _run_rounds(study: optuna.Study, trial: optuna.Trial, params: Params, job: Job) -> Outcome:
    """Runs the rounds of a trial until the last, or until the trial is pruned or too dear, and
    tells the study its value.
    """
    tune = params.tune
    for step, histories in enumerate(_round_by_round(params, job), start=1):
        standing = _standing(histories, job.folds)
        if not math.isfinite(standing.value):
            raise HnmError(
                f"after {standing.rounds} rounds validation AUC {standing.auc} and log loss"
                f" {standing.log_loss} are no numbers that can be compared"
            )
        for name, number in asdict(standing).items():
            trial.set_user_attr(name, number)
        if tune.cost == "ignored" and step < len(params.rounds):
            trial.report(standing.value, step)
            is_too_dear = tune.max_cost is not None and standing.cost > tune.max_cost
            if is_too_dear or trial.should_prune():
                why = "too dear" if is_too_dear else "pruned"
                line = f"{why} after {standing.rounds} rounds, {standing}"
                outcome = Outcome("pruned", line, standing.metrics, _by_round(histories))
                break
    else:
        outcome = Outcome("complete", str(standing), standing.metrics, _by_round(histories))
    if tune.max_cost is not None:
        trial.set_constraint("cost", standing.cost - tune.max_cost)
    if outcome.state == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    elif tune.cost == "ignored":
        study.tell(trial, standing.value)
    else:
        study.tell(trial, [standing.value, standing.cost])
    return outcome


def _by_round(histories: Histories) -> list[dict[str, float]]:
    return [
        {
            "validation/auc": fmean(result.auc for result in results),
            "validation/loss": fmean(result.log_loss for result in results),
            "trial/cost": fmean(result.cost for result in results),
        }
        for results in zip(*histories, strict=True)
    ]
