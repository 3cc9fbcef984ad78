"""Results kept by their content's causes, and files written whole or not at all.

A result of one slide is kept under a key of everything that can change it: the slide's fingerprint, whole params
sections, the encoder's digest and the version of the code. It lies outside DVC's outputs, which DVC deletes before a
stage runs; a stage links it into its output. So a killed stage resumes, one new slide costs one slide, and changing a
param back costs nothing.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hnm.errors import HnmError

PLUMBING = frozenset(
    {
        "hnm",
        "hnm.errors",
        "hnm.params",
        "hnm.tables",
        "hnm.store",
        "hnm.processes",
        "hnm.progress",
        "hnm.experiments",
        "hnm.experiments.state",
        "hnm.experiments.tracking",
        "pipelines",
        "pipelines.stage",
    }
)
"""Modules whose text changes no result; they are neither code dependencies nor part of a code version."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(value: Any, path: Path) -> None:
    """`value` as JSON with sorted keys, whole or not at all; NaN is refused."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, kind: type[HnmError]) -> Any:
    """The JSON value at `path`; raises `kind` when it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise kind(f"{path} does not exist; run the stage that makes it (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise kind(f"{path} is not JSON ({error}); delete it and run the stage that makes it again") from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's files with their names."""
    if path.is_dir():
        return key_of(files={file.relative_to(path).as_posix(): digest_of(file) for file in sorted(path.rglob("*")) if file.is_file()})
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def key_of(**causes: Any) -> str:
    """Key of a result from all that can change it: JSON-ready values by name."""
    return hashlib.sha256(json.dumps(causes, sort_keys=True, allow_nan=False).encode()).hexdigest()


def imports_of(module: str) -> frozenset[str]:
    """All modules of this project that `module` imports, directly or not, itself included, without the plumbing."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in PLUMBING:
            continue
        found.add(name)
        waiting += _direct_imports(name)
    return frozenset(found)


def code_version(module: str) -> str:
    """Digest of the code that `module` runs through, comments, docstrings and layout aside."""
    return key_of(code={name: ast.dump(_without_docstrings(ast.parse(_source(name)))) for name in imports_of(module)})


@cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


@cache
def _direct_imports(module: str) -> tuple[str, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if _ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if importlib.util.find_spec(node.module).submodule_search_locations and importlib.util.find_spec(name)}  # type: ignore[union-attr]
            names |= modules or {node.module}
    return tuple(sorted(names))


def _ours(module: str) -> bool:
    return module.split(".")[0] in {"hnm", "pipelines"}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str))
            ]
    return tree


@dataclass(frozen=True)
class Kept:
    """One result in a store."""

    kind: str
    path: Path
    bytes: int
    used: float
    """When it was made, last linked or asked for, in seconds of the epoch: these change a file's time of status, reading does not."""
    shared: bool
    """Whether its bytes have other names too, such as a stage's output: removing it frees nothing then."""


class Store:
    """A folder of results, each one file (or folder) under `kind/ab/abcdef…`; a file that is there is complete."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Where the result of `key` lies, or will lie."""
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def folder(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills, made anew only where there is none of this key; a process that makes the same at once may be first."""
        kept = self.path(kind, key, "")
        if kept.is_dir():
            _mark_used(kept)
        else:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".making-") as beside:
                made = Path(beside) / "made"
                made.mkdir()
                make(made)
                try:
                    made.rename(kept)
                except OSError:
                    if not kept.is_dir():
                        raise
        return kept

    def link(self, kept: Path, target: Path) -> None:
        """The kept result as `target`: a hard link, or a copy where the file system has none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(kept, target)
        except OSError:
            with whole(target) as temporary:
                shutil.copyfile(kept, temporary)

    def kept(self) -> list[Kept]:
        """All results, the least recently used first."""
        found = (path for path in self.root.rglob("*") if re.fullmatch(r"[0-9a-f]{64}(\.\w+)?", path.name) and path.parent.name == path.name[:2])
        return sorted(map(self._described, found), key=lambda result: (result.used, result.path))

    def leftovers(self, before: float) -> list[Path]:
        """Temporary files and folders of writes that were killed: those in which nothing was written since `before`, in seconds of the epoch."""
        hidden = (path for path in self.root.rglob(".*") if not any(part.startswith(".") for part in path.relative_to(self.root).parts[:-1]))
        return sorted(path for path in hidden if _last_written(path) < before)

    def remove(self, path: Path) -> None:
        """Removes a result or a leftover; what was linked from it stays."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _described(self, path: Path) -> Kept:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        stats = [file.stat() for file in files] or [path.stat()]
        kind = path.parent.parent.relative_to(self.root).as_posix()
        return Kept(kind, path, sum(stat.st_size for stat in stats), max(stat.st_ctime for stat in stats), all(stat.st_nlink > 1 for stat in stats))


def _mark_used(folder: Path) -> None:
    """Moves the time of status of the folder or a file in it, and no other; nothing where the store is another's."""
    file = next((path for path in folder.rglob("*") if path.is_file()), folder)
    with contextlib.suppress(OSError):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _last_written(path: Path) -> float:
    """When a file, or anything in a folder, was last written, in seconds of the epoch; now, where something of it goes while one looks."""
    try:
        return max(own.stat().st_mtime for own in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()


def expired(kept: Sequence[Kept], *, now: float, max_seconds: float | None = None, max_bytes: float | None = None) -> list[Kept]:
    """Which results go, of `kept` in order of use: those unused for `max_seconds`, then the least recently used until the rest holds at most `max_bytes`."""
    left = sum(result.bytes for result in kept)
    gone = []
    for result in kept:
        too_old = max_seconds is not None and now - result.used > max_seconds
        if too_old or (max_bytes is not None and left > max_bytes):
            gone.append(result)
            left -= result.bytes
    return gone


def damaged(kept: Sequence[Kept], checks: Mapping[str, Callable[[Path], object]]) -> dict[Path, HnmError]:
    """The results that the check of their kind refuses, with its error; kinds without one are not looked at."""
    refused: dict[Path, HnmError] = {}
    for result in kept:
        if check := checks.get(result.kind):
            try:
                check(result.path)
            except HnmError as error:
                refused[result.path] = error
    return refused


def project_store() -> Store:
    """The store of the repository that the working directory belongs to; HNM_STORE names another."""
    if named := os.environ.get("HNM_STORE"):
        return Store(Path(named))
    return Store(project_root() / ".hnm" / "store")


def project_root() -> Path:
    """The repository's root: where DVC runs stages, or the nearest folder upwards that holds dvc.yaml."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)
