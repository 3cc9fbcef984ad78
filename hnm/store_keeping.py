"""The keeping of a store: its results are listed, verified, and removed when they are old.

Only what `KINDS` names, under names of this program's form, is ever counted, believed or removed;
no link is followed out of the store.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hnm.errors import HnmError
from hnm.files import TEMPORARY
from hnm.leases import InUse, living, locked
from hnm.store import KINDS, RECORDS, Check, Store, refusal

DAY = 24 * 3600.0
"""Seconds."""
_RESULT = re.compile(r"[0-9a-f]{64}(\.\w+)?")
_SHARD = re.compile(r"[0-9a-f]{2}")
_UNSEEN = (PermissionError, FileNotFoundError)
"""Errors of a look at another user's entry, or at one that goes meanwhile."""


@dataclass(frozen=True)
class StoredResult:
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


@dataclass(frozen=True)
class Limits:
    """How long and how much a store keeps; None is without limit."""

    seconds: float | None = None
    """Results that were not used for longer go."""
    bytes: float | None = None
    """The least recently used go, until so much is left."""


@dataclass(frozen=True)
class Collection:
    """The results and leftovers that went, or would go, and the results that stay."""

    gone: Sequence[StoredResult]
    leftovers: Sequence[Path]
    stay: Sequence[StoredResult]
    in_use: int
    """Results that would go too, but that a process uses."""


def stored_results(store: Store) -> list[StoredResult]:
    """Returns all results, the least recently used first; one that vanishes meanwhile is none."""
    results = (_described(kind, path) for kind, path in _results(store.root))
    return sorted(
        (result for result in results if result is not None),
        key=lambda result: (result.used, result.path),
    )


def expired(results: Sequence[StoredResult], limits: Limits, *, now: float) -> list[StoredResult]:
    """Returns those of `results`, which stand in order of use, that go: those unused for too long,
    then the least recently used until the rest is small enough.
    """
    left = sum(result.bytes for result in results)
    gone = []
    for result in results:
        is_old = limits.seconds is not None and now - result.used > limits.seconds
        if is_old or (limits.bytes is not None and left > limits.bytes):
            gone.append(result)
            left -= result.bytes
    return gone


def collect(store: Store, limits: Limits, *, dry_run: bool, say: Callable[..., None]) -> Collection:
    """Removes old results and what killed writes left, but nothing that a living process uses.

    Args:
        store: the store.
        limits: which results go.
        dry_run: nothing is removed.
        say: gets a line for each path, and `err=True` with one that cannot be removed.
    """
    now = time.time()
    results = stored_results(store)
    old = expired(results, limits, now=now)
    busy = in_use(store, old)
    removals: dict[Path, Callable[[], bool | None]] = {
        result.path: partial(remove_unused, store, result)
        for result in old
        if result.path not in busy
    }
    left = leftovers(store, before=now - DAY)
    removals |= {path: partial(store.remove, path) for path in left}
    went = {path for path, remove in removals.items() if _goes(path, remove, dry_run, say)}
    return Collection(
        [result for result in results if result.path in went],
        [path for path in left if path in went],
        [result for result in results if result.path not in went],
        len(busy),
    )


def _goes(
    path: Path, remove: Callable[[], bool | None], dry_run: bool, say: Callable[..., None]
) -> bool:
    """Returns whether `remove` could remove `path`, or would have to, and says so."""
    if dry_run:
        say(f"would remove {path}")
        return True
    try:
        if remove() is False:
            return False  # a process has begun to use it
    except OSError as error:
        say(f"cannot remove {path}: {error.strerror}", err=True)
        return False
    say(f"removed {path}")
    return True


def leftovers(store: Store, before: float) -> list[Path]:
    """Returns what killed writes left, where nothing was written since `before`, in seconds of the
    epoch, nor since a living process began to use the store.

    These are temporary files and folders, and records of results that are gone.
    """
    with locked(store.root, alone=True):
        before = min(before, living(store.root).since)
    records = store.root / RECORDS
    places = [store.root] if records.is_symlink() else [store.root, records]
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
        for _, path in _results(place)
        if not os.path.lexists(store.root / path.relative_to(place))
    ]
    return sorted(path for path in left if _last_written(path) < before)


def remove_unused(store: Store, result: StoredResult) -> bool:
    """Removes a result, but not one that a living process uses, or that has been used since it was
    listed; returns whether it is gone.
    """
    with locked(store.root, alone=True):
        if _is_in_use(store, result, living(store.root)):
            return False
        store.remove(result.path)
        return True


def in_use(store: Store, results: Iterable[StoredResult]) -> set[Path]:
    """Returns the paths of those of `results` that a living process uses."""
    with locked(store.root, alone=True):
        used = living(store.root)
    return {result.path for result in results if _is_in_use(store, result, used)}


def damaged_results(
    store: Store, checks: Mapping[str, Check], *, remove: bool, say: Callable[[object], None]
) -> list[Path]:
    """Returns the results that are not what was written, or that the check of their kind refuses;
    each is named and, where `remove` says so, removed.
    """
    damaged = []
    for result in stored_results(store):
        if error := _damage(store, result, checks.get(result.kind)):
            say(error)
            damaged.append(result.path)
            if remove:
                store.remove(result.path)
    return damaged


def _damage(store: Store, result: StoredResult, check: Check | None) -> HnmError | None:
    error = refusal(result.path, check) or store.damage(result.path)
    return error if result.path.exists() else None


def _is_in_use(store: Store, result: StoredResult, used: InUse) -> bool:
    now = _described(result.kind, result.path)
    if now is None or now.used > result.used or now.used >= used.since:
        return now is not None
    return result.path.relative_to(store.root).as_posix() in used.names


def _shards(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields kind and folder of each shard; none that a link leads to."""
    for kind in KINDS:
        if any(
            folder.is_symlink() for folder in (root / kind, (root / kind).parent) if folder != root
        ):
            continue
        for shard in _entries(root / kind):
            if _SHARD.fullmatch(shard.name) and not shard.is_symlink() and shard.is_dir():
                yield kind, shard


def _results(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields kind and path of what has the name and the place of a result, or of the record of
    one.
    """
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


def _described(kind: str, path: Path) -> StoredResult | None:
    """Returns a result; None where it is gone, or no file or folder as its kind is."""
    try:
        status = path.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        if not (stat.S_ISREG(status.st_mode) if KINDS[kind] else is_folder):
            return None
        inner = [file.lstat() for file in path.rglob("*")] if is_folder else []
    except _UNSEEN:
        return None
    files = [file for file in (status, *inner) if stat.S_ISREG(file.st_mode)] or [status]
    return StoredResult(
        kind,
        path,
        sum(file.st_size for file in files),
        max(file.st_ctime for file in files),
        all(file.st_nlink > 1 for file in files),
    )


def _last_written(path: Path) -> float:
    """Returns when a file, or anything in a folder, was last written, in seconds of the epoch; now,
    where something of it goes while one looks.
    """
    try:
        inner = path.rglob("*") if not path.is_symlink() and path.is_dir() else ()
        return max(float(entry.lstat().st_mtime) for entry in (path, *inner))
    except _UNSEEN:
        return time.time()
