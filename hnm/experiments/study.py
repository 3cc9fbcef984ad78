"""Studies: Optuna searches `tune.space` by validation, over trials that are the pipeline itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pandera.pandas as pa
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML
from sqlalchemy.exc import SQLAlchemyError

from hnm.draws import seed_of
from hnm.errors import HnmError, StudyError
from hnm.experiments.space import TUNABLE, Space, Value, space_of, with_seed, with_values
from hnm.experiments.trial import Loop, RoundResult, Upstream
from hnm.params import Dimension, Params
from hnm.store import code_version, key_of, whole
from hnm.tables import Table

ALL_FAIL = 5
"""A study stops when so many trials have failed and none has not."""
KILLED = "killed"
"""Mark of a trial whose process ended before it did; it counts for nothing and is run again."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study."""

    folder: Path

    @property
    def database(self) -> Path:
        """Optuna's; never versioned."""
        return self.folder / "study.db"

    @property
    def trials(self) -> Path:
        """Table of the finished trials."""
        return self.folder / "trials.parquet"

    @property
    def best(self) -> Path:
        """The best trial."""
        return self.folder / "best.yaml"


@dataclass(frozen=True)
class Limits:
    """When a study stops; None is never."""

    trials: int | None = None
    """Finished trials in all, those of earlier runs among them."""
    seconds: float | None = None
    """No trial is started later."""

    def reached(self, trials: int, seconds: float) -> bool:
        """Whether one of them is."""
        return (self.trials is not None and trials >= self.trials) or (self.seconds is not None and seconds >= self.seconds)


def run_study(
    files: StudyFiles, params: Params, upstream: Upstream, loop: Loop, limits: Limits, *, storage: str | None = None, say: Callable[[str], None]
) -> None:
    """Runs trials until a limit, and writes `trials.parquet` and `best.yaml` after each.

    The first trial is params.yaml itself. Interrupted at any moment, the same call goes on where it was: suggestion n
    follows from `tune.seed`, n and the trials before it, so that an interrupted study suggests what an uninterrupted one would.

    Args:
        files: where the study is.
        params: the params; `params.tune` says how to search.
        upstream: what all trials share.
        loop: runs the rounds over `upstream`.
        limits: when to stop.
        storage: URL of Optuna's storage; None is the SQLite file of `files`.
        say: told a line a trial.

    Raises:
        ParamsError: the space is wrong.
        StudyError: the study is of other data, params or code, or runs already; the storage cannot be had; all trials fail.
    """
    space = space_of(params)
    started = time.monotonic()
    with _alone(files):
        study = _open(files, storage, params, upstream)
        _close_killed(study)
        while not limits.reached(len(done := finished(study)), time.monotonic() - started):
            _stop_when_all_fail(done)
            trial = _ask(study, space, params, len(done))
            say(f"trial {len(done)}: {_run(study, trial, space, params, upstream, loop)}")
            _export(files, study, space)
        _stop_when_all_fail(finished(study))
        _export(files, study, space)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to their end, whatever it was, in order; their places are the trials' numbers."""
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if KILLED not in trial.user_attrs]


def trials_table(space: Space) -> Table:
    """Schema of `trials.parquet`: a column for each param of the space, by its dotted name."""
    kinds: dict[type, Any] = {bool: "bool", int: "int64", float: "float64", str: str}
    columns = {
        "trial": pa.Column("int64", pa.Check.ge(0, error="must be at least 0")),
        "state": pa.Column(str, pa.Check.isin(["complete", "pruned", "failed"], error="must be complete, pruned or failed")),
        "value": pa.Column("float64", nullable=True),
        "validation_auc": pa.Column("float64", nullable=True),  # of the best round, the mean over seeds
        "validation_loss": pa.Column("float64", nullable=True),
        "rounds": pa.Column("int64"),  # that were run
        "reason": pa.Column(str),  # why it failed; else empty
    }
    return Table("trials", ("trial",), {**columns, **{name: pa.Column(kinds[type(value)]) for name, value in space.defaults.items()}})


def identity_of(params: Params, upstream: Upstream) -> dict[str, str]:
    """What must not change while a study goes on, by name: its data, its space, all other params that a trial uses, and the code."""
    used = {name: section.model_dump(mode="json") for name in (*TUNABLE, "embed", "compute") for section in [getattr(params, name)]}
    used["rounds"], used["seeds"] = len(params.rounds), params.tune.seeds
    for name in params.tune.space:
        *path, leaf = name.split(".")
        section = used
        for part in path:
            section = section[part]
        section.pop(leaf)
    space = {name: dimension.model_dump(mode="json") for name, dimension in params.tune.space.items()}
    parts = {"params": key_of(params=used), "space": key_of(space=space), "code": code_version("hnm.experiments.trial")}
    return {**upstream.digests, **parts}


@contextmanager
def _alone(files: StudyFiles) -> Iterator[None]:
    """One process a study: a trial that is RUNNING when it starts belongs to a dead one."""
    files.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(files.folder / "study.db.lock", timeout=0):
            yield
    except Timeout:
        raise StudyError(f"the study {files.folder.name} is running already; wait for it, or choose another name by --study") from None


def _open(files: StudyFiles, storage: str | None, params: Params, upstream: Upstream) -> optuna.Study:
    """The study, made where it is new; `StudyError` where it is of other data, params or code."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, name, tune = storage or f"sqlite:///{files.database.resolve()}", files.folder.name, params.tune
    pruner = optuna.pruners.MedianPruner(n_startup_trials=tune.startup_trials) if tune.pruner == "median" else optuna.pruners.NopPruner()
    identity = identity_of(params, upstream)
    try:
        study = optuna.create_study(storage=url, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True)
        known = study.user_attrs.get("identity")
        if known is None:
            study.set_user_attr("identity", identity)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError) as error:
        raise StudyError(f"the storage {url} cannot be used ({type(error).__name__}: {error}); check --storage, and whether the file can be written") from error
    if known is not None and (changed := sorted(part for part in identity.keys() | known.keys() if identity.get(part) != known.get(part))):
        raise StudyError(f"the study {name} was begun with other {', '.join(changed)}, so its values say nothing of these; begin another by --study")
    return study


def _close_killed(study: optuna.Study) -> None:
    """Ends the trials that a dead process left running."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        _kill(study, optuna.Trial(study, trial._trial_id))


def _kill(study: optuna.Study, trial: optuna.Trial) -> None:
    trial.set_user_attr(KILLED, True)
    study.tell(trial, state=TrialState.FAIL)


def _ask(study: optuna.Study, space: Space, params: Params, number: int) -> optuna.Trial:
    """The next trial, its params suggested."""
    tune = params.tune
    seed = seed_of(tune.seed, "study", number) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=tune.startup_trials)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if number == 0 and not waiting:
        study.enqueue_trial(space.defaults)
    return study.ask({name: _distribution(dimension, space.is_whole(name)) for name, dimension in space.dimensions.items()})


def _distribution(dimension: Dimension, whole_numbers: bool) -> optuna.distributions.BaseDistribution:
    if dimension.choices is not None:
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    assert dimension.low is not None and dimension.high is not None
    if whole_numbers:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1))
    return optuna.distributions.FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step)


def _run(study: optuna.Study, trial: optuna.Trial, space: Space, params: Params, upstream: Upstream, loop: Loop) -> str:
    """Runs one trial and tells the study; the line that says how it went."""
    step = upstream.smallest_auc_step
    try:
        changed = with_values(params, trial.params, where="tune.space")
        rounds = [loop.rounds(with_seed(changed, seed)) for seed in range(params.tune.seeds)]
        best: list[RoundResult] = []
        for results in zip(*rounds, strict=True):
            best = [max(pair, key=lambda result: result.value(step)) for pair in zip(best or results, results, strict=True)]
            value = sum(result.value(step) for result in best) / len(best)
            number = results[0].round
            trial.set_user_attr("auc", sum(result.auc for result in best) / len(best))
            trial.set_user_attr("log_loss", sum(result.log_loss for result in best) / len(best))
            trial.set_user_attr("rounds", number + 1)
            trial.report(value, number)
            if number + 1 < len(params.rounds) and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return f"pruned after round {number}, best validation AUC {trial.user_attrs['auc']:.4f}"
        study.tell(trial, value)
    except HnmError as error:
        if isinstance(error, StudyError):
            _kill(study, trial)
            raise
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return f"failed: {error}"
    except BaseException:
        _kill(study, trial)
        raise
    return f"validation AUC {trial.user_attrs['auc']:.4f}, log loss {trial.user_attrs['log_loss']:.4f}"


def _stop_when_all_fail(done: list[FrozenTrial]) -> None:
    if len(done) >= ALL_FAIL and all(trial.state == TrialState.FAIL for trial in done):
        raise StudyError(f"all {len(done)} trials failed, the last one so: {done[-1].user_attrs['reason']}; mend that or narrow tune.space")


def _export(files: StudyFiles, study: optuna.Study, space: Space) -> None:
    """`trials.parquet` and `best.yaml` of the finished trials."""
    table, done = trials_table(space), finished(study)
    if not done:
        return
    numbers = dict.fromkeys(("value", "validation_auc", "validation_loss"), "float64")
    frame = pd.DataFrame([_row(number, trial, space) for number, trial in enumerate(done)])
    frame = frame.astype({**numbers, **{name: type(value) for name, value in space.defaults.items()}})
    table.write(frame, files.trials)
    complete = frame[frame["state"] == "complete"].sort_values(["value", "trial"], ascending=[False, True])
    if len(complete):
        best = complete.iloc[0].to_dict()
        content = {name: best[name] for name in ("trial", "validation_auc", "validation_loss")} | {"params": {name: best[name] for name in space.dimensions}}
        with whole(files.best) as temporary, temporary.open("w", encoding="utf-8") as stream:
            yaml = YAML(typ="safe", pure=True)
            yaml.default_flow_style, yaml.width = False, 1000
            yaml.dump(_plain(content), stream)


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _row(number: int, trial: FrozenTrial, space: Space) -> dict[str, Value | None]:
    state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
    numbers = {"validation_auc": trial.user_attrs.get("auc"), "validation_loss": trial.user_attrs.get("log_loss")}
    told = {"trial": number, "state": state, "value": trial.value, **numbers, "rounds": trial.user_attrs.get("rounds", 0)}
    return {**told, "reason": trial.user_attrs.get("reason", ""), **{name: trial.params[name] for name in space.dimensions}}
