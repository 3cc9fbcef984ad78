"""Whether workspace and cache hold what dvc.lock says: every byte is hashed.

DVC takes a read-only cache object for what its name says, and a file for unchanged while size and
time are: a tampered or truncated one is restored, and pushed, without a word.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hnm.errors import TrackingError
from hnm.repository.outputs import ContentError, Outputs, is_inside, md5_of, objects_of
from hnm.repository.stages import locked_stages


@dataclass(frozen=True)
class Verified:
    """What was hashed, and what of it is not what it should be."""

    objects: int
    """Cache objects that were hashed."""
    paths: int
    """Outputs and dependencies in the workspace that were hashed."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Cache object -> the md5 of its bytes, which is not its name."""
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
    wanted = {
        path: md5
        for state in states.values()
        for path, md5 in (state.data | state.outs).items()
        if is_inside(path)
    }
    cache = Outputs(root).cache
    everything = (
        (path for path in cache.glob("??/*") if path.is_file()) if whole_cache else iter(())
    )
    objects = sorted(
        {kept for md5 in wanted.values() for kept in objects_of(cache, md5)} | set(everything)
    )
    damaged = {
        kept: md5
        for kept in objects
        if (md5 := md5_of(kept)) != f"{kept.parent.name}{kept.name}".removesuffix(".dir")
    }
    here = {path: md5 for path, md5 in wanted.items() if (root / path).exists()}
    changed = {
        path: (md5, md5_here)
        for path, md5 in here.items()
        if (md5_here := _md5_here(root / path)) != md5
    }
    return Verified(
        len(objects),
        len(here),
        damaged,
        changed,
        {path: md5 for path, md5 in wanted.items() if path not in here},
    )


def remove_damaged(root: Path, damaged: Iterable[Path]) -> list[Path]:
    """Removes damaged objects of DVC's cache, and outputs of dvc.lock that are the same file by
    another name; returns what went.
    """
    gone = sorted(damaged)
    status = [path.stat() for path in gone]
    same = {(own.st_dev, own.st_ino) for own in status}
    for out in sorted({path for state in locked_stages(root).values() for path in state.outs}):
        here = root / out
        for file in sorted(here.rglob("*")) if here.is_dir() else [here]:
            if file.is_file() and ((own := file.stat()).st_dev, own.st_ino) in same:
                gone.append(file)
    for path in gone:
        path.unlink()
    return gone


def _md5_here(path: Path) -> str:
    try:
        return md5_of(path)
    except ContentError:
        return "unknown (no regular file)"
