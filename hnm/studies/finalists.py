"""The best trials of a study and its default, run again with seeds that the study has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hnm.errors import HnmError, StudyError
from hnm.loop.rounds import Fold, Loop
from hnm.params import Params
from hnm.studies.apply import trial_values
from hnm.studies.space import with_seed, with_values
from hnm.studies.study_files import StudyFiles, read_trials
from hnm.studies.workers import run_workers


@dataclass(frozen=True)
class Finalist:
    """A trial and what its runs with fresh seeds have left: tables `SLIDE_SCORES` of each run's
    best round, `[seed][fold]`.
    """

    trial: int
    value: float
    """In the study."""
    slide_scores: Sequence[Sequence[Path]]


def finalists_of(files: StudyFiles, count: int) -> pd.DataFrame:
    """Rows of the table: the default first, then the best complete trials, at most `count`."""
    table, _ = read_trials(files)
    complete = table[table["state"] == "complete"]
    if 0 not in complete["trial"].to_numpy():
        raise StudyError(
            f"trial 0 of the study {files.folder.name}, which is params.yaml, is not complete, so"
            " there is nothing to compare with"
        )
    others = complete[complete["trial"] != 0].sort_values(
        ["best", "value", "trial"], ascending=[False, False, True]
    )
    if others.empty:
        raise StudyError(
            f"the study {files.folder.name} has no complete trial beside params.yaml; run hnm tune"
            f" --study {files.folder.name} --trials 20"
        )
    return pd.concat([complete[complete["trial"] == 0], others.head(count)])


def run_finalists(
    files: StudyFiles,
    params: Params,
    loop: Loop,
    folds: Sequence[Fold],
    *,
    count: int,
    seeds: int,
    workers: int,
    say: Callable[[str], None],
) -> list[Finalist]:
    """Runs the default and the best trials with `seeds` seeds after those of the study; the default
    is the first.

    Raises:
        StudyError: the study has no trial to compare; a run fails.
    """
    rows = finalists_of(files, count)
    settings = {
        int(trial): with_values(params, trial_values(files, int(trial))[1])
        for trial in rows["trial"]
    }
    fresh = range(params.tune.seeds, params.tune.seeds + seeds)
    tasks = [(trial, settings[trial], seed) for seed in fresh for trial in settings]
    if workers > 1:
        run_workers(_run_all, [(loop, tasks[own::workers], folds) for own in range(workers)], say)
    found: dict[int, list[list[Path]]] = {trial: [] for trial in settings}
    for trial, setting, seed in tasks:
        found[trial].append(_run(loop, trial, setting, seed, folds))
        say(f"trial {trial} with seed +{seed}")
    return [
        Finalist(int(trial), float(value), found[int(trial)])
        for trial, value in zip(rows["trial"], rows["value"], strict=True)
    ]


def _run_all(loop: Loop, tasks: Sequence[tuple[int, Params, int]], folds: Sequence[Fold]) -> bool:
    """Fills the store with what the tasks make."""
    for trial, params, seed in tasks:
        _run(loop, trial, params, seed, folds)
    return False


def _run(loop: Loop, trial: int, params: Params, seed: int, folds: Sequence[Fold]) -> list[Path]:
    try:
        return [
            max(
                loop.rounds(with_seed(params, seed), fold),
                key=lambda result: result.value(fold.smallest_auc_step),
            ).slide_scores
            for fold in folds
        ]
    except StudyError:
        raise
    except HnmError as error:
        raise StudyError(
            f"trial {trial} fails with seed +{seed}: {error}; a setting that depends on its seed so"
            " much is none to apply"
        ) from error
