"""The outputs of stages as DVC keeps them, believed only as far as their bytes say so.

dvc.lock, DVC's cache and its remotes may be a stranger's: a cache is filled by whoever may push,
and DVC trusts an object's name. So an md5 and a name are checked before they become a path, a
folder's listing is hashed before it is read, and no file is handed out whose bytes are not those of
its md5.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hnm.errors import TrackingError
from hnm.files import TEMPORARY, Refuse, parse_json, read_bounded

MOST_LISTING_BYTES = 256 << 20
"""Of a folder's listing; a million files take less than half."""
MOST_NAME = 2048
"""Characters of a path in the repository."""
_NEVER = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what is no text at all."""
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


class AbsentError(TrackingError):
    """A version of an output is neither in the workspace nor in DVC's cache."""


class ContentError(TrackingError):
    """An object of the cache is not what its name says, or lists what it may not."""


def is_md5(value: object, *, of_file: bool = False) -> bool:
    """Whether `value` is an md5 as DVC writes it: 32 hexadecimal digits, with `.dir` at the end for
    a folder's listing.
    """
    return (
        isinstance(value, str)
        and _MD5.fullmatch(value) is not None
        and not (of_file and value.endswith(".dir"))
    )


def is_line(text: object) -> bool:
    """Whether `text` is text without control characters, which can be printed and be a name."""
    return (
        isinstance(text, str)
        and bool(text)
        and len(text) <= MOST_NAME
        and _NEVER.search(text) is None
    )


def is_inside(name: object) -> bool:
    """Whether `name` is a relative path in DVC's spelling that leads nowhere but down."""
    if not isinstance(name, str) or not is_line(name) or "\\" in name:
        return False
    return all(
        part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/")
    )


def md5_of(path: Path) -> str:
    """DVC's md5 of a file's bytes, or of a folder's listing (`….dir`).

    Raises:
        ContentError: it is neither; a named pipe is not waited for.
    """
    if path.is_dir():
        return folder_md5({name: md5_of(file) for name, file in files_in(path).items()})
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ContentError(f"{path} is no regular file; delete it, then dvc checkout")
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their name inside it, as DVC lists them: without the temporary ones
    that a kill has left (.dvcignore).
    """
    return {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(TEMPORARY)
    }


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's md5 of a folder from its files' md5 by relative path."""
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return (
        hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        + ".dir"
    )


def stored_object(cache: Path, md5: str) -> Path:
    """Where DVC's cache keeps the object of `md5`, which may be anyone's text.

    Raises:
        ContentError: it is no md5, so that the path could lead anywhere.
    """
    if not is_md5(md5):
        raise ContentError(
            f"{md5!r} is no md5 of DVC's; check out a dvc.lock that DVC has written, or run dvc"
            " repro"
        )
    return cache / md5[:2] / md5[2:]


def listing(cache: Path, md5: str) -> dict[str, str]:
    """The files of a folder, name -> md5, from its listing in the cache; this is the one place that
    reads a listing.

    Raises:
        ContentError: its bytes have another md5, or it names a file twice, outside of the folder,
        or by what is no md5. TrackingError: it is not there.
    """
    path = stored_object(cache, md5)
    if not path.exists():
        raise AbsentError(
            f"the listing of a folder (md5 {md5}) is not in DVC's cache; run dvc pull"
        )
    cure = "; delete it, then dvc pull or dvc repro"
    content = read_bounded(path, ContentError, what=str(path), cure=cure, most=MOST_LISTING_BYTES)
    md5_here = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if f"{md5_here}.dir" != md5:
        raise ContentError(f"{path} is damaged: its bytes have md5 {md5_here}{cure}")
    entries = parse_json(content, ContentError, what=str(path), cure=cure)
    return _checked(
        entries,
        f"{path} is no listing of DVC's",
        "; do not trust the dvc.lock that names it: check out another, or run dvc repro",
    )


def _checked(entries: Any, what: str, cure: str) -> dict[str, str]:
    if not isinstance(entries, list):
        raise ContentError(f"{what}: it holds no list{cure}")
    files: dict[str, str] = {}
    for entry in entries:
        name, md5 = (
            (entry.get("relpath"), entry.get("md5")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not is_inside(name):
            raise ContentError(f"{what}: {str(name)[:200]!r} names no file inside the folder{cure}")
        if not isinstance(md5, str) or not is_md5(md5, of_file=True):
            raise ContentError(
                f"{what}: {name} has the md5 {str(md5)[:200]!r}, which is none{cure}"
            )
        if name in files:
            raise ContentError(f"{what}: it names {name} twice{cure}")
        files[name] = md5
    for name in files:
        above = name.rpartition("/")[0]
        while above:
            if above in files:
                raise ContentError(f"{what}: {above} is a file and a folder{cure}")
            above = above.rpartition("/")[0]
    return files


def objects_of(cache: Path, md5: str) -> Iterator[Path]:
    """The cache's objects of one version, of a folder the listing and its files, as far as they are
    there; those of a damaged listing are unknown.

    Raises:
        ContentError: the listing is whole and names what it may not.
    """
    kept = stored_object(cache, md5)
    if not kept.is_file():
        return
    yield kept
    if md5.endswith(".dir") and f"{md5_of(kept)}.dir" == md5:
        yield from (
            file
            for inner in listing(cache, md5).values()
            if (file := stored_object(cache, inner)).is_file()
        )


def in_cache(cache: Path, md5: str) -> bool:
    """Whether the cache has all objects of a version; of a folder the listing is hashed, and its
    files are not.

    Raises:
        ContentError: the listing is damaged, or names what it may not.
    """
    kept = stored_object(cache, md5)
    return kept.is_file() and (
        not md5.endswith(".dir")
        or all(stored_object(cache, inner).is_file() for inner in listing(cache, md5).values())
    )


@contextlib.contextmanager
def taking_apart(what: str, kind: Refuse = TrackingError) -> Iterator[None]:
    """Inside the block the content of `what`, a file that a stage has written, here or elsewhere,
    is taken apart; where it does not fit, that is one error.
    """
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        NotImplementedError,
        OSError,
    ) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # pyarrow's have no number: they speak of the content
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(
            f"{what} is not what a stage of this version writes ({reason[:200]}); run dvc repro"
        ) from None


class Outputs:
    """Outputs by path and md5: from the workspace, or else from DVC's cache."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def files(self, path: str, md5: str) -> dict[str, Path]:
        """The files of an output by their name inside it, or by its own name where it is one file;
        each was hashed.

        Raises:
            TrackingError: neither the workspace nor the cache holds this version, or what the cache
            holds is damaged.
        """
        here = self._place(path)
        if self._is_here(path, md5):
            return files_in(here) if here.is_dir() else {here.name: here}
        wanted = self._listed(path, md5)
        files = {name: stored_object(self.cache, inner) for name, inner in wanted.items()}
        if not all(file.is_file() for file in files.values()):
            raise self._absent(path, md5)
        for name, file in files.items():
            if (md5_here := md5_of(file)) != wanted[name]:
                raise ContentError(
                    f"{path}: {file} in DVC's cache is damaged, its bytes have md5 {md5_here};"
                    " delete it, then dvc pull or dvc repro"
                )
        return files

    def digests(self, path: str, md5: str) -> dict[str, str]:
        """The md5 of each of an output's files by its name; the files of the cache are neither
        needed nor hashed.
        """
        here = self._place(path)
        if self._is_here(path, md5):
            return (
                {name: md5_of(file) for name, file in files_in(here).items()}
                if here.is_dir()
                else {here.name: md5}
            )
        return self._listed(path, md5)

    def _listed(self, path: str, md5: str) -> dict[str, str]:
        if not md5.endswith(".dir"):
            return {Path(path).name: md5}
        if not stored_object(self.cache, md5).exists():
            raise self._absent(path, md5)
        return listing(self.cache, md5)

    def _is_here(self, path: str, md5: str) -> bool:
        here = self._place(path)
        try:
            return here.exists() and md5_of(here) == md5
        except (ContentError, OSError):  # what cannot be read is not this version
            return False

    def _place(self, path: str) -> Path:
        if not is_inside(path):
            raise ContentError(
                f"{path!r} leads out of the repository; check out a dvc.lock that DVC has written,"
                " or run dvc repro"
            )
        return self._root / path

    def _absent(self, path: str, md5: str) -> AbsentError:
        return AbsentError(
            f"{path} (md5 {md5}) is neither in the workspace nor in DVC's cache; run dvc pull, then"
            " hnm track sync"
        )

    @functools.cached_property
    def cache(self) -> Path:
        """DVC's cache: the object of an md5 is the file `ab/cdef…`.

        Raises:
            TrackingError: DVC cannot say where it is.
        """
        return self._root / dvc_says(self._root, "cache", "dir").strip() / "files" / "md5"


def dvc_says(root: Path, *arguments: str) -> str:
    """What `dvc <arguments>` prints in the repository `root`.

    Raises:
        TrackingError: it fails; with its own reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise TrackingError(
            f"DVC cannot be asked: {reason}; mend that, dvc {' '.join(arguments)} tells more"
        )
    return done.stdout
