"""What of a study is versioned: the table of its trials, the best one, its plots, and the DVC stage
that makes them from the storage.
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
from hnm.params import Dimension
from hnm.studies.space import Space, Value, Values, in_order
from hnm.studies.storage import JOURNAL, open_storage, usable
from hnm.tables import Table
from hnm.tracking.record import first_line

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_MOST_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study."""

    folder: Path

    @property
    def journal(self) -> Path:
        """Optuna's storage, where no other is named; never versioned."""
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
        """Whether the best trial is better than the default, in words."""
        return self.folder / "report.md"

    @property
    def plots(self) -> Path:
        """Folder of the pictures."""
        return self.folder / "plots"

    def write_stage(self, *, in_journal: bool) -> None:
        """Writes the study's own dvc.yaml, whose one stage makes the versioned files from the
        storage; `dvc repro` at the root does not run it.
        """
        folder = f"studies/{self.folder.name}"
        outs = [
            f"{folder}/trials.parquet",
            f"{folder}/plots",
            {f"{folder}/best.yaml": {"cache": False}},
        ]
        deps = {"deps": [f"{folder}/study.journal"]} if in_journal else {}
        stage = {
            "cmd": f"hnm tune export --study {self.folder.name}",
            "wdir": "../..",
            **deps,
            "outs": outs,
        }
        _write_yaml({"stages": {"study": stage}}, self.folder / "dvc.yaml")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """What the disk refuses while the block writes `path` becomes a `StudyError`."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written ({error.strerror or error}); make its folder writable, or"
            " room on its disk, and give the command again"
        ) from error


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to their end, whatever it was, in order; their places are the trials'
    numbers.

    A trial that fails has a reason; without one it was killed or withdrawn, and counts for nothing.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=FINISHED)
        if trial.state != TrialState.FAIL or "reason" in trial.user_attrs
    ]


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials and those that run."""
    return [*finished(study), *study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def values_of(space: Space, trial: FrozenTrial) -> Values | None:
    """All params of the space in a trial; None while they are being suggested."""
    try:
        return space.values(lambda entry, dimension: trial.params[entry])
    except KeyError:
        return None


def load_study(files: StudyFiles, storage: str | None) -> optuna.Study:
    """A study that is there; `StudyError` names those that are where it is not."""
    url, name = storage or files.url, files.folder.name
    unknown = _unknown(files, url if storage else str(files.folder.parent))
    if storage is None and not files.journal.exists():
        raise unknown
    opened = open_storage(url, make=False)
    with usable(url):
        try:
            return optuna.load_study(storage=opened, study_name=name)
        except KeyError:
            raise unknown from None


def _unknown(files: StudyFiles, where: str) -> StudyError:
    others = sorted(path.parent.name for path in files.folder.parent.glob("*/dvc.yaml"))
    return StudyError(
        f"there is no study {files.folder.name} in {where}; there are"
        f" {', '.join(others) or 'none'}; name one by --study"
    )


def space_in(study: optuna.Study) -> Space:
    """The space that a study was begun with."""
    dimensions = {
        entry: Dimension.model_validate(raw) for entry, raw in study.user_attrs["space"].items()
    }
    return Space(in_order(dimensions), study.user_attrs["defaults"])


def trials_table(space: Space) -> Table:
    """Schema of `trials.parquet`: a column for each param of the space, by its dotted name."""
    kinds: dict[type, Any] = {bool: "bool", int: "int64", float: "float64", str: str}
    return _table({name: pa.Column(kinds[type(value)]) for name, value in space.defaults.items()})


def read_trials(files: StudyFiles) -> tuple[pd.DataFrame, list[str]]:
    """The checked `trials.parquet` of a study, and the names of its params; `StudyError` where
    there is none.
    """
    if not files.folder.exists():
        raise _unknown(files, str(files.folder.parent))
    if not files.trials.exists():
        raise StudyError(
            f"{files.trials} does not exist: the study has no finished trial; run hnm tune --study"
            f" {files.folder.name}, or dvc pull"
        )
    try:
        frame = pd.read_parquet(files.trials)
    except (OSError, ValueError) as error:  # what pyarrow makes of a torn file
        raise StudyError(
            f"{files.trials} cannot be read: {first_line(error)}; run hnm tune export --study"
            f" {files.folder.name}, or bring it with dvc pull"
        ) from None
    params = [str(name) for name in frame.columns if "." in str(name)]
    return (
        _table({name: pa.Column(frame[name].dtype) for name in params}).check(
            frame, str(files.trials)
        ),
        params,
    )


def _table(params: dict[str, pa.Column]) -> Table:
    columns = {
        "trial": pa.Column("int64", pa.Check.ge(0, error="must be at least 0")),
        "state": pa.Column(
            str,
            pa.Check.isin(
                ["complete", "pruned", "failed"], error="must be complete, pruned or failed"
            ),
        ),
        "value": pa.Column("float64", nullable=True),  # what trials are compared by
        "validation_auc": pa.Column(
            "float64", nullable=True
        ),  # of the best round, the mean over folds and seeds
        "validation_loss": pa.Column("float64", nullable=True),
        "cost": pa.Column("float64", nullable=True),  # encoder passes of a fold and seed
        "rounds": pa.Column("int64"),  # that were run, of all folds and seeds
        "best": pa.Column("bool"),  # the best one; of a study of value and cost, all of the front
        "reason": pa.Column(str),  # why it failed; else empty
    }
    return Table("trials", ("trial",), {**columns, **params})


def trials_of(study: optuna.Study, space: Space) -> pd.DataFrame:
    """The finished trials as `trials_table`, a row each."""
    rows = [_row(number, trial, space) for number, trial in enumerate(finished(study))]
    columns = trials_table(space).columns
    frame = pd.DataFrame(rows, columns=[name for name in columns if name != "best"])
    numbers = dict.fromkeys(("value", "validation_auc", "validation_loss", "cost"), float)
    frame = frame.astype(
        {**numbers, **{name: type(value) for name, value in space.defaults.items()}}
    )
    return frame.assign(best=_best(frame, study))[list(columns)]


def export(files: StudyFiles, study: optuna.Study, *, plots: bool) -> None:
    """Writes `trials.parquet`, `best.yaml` and, where wanted, the plots of the finished trials;
    nothing where there are none.

    Raises:
        StudyError: a file cannot be written; the storage keeps the trials.
    """
    space = space_in(study)
    frame = trials_of(study, space)
    if frame.empty:
        return
    with written(files.folder):
        trials_table(space).write(frame, files.trials)
        best = frame[frame["best"]].sort_values(["value", "trial"], ascending=[False, True])
        if len(best):
            _write_yaml(_described(best.iloc[0].to_dict(), list(space.defaults)), files.best)
        if plots:
            from hnm.studies.study_plots import (
                draw_plots,  # not above: workers draw nothing, and matplotlib takes long to import
            )

            draw_plots(study, frame, files.plots)


def best_values(files: StudyFiles) -> Values:
    """The values of `best.yaml`; `StudyError` where there is none, or it is none."""
    if not files.best.exists():
        raise StudyError(
            f"{files.best} does not exist: the study has no complete trial; run hnm tune --study"
            f" {files.folder.name}"
        )
    cure = f"; run hnm tune export --study {files.folder.name}"
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


def _described(row: Mapping[Any, Any], params: list[str]) -> dict[str, Any]:
    numbers = ("trial", "value", "validation_auc", "validation_loss", "cost")
    return {
        **{name: plain(row[name]) for name in numbers},
        "params": {name: plain(row[name]) for name in params},
    }


def _best(frame: pd.DataFrame, study: optuna.Study) -> "pd.Series[bool]":
    """Which trials none that is complete and cheap enough surpasses: by value, the first of equals;
    or by value and cost.
    """
    limit = study.user_attrs["max_cost"]
    allowed = frame[
        (frame["state"] == "complete") & (frame["cost"] <= (np.inf if limit is None else limit))
    ]
    ordered = allowed.sort_values(["value", "cost", "trial"], ascending=[False, True, True])
    if len(study.directions) == 2:
        ordered = ordered[ordered["cost"] < ordered["cost"].shift(fill_value=np.inf).cummin()]
        return pd.Series(frame.index.isin(ordered.index), frame.index)
    first = allowed.sort_values(["value", "trial"], ascending=[False, True]).index[:1]
    return pd.Series(frame.index.isin(first), frame.index)


def _row(number: int, trial: FrozenTrial, space: Space) -> dict[str, Value | None]:
    told = trial.user_attrs
    state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(
        trial.state, "failed"
    )
    numbers = {
        "value": told.get("value"),
        "validation_auc": told.get("auc"),
        "validation_loss": told.get("log_loss"),
        "cost": told.get("cost"),
    }
    values = values_of(space, trial) or space.defaults
    return {
        "trial": number,
        "state": state,
        **numbers,
        "rounds": told.get("rounds", 0),
        "reason": told.get("reason", ""),
        **values,
    }


def plain(value: Any) -> Any:
    """A number of NumPy as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _write_yaml(content: Any, path: Path) -> None:
    yaml = YAML()  # keeps the order of keys, as the safe one does not
    yaml.width = 1000
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
