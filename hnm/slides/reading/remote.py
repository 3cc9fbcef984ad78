"""Slides by URL, which are fetched whole into a cache of this machine.

The cache never holds more than its limit. OpenSlide reads files, and a slide's tiles are most of
its bytes, so a slide is fetched as a whole. A file in the cache is named by its URL, size and
entity tag: a slide that changed in its bucket is another file. It goes when its tiles are cut, and
before that where another slide needs its room, but never while it is read. The cache is the folder
HNM_SLIDE_CACHE, its limit HNM_SLIDE_CACHE_GB; with HNM_SLIDE_CACHE_KEEP=1 slides stay until their
room is needed.

The cache is a folder of its own with a mark, which no other user may write to. In it only names of
32 hexadecimal digits are counted, locked or removed. Its default lies in the folder for temporary
files and not in the user's cache folder: home folders are often small, and mounted by all machines
of a cluster, but each machine has a cache of its own.
"""

import contextlib
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
"""Bytes that no slide has. A server that states more costs its slide, and does not stop the cohort.
"""
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
"""Names by which file systems of fsspec give an entity tag, or the time of a change."""
_MOST_CAUSES = 20
"""Causes of an error that are looked through for a status: they may name each other in a circle."""


@dataclass(frozen=True)
class Version:
    """The version of a file that its server has now."""

    url: str
    size: int
    """Bytes."""
    etag: str
    """Entity tag, or else time of change; "" where the server gives neither."""

    @property
    def name(self) -> str:
        """The last part of the URL, without the query, as messages may show it."""
        return file_name(self.url)


def version_of(url: str) -> Version:
    """Returns the version at `url`, by a request that fetches no pixels.

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
        with _errors_of_cloud(name):
            files.invalidate_cache()
            info: dict[str, Any] = files.info(path)
        size = info.get("size")
        etag = next((str(info[tag]) for tag in _TAGS if info.get(tag)), "")
    if not size:
        raise SlideError(
            f"{name}: its server does not tell its size; fetch it yourself and give a path"
        )
    if size > MOST_BYTES:
        raise SlideError(f"{name}: its server states {size / 1e12:.0f} TB, which no slide has")
    return Version(url, int(size), etag)


@contextlib.contextmanager
def fetched(source: str, *, stays: bool = False) -> Iterator[Path]:
    """Yields the file of a path or URL on this machine.

    The file of a URL goes when the block ends and nobody else reads it.

    Args:
        source: a path or a URL.
        stays: the file is soon read again, so it goes only where the block fails or another slide
            needs its room.

    Raises:
        SlideError: the file cannot be fetched; `StorageError` where that may pass.
        MachineError, FolderError, ParamsError: the cache cannot be used, or is not large enough.
    """
    if not is_url(source):
        yield Path(source)
        return
    keeps = _keeps()
    version = version_of(source)
    # without a tag a file of this size may be another one, so none is used again
    key = key_of(url=version.url, size=version.size, etag=version.etag or uuid.uuid4().hex)[:32]
    with contextlib.ExitStack() as locks:
        with _usable_cache() as cache:
            target = cache / f"{key}{suffix_of(version.url)}"
            lock = locks.enter_context(_lock_file(cache / f"{key}.lock"))
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_there(target, version.size):
                    break
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_there(target, version.size):
                    _fetch(version, target)
                # sharing the lock again is not atomic, and another may make room in between
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


def _fetch(version: Version, target: Path) -> None:
    """Brings a file into the cache, whole or not at all. The caller alone holds its lock."""
    part = target.with_suffix(".part")
    target.unlink(missing_ok=True)  # a link, or a file of another size
    _make_room(part, version.size)
    try:
        count = _bring(version, part)
        now = version_of(version.url) if count == version.size else version
        if count != version.size or now != version:
            raise StorageError(
                f"{version.name} changed while it was fetched: {count} bytes came, {now.size} are"
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
    """Writes the bytes of a file over the empty ones of `part`, and returns their number.

    It ends as soon as more come than are stated.
    """
    came = 0
    before = 0
    started = time.monotonic()
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
            seconds = time.monotonic() - started
            if seconds >= SLOW_SECONDS:
                if came - before < SLOW_BYTES * seconds / SLOW_SECONDS:
                    raise StorageError(
                        f"{version.name}: only {came - before} bytes came in {seconds:.0f} s; its"
                        " server is too slow, or hangs"
                    )
                started += seconds
                before = came
        stream.flush()
        os.fsync(stream.fileno())
    return came


def _bytes_of(version: Version) -> Iterator[bytes]:
    """Yields the bytes of a file as they come."""
    if urlsplit(version.url).scheme in WEB:
        yield from web_bytes(version.url)
        return
    files, path = _file_system(version.url)
    with (
        _errors_of_cloud(version.name),
        files.open(path, "rb", block_size=CHUNK, cache_type="readahead") as stream,
    ):
        while chunk := stream.read(CHUNK):
            yield chunk


def _is_there(target: Path, size: int) -> bool:
    """Returns whether a file of the cache is regular, and has the size that its name stands for."""
    try:
        status = target.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _leave(target: Path, lock: int) -> None:
    """Removes a file that its reader, who shares `lock`, no longer needs, unless others read it."""
    with _room(target.parent):
        if _is_free(lock):
            target.unlink(missing_ok=True)


def _make_room(part: Path, size: int) -> None:
    """Removes the least recently used files that nobody reads until `size` bytes fit.

    An empty file of that size then takes their place.
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
            slides = sorted(_slides_in(part.parent), key=lambda slide: slide[1].st_atime_ns)
            total = size + sum(status.st_size for _, status in slides)
            for file, status in slides:
                if total <= limit:
                    break
                with _lock_file(file.with_suffix(".lock")) as lock:
                    if _is_free(lock):
                        file.unlink()
                        total -= status.st_size
            if total <= limit:
                part.touch(mode=0o600, exist_ok=False)
                os.truncate(part, size)
                return
        time.sleep(ROOM_PAUSE)


def _slides_in(cache: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields the slides of a cache, and those that are being fetched.

    Nothing else in it is ever looked at.
    """
    for file in cache.iterdir():
        if _OF_CACHE.fullmatch(file.name) and file.suffix != ".lock":
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                yield file, status


@contextlib.contextmanager
def _room(cache: Path) -> Iterator[None]:
    """Holds the lock of whoever makes, names or removes a file of the cache.

    So the sizes of its files can be summed.
    """
    with _lock_file(cache / "room.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    """Yields the handle of a file that is locked and never written.

    No link is followed, nothing is emptied, and a named pipe does not hang.
    """
    no_lock = FolderError(
        f"{path} in the cache of slides is no file of hnm (a link, a pipe or a folder stands"
        " there); remove it, or name another folder by HNM_SLIDE_CACHE"
    )
    try:
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise no_lock from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise no_lock
        yield handle
    finally:
        os.close(handle)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _usable_cache() -> Iterator[Path]:
    """Yields the folder of the cache.

    What the disk or a mount refuses in the block is an error of the machine that names the folder.
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
        reason = error_of_machine(error)
        if reason is None:
            raise
        raise MachineError(
            f"the cache of slides HNM_SLIDE_CACHE={folder} cannot be used: {reason}"
        ) from None


def _limit() -> float:
    """Returns the bytes that the cache may hold."""
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
    """Returns whether slides stay in the cache until their room is needed."""
    named = os.environ.get("HNM_SLIDE_CACHE_KEEP", "0")
    if named not in {"0", "1"}:
        raise ParamsError(
            f"the environment variable HNM_SLIDE_CACHE_KEEP={named!r} is neither 0 nor 1"
        )
    return named == "1"


def _file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL that was checked, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ParamsError(
            f"slides at {urlsplit(url).scheme}:// cannot be fetched: {error}; install what does:"
            " pip install 'hnm[cloud]'"
        ) from None


@contextlib.contextmanager
def _errors_of_cloud(name: str) -> Iterator[None]:
    """Turns errors of a cloud's client into errors of the slide `name`.

    Those that may pass become a `StorageError`.
    """

    def kind_of(module: str, name: str) -> type[Exception]:
        return getattr(sys.modules.get(module), name, OSError)  # only what is imported can raise

    try:
        yield
    except (
        OSError,
        kind_of("botocore.exceptions", "BotoCoreError"),
        kind_of("botocore.exceptions", "ClientError"),
        kind_of("aiohttp", "ClientError"),
    ) as error:
        status = _status_of(error)
        refused = isinstance(error, PermissionError) or status in (401, 403)
        if refused or type(error).__name__ == "NoCredentialsError":
            raise MachineError(
                f"{name} may not be read; give credentials that may (for s3:// AWS_PROFILE or"
                " AWS_ACCESS_KEY_ID)"
            ) from None
        if status is not None and status >= 400:
            raise refusal_of(status, name) from None
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise SlideError(f"{name} does not exist") from None
        raise StorageError(f"{name} cannot be fetched: {type(error).__name__} {error}") from None


def _status_of(error: BaseException | None) -> int | None:
    """Returns the HTTP status that a cloud's client was answered, or None where it had no answer.

    The client's error may say something else: s3fs finds nothing where the server fails.
    """
    for _ in range(_MOST_CAUSES):
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        attributes = (getattr(error, name, None) for name in ("status", "status_code", "code"))
        for status in (metadata.get("HTTPStatusCode"), *attributes):
            if isinstance(status, int) and 400 <= status < 600:
                return status
        error = error and (error.__cause__ or error.__context__)
    return None
