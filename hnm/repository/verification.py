"""Whether workspace and cache hold what dvc.lock says: every byte is hashed.

DVC takes a read-only cache object for what its name says, and a file for unchanged while size and
time are: a tampered or truncated one is restored, and pushed, without a word.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hnm.errors import TrackingError
from hnm.repository.outputs import Cache, ContentError, is_inside, md5_of
from hnm.repository.stages import locked_stages, outs_of


@dataclass(frozen=True)
class Verified:
    """What was hashed, and what of it is not what it should be."""

    objects: int
    """Cache objects that were hashed."""
    paths: int
    """Outputs and dependencies in the workspace that were hashed."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Cache object -> the md5 of its bytes, where its name says another."""
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path in the workspace -> (md5 in dvc.lock, its md5)."""
    missing: dict[str, str] = field(default_factory=dict)
    """Path that is not in the workspace -> its md5 in dvc.lock."""


def verify(root: Path, *, whole_cache: bool) -> Verified:
    """Hashes the data that dvc.lock names, in the workspace and in DVC's cache; with `whole_cache`,
    every object of the cache.

    Dependencies outside of the repository are left to DVC.

    Raises:
        TrackingError: there is no dvc.lock, it is not what DVC writes, or the whole listing of a
            folder names what it may not.
    """
    states = locked_stages(root)
    if not states:
        raise TrackingError(
            f"{root / 'dvc.lock'} holds no stage; run dvc repro, or check out a version that has it"
        )
    versions = outs_of(states)
    for state in states.values():
        versions |= state.data
    versions = {path: md5 for path, md5 in versions.items() if is_inside(path)}
    cache = Cache.of(root)
    objects = {path for md5 in versions.values() for path in cache.objects_of(md5)}
    if whole_cache:
        objects |= set(cache.objects())
    damaged = {path: md5 for path in sorted(objects) if (md5 := cache.is_damaged(path))}
    changed: dict[str, tuple[str, str]] = {}
    missing: dict[str, str] = {}
    for path, md5 in versions.items():
        if not (root / path).exists():
            missing[path] = md5
        elif (md5_here := _md5_here(root / path)) != md5:
            changed[path] = (md5, md5_here)
    return Verified(len(objects), len(versions) - len(missing), damaged, changed, missing)


def remove_damaged(root: Path, damaged: Iterable[Path]) -> list[Path]:
    """Removes damaged objects of DVC's cache, and outputs of dvc.lock that are the same file by
    another name; returns what went.
    """
    gone = sorted(damaged)
    inodes = {_inode(path) for path in gone}
    for out in sorted(outs_of(locked_stages(root))):
        place = root / out
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        gone += [file for file in files if file.is_file() and _inode(file) in inodes]
    for path in gone:
        path.unlink()
    return gone


def _inode(path: Path) -> tuple[int, int]:
    """Device and number of a file, which its names share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _md5_here(path: Path) -> str:
    try:
        return md5_of(path)
    except ContentError:
        return "unknown (no regular file)"
