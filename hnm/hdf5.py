"""HDF5 files of plain arrays: written so that a full disk is an error of Python, and read from
anybody without trust.

HDF5 is a file system in a file: an array may lie in another file, be reached by a link, be made of
parts elsewhere, be unpacked by a filter, or not lie anywhere, so that it is made up when it is
read. None of that is needed here. The library reads the description of a file alone; what it
describes is checked to be plain bytes of this very file, and those are read by the operating
system. Nor does it write a file: its own end on a full disk is a crash.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hnm.errors import HnmError, error_of_machine
from hnm.failpoints import failpoint
from hnm.files import TEMPORARY, whole

BLOCK = 1 << 24
"""Bytes that are written at once."""
MOST_DESCRIPTION = 64 << 20
"""Bytes of a file that HDF5 may read to learn what is in it; of files of this program they are some
thousands.
"""
MOST_TEXT = 255
"""Bytes of an attribute of text."""

Attribute = int | float | str


@dataclass(frozen=True)
class Streamed:
    """The bytes of a dataset `(length,)` of uint8 that is too large for memory."""

    length: int
    blocks: Iterable[bytes]


@dataclass(frozen=True)
class Wanted:
    """What a dataset must be."""

    kinds: tuple[str, ...]
    """Types of its numbers, as numpy writes them: `<i8`."""
    rank: int


def write(
    path: Path,
    datasets: Mapping[str, NDArray[Any] | Streamed],
    attributes: Mapping[str, Attribute] | None = None,
) -> None:
    """An HDF5 file of contiguous datasets, in this order, whole or not at all; equal content gives
    equal bytes.

    HDF5 lays the file out in memory, without the content; so a full disk meets writes of Python
    alone.

    Raises:
        OSError: the disk is full, or may not be written.
    """
    with _in_memory() as layout:
        offsets = _lay_out(layout, datasets, attributes or {})
        with (
            whole(path) as temporary,
            temporary.open("wb") as stream,
            Path(layout).open("rb") as description,
        ):
            place = 0
            for offset, name in sorted((offset, name) for name, offset in offsets.items()):
                stream.write(description.read(offset - place))
                for block in _blocks(datasets[name]):
                    failpoint("hdf5.writing", path)
                    stream.write(block)
                place = description.seek(stream.tell())
            stream.write(description.read())


@contextmanager
def _in_memory() -> Iterator[str]:
    """The path of an empty file in memory, of which only what is written takes memory; where the
    system has none, in the folder for temporary files.
    """
    if sys.platform != "linux":
        with tempfile.NamedTemporaryFile(prefix=TEMPORARY) as file:
            yield file.name
        return
    handle = os.memfd_create("hnm")
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _lay_out(
    layout: str,
    datasets: Mapping[str, NDArray[Any] | Streamed],
    attributes: Mapping[str, Attribute],
) -> dict[str, int]:
    """Writes a file without its content to `layout`; returns where the content of each dataset that
    has any begins.
    """
    offsets = {}
    with h5py.File(layout, "w", driver="stdio") as file:
        for name, content in datasets.items():
            shape, kind = (
                ((content.length,), np.dtype(np.uint8))
                if isinstance(content, Streamed)
                else (content.shape, content.dtype)
            )
            dataset = file.create_dataset(name, shape=shape, dtype=kind)
            if dataset.size:
                dataset[(slice(0, 1),) * len(shape)] = (
                    0  # with its first number, the dataset gets all of its place
                )
                offsets[name] = dataset.id.get_offset()
        file.attrs.update(attributes)
    return offsets


def _blocks(content: NDArray[Any] | Streamed) -> Iterable[Any]:
    if isinstance(content, Streamed):
        return content.blocks
    plain = memoryview(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return (plain[start : start + BLOCK] for start in range(0, len(plain), BLOCK))


class Contents:
    """What an opened file holds, checked: plain arrays that lie in it whole, and attributes."""

    def __init__(
        self,
        handle: int,
        refuse: Callable[[str], HnmError],
        places: Mapping[str, "_Place"],
        attributes: Mapping[str, Any],
    ) -> None:
        self.attributes = attributes
        self._handle = handle
        self._refuse = refuse
        self._places = places

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a dataset."""
        return self._places[name].shape

    def offset(self, name: str) -> int:
        """Where the bytes of a dataset begin in the file."""
        return self._places[name].offset

    def array(self, name: str) -> NDArray[Any]:
        """A dataset."""
        place = self._places[name]
        return self._read(place, place.shape, place.offset)

    def rows(self, name: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Some rows of a dataset, in the order asked for; neighbours are one read."""
        place = self._places[name]
        width = place.kind.itemsize * int(np.prod(place.shape[1:], dtype=np.int64))
        parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        found = [
            self._read(place, (len(part), *place.shape[1:]), place.offset + int(part[0]) * width)
            for part in parts
        ]
        return np.concatenate(found) if found else np.empty((0, *place.shape[1:]), place.kind)

    def _read(self, place: "_Place", shape: tuple[int, ...], offset: int) -> NDArray[Any]:
        array = np.empty(shape, place.kind)
        if array.nbytes:
            _read_into(
                self._handle,
                memoryview(array.reshape(-1).view(np.uint8).data),
                offset,
                self._refuse,
            )
        return array


def _read_into(
    handle: int, view: memoryview, offset: int, refuse: Callable[[str], HnmError]
) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done : done + (1 << 30)]], offset + done)
        if not count:
            raise refuse("it was cut short while it was read")
        done += count


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    kind: np.dtype[Any]


@contextmanager
def opened(
    path: Path,
    datasets: Mapping[str, Wanted],
    attributes: Mapping[str, type[Attribute]],
    refuse: Callable[[str], HnmError],
) -> Iterator[Contents]:
    """The datasets and attributes of the HDF5 file at `path`, which may come from anybody, as long
    as the block runs.

    Args:
        path: a regular file.
        datasets: what each must be. Others are not looked at.
        attributes: the type of each.
        refuse: makes the error from the reason for which the file cannot be believed.

    Raises:
        FileNotFoundError: there is none.
        HnmError: of `refuse`.
        OSError: the machine fails.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("it is no regular file")
        places, values = _described(path, status.st_size, datasets, attributes, refuse)
        yield Contents(handle, refuse, places, values)
    finally:
        os.close(handle)


def _described(
    path: Path,
    size: int,
    datasets: Mapping[str, Wanted],
    attributes: Mapping[str, type[Attribute]],
    refuse: Callable[[str], HnmError],
) -> tuple[dict[str, _Place], dict[str, Any]]:
    """What HDF5 reads of a file: where its datasets lie, and its attributes."""
    try:
        with h5py.File(path, "r", driver="stdio") as file:
            places = {name: _place(file, name, wanted, size) for name, wanted in datasets.items()}
            return places, {name: _attribute(file, name, kind) for name, kind in attributes.items()}
    except Exception as error:  # of forged bytes HDF5 and h5py raise a dozen kinds
        if isinstance(error, OSError) and error_of_machine(error) is not None:
            raise
        lines = str(error).strip("'\"").splitlines()
        raise refuse(lines[0] if lines else type(error).__name__) from None


def _place(file: h5py.File, name: str, wanted: Wanted, size: int) -> _Place:
    """Where a dataset lies; `ValueError` where it is anything but plain bytes of this file."""
    key = name.encode()
    if not file.id.links.exists(key):
        raise ValueError(f"it holds no {name}")
    if file.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name} is a link to something else")
    dataset = h5py.h5o.open(file.id, key)
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise ValueError(f"{name} is no dataset")
    made = dataset.get_create_plist()
    if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_external_count() or made.get_nfilters():
        raise ValueError(
            f"{name} is not stored as plain bytes of this file: it is in parts, packed, virtual or"
            " in another file"
        )
    kind = next(
        (
            np.dtype(kind)
            for kind in wanted.kinds
            if dataset.get_type().equal(h5py.h5t.py_create(np.dtype(kind)))
        ),
        None,
    )
    if kind is None:
        raise ValueError(
            f"{name} holds no numbers of type"
            f" {' or '.join(str(np.dtype(kind)) for kind in wanted.kinds)}"
        )
    space = dataset.get_space()
    if (
        space.get_simple_extent_type() != h5py.h5s.SIMPLE
        or space.get_simple_extent_ndims() != wanted.rank
    ):
        raise ValueError(f"{name} has another number of dimensions than {wanted.rank}")
    shape = tuple(int(length) for length in space.get_simple_extent_dims())
    length = kind.itemsize
    for side in shape:
        length *= side
    offset = dataset.get_offset() if length else 0
    if offset is None or dataset.get_storage_size() != length or not 0 <= offset <= size - length:
        raise ValueError(
            f"{name} of {'x'.join(map(str, shape))} numbers does not lie in the file's {size} bytes"
        )
    return _Place(int(offset), shape, kind)


def _attribute(file: h5py.File, name: str, kind: type[Attribute]) -> Attribute:
    key = name.encode()
    if not h5py.h5a.exists(file.id, key):
        raise ValueError(f"it has no attribute {name}")
    attribute = h5py.h5a.open(file.id, key)
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        raise ValueError(f"its attribute {name} is no single value")
    stored = attribute.get_type()
    if kind is str:
        if not isinstance(stored, h5py.h5t.TypeStringID) or not stored.is_variable_str():
            raise ValueError(f"its attribute {name} is no text")
    elif not stored.equal(h5py.h5t.py_create(np.dtype(np.int64 if kind is int else np.float64))):
        raise ValueError(f"its attribute {name} is no number of the kind {kind.__name__}")
    value = file.attrs[name]
    if isinstance(value, str):
        if len(value.encode()) > MOST_TEXT:
            raise ValueError(f"its attribute {name} is longer than {MOST_TEXT} bytes")
        return value
    return kind(value)
