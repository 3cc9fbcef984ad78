"""Studies: Optuna searches `tune.space` by validation, over trials that are the pipeline itself."""

import contextlib
import math
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from hnm.causes import causes_of
from hnm.errors import HnmError, StudyError
from hnm.files import key_of
from hnm.loop.rounds import Fold, Loop, RoundResult, Upstream
from hnm.params import Dimension, Params
from hnm.seeds import seed_of
from hnm.store import Store
from hnm.studies.folds import folds_of
from hnm.studies.space import (
    TUNABLE,
    Space,
    Value,
    Values,
    param_of,
    space_of,
    with_seed,
    with_values,
)
from hnm.studies.storage import (
    JOURNAL,
    STORAGE_ERRORS,
    alone,
    close_dead,
    file_of,
    heartbeat_of,
    mend_journal,
    open_storage,
    usable,
)
from hnm.studies.study_files import (
    StudyFiles,
    counted,
    export,
    finished,
    space_in,
    trials_of,
    values_of,
    written,
)
from hnm.studies.workers import run_workers
from hnm.tracking.study_runs import StudyTracker

ALL_FAIL = 5
"""A study stops when so many trials have failed and none has not."""
ATTEMPTS = 100
"""Suggestions in a row that were all tried before: the space is then taken to hold no more."""
MODEL_ATTEMPTS = 5
"""Those of them that learn from values; the rest is random, which finds what is left of a small
space.
"""
WAIT_SECONDS = 1.0
"""How long to wait for the trials of other machines before looking again."""


@dataclass(frozen=True)
class Limits:
    """When a study stops; None is never."""

    trials: int | None = None
    """Finished trials in all, those of earlier runs among them."""
    seconds: float | None = None
    """No trial is started later."""


@dataclass(frozen=True)
class Job:
    """All that a process needs to run trials of a study; it can be sent to another."""

    url: str
    name: str
    params: Params
    """With the values that params.yaml had when the study began."""
    loop: Loop
    folds: tuple[Fold, ...]
    starts: tuple[Values, ...]
    """What is tried first, in order: params.yaml, then winners of other studies."""
    trials: int | None
    deadline: float | None
    """By `time.monotonic`, which all processes of a machine share."""
    tracker: StudyTracker
    say: Callable[[str], None]

    def wants_more_than(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a trial is wanted beside these, and may still be started."""
        return (self.trials is None or len(trials) < self.trials) and (
            self.deadline is None or time.monotonic() < self.deadline
        )


def run_study(
    files: StudyFiles,
    params: Params,
    upstream: Upstream,
    loop: Loop,
    store: Store,
    limits: Limits,
    *,
    storage: str | None = None,
    workers: int = 1,
    winners: Sequence[Values] = (),
    root: Path | None = None,
    plots: bool = False,
    say: Callable[[str], None],
) -> None:
    """Runs trials until a limit, and writes the study's table, best trial and DVC stage.

    The first trial is params.yaml itself. Interrupted at any moment, the same call goes on where it
    was: with one worker suggestion n follows from `tune.seed`, n and the trials before it, so that
    an interrupted study ends as an uninterrupted one would.

    Args:
        files: where the study is.
        params: the params; `params.tune` says how to search.
        upstream: what all trials share.
        loop: runs the rounds over `upstream`.
        store: where folds are kept.
        limits: when to stop.
        storage: URL of Optuna's storage; None is the journal of `files`.
        workers: processes that run trials at once.
        winners: values to try after those of params.yaml.
        plots: whether to draw pictures at the end.
        root: the repository whose MLflow is told of the study; None tells none.
        say: told a line a trial.

    Raises:
        ParamsError: the space is wrong, or a winner lies outside of it.
        StudyError: the study is of other data, params or code, or runs already; the storage or the
        files cannot be had; all trials fail.
    """
    space_of(params)  # before anything is made
    url, name = storage or files.url, files.folder.name
    with written(files.folder):
        files.folder.mkdir(parents=True, exist_ok=True)
    path = file_of(url)
    with alone(url, name), usable(url):
        if path is not None and url.startswith(JOURNAL):
            mend_journal(path, say)
        study = _open(url, name, params, upstream)
        defaults = study.user_attrs["defaults"]
        own = with_values(params, defaults, where="tune.space")
        folds = tuple(folds_of(upstream, params.tune.folds, params.tune.seed, store))
        space = space_of(own)
        starts = tuple(space.complete(values) for values in ({}, *winners))
        deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
        tracker = StudyTracker(
            root,
            params.cohort.name,
            name,
            key_of(identity=study.user_attrs["identity"], begun=study.user_attrs.get("begun")),
        )
        job = Job(url, name, own, loop, folds, starts, limits.trials, deadline, tracker, say)
        with written(files.folder):
            files.write_stage(in_journal=url == files.url)
        close_dead(study, url)
        shared = {
            section: getattr(own, section) for section in (*TUNABLE, "embed", "compute", "rounds")
        }
        sections = {
            section: value if section == "rounds" else value.model_dump(mode="json")
            for section, value in shared.items()
        }
        with tracker.running(sections, partial(_summary, study), files.plots):
            try:
                _run(study, job, workers)
            finally:
                if path is not None:
                    close_dead(study, url)
                export(files, study, plots=plots)
            _stop_when_all_fail(finished(study))
        say(_saved(study))


def identity_of(params: Params, upstream: Upstream) -> dict[str, str]:
    """What must not change while a study goes on, by name: its data, its space, all other params
    that a trial uses, the code and the libraries.

    The machine may: workers of one study may run on several kinds of processor.
    """
    used = {
        name: section.model_dump(mode="json")
        for name in (*TUNABLE, "embed", "compute")
        for section in [getattr(params, name)]
    }
    tune = params.tune
    used |= {
        "rounds": len(params.rounds),
        "seeds": tune.seeds,
        "folds": tune.folds,
        "cost": [tune.cost, tune.max_cost],
    }
    used["fold_seed"] = tune.seed if tune.folds else None
    for name in {param_of(entry) for entry in tune.space}:
        *sections, leaf = name.split(".")
        section = used
        for part in sections:
            section = section[part]
        section.pop(leaf)
    space = {entry: dimension.model_dump(mode="json") for entry, dimension in tune.space.items()}
    causes = causes_of("hnm.loop.rounds")
    parts = {"params": key_of(params=used), "space": key_of(space=space)}
    parts |= {name: key_of(**{name: causes[name]}) for name in ("code", "libraries")}
    return {**upstream.digests, **parts}


def work(job: Job, worker: str) -> bool:
    """Runs trials of a study in this process until it wants no more, or, where True is returned,
    its space holds no more.
    """
    with usable(job.url):
        study = optuna.load_study(storage=open_storage(job.url, make=False), study_name=job.name)
        return _work(study, job, worker)


def _open(url: str, name: str, params: Params, upstream: Upstream) -> optuna.Study:
    """The study, made where it is new; `StudyError` where it is of other data, params or code."""
    identity = identity_of(params, upstream)
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [maximize, minimize] if params.tune.cost == "objective" else [maximize]
    with usable(url, OSError):
        study = optuna.create_study(
            storage=open_storage(url, make=True),
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
        known = study.user_attrs
        if "identity" not in known:
            known = {
                "identity": identity,
                "space": params.tune.model_dump(mode="json")["space"],
                "defaults": space_of(params).defaults,
            }
            known |= {
                "max_cost": params.tune.max_cost,
                "rounds": len(params.rounds) * params.tune.seeds * max(params.tune.folds, 1),
            }
            known["begun"] = (
                uuid.uuid4().hex
            )  # a study that is deleted and begun anew has runs of its own
            for attribute in (
                "begun",
                "rounds",
                "max_cost",
                "defaults",
                "space",
                "identity",
            ):  # the one that is looked for is written last
                study.set_user_attr(attribute, known[attribute])
    check_identity(study, identity)
    return study


def check_identity(study: optuna.Study, identity: Mapping[str, str]) -> None:
    """Raises `StudyError` unless `identity` is the one that the study was begun with."""
    known = study.user_attrs["identity"]
    if changed := sorted(
        part for part in identity.keys() | known.keys() if identity.get(part) != known.get(part)
    ):
        raise StudyError(
            f"the study {study.study_name} was begun with other {', '.join(changed)}, so its values"
            " say nothing of these; begin another by --study"
        )


def _run(study: optuna.Study, job: Job, workers: int) -> None:
    """Runs trials, in this process or in several, until the study wants no more."""
    while job.wants_more_than(before := finished(study)):
        if job.wants_more_than(counted(study)):
            if workers == 1:
                exhausted, killed = _work(study, job, _worker(job, 0)), 0
            else:
                exhausted, killed = run_workers(
                    work, [(job, _worker(job, number)) for number in range(workers)], job.say
                )
            if exhausted:
                job.say("every suggestion was tried before; the space holds no more")
                return
            if killed and len(finished(study)) == len(before):
                raise StudyError(
                    f"{killed} workers were killed before a trial was finished, for want of memory"
                    " perhaps; give fewer --workers"
                )
        else:
            time.sleep(
                WAIT_SECONDS
            )  # for the last trials, which run on other machines or died there
        close_dead(study, job.url)


def _worker(job: Job, number: int) -> str:
    """What tells a worker's suggestions from those of others."""
    return str(number) if file_of(job.url) else f"{socket.gethostname()}:{os.getpid()}:{number}"


def _work(study: optuna.Study, job: Job, worker: str) -> bool:
    study.pruner = _pruner(job.params)
    while job.wants_more_than(counted(study)):
        _stop_when_all_fail(finished(study))
        try:
            asked = _ask(study, job, worker)
        except _ExhaustedError:
            return True
        if asked is None:
            continue
        with heartbeat_of(study, asked[0]):
            job.say(_run_trial(study, *asked, job))
    return False


class _ExhaustedError(Exception):
    """No untried suggestion was found."""


def _ask(study: optuna.Study, job: Job, worker: str) -> tuple[optuna.Trial, Values] | None:
    """The next trial with its params, none of which was tried before; None where another worker has
    started the last one that is wanted.

    A trial that is withdrawn fails without a reason, as one does that was killed, and counts for
    nothing.
    """
    space = space_of(job.params)
    for attempt in range(ATTEMPTS):
        others = counted(study)
        tried = [values_of(space, trial) for trial in others]
        seed = seed_of(job.params.tune.seed, "study", len(others), worker, attempt) % 2**32
        study.sampler = (
            _sampler(job.params, seed)
            if attempt < MODEL_ATTEMPTS
            else optuna.samplers.RandomSampler(seed)
        )
        if wanted := next((values for values in job.starts if values not in tried), None):
            study.enqueue_trial(space.entries(wanted))
        trial = study.ask()
        values = space.values(partial(_suggest, trial, space))
        earlier = [other for other in counted(study) if other.number < trial.number]
        is_wanted = job.wants_more_than(earlier)
        if is_wanted and not any(values_of(space, other) == values for other in earlier):
            return trial, values
        study.tell(trial, state=TrialState.FAIL)
        if not is_wanted:
            return None
    raise _ExhaustedError


def _suggest(trial: optuna.Trial, space: Space, entry: str, dimension: Dimension) -> Value:
    if dimension.choices is not None:
        return cast(Value, trial.suggest_categorical(entry, dimension.choices))
    assert dimension.low is not None and dimension.high is not None
    if space.is_whole(entry):
        return int(
            trial.suggest_int(
                entry,
                int(dimension.low),
                int(dimension.high),
                log=dimension.log,
                step=int(dimension.step or 1),
            )
        )
    return float(
        trial.suggest_float(
            entry,
            float(dimension.low),
            float(dimension.high),
            log=dimension.log,
            step=dimension.step,
        )
    )


def _sampler(params: Params, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=params.tune.startup_trials)


def _pruner(params: Params) -> optuna.pruners.BasePruner:
    match params.tune.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=params.tune.startup_trials)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=len(params.rounds), reduction_factor=2
            )
        case "wilcoxon":
            return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        case "none":
            return optuna.pruners.NopPruner()


@dataclass(frozen=True)
class _Standing:
    """How a trial stands after some of its rounds: means over the folds and seeds that were run, of
    each the best round so far.
    """

    value: float
    auc: float
    log_loss: float
    cost: float
    """Of a fold and seed, all its rounds together."""
    rounds: int
    """That were run, of all folds and seeds."""
    last: float
    """Value of the last fold and seed."""


def _standing(histories: Sequence[Sequence[RoundResult]], folds: Sequence[Fold]) -> _Standing:
    """Where a trial stands by the rounds of each fold and seed, in the order of `folds`, again and
    again.
    """
    steps = [fold.smallest_auc_step for fold, _ in zip(cycle(folds), histories, strict=False)]
    best = [
        max(history, key=lambda result: result.value(step))
        for history, step in zip(histories, steps, strict=True)
    ]
    values = [result.value(step) for result, step in zip(best, steps, strict=True)]
    costs = [sum(result.cost for result in history) for history in histories]
    return _Standing(
        fmean(values),
        fmean(r.auc for r in best),
        fmean(r.log_loss for r in best),
        fmean(costs),
        sum(map(len, histories)),
        values[-1],
    )


def _fill(histories: list[list[RoundResult]], params: Params, job: Job) -> Iterator[None]:
    """Runs the rounds of each fold and seed into `histories`; pauses after each round of all of
    them, or, for the Wilcoxon pruner, after all rounds of each.
    """
    runs = [
        job.loop.rounds(with_seed(params, seed), fold)
        for seed in range(params.tune.seeds)
        for fold in job.folds
    ]
    if params.tune.pruner == "wilcoxon":
        for run in runs:
            histories.append(list(run))
            yield
    else:
        histories += [[] for _ in runs]
        for results in zip(*runs, strict=True):
            for history, result in zip(histories, results, strict=True):
                history.append(result)
            yield


def _run_trial(study: optuna.Study, trial: optuna.Trial, values: Values, job: Job) -> str:
    """Runs one trial and tells the study and MLflow; the line that says how it went."""
    histories: list[list[RoundResult]] = []
    try:
        state, line = _judge(
            study, trial, with_values(job.params, values, where="tune.space"), job, histories
        )
    except HnmError as error:
        if isinstance(error, StudyError):
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        state, line = "failed", f"failed: {error}"
    except BaseException:
        with contextlib.suppress(*STORAGE_ERRORS):
            study.tell(trial, state=TrialState.FAIL)
        raise
    number = sum(
        own.number < trial.number for own in counted(study)
    )  # its place once those that run beside it have ended
    told = trial.user_attrs
    metrics = {
        "validation/auc": told.get("auc"),
        "validation/loss": told.get("log_loss"),
        "trial/value": told.get("value"),
        "trial/cost": told.get("cost"),
    }
    job.tracker.trial(
        number,
        state,
        values,
        {} if state == "failed" else metrics,
        [] if state == "failed" else _means_by_round(histories),
    )
    return f"trial {number}: {line}"


def _means_by_round(histories: Sequence[Sequence[RoundResult]]) -> list[dict[str, float]]:
    """Of each round the means over the folds and seeds that ran it, as metrics."""
    rounds = [
        [history[number] for history in histories if len(history) > number]
        for number in range(max(map(len, histories)))
    ]
    return [
        {
            "validation/auc": fmean(r.auc for r in own),
            "validation/loss": fmean(r.log_loss for r in own),
            "trial/cost": fmean(r.cost for r in own),
        }
        for own in rounds
    ]


def _judge(
    study: optuna.Study,
    trial: optuna.Trial,
    params: Params,
    job: Job,
    histories: list[list[RoundResult]],
) -> tuple[str, str]:
    """Runs a trial into `histories` and tells the study its value; its state, and what to say of
    it.
    """
    tune = params.tune
    by_round = tune.pruner != "wilcoxon"
    steps = len(params.rounds) if by_round else len(job.folds) * tune.seeds
    told = ""
    for step, _ in enumerate(_fill(histories, params, job), start=1):
        standing = _standing(histories, job.folds)
        if not math.isfinite(standing.value):
            raise HnmError(
                f"after {standing.rounds} rounds validation AUC {standing.auc} and log loss"
                f" {standing.log_loss} are no numbers that can be compared"
            )
        for name in ("value", "auc", "log_loss", "cost", "rounds"):
            trial.set_user_attr(name, getattr(standing, name))
        told = (
            f"validation AUC {standing.auc:.4f}, log loss {standing.log_loss:.4f}, cost"
            f" {standing.cost:.3g}"
        )
        if tune.cost == "ignored" and step < steps:
            trial.report(standing.value if by_round else standing.last, step)
            too_dear = tune.max_cost is not None and standing.cost > tune.max_cost
            if too_dear or trial.should_prune():
                _constrain(trial, standing.cost, tune.max_cost)
                study.tell(trial, state=TrialState.PRUNED)
                return (
                    "pruned",
                    (
                        f"{'too dear' if too_dear else 'pruned'} after {standing.rounds} rounds,"
                        f" {told}"
                    ),
                )
    _constrain(trial, standing.cost, tune.max_cost)
    study.tell(trial, standing.value if tune.cost == "ignored" else [standing.value, standing.cost])
    return "complete", told


def _constrain(trial: optuna.Trial, cost: float, limit: float | None) -> None:
    if limit is not None:
        trial.set_constraint("cost", cost - limit)


def _stop_when_all_fail(done: Sequence[FrozenTrial]) -> None:
    if len(done) >= ALL_FAIL and all(trial.state == TrialState.FAIL for trial in done):
        reason, times = Counter(trial.user_attrs["reason"] for trial in done).most_common(1)[0]
        raise StudyError(
            f"all {len(done)} trials failed, {times} of them so: {reason}; mend that or narrow"
            " tune.space"
        )


def _summary(study: optuna.Study) -> dict[str, float]:
    """Metrics of the study."""
    table = trials_of(study, space_in(study))
    best = table[table["best"]].nlargest(1, "value")
    found = (
        {
            "study/best_value": float(best["value"].iloc[0]),
            "study/best_auc": float(best["validation_auc"].iloc[0]),
        }
        if len(best)
        else {}
    )
    return {"study/trials": len(table), **found}


def _saved(study: optuna.Study) -> str:
    """What the study has come to, and what its pruner has saved."""
    done = finished(study)
    states = Counter(trial.state for trial in done)
    run = [trial for trial in done if trial.state != TrialState.FAIL]
    rounds, planned = (
        sum(trial.user_attrs["rounds"] for trial in run),
        study.user_attrs["rounds"] * len(run),
    )
    counts = (
        f"{states[TrialState.COMPLETE]} complete, {states[TrialState.PRUNED]} pruned,"
        f" {states[TrialState.FAIL]} failed"
    )
    return f"{len(done)} trials: {counts}; pruning saved {planned - rounds} of {planned} rounds"
