"""Results by their content's causes, so that nothing is computed twice.

A result of one slide lies under a key of everything that can change it: the slide's fingerprint,
whole params sections, the encoder's digest, the code, the libraries and the machine
(`hnm.causes.keys_of` makes every key). It lies outside DVC's outputs, which DVC deletes before a
stage runs; a stage links it into its output. So a killed stage resumes, one new slide costs one
slide, and changing a param back costs nothing.

`.hnm-sums` records the digest of each result, so that damage is noticed before a result is used
again; a damaged one is removed and made anew. What a living process uses is not removed
(`hnm.leases`). `hnm.store_keeping` lists, verifies and removes results.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hnm.errors import HnmError, MachineError, StoreError
from hnm.failpoints import failpoint
from hnm.files import digest_of, parse_json, read_bounded, temporary_beside, whole, write_json
from hnm.folders import marked_folder
from hnm.leases import lease_of
from hnm.project import project_home

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
RECORDS = ".hnm-sums"
_MOST_RECORD_BYTES = 1 << 12
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

Check = Callable[[Path], object]
"""Opens a result; an `HnmError` says that it is none."""


class Store:
    """A folder of results, each one file (or folder) under `kind/ab/abcdef…`; a file that is there
    is complete.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._to_make: set[Path] = set()

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Returns where the result of `key` lies, or will lie."""
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def record_of(self, result: Path) -> Path:
        """Returns where the record of a result lies, or will lie."""
        return self.root / RECORDS / self._inside(result)

    def use(self, results: Iterable[Path]) -> None:
        """Says that this process uses these results, or will make them: nobody removes them while
        it lives.
        """
        names = [self._inside(result).as_posix() for result in results]
        self.root.mkdir(parents=True, exist_ok=True)
        if names and (lease := lease_of(self.root)):
            lease.name(names)

    def holds(self, result: Path, check: Check | None = None, *, quick: bool = False) -> bool:
        """Returns whether the result is there and undamaged; nobody removes it from now on. A
        damaged one is removed, to be made anew.

        Args:
            result: as `path` gave it.
            check: is asked where there is no record of the digest yet.
            quick: a file whose size and time are as recorded is not read; for packs, whose bytes
                are many.

        Raises:
            StoreError: it is damaged and may not be removed.
            OSError: it is there and cannot be read; that is no damage.
        """
        self.use([result])
        if error := self.damage(result, check, quick=quick):
            logging.getLogger(__name__).warning(
                "the store holds a damaged result, which is removed and made again: %s", error
            )
            self._discard(result, error)
        elif result.exists():
            _mark_used(result)
            return True
        self._to_make.add(result)
        return False

    def folder(
        self, kind: str, key: str, make: Callable[[Path], None], check: Check | None = None
    ) -> Path:
        """Returns the folder that `make` fills, made anew only where there is none of this key; a
        process that makes the same at once may be first.
        """
        result = self.path(kind, key, "")
        if self.holds(result, check):
            return result
        result.parent.mkdir(parents=True, exist_ok=True)
        beside = temporary_beside(result)
        beside.mkdir()
        try:
            filled = beside / "made"
            filled.mkdir()
            make(filled)
            failpoint("store.folder", result)
            try:
                filled.rename(result)
            except OSError:
                if not result.is_dir():
                    raise
            else:
                self._record(result)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return result

    def link(self, result: Path, target: Path) -> None:
        """Makes the result appear as `target`: a hard link, or a copy where the file system has
        none.

        Raises:
            StoreError: the result is gone.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if not result.exists():
            raise StoreError(
                f"{result} is gone from the store while this process used it; give the same"
                " command again"
            )
        if result in self._to_make:
            self._record(result)
            self._to_make.discard(result)
        try:
            failpoint("store.link", target)
            os.link(result, target)
        except OSError:
            with whole(target) as temporary:
                shutil.copyfile(result, temporary)

    def digest(self, result: Path) -> str:
        """Returns the SHA-256 of a result that is one file: by its record, or by its bytes where
        another has written them since or there is no record.
        """
        record = _read_record(self.record_of(result))
        if record and record.items() >= _size_and_time(result).items():
            return str(record["sha256"])
        return digest_of(result)

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
        self.record_of(path).unlink(missing_ok=True)

    def damage(
        self, result: Path, check: Check | None = None, *, quick: bool = False
    ) -> HnmError | None:
        """Returns what is wrong with a result, by its record, or by `check` where it has none yet;
        None where nothing is wrong, or where there is no result. `quick` is that of `holds`.
        """
        try:
            if not (result.is_file() or result.is_dir()) and os.path.lexists(result):
                return StoreError(f"{result} is neither a file nor a folder")
            record = _read_record(self.record_of(result))
            size_and_time = _size_and_time(result)
            if quick and size_and_time and record.items() >= size_and_time.items():
                return None
            digest = digest_of(result)
        except FileNotFoundError:
            return None  # there is none
        if not record:
            if error := refusal(result, check):
                return error
        elif record["sha256"] != digest:
            return StoreError(f"the bytes of {result} are not those that were written")
        if record != (renewed := {"sha256": digest, **size_and_time}):
            _write_record(self.record_of(result), renewed)
        return None

    def _discard(self, result: Path, error: HnmError) -> None:
        try:
            self.remove(result)
        except OSError as refused:
            raise StoreError(
                f"{error}; it cannot be removed ({refused.strerror}): have its owner give `hnm"
                " store verify --remove`, or name another store by HNM_STORE"
            ) from None

    def _record(self, result: Path) -> None:
        # another process may find it damaged, and remove it
        with contextlib.suppress(FileNotFoundError):
            record = {"sha256": digest_of(result), **_size_and_time(result)}
            _write_record(self.record_of(result), record)

    def _inside(self, path: Path) -> Path:
        return path.absolute().relative_to(self.root.absolute())


def project_store() -> Store:
    """Returns the store of the project that the working directory belongs to; HNM_STORE names
    another, relative to the project's home.

    Raises:
        FolderError: HNM_STORE names a folder that holds other things, or that cannot be made.
    """
    if named := os.environ.get("HNM_STORE"):
        return Store(marked_folder(project_home() / named, "store", named_by="HNM_STORE"))
    folder = project_home() / ".hnm" / "store"
    return Store(
        marked_folder(folder, "store", named_by="the store", adopts=not folder.is_symlink())
    )


def refusal(result: Path, check: Check | None) -> HnmError | None:
    """Returns the error by which `check` refuses a result; None where it does not."""
    try:
        if check:
            check(result)
    except MachineError:
        raise
    except HnmError as error:
        return error
    return None


def _mark_used(result: Path) -> None:
    """Moves the time of status of the result or a file in it, and no other time; nothing where the
    store is another user's.
    """
    file = result
    if not result.is_file():
        file = next((inner for inner in result.rglob("*") if inner.is_file()), result)
    with contextlib.suppress(OSError):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _size_and_time(result: Path) -> dict[str, int]:
    """Returns size and time of a file; a folder has none that tell of its files."""
    status = result.stat()
    if not stat.S_ISREG(status.st_mode):
        return {}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_record(path: Path) -> dict[str, Any]:
    """Returns a record; an empty one where there is none that can be read."""
    try:
        content = read_bounded(path, HnmError, what=str(path), most=_MOST_RECORD_BYTES)
        record = parse_json(content, HnmError, what=str(path))
    except HnmError:
        return {}
    is_record = isinstance(record, dict) and isinstance(record.get("sha256"), str)
    return record if is_record else {}


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    try:
        write_json(record, path)
    except OSError as error:
        # another user's store is used without records
        if error.errno not in _NOT_WRITABLE:
            raise
