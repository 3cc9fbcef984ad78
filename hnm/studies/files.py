"""The files of a study that are versioned: the table of its trials, the best one, its plots, and
the DVC stage that makes them from Optuna's storage.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pandera.pandas as pa
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hnm.errors import StudyError
from hnm.files import read_bounded, whole
from hnm.studies.space import Value, Values, plain
from hnm.studies.storage import JOURNAL, open_storage, usable
from hnm.tables import Table
from hnm.tracking.record import first_line

NUMBERS = {
    "value": "value",
    "validation_auc": "auc",
    "validation_loss": "log_loss",
    "cost": "cost",
}
"""Column of the table -> attribute of a trial in the storage."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""State of a finished trial -> its name in the table."""
_COLUMNS = {
    "trial": pa.Column("int64", pa.Check.ge(0, error="must be at least 0")),
    "state": pa.Column(
        str,
        pa.Check.isin(list(STATES.values()), error="must be complete, pruned or failed"),
    ),
    # what trials are compared by
    "value": pa.Column("float64", nullable=True),
    # of the best round, the mean over folds and seeds
    "validation_auc": pa.Column("float64", nullable=True),
    "validation_loss": pa.Column("float64", nullable=True),
    # encoder passes of a fold and seed
    "cost": pa.Column("float64", nullable=True),
    # that were run, of all folds and seeds
    "rounds": pa.Column("int64"),
    # the best one; in a study of value and cost, each trial of the front
    "best": pa.Column("bool"),
    # why it failed; else empty
    "reason": pa.Column(str),
}
_KINDS: dict[type, Any] = {bool: "bool", int: "int64", float: "float64", str: str}
_MOST_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study."""

    folder: Path

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.folder.name

    @property
    def journal(self) -> Path:
        """Optuna's storage, where no other is named; it is never versioned."""
        return self.folder / "study.journal"

    @property
    def url(self) -> str:
        """URL of `journal`."""
        return f"{JOURNAL}{self.journal.resolve()}"

    @property
    def trials(self) -> Path:
        """Table of the finished trials."""
        return self.folder / "trials.parquet"

    @property
    def best(self) -> Path:
        """The best trial."""
        return self.folder / "best.yaml"

    @property
    def report(self) -> Path:
        """The report says in words whether the best trial is better than the default."""
        return self.folder / "report.md"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.folder / "plots"

    def write_stage(self, *, in_journal: bool) -> None:
        """Writes the dvc.yaml of the study, whose one stage makes the versioned files from the
        storage; `dvc repro` at the root does not run it.
        """
        folder = f"studies/{self.name}"
        stage: dict[str, Any] = {"cmd": f"hnm tune export --study {self.name}", "wdir": "../.."}
        if in_journal:
            stage["deps"] = [f"{folder}/study.journal"]
        stage["outs"] = [
            f"{folder}/trials.parquet",
            f"{folder}/plots",
            {f"{folder}/best.yaml": {"cache": False}},
        ]
        _write_yaml({"stages": {"study": stage}}, self.folder / "dvc.yaml")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns what the disk refuses while the block writes `path` into a `StudyError`."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written ({error.strerror or error}); make its folder writable, or"
            " room on its disk, and give the command again"
        ) from error


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that ran to their end, in order; their places in the list are their
    numbers in the table.

    A trial that fails has a reason. One without a reason was killed or withdrawn, and does not
    count.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=tuple(STATES))
        if trial.state != TrialState.FAIL or "reason" in trial.user_attrs
    ]


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the finished trials and those that run."""
    return [*finished(study), *study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def load_study(files: StudyFiles, storage: str | None) -> optuna.Study:
    """Returns the study of `files`; a `StudyError` names the studies that there are where it is
    none of them.
    """
    url = storage or files.url
    unknown = _unknown(files, url if storage else str(files.folder.parent))
    if storage is None and not files.journal.exists():
        raise unknown
    opened = open_storage(url, make=False)
    with usable(url):
        try:
            study = optuna.load_study(storage=opened, study_name=files.name)
        except KeyError:
            raise unknown from None
    return study


def _unknown(files: StudyFiles, where: str) -> StudyError:
    others = sorted(path.parent.name for path in files.folder.parent.glob("*/dvc.yaml"))
    return StudyError(
        f"there is no study {files.name} in {where}; there are"
        f" {', '.join(others) or 'none'}; name one by --study"
    )


def defaults_of(study: optuna.Study) -> Values:
    """Returns the values of params.yaml when the study began, by the params of its space.

    Raises:
        StudyError: an earlier version began it, with entries that this one does not know.
    """
    defaults: Values = study.user_attrs["defaults"]
    if extra := sorted(study.user_attrs["space"].keys() - defaults.keys()):
        raise StudyError(
            f"the study {study.study_name} was begun by an earlier version with {extra[0]} in"
            " tune.space, and labels behind @ are gone; begin another by --study"
        )
    return defaults


def trials_table(defaults: Values) -> Table:
    """Returns the schema of `trials.parquet`, with a column for each param by its dotted name."""
    return _table({name: _KINDS[type(value)] for name, value in defaults.items()})


def read_trials(files: StudyFiles) -> tuple[pd.DataFrame, list[str]]:
    """Returns the checked `trials.parquet` of a study, and the names of its params.

    Raises:
        StudyError: there is no such table, or it cannot be read.
    """
    if not files.folder.exists():
        raise _unknown(files, str(files.folder.parent))
    if not files.trials.exists():
        raise StudyError(
            f"{files.trials} does not exist: the study has no finished trial; run hnm tune --study"
            f" {files.name}, or dvc pull"
        )
    try:
        frame = pd.read_parquet(files.trials)
    except (OSError, ValueError) as error:  # what pyarrow makes of a torn file
        raise StudyError(
            f"{files.trials} cannot be read: {first_line(error)}; run hnm tune export --study"
            f" {files.name}, or bring it with dvc pull"
        ) from None
    params = [str(name) for name in frame.columns if "." in str(name)]
    table = _table({name: frame[name].dtype for name in params})
    return table.check(frame, str(files.trials)), params


def _table(kinds: Mapping[str, Any]) -> Table:
    columns = {name: pa.Column(kind) for name, kind in kinds.items()}
    return Table("trials", ("trial",), {**_COLUMNS, **columns})


def trials_of(study: optuna.Study) -> pd.DataFrame:
    """Returns the finished trials as `trials_table`, a row each."""
    defaults = defaults_of(study)
    rows = [_row(number, trial) for number, trial in enumerate(finished(study))]
    columns = trials_table(defaults).columns
    frame = pd.DataFrame(rows, columns=[name for name in columns if name != "best"])
    kinds = {name: type(value) for name, value in defaults.items()}
    frame = frame.astype({**dict.fromkeys(NUMBERS, float), **kinds})
    return frame.assign(best=_best(frame, study))[list(columns)]


def best_first(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns `trials` by value, the highest first; of equals the earlier one."""
    return trials.sort_values(["value", "trial"], ascending=[False, True])


def export(files: StudyFiles, study: optuna.Study, *, plots: bool) -> None:
    """Writes `trials.parquet`, `best.yaml` and, where wanted, the plots of the finished trials;
    nothing where there are none.

    Raises:
        StudyError: a file cannot be written; the storage keeps the trials.
    """
    trials = trials_of(study)
    if trials.empty:
        return
    defaults = defaults_of(study)
    with written(files.folder):
        trials_table(defaults).write(trials, files.trials)
        for best in best_first(trials[trials["best"]]).head(1).to_dict("records"):
            content = {name: plain(best[name]) for name in ("trial", *NUMBERS)}
            params = {name: plain(best[name]) for name in defaults}
            _write_yaml({**content, "params": params}, files.best)
        if plots:
            # not above: workers draw nothing, and matplotlib takes long to import
            from hnm.studies.plots import draw_plots

            draw_plots(study, trials, files.plots)


def best_values(files: StudyFiles) -> Values:
    """Returns the params of `best.yaml`; `StudyError` where it is missing or damaged."""
    if not files.best.exists():
        raise StudyError(
            f"{files.best} does not exist: the study has no complete trial; run hnm tune --study"
            f" {files.name}"
        )
    cure = f"; run hnm tune export --study {files.name}"
    content = read_bounded(
        files.best, StudyError, what=str(files.best), cure=cure, most=_MOST_YAML_BYTES
    )
    try:
        values = YAML(typ="safe").load(content.decode())["params"]
    except (YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StudyError(
            f"{files.best} holds no trial's params: {type(error).__name__}"
            f" {first_line(error)}{cure}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise StudyError(f"{files.best} holds no trial's params{cure}")
    return values


def _best(frame: pd.DataFrame, study: optuna.Study) -> "pd.Series[bool]":
    """Returns which trials are the best of those that are complete and cheap enough: the first of
    the highest value, or in a study of value and cost all that no other surpasses in both.
    """
    limit = study.user_attrs["max_cost"]
    allowed = frame[
        (frame["state"] == "complete") & (frame["cost"] <= (np.inf if limit is None else limit))
    ]
    best = best_first(allowed).head(1)
    if len(study.directions) == 2:
        best = front_of(allowed)
    return pd.Series(frame.index.isin(best.index), frame.index)


def front_of(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the trials that no other surpasses in value and cost, the highest value first."""
    ordered = trials.sort_values(["value", "cost", "trial"], ascending=[False, True, True])
    return ordered[ordered["cost"] < ordered["cost"].shift(fill_value=np.inf).cummin()]


def _row(number: int, trial: FrozenTrial) -> dict[str, Value | None]:
    attributes = trial.user_attrs
    return {
        "trial": number,
        "state": STATES[trial.state],
        **{column: attributes.get(name) for column, name in NUMBERS.items()},
        "rounds": attributes.get("rounds", 0),
        "reason": attributes.get("reason", ""),
        **trial.params,
    }


def _write_yaml(content: Any, path: Path) -> None:
    yaml = YAML()  # keeps the order of keys, as the safe one does not
    yaml.width = 1000
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
