"""The outputs of stages and DVC's cache, trusted only as far as their bytes say so.

dvc.lock, DVC's cache and its remotes may be a stranger's: a cache is filled by whoever may push,
and DVC trusts an object's name. So an md5 and a name are checked before they become a path, a
folder's listing is hashed before it is read, and no file is handed out whose bytes have another
md5.
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
from pathlib import Path, PurePosixPath
from typing import Any

from hnm.errors import TrackingError
from hnm.files import TEMPORARY, Refuse, parse_json, read_bounded

MOST_LISTING_BYTES = 256 << 20
"""Most bytes of a folder's listing; a million files take less than half."""
MOST_NAME = 2048
"""Most characters of a path in the repository."""
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


class Cache:
    """DVC's cache: the object of an md5 is the file `ab/cdef…`; that of a folder is its listing.

    An md5 may be anyone's text. Each method raises `ContentError` for one that is none, as the path
    could lead anywhere.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, root: Path) -> "Cache":
        """The cache of the repository `root`.

        Raises:
            TrackingError: DVC cannot say where it is.
        """
        return cls(root / dvc_says(root, "cache", "dir").strip() / "files" / "md5")

    def place(self, md5: str) -> Path:
        """The object's file, whether it is there or not."""
        if not is_md5(md5):
            raise ContentError(
                f"{md5!r} is no md5 of DVC's; check out a dvc.lock that DVC has written, or run dvc"
                " repro"
            )
        return self._folder / md5[:2] / md5[2:]

    def objects(self) -> Iterator[Path]:
        """The files of all objects."""
        return (path for path in self._folder.glob("??/*") if path.is_file())

    def is_damaged(self, path: Path) -> str:
        """The md5 of an object's bytes where its name says another; empty where it does not."""
        md5 = md5_of(path)
        return "" if f"{path.parent.name}{path.name}".removesuffix(".dir") == md5 else md5

    def listing(self, md5: str) -> dict[str, str]:
        """The files of a folder, name -> md5; this is the one place that reads a listing.

        Raises:
            ContentError: its bytes have another md5, or it names a file twice, outside of the
                folder, or by what is no md5.
            AbsentError: it is not there.
        """
        path = self.place(md5)
        if not path.exists():
            raise AbsentError(
                f"the listing of a folder (md5 {md5}) is not in DVC's cache; run dvc pull"
            )
        what = str(path)
        cure = "; delete it, then dvc pull or dvc repro"
        content = read_bounded(path, ContentError, what=what, cure=cure, most=MOST_LISTING_BYTES)
        md5_here = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if f"{md5_here}.dir" != md5:
            raise ContentError(f"{path} is damaged: its bytes have md5 {md5_here}{cure}")
        entries = parse_json(content, ContentError, what=what, cure=cure)
        fault = _fault_of_listing(entries)
        if fault:
            raise ContentError(
                f"{path} is no listing of DVC's: {fault}; do not trust the dvc.lock that names it:"
                " check out another, or run dvc repro"
            )
        return {entry["relpath"]: entry["md5"] for entry in entries}

    def objects_of(self, md5: str) -> Iterator[Path]:
        """The objects of one version, of a folder the listing and its files, as far as they are
        there; those of a damaged listing are unknown.

        Raises:
            ContentError: the listing is whole and names what it may not.
        """
        path = self.place(md5)
        if not path.is_file():
            return
        yield path
        if md5.endswith(".dir") and f"{md5_of(path)}.dir" == md5:
            places = map(self.place, self.listing(md5).values())
            yield from (place for place in places if place.is_file())

    def holds(self, md5: str) -> bool:
        """Whether all objects of a version are there; of a folder the listing is hashed, and its
        files are not.

        Raises:
            ContentError: the listing is damaged, or names what it may not.
        """
        if not self.place(md5).is_file():
            return False
        inner = self.listing(md5).values() if md5.endswith(".dir") else ()
        return all(self.place(file).is_file() for file in inner)


def _fault_of_listing(entries: Any) -> str:
    """What is wrong with the content of a listing; empty where nothing is."""
    if not isinstance(entries, list):
        return "it holds no list"
    names: set[str] = set()
    for entry in entries:
        name = entry.get("relpath") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_inside(name):
            return f"{str(name)[:200]!r} names no file inside the folder"
        if not is_md5(entry.get("md5"), of_file=True):
            return f"{name} has the md5 {str(entry.get('md5'))[:200]!r}, which is none"
        if name in names:
            return f"it names {name} twice"
        names.add(name)
    for name in sorted(names):
        for above in map(str, PurePosixPath(name).parents):
            if above in names:
                return f"{above} is a file and a folder"
    return ""


@contextlib.contextmanager
def taking_apart(what: str, kind: Refuse = TrackingError) -> Iterator[None]:
    """Inside the block the content of `what` is taken apart, a file that a stage has written, here
    or elsewhere. Content that does not fit is one error of `kind`.
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
        """The files of an output by their name inside it, or by the output's name where it is one
        file; each was hashed.

        Raises:
            TrackingError: neither the workspace nor the cache holds this version, or what the cache
                holds is damaged.
        """
        place = self._place_of(path, md5)
        if place is not None:
            return files_in(place) if place.is_dir() else {place.name: place}
        digests = self._cached_digests(path, md5)
        files = {name: self.cache.place(digest) for name, digest in digests.items()}
        if not all(file.is_file() for file in files.values()):
            raise _absent(path, md5)
        for name, file in files.items():
            if (md5_here := md5_of(file)) != digests[name]:
                raise ContentError(
                    f"{path}: {file} in DVC's cache is damaged, its bytes have md5 {md5_here};"
                    " delete it, then dvc pull or dvc repro"
                )
        return files

    def digests(self, path: str, md5: str) -> dict[str, str]:
        """The md5 of each of an output's files by its name; the files of the cache are neither
        needed nor hashed.
        """
        place = self._place_of(path, md5)
        if place is not None and place.is_dir():
            return {name: md5_of(file) for name, file in files_in(place).items()}
        return self._cached_digests(path, md5)

    def _cached_digests(self, path: str, md5: str) -> dict[str, str]:
        if not md5.endswith(".dir"):
            return {Path(path).name: md5}
        try:
            return self.cache.listing(md5)
        except AbsentError:
            raise _absent(path, md5) from None

    def _place_of(self, path: str, md5: str) -> Path | None:
        """The output's place in the workspace, where that holds this version."""
        if not is_inside(path):
            raise ContentError(
                f"{path!r} leads out of the repository; check out a dvc.lock that DVC has written,"
                " or run dvc repro"
            )
        place = self._root / path
        try:
            return place if place.exists() and md5_of(place) == md5 else None
        except (ContentError, OSError):  # what cannot be read is not this version
            return None

    @functools.cached_property
    def cache(self) -> Cache:
        """DVC's cache; the workspace may do without."""
        return Cache.of(self._root)


def _absent(path: str, md5: str) -> AbsentError:
    return AbsentError(
        f"{path} (md5 {md5}) is neither in the workspace nor in DVC's cache; run dvc pull, then"
        " hnm track sync"
    )


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
