"""Slides by URL: fetched whole into a cache of this machine, which never holds more than its limit.

OpenSlide reads files, and a slide's tiles are most of its bytes, so a slide is fetched as a whole.
A file in the cache is named by its URL, size and entity tag: what changed in the bucket is another
file. It goes when its tiles are cut, and before that where another slide needs its room, but never
while it is read. The cache is the folder HNM_SLIDE_CACHE, its limit HNM_SLIDE_CACHE_GB; with
HNM_SLIDE_CACHE_KEEP=1 slides stay until their room is needed.

The cache is a folder of its own with a mark, which no other user may write to. In it only names of
32 hexadecimal digits are counted, locked or removed. Its default lies in the folder for temporary
files and not in the user's cache folder: home folders are often small, and mounted by all machines
of a cluster, but each machine has a cache of its own.
"""

import errno
import fcntl
import os
import re
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hnm.errors import FolderError, MachineError, ParamsError, SlideError, error_of_machine
from hnm.failpoints import failpoint
from hnm.files import key_of
from hnm.folders import marked_folder
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.urls import WEB, checked_url, file_name, is_url, suffix_of
from hnm.slides.reading.web import refusal_of, web_bytes, web_version

OF_SEVERAL_FILES = frozenset({".mrxs", ".vms", ".vmu", ".dcm"})
DEFAULT_GB = 50.0
MOST_BYTES = 10**13
"""What no slide has; a server that states more does not stop the cohort."""
ROOM_PAUSE = 0.5
"""Seconds before looking for room again while every slide in the cache is being read."""
SLOW_SECONDS = 60.0
SLOW_BYTES = 300_000
"""A server that sends fewer bytes in `SLOW_SECONDS` is given up: 5 kB a second would take days for
a slide.
"""
CHUNK = 8 << 20
_OF_CACHE = re.compile(r"[0-9a-f]{32}(\.[A-Za-z0-9]{1,8})?")
_TAGS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime")
"""Where file systems of fsspec tell an entity tag, or the time of a change."""


@dataclass(frozen=True)
class Version:
    """What a URL holds now."""

    url: str
    size: int
    """Bytes."""
    etag: str
    """Entity tag, or else time of change; "" where the server tells neither."""

    @property
    def name(self) -> str:
        """The last part of the URL, without query: what messages may show."""
        return file_name(self.url)


def version_of(url: str) -> Version:
    """What `url` holds now, by a request that fetches no pixels.

    Raises:
        SlideError: it does not exist, or may not be fetched from there.
        StorageError: the server fails, which may pass.
        MachineError: this user has no right to it, or no credentials.
    """
    url = checked_url(url)
    name = file_name(url)
    if suffix_of(url).lower() in OF_SEVERAL_FILES:
        raise SlideError(
            f"{name} is one of several files of its slide, which a URL cannot name; mount its"
            " bucket and give a path"
        )
    if urlsplit(url).scheme in WEB:
        size, etag = web_version(url)
    else:
        files, path = _file_system(url)
        with _told(name):
            files.invalidate_cache()
            info: dict[str, Any] = files.info(path)
        size, etag = info.get("size"), next((str(info[tag]) for tag in _TAGS if info.get(tag)), "")
    if not size:
        raise SlideError(
            f"{name}: its server does not tell its size; fetch it yourself and give a path"
        )
    if size > MOST_BYTES:
        raise SlideError(f"{name}: its server states {size / 1e12:.0f} TB, which no slide has")
    return Version(url, int(size), etag)


@contextmanager
def fetched(source: str, *, stays: bool = False) -> Iterator[Path]:
    """The file of a path or URL on this machine; a URL's goes when the block ends and nobody else
    reads it.

    Args:
        stays: it is soon read again, so it goes only where the block fails or another slide needs
        its room.

    Raises:
        SlideError: it is not to be had; `StorageError` where that may pass.
        MachineError, FolderError, ParamsError: the cache cannot be used, or is not large enough.
    """
    if not is_url(source):
        yield Path(source)
        return
    keeps = _keeps()
    version = version_of(source)
    with _usable_cache() as cache:
        # without a tag nobody can tell whether a file of this size is still the same one, so none
        # is used again
        key = key_of(url=version.url, size=version.size, etag=version.etag or uuid.uuid4().hex)[:32]
        target = cache / f"{key}{suffix_of(version.url)}"
        lock = _open_lock(cache / f"{key}.lock")
    try:
        with _usable_cache():
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_there(target, version.size):
                    break
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_there(target, version.size):
                    _fetch(version, target)
                # sharing the lock again is not atomic: another may make room in between, so look
                # once more
            # the time of use alone: a reader takes another time of change for another slide
            os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        try:
            yield target
        except BaseException:
            stays = False
            raise
        finally:
            if not (keeps or (stays and version.etag)):
                _leave(target, lock)
    finally:
        os.close(lock)


def _fetch(version: Version, target: Path) -> None:
    """Brings a file into the cache, whole or not at all. The caller alone holds its lock."""
    part = target.with_suffix(".part")
    if os.path.lexists(target):
        target.unlink()  # a link, or of another size: whoever made it, it is not what was fetched
    _make_room(part, version.size)
    try:
        came = _bring(version, part)
        if came != version.size or (after := version_of(version.url)) != version:
            there = version.size if came != version.size else after.size
            raise StorageError(
                f"{version.name} changed while it was fetched: {came} bytes came, {there} are"
                " there now"
            )
        with _room(part.parent):
            failpoint("slide.renaming", target)
            part.replace(target)
    except BaseException:
        with _room(part.parent):
            part.unlink(missing_ok=True)
        raise


def _bring(version: Version, part: Path) -> int:
    """Writes the bytes of a file over the empty ones of `part`; returns their number. It ends as
    soon as more come than are stated.
    """
    came, started, before = 0, time.monotonic(), 0
    with part.open("r+b") as stream:
        for chunk in _bytes_of(version):
            came += len(chunk)
            if came > version.size:
                raise StorageError(
                    f"{version.name}: its server states {version.size} bytes but sends more; none"
                    " of them is used"
                )
            failpoint("slide.fetching", part)
            stream.write(chunk)
            if (now := time.monotonic()) - started >= SLOW_SECONDS:
                if came - before < SLOW_BYTES * (now - started) / SLOW_SECONDS:
                    raise StorageError(
                        f"{version.name}: only {came - before} bytes came in {now - started:.0f} s;"
                        " its server is too slow, or hangs"
                    )
                started, before = now, came
        stream.flush()
        os.fsync(stream.fileno())
    return came


def _bytes_of(version: Version) -> Iterator[bytes]:
    """The bytes of a file, as they come."""
    if urlsplit(version.url).scheme in WEB:
        yield from web_bytes(version.url)
        return
    files, path = _file_system(version.url)
    with (
        _told(version.name),
        files.open(path, "rb", block_size=CHUNK, cache_type="readahead") as stream,
    ):
        while chunk := stream.read(CHUNK):
            yield chunk


def _is_there(target: Path, size: int) -> bool:
    """Whether a file of the cache is one, and has the size that its name stands for."""
    try:
        status = target.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _leave(target: Path, lock: int) -> None:
    """Removes a file that its reader, who shares `lock`, needs no more, unless others read it."""
    with _room(target.parent):
        if _is_free(lock):
            target.unlink(missing_ok=True)


def _make_room(part: Path, size: int) -> None:
    """Removes the least recently used files that nobody reads until `size` bytes fit, and takes
    their place by an empty file of that size.
    """
    limit = _limit()
    if size > limit:
        raise ParamsError(
            f"a slide of {size / 1e9:.2f} GB does not fit into HNM_SLIDE_CACHE_GB={limit / 1e9:g};"
            " raise that"
        )
    while True:
        with _room(part.parent):
            part.unlink(missing_ok=True)
            there = sorted(_slides_in(part.parent), key=lambda file: file[1].st_atime_ns)
            left = sum(status.st_size for _, status in there)
            for file, status in there:
                if left + size <= limit:
                    break
                lock = _open_lock(file.with_suffix(".lock"))
                try:
                    if _is_free(lock):
                        file.unlink()
                        left -= status.st_size
                finally:
                    os.close(lock)
            if left + size <= limit:
                handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(handle, size)
                finally:
                    os.close(handle)
                return
        time.sleep(ROOM_PAUSE)


def _slides_in(cache: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The slides of a cache, and those that are being fetched: nothing else in it is ever looked
    at.
    """
    for file in cache.iterdir():
        if (
            _OF_CACHE.fullmatch(file.name)
            and file.suffix != ".lock"
            and stat.S_ISREG((status := file.lstat()).st_mode)
        ):
            yield file, status


@contextmanager
def _room(cache: Path) -> Iterator[None]:
    """Held by whoever makes, names or removes a file of the cache, so that its size can be
    summed.
    """
    lock = _open_lock(cache / "room.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    """A file that is locked and never written: no link is followed, nothing is emptied, and a named
    pipe does not hang.
    """
    try:
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_lock(path) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_lock(path)
    return handle


def _no_lock(path: Path) -> FolderError:
    return FolderError(
        f"{path} in the cache of slides is no file of hnm (a link, a pipe or a folder stands"
        " there); remove it, or name another folder by HNM_SLIDE_CACHE"
    )


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _usable_cache() -> Iterator[Path]:
    """The folder of the cache; what the disk or a mount refuses while it is used is the machine's
    error, and names the folder.
    """
    named = os.environ.get("HNM_SLIDE_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"hnm-slides-{os.getuid()}"
    try:
        if not named and folder.is_symlink():
            raise FolderError(
                f"{folder} is a link, which anybody may have set; remove it, or name a folder of"
                " your own by HNM_SLIDE_CACHE"
            )
        yield marked_folder(folder, "slides", named_by="HNM_SLIDE_CACHE", private=True)
    except OSError as error:
        if (told := error_of_machine(error)) is None:
            raise
        raise MachineError(
            f"the cache of slides HNM_SLIDE_CACHE={folder} cannot be used: {told}"
        ) from None


def _limit() -> float:
    """Bytes that the cache may hold."""
    named = os.environ.get("HNM_SLIDE_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = float(named)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ParamsError(
            f"the environment variable HNM_SLIDE_CACHE_GB={named!r} is no number above 0"
        )
    return limit * 1e9


def _keeps() -> bool:
    """Whether slides stay in the cache until their room is needed."""
    named = os.environ.get("HNM_SLIDE_CACHE_KEEP", "0")
    if named not in {"0", "1"}:
        raise ParamsError(
            f"the environment variable HNM_SLIDE_CACHE_KEEP={named!r} is neither 0 nor 1"
        )
    return named == "1"


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL that was checked, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ParamsError(
            f"slides at {urlsplit(url).scheme}:// cannot be fetched: {error}; install what does:"
            " pip install 'hnm[cloud]'"
        ) from None
    return files, path


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of a cloud's client as errors of the slide `name`: what may pass is a
    `StorageError`.
    """

    def kind_of(module: str, name: str) -> type[Exception]:
        return getattr(sys.modules.get(module), name, OSError)  # only what is imported can raise

    no_credentials = kind_of("botocore.exceptions", "NoCredentialsError")
    kinds = (
        OSError,
        kind_of("botocore.exceptions", "BotoCoreError"),
        kind_of("botocore.exceptions", "ClientError"),
        kind_of("aiohttp", "ClientError"),
    )
    try:
        yield
    except kinds as error:
        status = _status_of(error)
        if (
            isinstance(error, PermissionError)
            or type(error) is no_credentials
            or status in (401, 403)
        ):
            raise MachineError(
                f"{name} may not be read; give credentials that may (for s3:// AWS_PROFILE or"
                " AWS_ACCESS_KEY_ID)"
            ) from None
        if status is not None and status >= 400:
            raise refusal_of(status, name) from None
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise SlideError(f"{name} does not exist") from None
        raise StorageError(f"{name} cannot be fetched: {type(error).__name__} {error}") from None


def _status_of(error: BaseException) -> int | None:
    """The status of HTTP that a cloud's client was answered, of which its error may say something
    else: s3fs finds nothing where the server fails.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        response = getattr(cause, "response", None)
        found = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, dict)
            else None
        )
        for status in (
            found,
            getattr(cause, "status", None),
            getattr(cause, "status_code", None),
            getattr(cause, "code", None),
        ):
            if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
                return status
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None
