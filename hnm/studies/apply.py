"""Writing a trial's values into params.yaml, whose comments and order stay."""

import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from hnm.errors import StudyError
from hnm.files import whole
from hnm.params import Params, load_params
from hnm.studies.files import StudyFiles, best_first, read_trials, written
from hnm.studies.space import Value, Values, plain, with_values


def trial_values(files: StudyFiles, trial: int | None) -> tuple[int, Values]:
    """Returns number and params of a trial of the study's table; None is the best one.

    Raises:
        StudyError: there is no table, no such trial, or none that is complete.
    """
    table, params = read_trials(files)
    chosen = best_first(table[table["best"]])
    if trial is not None:
        chosen = table[table["trial"] == trial]
    if chosen.empty:
        wanted = "complete trial" if trial is None else f"trial {trial}"
        raise StudyError(
            f"the study {files.name} has no {wanted}; its {len(table)} trials count from 0"
            f" in {files.trials}"
        )
    row: pd.Series[Any] = chosen.iloc[0]
    if row["state"] == "failed":
        raise StudyError(
            f"trial {row['trial']} of the study {files.name} failed: {row['reason']}; apply another"
        )
    return int(row["trial"]), {name: plain(row[name]) for name in params}


def write_values(path: Path, values: Mapping[str, Value]) -> dict[str, tuple[Value, Value]]:
    """Sets dotted params in the params.yaml at `path`.

    Returns:
        The old and new value of each param that changed, by name.

    Raises:
        ParamsError: the file would not be valid with them; it is then left as it is.
        StudyError: it is read-only, or cannot be written.
    """
    before = load_params(path)
    after = with_values(before, values, where=str(path))
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1000
    content = yaml.load(path.read_text(encoding="utf-8"))
    changed = {}
    for name, value in values.items():
        old = _at(before, name)
        if old == _at(after, name):
            continue
        *sections, leaf = name.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[leaf] = value
        changed[name] = (old, value)
    if not changed:
        return {}
    if not os.access(path, os.W_OK):
        raise StudyError(
            f"{path} is read-only; make it writable (chmod u+w), and give the command again"
        )
    with written(path), whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
    return changed


def _at(params: Params, name: str) -> Value:
    return operator.attrgetter(name)(params)  # type: ignore[no-any-return]


class _Representer(RoundTripRepresenter):
    """Writes `null`, where ruamel would write nothing."""


_Representer.add_representer(
    type(None),
    lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"),
)
