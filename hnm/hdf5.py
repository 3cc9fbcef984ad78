"""HDF5 files of plain arrays, which are written safely and read without trust.

HDF5 is a file system in a file: an array may lie in another file, be reached by a link, be made of
parts elsewhere, be unpacked by a filter, or not lie anywhere, so that it is made up when it is
read. None of that is needed here. The library reads the description of a file alone. Every array
must be plain bytes of this very file, and the operating system reads those. Nor does the library
write a file: on a full disk it would crash, where Python raises an error.
"""

import math
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hnm.errors import error_of_machine
from hnm.failpoints import failpoint
from hnm.files import TEMPORARY, Refuse, whole

BLOCK = 1 << 24
"""Bytes that are written at once."""
READ_BYTES = 1 << 30
"""Bytes that one call of the operating system reads at most."""
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
    """The form that a dataset must have."""

    kinds: tuple[str, ...]
    """Types of its numbers, as numpy writes them: `<i8`."""
    rank: int


def write(
    path: Path,
    datasets: Mapping[str, NDArray[Any] | Streamed],
    attributes: Mapping[str, Attribute] | None = None,
) -> None:
    """Writes an HDF5 file of contiguous datasets, in this order, whole or not at all.

    Equal content gives equal bytes. HDF5 lays the file out in memory, without the content; so a
    full disk meets writes of Python alone.

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
            for name, offset in sorted(offsets.items(), key=itemgetter(1)):
                stream.write(description.read(offset - stream.tell()))
                for block in _blocks(datasets[name]):
                    failpoint("hdf5.writing", path)
                    stream.write(block)
                description.seek(stream.tell())
            stream.write(description.read())


@contextmanager
def _in_memory() -> Iterator[str]:
    """Yields the path of an empty file in memory, which takes only the memory that is written.

    Where the system has no such files, it lies in the folder for temporary files.
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
    """Writes a file without its content to `layout`, and returns where the content of each dataset
    begins; a dataset without content has no such place.
    """
    offsets = {}
    with h5py.File(layout, "w", driver="stdio") as file:
        for name, content in datasets.items():
            if isinstance(content, Streamed):
                dataset = file.create_dataset(name, shape=(content.length,), dtype=np.uint8)
            else:
                dataset = file.create_dataset(name, shape=content.shape, dtype=content.dtype)
            if dataset.size:
                # with its first number, the dataset gets all of its place
                dataset[(slice(0, 1),) * dataset.ndim] = 0
                offsets[name] = dataset.id.get_offset()
        file.attrs.update(attributes)
    return offsets


def _blocks(content: NDArray[Any] | Streamed) -> Iterable[Any]:
    if isinstance(content, Streamed):
        return content.blocks
    plain = memoryview(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return (plain[start : start + BLOCK] for start in range(0, len(plain), BLOCK))


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    kind: np.dtype[Any]


@dataclass(frozen=True)
class Contents:
    """The checked contents of an opened file: its attributes, and arrays that lie in it whole."""

    attributes: dict[str, Any]
    _places: dict[str, _Place]
    _handle: int
    _refuse: Refuse

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a dataset."""
        return self._places[name].shape

    def offset(self, name: str) -> int:
        """Returns where the bytes of a dataset begin in the file."""
        return self._places[name].offset

    def array(self, name: str) -> NDArray[Any]:
        """Returns a dataset."""
        place = self._places[name]
        array = np.empty(place.shape, place.kind)
        self._read_into(array, place.offset)
        return array

    def rows(self, name: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Returns rows of a dataset in the order of `rows`; neighbours are one read."""
        place = self._places[name]
        width = place.kind.itemsize * math.prod(place.shape[1:])
        array = np.empty((len(rows), *place.shape[1:]), place.kind)
        borders = [0, *np.flatnonzero(np.diff(rows) != 1) + 1, len(rows)]
        for start, stop in pairwise(borders if len(rows) else []):
            self._read_into(array[start:stop], place.offset + int(rows[start]) * width)
        return array

    def _read_into(self, array: NDArray[Any], offset: int) -> None:
        view = memoryview(array.reshape(-1).view(np.uint8).data)
        while len(view):
            count = os.preadv(self._handle, [view[:READ_BYTES]], offset)
            if not count:
                raise self._refuse("it was cut short while it was read")
            view = view[count:]
            offset += count


@contextmanager
def opened(
    path: Path,
    datasets: Mapping[str, Wanted],
    attributes: Mapping[str, type[Attribute]],
    refuse: Refuse,
) -> Iterator[Contents]:
    """Yields the datasets and attributes of the HDF5 file at `path`, which may come from anybody.

    Args:
        path: a regular file.
        datasets: the form of each dataset. Others are not looked at.
        attributes: the type of each attribute.
        refuse: makes the error of a file that cannot be believed.

    Raises:
        FileNotFoundError: there is no file.
        HnmError: the error of `refuse`.
        OSError: the machine fails.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("it is no regular file")
        places, values = _described(path, status.st_size, datasets, attributes, refuse)
        yield Contents(values, places, handle, refuse)
    finally:
        os.close(handle)


def _described(
    path: Path,
    size: int,
    datasets: Mapping[str, Wanted],
    attributes: Mapping[str, type[Attribute]],
    refuse: Refuse,
) -> tuple[dict[str, _Place], dict[str, Any]]:
    """Returns what HDF5 reads of a file: where its datasets lie, and its attributes."""
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
    """Returns where a dataset lies.

    Raises:
        ValueError: it is anything but plain bytes of this file.
    """
    key = name.encode()
    if not file.id.links.exists(key):
        raise ValueError(f"it holds no {name}")
    if file.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{name} is a link to something else")
    dataset = h5py.h5o.open(file.id, key)
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise ValueError(f"{name} is no dataset")
    storage = dataset.get_create_plist()
    is_contiguous = storage.get_layout() == h5py.h5d.CONTIGUOUS
    if not is_contiguous or storage.get_external_count() or storage.get_nfilters():
        raise ValueError(
            f"{name} is not stored as plain bytes of this file: it is in parts, packed, virtual or"
            " in another file"
        )
    kinds = [np.dtype(kind) for kind in wanted.kinds]
    stored = dataset.get_type()
    kind = next((kind for kind in kinds if stored.equal(h5py.h5t.py_create(kind))), None)
    if kind is None:
        raise ValueError(f"{name} holds no numbers of type {' or '.join(map(str, kinds))}")
    space = dataset.get_space()
    is_simple = space.get_simple_extent_type() == h5py.h5s.SIMPLE
    if not is_simple or space.get_simple_extent_ndims() != wanted.rank:
        raise ValueError(f"{name} has another number of dimensions than {wanted.rank}")
    shape = tuple(int(length) for length in space.get_simple_extent_dims())
    length = kind.itemsize * math.prod(shape)
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
        text = str(file.attrs[name])
        if len(text.encode()) > MOST_TEXT:
            raise ValueError(f"its attribute {name} is longer than {MOST_TEXT} bytes")
        return text
    if not stored.equal(h5py.h5t.py_create(np.dtype(np.int64 if kind is int else np.float64))):
        raise ValueError(f"its attribute {name} is no number of the kind {kind.__name__}")
    return kind(file.attrs[name])
