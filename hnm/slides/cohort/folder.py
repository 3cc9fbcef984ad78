"""Slides on a disk: what lies in a folder, links followed, and what of it is passed over, with the
reason.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hnm.names import shortlist
from hnm.redaction import readable

SUFFIXES = frozenset(
    {
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".vms",
        ".vmu",
        ".scn",
        ".mrxs",
        ".svslide",
        ".bif",
        ".czi",
        ".dcm",
    }
)
"""Of the files that OpenSlide opens, one a slide; DICOM has one a level."""
TIFF_SUFFIXES = frozenset({".btf", ".gtif", ".gtiff", ".qptiff", ".tf2", ".tf8"})
"""Of files that are slides where their content is TIFF."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
NAMED = 5
"""Files that a line names at most."""
MOST_ELEMENTS = 10_000
"""Of a DICOM header before its series."""
_LONG_VALUES = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"}
)
"""DICOM's kinds of values whose length takes four bytes."""


@dataclass
class LeftOut:
    """What is passed over, by reason."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> the files, or what else was left out."""

    def add(self, name: str | Path, reason: str) -> None:
        """Notes one thing that is passed over."""
        self.names[reason].append(str(name))

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def lines(self) -> list[str]:
        """A line for each reason: how many, why, and the first names."""
        return [
            readable(f"{len(names)} left out, {reason}: {shortlist(sorted(names), NAMED)}")
            for reason, names in sorted(self.names.items())
        ]


def files_under(folder: Path, left_out: LeftOut) -> list[Path]:
    """All files in `folder` and below that a person may have put there, sorted; links to folders
    are followed, each folder once.

    Hidden files, what macOS and Windows leave behind, links that lead nowhere and folders that
    cannot be read are noted in `left_out`. The folder of a MIRAX slide's data is a part of the
    slide and is not looked into.
    """
    seen = {_identity(place) for place in (folder, *folder.resolve().parents)}
    files = []

    def closed(error: OSError) -> None:
        left_out.add(error.filename, f"the folder cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=closed):
        root = Path(place)
        slides = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        entered = []
        for name in sorted(folders):
            if name.startswith(".") or name.casefold() in SYSTEM_FOLDERS:
                left_out.add(root / name, "hidden folders and folders of the system")
            elif name not in slides:
                identity = _identity(root / name)
                if identity in seen:
                    left_out.add(
                        root / name,
                        "links to folders that are looked into already, or that they lie in",
                    )
                else:
                    seen.add(identity)
                    entered.append(name)
        folders[:] = entered
        files += [root / name for name in names if is_visible(root / name, left_out)]
    return sorted(file.absolute() for file in files)


def is_slide(path: Path) -> bool:
    """Whether OpenSlide may open the file, by its suffix, or by its first bytes where the suffix
    says too little.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    try:
        if suffix in TIFF_SUFFIXES:
            return _head(path, 4) in _TIFF
        may_be_dicom = suffix in ("", ".dicom") or suffix[1:].isdigit()
        return may_be_dicom and _head(path, 132)[128:] == b"DICM"
    except OSError:
        return False


def is_dicom(path: Path) -> bool:
    """Whether the slide at `path` is a file of DICOM, of which a slide has several."""
    suffix = path.suffix.lower()
    return suffix == ".dcm" or suffix not in SUFFIXES | TIFF_SUFFIXES


def series_of(path: Path) -> str:
    """The UID of the series that a DICOM file belongs to; "" where its header does not say.

    Only elements of the file itself count: a header may name other series in a sequence, which is
    stepped over.
    """
    try:
        with path.open("rb") as stream:
            if _exactly(stream.read(132), 132)[128:] != b"DICM":
                return ""
            for _ in range(MOST_ELEMENTS):
                tag, _kind, length = _element(stream)
                if tag == (0x0020, 0x000E):
                    return stream.read(min(length, 64)).rstrip(b"\0 ").decode("ascii", "replace")
                if tag > (0x0020, 0x000E):
                    return ""
                if length == 0xFFFFFFFF:
                    _step_over(stream)
                else:
                    stream.seek(length, os.SEEK_CUR)
    except (OSError, ValueError):
        return ""
    return ""


def _identity(folder: Path) -> tuple[int, int]:
    """What tells a folder from others, by whatever path."""
    try:
        status = folder.stat()
    except OSError:
        return (-1, hash(str(folder)))
    return status.st_dev, status.st_ino


def is_visible(path: Path, left_out: LeftOut) -> bool:
    """Whether a file may be a slide or belong to one; otherwise it is noted."""
    if path.name.startswith("._"):
        left_out.add(path, "files that macOS leaves beside others (AppleDouble)")
    elif path.name.startswith(".") or path.name.casefold() in SYSTEM_FILES:
        left_out.add(path, "hidden files and files of the system")
    # Path.is_file raises where a link goes round in a circle.
    elif not os.path.isfile(path):  # noqa: PTH113
        left_out.add(path, "links that lead nowhere, and no regular files")
    else:
        return True
    return False


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(count)


def _exactly(content: bytes, count: int) -> bytes:
    if len(content) < count:
        raise ValueError("the file ends")
    return content


def _element(stream: BinaryIO) -> tuple[tuple[int, int], bytes, int]:
    """Tag, kind and length of the next element of a DICOM header, in little endian; kinds may be
    left out, then the length has four bytes.
    """
    start = _exactly(stream.read(8), 8)
    tag = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    kind = start[4:6]
    if tag[0] == 0xFFFE or not kind.isalpha() or not kind.isupper():
        return tag, b"", int.from_bytes(start[4:], "little")
    if kind in _LONG_VALUES:
        return tag, kind, int.from_bytes(_exactly(stream.read(4), 4), "little")
    return tag, kind, int.from_bytes(start[6:], "little")


def _step_over(stream: BinaryIO) -> None:
    """Goes behind a sequence without a stated length, which ends with an element of its own;
    sequences in it are counted.
    """
    depth = 1
    for _ in range(MOST_ELEMENTS):
        tag, _kind, length = _element(stream)
        if tag in ((0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)):
            depth -= 1
        elif length == 0xFFFFFFFF:
            depth += 1
        elif tag != (0xFFFE, 0xE000):
            stream.seek(length, os.SEEK_CUR)
        if depth == 0:
            return
    raise ValueError("a sequence has no end")
