"""Slides by URL: fetched whole into a cache of this machine, which never holds more than its limit.

OpenSlide reads files, and a slide's tiles are most of its bytes, so a slide is fetched as a whole. A file in the cache is
named by its URL, size and entity tag: what changed in the bucket is another file. It goes when its tiles are cut, and
before that where another slide needs its room, but never while it is read. The cache is the folder HNM_SLIDE_CACHE, its
limit HNM_SLIDE_CACHE_GB; with HNM_SLIDE_CACHE_KEEP=1 slides stay until their room is needed.
"""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from hnm.errors import ParamsError, SlideError
from hnm.files import key_of
from hnm.slides.storage import StorageError

OF_SEVERAL_FILES = frozenset({".mrxs", ".vms", ".vmu", ".dcm"})
DEFAULT_GB = 50.0
ROOM_PAUSE = 0.5
"""Seconds before looking for room again while every slide in the cache is being read."""


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


def file_name(source: str) -> str:
    """The name of the file at a path or URL, without the URL's query."""
    return PurePosixPath(urlsplit(source).path).name if is_url(source) else Path(source).name


def is_url(source: str) -> bool:
    """Whether `source` is a URL and no path."""
    return "://" in source


def place_of(path: str, folder: Path) -> str:
    """A manifest's `path` as an absolute path, counted from `folder`, or as the URL that it is."""
    return path if is_url(path) else str(folder / path)


def version_of(url: str) -> Version:
    """What `url` holds now, by a request that fetches no pixels. Raises `SlideError`, `StorageError` where the server fails."""
    name = PurePosixPath(urlsplit(url).path).name
    if PurePosixPath(name).suffix.lower() in OF_SEVERAL_FILES:
        raise SlideError(f"{name} is one of several files of its slide, which a URL cannot name; mount its bucket and give a path")
    files, path = _file_system(url)
    with _told(name):
        files.invalidate_cache()
        info: dict[str, Any] = files.info(path)
    if not info.get("size"):
        raise SlideError(f"{name}: its server does not tell its size; fetch it yourself and give a path")
    return Version(url, int(info["size"]), str(info.get("ETag") or info.get("etag") or info.get("LastModified") or ""))


@contextmanager
def fetched(source: str, *, stays: bool = False) -> Iterator[Path]:
    """The file of a path or URL on this machine; a URL's goes when the block ends and nobody else reads it.

    Args:
        stays: it is soon read again, so it goes only where the block fails or another slide needs its room.
    """
    if not is_url(source):
        yield Path(source)
        return
    keeps = _keeps()
    version = version_of(source)
    cache = _cache()
    key = key_of(url=source, size=version.size, etag=version.etag)[:32]
    target = cache / f"{key}{PurePosixPath(version.name).suffix}"
    with (cache / f"{key}.lock").open("wb") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if target.exists():
                break
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _fetch(version, target)
            # sharing the lock again is not atomic: another may make room in between, so look once more
        os.utime(target)
        try:
            yield target
        except BaseException:
            stays = False
            raise
        finally:
            if not (keeps or stays):
                _leave(target, lock)


def _fetch(version: Version, target: Path) -> None:
    part = target.with_suffix(".part")
    _make_room(part, version.size)
    try:
        files, path = _file_system(version.url)
        with _told(version.name):
            files.get_file(path, str(part))
        if (after := version_of(version.url)) != version or part.stat().st_size != version.size:
            raise StorageError(f"{version.name} changed while it was fetched: {part.stat().st_size} bytes came, {after.size} are there now")
        with _room(part.parent):
            part.replace(target)
    except BaseException:
        with _room(part.parent):
            part.unlink(missing_ok=True)
        raise


def _leave(target: Path, lock: IO[bytes]) -> None:
    """Removes a file that its reader, who shares `lock`, needs no more, unless others read it."""
    with _room(target.parent):
        if _is_free(lock):
            target.unlink(missing_ok=True)


def _make_room(part: Path, size: int) -> None:
    """Removes the least recently used files that nobody reads until `size` bytes fit, and takes their place by an empty file of that size."""
    limit = _limit()
    if size > limit:
        raise ParamsError(f"a slide of {size / 1e9:.2f} GB does not fit into HNM_SLIDE_CACHE_GB={limit / 1e9:g}; raise that")
    while True:
        with _room(part.parent):
            part.unlink(missing_ok=True)
            there = sorted((file for file in part.parent.iterdir() if file.suffix != ".lock"), key=lambda file: file.stat().st_mtime)
            left = sum(file.stat().st_size for file in there)
            for file in there:
                if left + size <= limit:
                    break
                with file.with_suffix(".lock").open("wb") as lock:
                    if _is_free(lock):
                        left -= file.stat().st_size
                        file.unlink()
            if left + size <= limit:
                with part.open("wb") as stream:
                    stream.truncate(size)
                return
        time.sleep(ROOM_PAUSE)


@contextmanager
def _room(cache: Path) -> Iterator[None]:
    """Held by whoever makes, names or removes a file of the cache, so that its size can be summed."""
    with (cache / "room.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_free(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _cache() -> Path:
    folder = Path(os.environ.get("HNM_SLIDE_CACHE") or Path(tempfile.gettempdir()) / f"hnm-slides-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _limit() -> float:
    """Bytes that the cache may hold."""
    named = os.environ.get("HNM_SLIDE_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = float(named)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ParamsError(f"the environment variable HNM_SLIDE_CACHE_GB={named!r} is no number above 0")
    return limit * 1e9


def _keeps() -> bool:
    """Whether slides stay in the cache until their room is needed."""
    named = os.environ.get("HNM_SLIDE_CACHE_KEEP", "0")
    if named not in {"0", "1"}:
        raise ParamsError(f"the environment variable HNM_SLIDE_CACHE_KEEP={named!r} is neither 0 nor 1")
    return named == "1"


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ParamsError(f"slides at {urlsplit(url).scheme}:// cannot be fetched: {error}; install what does: pip install 'hnm[cloud]'") from None
    return files, path


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of a network as errors of the slide `name`: what may pass is a `StorageError`."""

    def kind_of(module: str, name: str) -> type[Exception]:
        return getattr(sys.modules.get(module), name, OSError)  # only what is imported can raise

    no_credentials = kind_of("botocore.exceptions", "NoCredentialsError")
    kinds = (OSError, TimeoutError, kind_of("botocore.exceptions", "BotoCoreError"), kind_of("aiohttp", "ClientError"))
    try:
        yield
    except FileNotFoundError:
        raise SlideError(f"{name} does not exist") from None
    except kinds as error:
        if isinstance(error, PermissionError) or type(error) is no_credentials:
            raise SlideError(f"{name} may not be read; give credentials that may (for s3:// AWS_PROFILE or AWS_ACCESS_KEY_ID)") from None
        raise StorageError(f"{name} cannot be fetched: {type(error).__name__} {error}") from None
