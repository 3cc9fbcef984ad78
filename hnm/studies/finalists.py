"""The best trials of a study and its default, run again with seeds that the study has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hnm.errors import HnmError, StudyError
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.winner import Finalist, Reruns
from hnm.loop.rounds import Fold, Loop
from hnm.params import Params
from hnm.studies.apply import trial_values
from hnm.studies.files import StudyFiles, read_trials
from hnm.studies.space import with_seed, with_values
from hnm.studies.workers import run_workers

Judge = Callable[[Path, Fold], Predictions]
"""Table `SLIDE_SCORES` of a run, and its fold, to the scores of the slides that judge the run."""


@dataclass(frozen=True)
class Race:
    """How often finalists run again."""

    finalists: int
    """Trials beside the default."""
    seeds: int
    """Fresh seeds of each."""
    workers: int
    """Processes that run at once."""


def finalists_of(files: StudyFiles, count: int) -> pd.DataFrame:
    """Returns rows of the table: the default first, then the best complete trials, at most
    `count`.
    """
    table, _ = read_trials(files)
    complete = table[table["state"] == "complete"]
    if 0 not in complete["trial"].to_numpy():
        raise StudyError(
            f"trial 0 of the study {files.name}, which is params.yaml, is not complete, so"
            " there is nothing to compare with"
        )
    others = complete[complete["trial"] != 0].sort_values(
        ["best", "value", "trial"], ascending=[False, False, True]
    )
    if others.empty:
        raise StudyError(
            f"the study {files.name} has no complete trial beside params.yaml; run hnm tune"
            f" --study {files.name} --trials 20"
        )
    return pd.concat([complete[complete["trial"] == 0], others.head(count)])


def run_finalists(
    files: StudyFiles,
    params: Params,
    loop: Loop,
    folds: Sequence[Fold],
    race: Race,
    judge: Judge,
    say: Callable[[str], None],
) -> list[Finalist]:
    """Runs the default and the best trials with seeds after those of the study; the default is the
    first of the list.

    Raises:
        StudyError: the study has no trial to compare; a run fails.
    """
    trials = finalists_of(files, race.finalists)[["trial", "value"]].to_dict("records")
    values = {row["trial"]: trial_values(files, row["trial"])[1] for row in trials}
    tasks = [
        _Task(trial, with_seed(with_values(params, values[trial]), seed), seed)
        for seed in range(params.tune.seeds, params.tune.seeds + race.seeds)
        for trial in values
    ]
    if race.workers > 1:
        shares = [(loop, tasks[number :: race.workers], folds) for number in range(race.workers)]
        run_workers(_fill_store, shares, say)
    runs: dict[int, list[list[Predictions]]] = {trial: [] for trial in values}
    for task in tasks:
        tables = _run(loop, task, folds)
        runs[task.trial].append([judge(*pair) for pair in zip(tables, folds, strict=True)])
        say(f"trial {task.trial} with seed +{task.seed}")
    return [Finalist(row["trial"], row["value"], Reruns(runs[row["trial"]])) for row in trials]


@dataclass(frozen=True)
class _Task:
    """One run of a trial with one fresh seed."""

    trial: int
    params: Params
    seed: int


def _fill_store(loop: Loop, tasks: Sequence[_Task], folds: Sequence[Fold]) -> bool:
    """Runs the tasks, whose results the store keeps."""
    for task in tasks:
        _run(loop, task, folds)
    return False


def _run(loop: Loop, task: _Task, folds: Sequence[Fold]) -> list[Path]:
    """Returns the table of the best round on each fold."""
    try:
        return [_best_scores(loop, task.params, fold) for fold in folds]
    except StudyError:
        raise
    except HnmError as error:
        raise StudyError(
            f"trial {task.trial} fails with seed +{task.seed}: {error}; a setting that depends on"
            " its seed so much is none to apply"
        ) from error


def _best_scores(loop: Loop, params: Params, fold: Fold) -> Path:
    rounds = loop.rounds(params, fold)
    return max(rounds, key=lambda result: result.value(fold.smallest_auc_step)).slide_scores
