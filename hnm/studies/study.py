"""A study: Optuna searches `tune.space` by validation, over trials that are the pipeline itself."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

from hnm.errors import StudyError
from hnm.files import key_of
from hnm.loop.rounds import Loop, Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.studies.files import StudyFiles, counted, export, finished, trials_of, written
from hnm.studies.folds import folds_of
from hnm.studies.identity import SHARED, open_study
from hnm.studies.space import Values, space_of, with_values
from hnm.studies.storage import JOURNAL, alone, close_dead, file_of, mend_journal, usable
from hnm.studies.trials import Job, run_trials, stop_when_all_fail, work
from hnm.studies.workers import run_workers
from hnm.tracking.study_runs import StudyTracker

WAIT_SECONDS = 1.0
"""Seconds between two looks at the trials of other machines."""


@dataclass(frozen=True)
class StudySettings:
    """What a study searches, and how it runs."""

    files: StudyFiles
    params: Params
    """`params.tune` says how to search."""
    upstream: Upstream
    """Outputs that all trials share."""
    loop: Loop
    """Runs the rounds over `upstream`."""
    store: Store
    """Keeps the folds."""
    trials: int | None = None
    """Finished trials in all, those of earlier runs among them; None is without end."""
    seconds: float | None = None
    """No trial is started later; None is without end."""
    storage: str | None = None
    """URL of Optuna's storage; None is the journal of `files`."""
    workers: int = 1
    """Processes that run trials at once."""
    winners: Sequence[Values] = ()
    """Params to try after those of params.yaml."""
    root: Path | None = None
    """The repository whose MLflow gets the study; None is for no MLflow."""
    plots: bool = False
    """Whether to draw pictures at the end."""

    @property
    def url(self) -> str:
        """URL of the storage."""
        return self.storage or self.files.url


def run_study(settings: StudySettings, say: Callable[[str], None]) -> None:
    """Runs trials until a limit, and writes the study's table, best trial and DVC stage.

    The first trial is params.yaml itself. Interrupted at any moment, the same call goes on where it
    was: with one worker suggestion n follows from `tune.seed`, n and the trials before it, so that
    an interrupted study ends as an uninterrupted one would.

    Args:
        settings: of the study.
        say: gets a line a trial.

    Raises:
        ParamsError: the space is wrong, or a winner lies outside of it.
        StudyError: the study is of other data, params or code, or runs already; the storage or the
        files cannot be had; all trials fail.
    """
    files = settings.files
    url = settings.url
    space_of(settings.params)  # before anything is made
    with written(files.folder):
        files.folder.mkdir(parents=True, exist_ok=True)
    path = file_of(url)
    with alone(url, files.name), usable(url):
        if path is not None and url.startswith(JOURNAL):
            mend_journal(path, say)
        study = open_study(url, files.name, settings.params, settings.upstream)
        job = _job_of(study, settings, say)
        with written(files.folder):
            files.write_stage(in_journal=url == files.url)
        close_dead(study, url)
        with job.tracker.running(_shared(job.params), partial(_summary, study), files.plots):
            try:
                _run(study, job, settings.workers)
            finally:
                if path is not None:
                    close_dead(study, url)
                export(files, study, plots=settings.plots)
            stop_when_all_fail(finished(study))
        say(_in_words(study))


def _job_of(study: optuna.Study, settings: StudySettings, say: Callable[[str], None]) -> Job:
    attributes = study.user_attrs
    tune = settings.params.tune
    params = with_values(settings.params, attributes["defaults"], where="tune.space")
    space = space_of(params)
    identity = key_of(identity=attributes["identity"], begun=attributes.get("begun"))
    name = settings.files.name
    return Job(
        url=settings.url,
        name=name,
        params=params,
        loop=settings.loop,
        folds=tuple(folds_of(settings.upstream, tune.folds, tune.seed, settings.store)),
        starts=tuple(space.complete(values) for values in ({}, *settings.winners)),
        trials=settings.trials,
        deadline=None if settings.seconds is None else time.monotonic() + settings.seconds,
        tracker=StudyTracker(settings.root, params.cohort.name, name, identity),
        say=say,
    )


def _shared(params: Params) -> dict[str, object]:
    """Returns the sections that MLflow shows as the study's params."""
    sections = {name: getattr(params, name).model_dump(mode="json") for name in SHARED}
    return {**sections, "rounds": params.rounds}


def _run(study: optuna.Study, job: Job, workers: int) -> None:
    """Runs trials, in this process or in several, until the study wants no more."""
    while job.wants_more_than(before := finished(study)):
        if not job.wants_more_than(counted(study)):
            # the last trials run on other machines, or died there
            time.sleep(WAIT_SECONDS)
            close_dead(study, job.url)
            continue
        killed = 0
        if workers == 1:
            is_exhausted = run_trials(study, job, job.worker_name(0))
        else:
            jobs = [(job, job.worker_name(number)) for number in range(workers)]
            is_exhausted, killed = run_workers(work, jobs, job.say)
        if is_exhausted:
            job.say("every suggestion was tried before; the space holds no more")
            return
        if killed and len(finished(study)) == len(before):
            raise StudyError(
                f"{killed} workers were killed before a trial was finished, for want of memory"
                " perhaps; give fewer --workers"
            )
        close_dead(study, job.url)


def _summary(study: optuna.Study) -> dict[str, float]:
    """Returns the metrics of the study."""
    trials = trials_of(study)
    summary: dict[str, float] = {"study/trials": len(trials)}
    for best in trials[trials["best"]].nlargest(1, "value").to_dict("records"):
        summary["study/best_value"] = best["value"]
        summary["study/best_auc"] = best["validation_auc"]
    return summary


def _in_words(study: optuna.Study) -> str:
    """Returns a line: how the trials ended, and how many rounds pruning saved."""
    trials = finished(study)
    states = Counter(trial.state for trial in trials)
    succeeded = [trial for trial in trials if trial.state != TrialState.FAIL]
    rounds = sum(trial.user_attrs["rounds"] for trial in succeeded)
    planned = study.user_attrs["rounds"] * len(succeeded)
    return (
        f"{len(trials)} trials: {states[TrialState.COMPLETE]} complete,"
        f" {states[TrialState.PRUNED]} pruned, {states[TrialState.FAIL]} failed;"
        f" pruning saved {planned - rounds} of {planned} rounds"
    )
