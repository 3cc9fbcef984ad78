"""The pipeline's state as DVC holds it: what dvc.yaml asks of a stage and what dvc.lock says of its last execution.

DVC itself takes a second to import and is not needed to read its two files.
"""

import contextlib
import functools
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import ruamel.yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from ruamel.yaml.error import YAMLError

from hnm.errors import TrackingError
from hnm.files import TEMPORARY, key_of
from hnm.params import Params


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
        """Digest of all causes: command, params, dependencies. Two executions with the same key write the same outputs."""
        return key_of(module=self.module, arguments=self.arguments, params=self.params, deps=self.deps)

    @property
    def data(self) -> dict[str, str]:
        """The dependencies that are data, not code: path -> md5."""
        return {path: md5 for path, md5 in self.deps.items() if not path.endswith((".py", ".jinja"))}


def locked_stages(root: Path) -> dict[str, StageState]:
    """The stages of dvc.lock by DVC's name, those of rounds that are no more among them; empty where there is no dvc.lock."""
    return stages_of(_yaml(root / "dvc.lock"))


def stages_of(lock: Mapping[str, Any]) -> dict[str, StageState]:
    """The stages of the content of a dvc.lock by DVC's name."""
    return {name: state for name, entry in lock.get("stages", {}).items() if (state := _locked(name, entry)) is not None}


def current_stages(states: Mapping[str, StageState]) -> dict[str, StageState]:
    """The stages that made the last evaluation: those of its rounds, and those of no round; empty without an evaluation."""
    if "evaluate" not in states:
        return {}
    rounds = ("", *states["evaluate"].params.get("rounds", {}))
    return {name: state for name, state in states.items() if name.partition("@")[2] in rounds}


def running_stage(root: Path, name: str, module: str, arguments: Mapping[str, Path | int], sections: Mapping[str, Any]) -> StageState:
    """The state of the stage that is about to run, without outputs; its key is the one that dvc.lock will give.

    A dependency that another stage has made carries the md5 of dvc.lock; others are hashed here.
    """
    made = {path: md5 for state in locked_stages(root).values() for path, md5 in state.outs.items()}
    deps = {}
    for path in _dependencies(root, name):
        with contextlib.suppress(OSError):  # a stage that lacks its input will say so itself
            deps[path] = made.get(path) or md5_of(root / path)
    return StageState(
        name=name,
        module=module,
        arguments={flag: str(value) for flag, value in arguments.items()},
        params=to_jsonable_python(dict(sections)),
        deps=deps,
        outs={},
    )


def md5_of(path: Path) -> str:
    """DVC's md5 of a file's bytes, or of a folder's listing (`….dir`)."""
    if path.is_dir():
        return folder_md5(
            {file.relative_to(path).as_posix(): md5_of(file) for file in path.rglob("*") if file.is_file() and not file.name.startswith(TEMPORARY)}
        )
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's md5 of a folder from its files' md5 by relative path."""
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


class Outputs:
    """Outputs by path and md5: from the workspace, or else from DVC's cache."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def files(self, path: str, md5: str) -> dict[str, Path]:
        """The files of an output by their name inside it, or by its own name where it is one file.

        `TrackingError` where neither the workspace nor the cache holds this version.
        """
        here = self._root / path
        if here.exists() and md5_of(here) == md5:
            return {file.relative_to(here).as_posix(): file for file in sorted(here.rglob("*")) if file.is_file()} if here.is_dir() else {here.name: here}
        files = {here.name: self._cached(md5)}
        if md5.endswith(".dir") and files[here.name].is_file():
            files = {entry["relpath"]: self._cached(entry["md5"]) for entry in json.loads(files[here.name].read_text(encoding="utf-8"))}
        if not all(file.is_file() for file in files.values()):
            raise TrackingError(f"{path} (md5 {md5}) is neither in the workspace nor in DVC's cache; run dvc pull, then hnm track sync")
        return files

    def _cached(self, md5: str) -> Path:
        return self.cache / md5[:2] / md5[2:]

    @functools.cached_property
    def cache(self) -> Path:
        """DVC's cache: the object of an md5 is the file `ab/cdef…`."""
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        answer = subprocess.run(command, cwd=self._root, check=True, capture_output=True, text=True)
        return self._root / answer.stdout.strip() / "files" / "md5"


def git_tags(root: Path) -> dict[str, str]:
    """Commit of the code, and whether tracked files differ from it (dvc.lock, cv/ and the ledger aside, which stages change); empty outside git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock", ":(exclude)cv", ":(exclude)test_ledger.csv")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "hnm.git_dirty": str(bool(changed)).lower()}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True, timeout=2).stdout.strip()


def _yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty where the file is missing or half written."""
    try:
        return ruamel.yaml.YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
    except (FileNotFoundError, YAMLError):
        return {}


def _locked(name: str, entry: dict[str, Any]) -> StageState | None:
    """A stage of dvc.lock; None where its command is not one of ours."""
    words = shlex.split(entry["cmd"]) if isinstance(entry["cmd"], str) else []
    if "-m" not in words:
        return None
    module, *flags = words[words.index("-m") + 1 :]
    sections = {section: values for file in entry.get("params", {}).values() for section, values in file.items()}
    return StageState(
        name=name,
        module=module,
        arguments={flag.removeprefix("--").replace("-", "_"): str(PurePath(value)) for flag, value in zip(flags[::2], flags[1::2], strict=False)},
        params={section: _with_defaults(section, values) for section, values in sections.items()},
        deps=_digests(entry, "deps"),
        outs=_digests(entry, "outs"),
    )


def _digests(entry: dict[str, Any], kind: str) -> dict[str, str]:
    return {item["path"]: item["md5"] for item in entry.get(kind, []) if "md5" in item}


def _with_defaults(section: str, values: Any) -> Any:
    """A section as the stage saw it; as dvc.lock has it, where it no longer fits the schema."""
    if section not in Params.model_fields:
        return values
    kind: Any = Params.model_fields[section].annotation
    try:
        return to_jsonable_python(TypeAdapter(kind).validate_python(values))
    except ValidationError:
        return values


def _dependencies(root: Path, name: str) -> list[str]:
    """Paths that dvc.yaml lists as dependencies of the stage `name`, in order."""
    stage, _, key = name.partition("@")
    entry = _yaml(root / "dvc.yaml").get("stages", {}).get(stage, {})
    values: dict[str, Any] = {}
    if "foreach" in entry:
        values = _yaml(root / "params.yaml")
        items = _look_up(str(entry["foreach"]).removeprefix("${").removesuffix("}"), values)
        values |= {"key": key, "item": items.get(key) if isinstance(items, dict) else key}
        entry = entry["do"]
    return [re.sub(r"\$\{([^}]+)\}", lambda match: str(_look_up(match[1].strip(), values)), dep) for dep in entry.get("deps", [])]


def _look_up(name: str, values: Any) -> Any:
    for part in name.split("."):
        values = values[part] if isinstance(values, Mapping) and part in values else None
    return values
