"""Results kept by their content's causes.

A result of one slide is kept under a key of everything that can change it: the slide's fingerprint, whole params
sections, the encoder's digest and the version of the code. It lies outside DVC's outputs, which DVC deletes before a
stage runs; a stage links it into its output. So a killed stage resumes, one new slide costs one slide, and changing a
param back costs nothing.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import HnmError
from hnm.files import TEMPORARY, whole
from hnm.folders import marked_folder

_RESULT = re.compile(r"[0-9a-f]{64}(\.\w+)?")
_SHARD = re.compile(r"[0-9a-f]{2}")


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
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=TEMPORARY) as beside:
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
        found = (path for path in self.root.rglob("*") if _RESULT.fullmatch(path.name) and path.parent.name == path.name[:2])
        return sorted(map(self._described, found), key=lambda result: (result.used, result.path))

    def leftovers(self, before: float) -> list[Path]:
        """Temporary files and folders of writes that were killed: those in which nothing was written since `before`, in seconds of the epoch."""
        beside_results = (path for path in self.root.rglob(f"{TEMPORARY}*") if _SHARD.fullmatch(path.parent.name))
        return sorted(path for path in beside_results if _last_written(path) < before)

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
    """The store of the repository that the working directory belongs to; HNM_STORE names another.

    Raises:
        FolderError: HNM_STORE names a folder that holds other things.
    """
    if named := os.environ.get("HNM_STORE"):
        return Store(marked_folder(Path(named), "store", named_by="HNM_STORE"))
    return Store(marked_folder(project_root() / ".hnm" / "store", "store", named_by="the store", adopts=True))


def project_root() -> Path:
    """The repository's root: where DVC runs stages, or the nearest folder upwards that holds dvc.yaml."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)
