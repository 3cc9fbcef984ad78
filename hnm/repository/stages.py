"""The pipeline's state as DVC holds it: what dvc.yaml asks of a stage, and what dvc.lock says of
the stage's last execution.

DVC itself takes a second to import and is not needed to read its two files.
"""

import contextlib
import math
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hnm.errors import ParamsError, TrackingError
from hnm.files import key_of, read_bounded
from hnm.names import is_id
from hnm.params import Params
from hnm.repository.outputs import is_inside, is_line, is_md5, md5_of

MOST_YAML_BYTES = 16 << 20
MOST_YAML_VALUES = 1_000_000
MOST_YAML_DEPTH = 100
_ROUND = "0|[1-9][0-9]{0,5}"
CURE = "; restore it from git (git checkout -- dvc.lock), or move it away and run dvc repro"
"""What to do about a dvc.lock that DVC has not written so."""


@dataclass(frozen=True)
class StageState:
    """One execution of a stage, by its causes and its outputs."""

    name: str
    """DVC's name: `head@1`."""
    module: str
    """`pipelines.head`."""
    arguments: dict[str, str]
    """Flags of the command by name, without dashes."""
    params: dict[str, Any]
    """The sections of params.yaml that the stage uses, with defaults filled in."""
    deps: dict[str, str]
    """Path -> DVC's md5, with `.dir` at the end for a folder."""
    outs: dict[str, str]

    @property
    def stage(self) -> str:
        """The stage's name without its round: `head`."""
        return self.name.partition("@")[0]

    @property
    def round(self) -> str | None:
        """The stage's round, where it belongs to one."""
        return self.name.partition("@")[2] or None

    @property
    def key(self) -> str:
        """Digest of all causes: command, params, dependencies. Two executions with the same key
        write the same outputs.
        """
        return key_of(
            module=self.module, arguments=self.arguments, params=self.params, deps=self.deps
        )

    def argument(self, flag: str) -> str:
        """The value of a flag of the command.

        Raises:
            TrackingError: the command has no such flag, as one of another version of hnm.
        """
        if flag not in self.arguments:
            raise TrackingError(
                f"the stage {self.name} of dvc.lock has no --{flag.replace('_', '-')}; run dvc"
                " repro"
            )
        return self.arguments[flag]

    def output(self, flag: str) -> tuple[str, str]:
        """Path and md5 of the output that a flag names.

        Raises:
            TrackingError: there is none.
        """
        path = self.argument(flag)
        if path not in self.outs:
            raise TrackingError(
                f"the stage {self.name} of dvc.lock has no output {path}; run dvc repro"
            )
        return path, self.outs[path]

    def section(self, name: str) -> Any:
        """A section of params.yaml that the stage used.

        Raises:
            TrackingError: it used none of that name.
        """
        if name not in self.params:
            raise TrackingError(
                f"the stage {self.name} of dvc.lock used no params of {name}; run dvc repro"
            )
        return self.params[name]

    @property
    def causes(self) -> str | None:
        """Path of the file of its causes, on which it depends; None where it has none, as the stage
        that writes them.
        """
        path = self.arguments.get("causes")
        return path if path in self.deps else None

    @property
    def data(self) -> dict[str, str]:
        """The dependencies that are data, neither code nor causes: path -> md5."""
        code = (".py", ".jinja")  # dependencies of dvc.lock up to version 0.1.0
        return {
            path: md5
            for path, md5 in self.deps.items()
            if path != self.causes and not path.endswith(code)
        }


def locked_stages(root: Path) -> dict[str, StageState]:
    """The stages of dvc.lock by DVC's name, those of rounds that are no more among them; empty
    where there is no dvc.lock.

    Raises:
        TrackingError: it is not what DVC writes.
    """
    path = root / "dvc.lock"
    return stages_of(_read(path, str(path))) if os.path.lexists(path) else {}


def stages_of(content: bytes, what: str = "dvc.lock") -> dict[str, StageState]:
    """The stages of the bytes of a dvc.lock, which may be a stranger's, by DVC's name; `what` names
    it in errors.

    Raises:
        TrackingError: it is not what DVC writes.
    """
    return {
        name: state
        for name, entry in lock_entries(content, what).items()
        if (state := _locked(name, entry)) is not None
    }


def lock_entries(content: bytes, what: str = "dvc.lock") -> dict[str, dict[str, Any]]:
    """The entries of a dvc.lock by DVC's name of the stage, each a mapping whose outs and deps have
    paths and md5 that can be trusted to be such.

    Raises:
        TrackingError: it is not what DVC writes.
    """
    stages = _mapping(yaml_of(content, what), what).get("stages") or {}
    entries = {}
    for name, entry in _mapping(stages, f"{what}: stages").items():
        if not is_line(name):
            raise TrackingError(f"{what}: {name[:200]!r} is no name of a stage{CURE}")
        entries[name] = _entry(entry, f"{what}: the stage {name}")
    return entries


def stage_in(states: Mapping[str, StageState], name: str) -> StageState:
    """The stage of that name.

    Raises:
        TrackingError: dvc.lock has none.
    """
    if name not in states:
        raise TrackingError(f"dvc.lock holds no stage {name}; run dvc repro")
    return states[name]


def cohort_name(states: Mapping[str, StageState], default: str | None = None) -> str:
    """The cohort's name, by which MLflow's experiment goes; `default` where no stage tells it.

    Raises:
        TrackingError: no stage tells it and there is no default, or it is no name.
    """
    for state in states.values():
        cohort = state.params.get("cohort")
        name = cohort.get("name") if isinstance(cohort, dict) else None
        if isinstance(name, str) and is_id(name):
            return name
    if default is None:
        raise TrackingError(f"no stage of dvc.lock tells the cohort's name{CURE}")
    return default


def yaml_of(content: bytes, what: str, cure: str = CURE) -> Any:
    """What a YAML file of a stranger says, as JSON could say it too; None where it is empty. Dates
    and the like become text.

    Raises:
        TrackingError: it is no YAML, too large, nested too deep, or says one thing again and again
        by aliases.
    """
    if len(content) > MOST_YAML_BYTES:
        raise TrackingError(
            f"{what} has {len(content)} bytes, more than the {MOST_YAML_BYTES} that are read{cure}"
        )
    try:
        return _Plain(what).of(YAML(typ="safe").load(content.decode()))
    except RecursionError:
        raise TrackingError(f"{what} is nested too deep to be read{cure}") from None
    except (
        YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # ruamel's constructors raise all of these
        reason = " ".join(str(error).split())
        raise TrackingError(f"{what} is not valid YAML: {reason[:300]}{cure}") from None


class _Plain:
    """Turns what YAML says into what JSON can say, up to so many values."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = MOST_YAML_VALUES

    def of(self, value: Any, depth: int = 0) -> Any:
        """`value`, with text as keys."""
        self._left -= 1
        if self._left < 0 or depth > MOST_YAML_DEPTH:
            raise TrackingError(
                f"{self._what} is nested too deep, or repeats itself by aliases{CURE}"
            )
        if isinstance(value, Mapping):
            return {
                self.of(str(key), depth): self.of(inner, depth + 1) for key, inner in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.of(inner, depth + 1) for inner in value]
        if (
            value is None
            or isinstance(value, bool)
            or (isinstance(value, float) and math.isfinite(value))
        ):
            return value
        if isinstance(value, int):
            return value if value.bit_length() <= 64 else hex(value)
        text = str(value)
        # halves of characters, which can be neither printed nor kept, are a ValueError
        text.encode()
        return text


def current_stages(states: Mapping[str, StageState]) -> dict[str, StageState]:
    """The stages that made the last evaluation: those of its rounds, and those of no round; empty
    without an evaluation.
    """
    if "evaluate" not in states:
        return {}
    named = states["evaluate"].params.get("rounds")
    rounds = ("", *(named if isinstance(named, dict) else ()))
    return {name: state for name, state in states.items() if name.partition("@")[2] in rounds}


def outs_of(states: Mapping[str, StageState]) -> dict[str, str]:
    """The outputs of all stages: path -> DVC's md5."""
    return {path: md5 for state in states.values() for path, md5 in state.outs.items()}


def running_stage(
    folder: Path,
    name: str,
    module: str,
    arguments: Mapping[str, Path | int],
    sections: Mapping[str, Any],
) -> StageState:
    """The state of the stage that is about to run, without outputs; its key is the one that
    dvc.lock will give.

    A dependency that another stage has made carries the md5 of dvc.lock; others are hashed here.
    Nothing that is wrong with them is an error here: DVC and the stage itself say it.

    Args:
        folder: where the stage runs and its dvc.lock lies; `project_root`, of `dvc exp run --temp`
        the copy. name: DVC's name of the stage.
        module: of the stage's code.
        arguments: flags by name.
        sections: the sections of params.yaml that it uses.
    """
    written: dict[str, str] = {}
    with contextlib.suppress(TrackingError):
        written = outs_of(locked_stages(folder))
    deps = {}
    for path in _dependencies(folder, name):
        with contextlib.suppress(OSError, ValueError, TrackingError):
            deps[path] = written.get(path) or md5_of(folder / path)
    return StageState(
        name=name,
        module=module,
        arguments={flag: str(value) for flag, value in arguments.items()},
        params=to_jsonable_python(dict(sections)),
        deps=deps,
        outs={},
    )


def running_round() -> str | None:
    """The round of the stage that DVC runs in this process; None outside of DVC, and for a stage of
    no round.

    Raises:
        ParamsError: params.yaml has given it a name that is no number.
    """
    round_ = os.environ.get("DVC_STAGE", "").rpartition(":")[2].partition("@")[2]
    if round_ and not re.fullmatch(_ROUND, round_):
        raise ParamsError(
            f'the round {round_[:100]!r} of params.yaml is no number; rounds count from "0"'
        )
    return round_ or None


def of_round(word: str, round_: str | None) -> str:
    """A word of a stage's command with its round for `{round}` and the round before for
    `{previous}`.

    So no name of a round has to stand in a command, which DVC hands to a shell.
    """
    if round_ is None or not re.fullmatch(_ROUND, round_):
        return word
    return word.replace("{round}", round_).replace("{previous}", str(int(round_) - 1))


def git_tags(root: Path) -> dict[str, str]:
    """Commit of the code, and whether tracked files differ from it (dvc.lock, cv/ and the ledger
    aside, which stages change); empty outside git.
    """
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(
            root,
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ".",
            ":(exclude)dvc.lock",
            ":(exclude)cv",
            ":(exclude)test_ledger.csv",
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "hnm.git_dirty": str(bool(changed)).lower()}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=root, check=True, capture_output=True, text=True, timeout=2
    ).stdout.strip()


def _read(path: Path, what: str) -> bytes:
    return read_bounded(path, TrackingError, what=what, cure=CURE, most=MOST_YAML_BYTES)


def _yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file that is to say what a stage depends on; empty where it is missing
    or cannot be read, which DVC says better.
    """
    try:
        return _mapping(yaml_of(_read(path, str(path)), str(path)), str(path))
    except TrackingError:
        return {}


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TrackingError(f"{what} is no mapping, but {type(value).__name__}{CURE}")
    return value


def _entry(entry: Any, what: str) -> dict[str, Any]:
    """The entry of a stage in dvc.lock, checked as far as it is used."""
    checked = dict(_mapping(entry, what))
    for kind in ("deps", "outs"):
        items = checked.get(kind) or []
        if not isinstance(items, list):
            raise TrackingError(f"{what} has {kind} that are no list{CURE}")
        pairs = (_item(item, f"{what}, {kind}", inside=kind == "outs") for item in items)
        checked[kind] = {path: md5 for path, md5 in pairs if md5}
    checked["params"] = {
        file: _mapping(sections, f"{what}, params of {file}")
        for file, sections in _mapping(checked.get("params"), f"{what}, params").items()
    }
    return checked


def _item(item: Any, what: str, *, inside: bool) -> tuple[str, str]:
    """Path and md5 of a dependency or an output; "" for the md5 of one that DVC knows by another
    digest.
    """
    content = _mapping(item, what)
    path = content.get("path")
    md5 = content.get("md5", "")
    if not isinstance(path, str) or not is_line(path) or (inside and md5 and not is_inside(path)):
        raise TrackingError(f"{what}: {str(path)[:200]!r} is no path inside the repository{CURE}")
    if md5 != "" and not is_md5(md5):
        raise TrackingError(f"{what}: {path} has the md5 {str(md5)[:200]!r}, which is none{CURE}")
    return path, md5


def _locked(name: str, entry: dict[str, Any]) -> StageState | None:
    """A stage of dvc.lock; None where its command is not one of ours."""
    try:
        words = shlex.split(entry["cmd"]) if isinstance(entry.get("cmd"), str) else []
    except ValueError:  # an open quote: a command of the shell's own language
        return None
    if "-m" not in words[:-1]:
        return None
    round_ = name.partition("@")[2]
    module, *flags = (of_round(word, round_) for word in words[words.index("-m") + 1 :])
    return StageState(
        name=name,
        module=module,
        arguments={
            flag.removeprefix("--").replace("-", "_"): str(PurePath(value))
            for flag, value in zip(flags[::2], flags[1::2], strict=False)
        },
        params={
            section: _with_defaults(section, values)
            for sections in entry["params"].values()
            for section, values in sections.items()
        },
        deps=entry["deps"],
        outs=entry["outs"],
    )


def _with_defaults(section: str, values: Any) -> Any:
    """A section as the stage saw it; as dvc.lock has it, where it no longer fits the schema."""
    if section not in Params.model_fields:
        return values
    kind: Any = Params.model_fields[section].annotation
    try:
        return to_jsonable_python(TypeAdapter(kind).validate_python(values))
    except ValidationError:
        return values


def _dependencies(folder: Path, name: str) -> list[str]:
    """Paths that dvc.yaml lists as dependencies of the stage `name`, in order."""
    stage, _, key = name.partition("@")
    entry = _look_up(_yaml(folder / "dvc.yaml"), "stages", stage)
    values: dict[str, Any] = {}
    if foreach := _look_up(entry, "foreach"):
        values = _yaml(folder / "params.yaml")
        items = _look_up(values, *str(foreach).removeprefix("${").removesuffix("}").split("."))
        values |= {"key": key, "item": _look_up(items, key) if isinstance(items, dict) else key}
        entry = _look_up(entry, "do")
    deps = _look_up(entry, "deps")
    paths = []
    for dep in deps if isinstance(deps, list) else []:
        if isinstance(dep, dict):
            dep = next(iter(dep), "")
        if isinstance(dep, str):
            paths.append(_filled_in(dep, values))
    return paths


def _filled_in(text: str, values: Mapping[str, Any]) -> str:
    """`text` with the values of its `${…}`."""
    return re.sub(
        r"\$\{([^}]+)\}", lambda match: str(_look_up(values, *match[1].strip().split("."))), text
    )


def _look_up(values: Any, *names: str) -> Any:
    """The value under these names, each inside the one before it; None where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
