"""Results kept by their content's causes.

A result of one slide is kept under a key of everything that can change it: the slide's fingerprint,
whole params sections, the encoder's digest, the code, the libraries and the machine
(`hnm.causes.keys_of` makes every key). It lies outside DVC's outputs, which DVC deletes before a
stage runs; a stage links it into its output. So a killed stage resumes, one new slide costs one
slide, and changing a param back costs nothing.

Only what `KINDS` names, under names of this program's form, is ever counted, believed or removed;
no link is followed out of the store. Of each result `.hnm-sums` records the digest, so that damage
is noticed before a result is used again; a damaged one is removed and made anew. What a living
process uses is not removed (`hnm.leases`).
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnm.errors import HnmError, MachineError, StoreError
from hnm.failpoints import failpoint
from hnm.files import (
    TEMPORARY,
    digest_of,
    parse_json,
    read_bounded,
    temporary_beside,
    whole,
    write_json,
)
from hnm.folders import marked_folder
from hnm.leases import InUse, lease_of, living, locked

KINDS = {
    "tiles": ".h5",
    "features": ".h5",
    "stated": ".json",
    "trials/heads": "",
    "trials/mined": "",
    "trials/encoders": "",
    "trials/folds": "",
    "cv/encoders": "",
}
"""Kind -> suffix of its results; those without one are folders."""
_RESULT = re.compile(r"[0-9a-f]{64}(\.\w+)?")
_SHARD = re.compile(r"[0-9a-f]{2}")
_RECORDS = ".hnm-sums"
_MOST_RECORD_BYTES = 1 << 12
_UNSEEN = (PermissionError, FileNotFoundError)
"""What a look at another user's entry, or at one that goes meanwhile, raises."""


@dataclass(frozen=True)
class Kept:
    """One result in a store."""

    kind: str
    path: Path
    bytes: int
    used: float
    """When it was made, last linked or asked for, in seconds of the epoch: these change a file's
    time of status, reading does not.
    """
    shared: bool
    """Whether its bytes have other names too, such as a stage's output: removing it frees nothing
    then.
    """


class Store:
    """A folder of results, each one file (or folder) under `kind/ab/abcdef…`; a file that is there
    is complete.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._to_make: set[Path] = set()

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Where the result of `key` lies, or will lie."""
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def use(self, paths: Iterable[Path]) -> None:
        """Says that this process uses these results, or will make them: nobody removes them while
        it lives.
        """
        names = [path.absolute().relative_to(self.root.absolute()).as_posix() for path in paths]
        self.root.mkdir(parents=True, exist_ok=True)
        if names and (lease := lease_of(self.root)):
            lease.name(names)

    def holds(
        self, path: Path, check: Callable[[Path], object] | None = None, *, quick: bool = False
    ) -> bool:
        """Whether the result is there and undamaged; nobody removes it from now on. A damaged one
        is removed, to be made anew.

        Args:
            path: as `path` gave it.
            check: opens the result; an `HnmError` says that it is none. It is asked where there is
            no record of the digest yet. quick: a file whose size and time are as recorded is not
            read; for packs, whose bytes are many.

        Raises:
            StoreError: it is damaged and may not be removed.
            OSError: it is there and cannot be read; that is no damage.
        """
        self.use([path])
        if error := self._damage(path, check, quick=quick):
            logging.getLogger(__name__).warning(
                "the store holds a damaged result, which is removed and made again: %s", error
            )
            self._discard(path, error)
        elif path.exists():
            _mark_used(path)
            return True
        self._to_make.add(path)
        return False

    def folder(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], None],
        check: Callable[[Path], object] | None = None,
    ) -> Path:
        """The folder that `make` fills, made anew only where there is none of this key; a process
        that makes the same at once may be first.
        """
        kept = self.path(kind, key, "")
        if self.holds(kept, check):
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = temporary_beside(kept)
        beside.mkdir()
        try:
            made = beside / "made"
            made.mkdir()
            make(made)
            failpoint("store.folder", kept)
            try:
                made.rename(kept)
            except OSError:
                if not kept.is_dir():
                    raise
            else:
                self._record(kept)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return kept

    def link(self, kept: Path, target: Path) -> None:
        """The kept result as `target`: a hard link, or a copy where the file system has none.

        Raises:
            StoreError: the result is gone.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if not kept.exists():
            raise StoreError(
                f"{kept} is gone from the store while this process used it; give the same command"
                " again"
            )
        if kept in self._to_make:
            self._record(kept)
            self._to_make.discard(kept)
        try:
            failpoint("store.link", target)
            os.link(kept, target)
        except OSError:
            with whole(target) as temporary:
                shutil.copyfile(kept, temporary)

    def digest(self, kept: Path) -> str:
        """SHA-256 of a result that is one file: that of its record, or of its bytes where another
        has written them since or there is no record.
        """
        recorded = _recorded(self._record_of(kept))
        if recorded and recorded.items() >= _size_and_time(kept).items():
            return str(recorded["sha256"])
        return digest_of(kept)

    def kept(self) -> list[Kept]:
        """All results, the least recently used first; one that vanishes meanwhile is none."""
        results = (_described(kind, path) for kind, path in _results(self.root))
        return sorted(
            (result for result in results if result is not None),
            key=lambda result: (result.used, result.path),
        )

    def leftovers(self, before: float) -> list[Path]:
        """What killed writes left, where nothing was written since `before`, in seconds of the
        epoch, nor since a living process began to use the store.

        These are temporary files and folders, and records of results that are gone.
        """
        with locked(self.root, alone=True):
            before = min(before, living(self.root).since)
        places = [
            self.root,
            *(place for place in (self.root / _RECORDS,) if not place.is_symlink()),
        ]
        left = [
            path
            for place in places
            for _, shard in _shards(place)
            for path in _entries(shard)
            if path.name.startswith(TEMPORARY)
        ]
        left += [
            path
            for place in places[1:]
            for kind, path in _results(place)
            if not os.path.lexists(self.root / kind / path.parent.name / path.name)
        ]
        return sorted(path for path in left if _last_written(path) < before)

    def remove_unused(self, result: Kept) -> bool:
        """Removes a result, but not one that a living process uses, or that has been used since it
        was listed; whether it is gone.
        """
        with locked(self.root, alone=True):
            if self._is_in_use(result, living(self.root)):
                return False
            self.remove(result.path)
            return True

    def in_use(self, results: Iterable[Kept]) -> set[Path]:
        """Those of `results` that a living process uses."""
        with locked(self.root, alone=True):
            used = living(self.root)
        return {result.path for result in results if self._is_in_use(result, used)}

    def remove(self, path: Path) -> None:
        """Removes a result with its record, or a leftover; what was linked from it stays, and so
        does what a link leads to.
        """
        failpoint("store.removing", path)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        self._record_of(path).unlink(missing_ok=True)

    def damage(self, result: Kept, check: Callable[[Path], object] | None) -> HnmError | None:
        """What is wrong with a result, by its record and its `check`; None where nothing is."""
        error = _refusal(result.path, check) or self._damage(result.path, None, quick=False)
        return error if result.path.exists() else None

    def _is_in_use(self, result: Kept, used: InUse) -> bool:
        now = _described(result.kind, result.path)
        if now is None or now.used > result.used or now.used >= used.since:
            return now is not None
        return result.path.relative_to(self.root).as_posix() in used.names

    def _damage(
        self, path: Path, check: Callable[[Path], object] | None, *, quick: bool
    ) -> HnmError | None:
        try:
            if not (path.is_file() or path.is_dir()) and os.path.lexists(path):
                return StoreError(f"{path} is neither a file nor a folder")
            recorded, size_and_time = _recorded(self._record_of(path)), _size_and_time(path)
            if quick and size_and_time and recorded.items() >= size_and_time.items():
                return None
            digest = digest_of(path)
        except FileNotFoundError:
            return None  # there is none
        if not recorded:
            if error := _refusal(path, check):
                return error
        elif recorded.get("sha256") != digest:
            return StoreError(f"the bytes of {path} are not those that were written")
        if recorded != (record := {"sha256": digest, **size_and_time}):
            _write_record(self._record_of(path), record)
        return None

    def _discard(self, path: Path, error: HnmError) -> None:
        try:
            self.remove(path)
        except OSError as refused:
            raise StoreError(
                f"{error}; it cannot be removed ({refused.strerror}): have its owner give `hnm"
                " store verify --remove`, or name another store by HNM_STORE"
            ) from None

    def _record(self, path: Path) -> None:
        try:
            _write_record(
                self._record_of(path), {"sha256": digest_of(path), **_size_and_time(path)}
            )
        except FileNotFoundError:  # another process found it damaged
            return

    def _record_of(self, path: Path) -> Path:
        return self.root / _RECORDS / path.absolute().relative_to(self.root.absolute())


def _shards(root: Path) -> Iterator[tuple[str, Path]]:
    """Kind and folder of each shard; none that a link leads to."""
    for kind in KINDS:
        if any(
            folder.is_symlink() for folder in (root / kind, (root / kind).parent) if folder != root
        ):
            continue
        for shard in _entries(root / kind):
            if _SHARD.fullmatch(shard.name) and not shard.is_symlink() and shard.is_dir():
                yield kind, shard


def _results(root: Path) -> Iterator[tuple[str, Path]]:
    """Kind and path of what has the name and the place of a result, or of the record of one."""
    for kind, shard in _shards(root):
        for path in _entries(shard):
            if (
                _RESULT.fullmatch(path.name)
                and path.suffix == KINDS[kind]
                and path.name[:2] == shard.name
            ):
                yield kind, path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (*_UNSEEN, NotADirectoryError):
        return []


def _described(kind: str, path: Path) -> Kept | None:
    """A result; None where it is gone, or no file or folder as its kind is."""
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) if KINDS[kind] else stat.S_ISDIR(status.st_mode)):
            return None
        inner = [file.lstat() for file in path.rglob("*")] if stat.S_ISDIR(status.st_mode) else []
    except _UNSEEN:
        return None
    stats = [own for own in (status, *inner) if stat.S_ISREG(own.st_mode)] or [status]
    return Kept(
        kind,
        path,
        sum(own.st_size for own in stats),
        max(own.st_ctime for own in stats),
        all(own.st_nlink > 1 for own in stats),
    )


def _mark_used(path: Path) -> None:
    """Moves the time of status of the result or a file in it, and no other; nothing where the store
    is another's.
    """
    file = (
        path
        if path.is_file()
        else next((inner for inner in path.rglob("*") if inner.is_file()), path)
    )
    with contextlib.suppress(OSError):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _last_written(path: Path) -> float:
    """When a file, or anything in a folder, was last written, in seconds of the epoch; now, where
    something of it goes while one looks.
    """
    try:
        inner = path.rglob("*") if not path.is_symlink() and path.is_dir() else ()
        return max(float(own.lstat().st_mtime) for own in (path, *inner))
    except _UNSEEN:
        return time.time()


def _refusal(path: Path, check: Callable[[Path], object] | None) -> HnmError | None:
    try:
        if check:
            check(path)
    except MachineError:
        raise
    except HnmError as error:
        return error
    return None


def _size_and_time(path: Path) -> dict[str, int]:
    """Of a file; a folder has none that tell of its files."""
    status = path.stat()
    return (
        {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        if stat.S_ISREG(status.st_mode)
        else {}
    )


def _recorded(record: Path) -> dict[str, Any]:
    """What a record says; empty where there is none that can be read."""
    try:
        content = read_bounded(record, HnmError, what=str(record), most=_MOST_RECORD_BYTES)
        value = parse_json(content, HnmError, what=str(record))
    except HnmError:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("sha256"), str) else {}


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    try:
        write_json(record, path)
    except OSError as error:
        if error.errno not in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        ):  # another user's store is used without records
            raise


def expired(
    kept: Sequence[Kept],
    *,
    now: float,
    max_seconds: float | None = None,
    max_bytes: float | None = None,
) -> list[Kept]:
    """Which results go, of `kept` in order of use: those unused for `max_seconds`, then the least
    recently used until the rest holds at most `max_bytes`.
    """
    left = sum(result.bytes for result in kept)
    gone = []
    for result in kept:
        too_old = max_seconds is not None and now - result.used > max_seconds
        if too_old or (max_bytes is not None and left > max_bytes):
            gone.append(result)
            left -= result.bytes
    return gone


def project_store() -> Store:
    """The store of the project that the working directory belongs to; HNM_STORE names another,
    relative to the project's home.

    Raises:
        FolderError: HNM_STORE names a folder that holds other things, or that cannot be made.
    """
    if named := os.environ.get("HNM_STORE"):
        return Store(marked_folder(project_home() / named, "store", named_by="HNM_STORE"))
    folder = project_home() / ".hnm" / "store"
    return Store(
        marked_folder(folder, "store", named_by="the store", adopts=not folder.is_symlink())
    )


def project_root() -> Path:
    """The folder of the project that the working directory belongs to: the nearest one upwards with
    a params.yaml and a dvc.yaml.

    `cv` and `studies/NAME` have a dvc.yaml alone, and belong to the project above. In the copy in
    which `dvc exp run --temp` and `--queue` run it is the copy. Outside of any project it is
    DVC_ROOT, and else the working directory.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    return Path(os.environ.get("DVC_ROOT") or here)


def project_home() -> Path:
    """Where a project keeps what no copy of it may have of its own: store, spool, ledgers of cost
    and of test openings, runs of MLflow.

    It is the project's root, or for a copy that DVC has made for an experiment (a clone in
    `.dvc/tmp/exps`, thrown away when it has ended) the root of the project that was copied.
    DVC_ROOT does not tell it: where DVC's root lies above the project's, it names the former.
    """
    root = project_root()
    clone = _above(root, ".git")
    if clone is None or (".dvc", "tmp", "exps") not in zip(
        clone.parts, clone.parts[1:], clone.parts[2:], strict=False
    ):
        return root
    original = _above(
        next(folder for folder in clone.parents if folder.name == ".dvc").parent, ".git"
    )
    return root if original is None else original / root.relative_to(clone)


def project_file(path: Path) -> Path:
    """`path`, or where an experiment's copy of the project lacks it, as git ignores it, the same
    file of the project itself.
    """
    if os.path.lexists(path):
        return path
    root, home = project_root(), project_home()
    there = Path.cwd() / path
    return home / there.relative_to(root) if root != home and there.is_relative_to(root) else path


def _above(folder: Path, name: str) -> Path | None:
    """The nearest of `folder` and the folders above it in which something of this name lies."""
    return next((above for above in (folder, *folder.parents) if (above / name).exists()), None)
