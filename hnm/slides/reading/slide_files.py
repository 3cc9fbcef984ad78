"""The files that make a slide: which they are, and whether they are still what they were."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import SlideError
from hnm.files import key_of
from hnm.processes import one_read
from hnm.slides.reading.failures import StorageError, error_of, printable_name
from hnm.slides.reading.properties import (
    DICOM_COLOURS,
    DICOM_ENCODING,
    DICOM_SERIES,
    QUICKHASH,
    VENDOR,
    Properties,
)

HEAD_BYTES = 64 * 1024
SAMPLES = 64
"""Blocks of `HEAD_BYTES`, evenly over each file of a slide that has no quickhash of OpenSlide's.

Two such slides may have one size and one header.
"""
FEWER_SAMPLES = 8
"""Blocks of each file of a slide with a quickhash, which sees the coarsest level alone."""
HAMAMATSU = frozenset({".vms", ".vmu"})
"""Suffixes of the text files of Hamamatsu, which name the other files of their slide."""
BASELINE_JPEG = "1.2.840.10008.1.2.4.50"
"""DICOM's identifier of the encoding."""


@dataclass(frozen=True)
class State:
    """What tells whether a slide's files are still what they were."""

    fingerprint: str
    times: dict[str, int]
    """Name of each file -> its time of change, in ns."""


def state_of(path: Path, properties: Properties) -> State:
    """Returns the state of the files at `path`, which was opened before.

    Raises:
        StorageError: one of them is gone.
    """
    samples = FEWER_SAMPLES if QUICKHASH in properties else SAMPLES
    contents: dict[str, tuple[int, str, str]] = {}
    times: dict[str, int] = {}
    try:
        for name, file in files_of(path, properties).items():
            with one_read(), file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                head = hashlib.sha256(stream.read(HEAD_BYTES))
                spread = _samples_digest(stream.fileno(), status.st_size, samples)
            contents[name] = (status.st_size, head.hexdigest(), spread)
            times[name] = status.st_mtime_ns
    except FileNotFoundError:
        raise StorageError(
            f"{printable_name(path)} or a file of it is gone since it was opened; mount its folder"
        ) from None
    except OSError as error:
        raise error_of(error, path) from None
    return State(key_of(files=contents, properties=properties), times)


def files_of(path: Path, properties: Properties) -> dict[str, Path]:
    """Returns the files that make the slide, by name.

    The file at `path` itself has the name "", because renaming it changes nothing.
    """
    files: list[Path] = []
    series = properties.get(DICOM_SERIES, "").encode()
    match properties.get(VENDOR):
        case "mirax":
            files = _files_in(path.with_suffix(""))
        case "dicom" if series:  # one file a level, all in one folder
            files = [file for file in _files_in(path.parent) if series in head_of(file)]
        case _ if path.suffix.lower() in HAMAMATSU:
            named = head_of(path)
            files = [file for file in _files_in(path.parent) if os.fsencode(file.name) in named]
    return {"": path} | {file.name: file for file in files if file != path}


def check_neighbours(path: Path) -> None:
    """Raises `SlideError` where OpenSlide would open a named pipe or a device.

    In some formats it reads files that lie beside the named one.
    """
    if path.suffix.lower() == ".mrxs":
        folder = path.with_suffix("")
    elif path.suffix.lower() in HAMAMATSU or head_of(path)[128:132] == b"DICM":
        folder = path.parent
    else:
        return
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise SlideError(
                f"{printable_name(path)}: {printable_name(file)}, which lies with its files, is no"
                " regular file; take it away"
            )


def is_mislabelled_ycbcr(path: Path, properties: Properties) -> bool:
    """Returns whether a DICOM header says RGB although the frames are JFIF, which is YCbCr.

    The program bfconvert writes such files, and OpenSlide believes the header.
    """
    if properties.get(DICOM_COLOURS) != "RGB" or properties.get(DICOM_ENCODING) != BASELINE_JPEG:
        return False
    _, start_of_frame, frame = head_of(path).partition(b"\xff\xd8\xff\xe0")
    return bool(start_of_frame) and frame[2:6] == b"JFIF"


def head_of(path: Path) -> bytes:
    """Returns the first bytes of a file."""
    with one_read(), path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.is_file())


def _samples_digest(handle: int, size: int, samples: int) -> str:
    """Returns the digest of `samples` blocks, evenly over a file of `size` bytes up to its end."""
    digest = hashlib.sha256()
    for number in range(1, samples + 1):
        digest.update(os.pread(handle, HEAD_BYTES, max(0, size - HEAD_BYTES) * number // samples))
    return digest.hexdigest()
