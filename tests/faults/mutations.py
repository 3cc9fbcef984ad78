"""Damaged and hostile versions of a file: bytes -> bytes, by a seeded generator, blindly or by the
file's own structure.
"""

import io
import json
import random
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Mutation = Callable[[bytes, random.Random], bytes]

NASTY_JSON = [
    "NaN",
    "Infinity",
    "1e999",
    "-1e999",
    "9" * 400,
    "-" + "9" * 5000,
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "-1",
    "0",
    "1e308",
    "-0.0",
    "1.5",
    str(2**63),
    str(-(2**63) - 1),
    '"\\u0000"',
    '"\\ud800"',
    '"=cmd|calc!A1"',
    '"../../etc/passwd"',
    '"<script>alert(1)</script>"',
    '"' + "x" * 5000 + '"',
    "[" * 2000 + "]" * 2000,
    "[[]]",
    "[null]",
    '{"type": []}',
    '[[["a", 1], [2, 3], [4, 5]]]',
    '"hf-hub:stranger/model"',
    '"local-dir:/etc"',
    '"/dev/zero"',
    "1000000000000",
    "4294967295",
    "2147483647",
]
NASTY_CELLS = [
    "",
    " ",
    "NaN",
    "nan",
    "inf",
    "-1",
    "2",
    "1e999",
    "9" * 400,
    "=1+1",
    "@x",
    "../x",
    "/dev/zero",
    "a/b",
    "é",
    "\x00",
    "\x1b[31m",
    "x" * 300,
    "x" * 200_000,
    '"',
    '""',
    "'",
    ",",
    "\n",
    "\r",
    "\u202e",
    "\ufeff",
    "None",
    "true",
    "CON",
    ".",
    "..",
    "-rf",
    "${x}",
    "$(x)",
    "`x`",
    "file:///etc/passwd",
    "reference://::file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "\udc80",
]
NASTY_YAML = [
    ".nan",
    ".inf",
    "-.inf",
    "1e999",
    "9" * 5000,
    "~",
    "[]",
    "{}",
    "!!python/object/apply:os.system [id]",
    "!!binary aGk=",
    "!!set {a, b}",
    "2026-01-01",
    "0x10",
    "0o17",
    "1_000",
    "yes",
    "'",
    '"',
    "*nothing",
    "&a [*a]",
    "[" * 3000,
    "{a: " * 500,
    "? [a, b]",
    "|",
    "> \n",
    "'x; touch f'",
    '"\\0"',
    "!<tag:x> y",
    "<<: 1",
    "\t- a",
    "@a",
    "%YAML 9.9",
    "--- a\n--- b",
    "- a",
    "1: 2",
]


def flip(content: bytes, dice: random.Random) -> bytes:
    """Some bytes become others, mostly where the headers lie."""
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 4, 16, 64])):
        if changed:
            end = dice.choice([len(changed), min(len(changed), 64), min(len(changed), 1024)])
            place = (
                dice.randrange(end)
                if dice.random() < 0.8
                else len(changed) - 1 - dice.randrange(end)
            )
            changed[place] = dice.choice(
                [0, 255, 127, 128, dice.randrange(256), changed[place] ^ (1 << dice.randrange(8))]
            )
    return bytes(changed)


def cut_short(content: bytes, dice: random.Random) -> bytes:
    return content[
        : dice.choice(
            [0, 1, 8, len(content) // 2, max(0, len(content) - 1), dice.randrange(len(content) + 1)]
        )
    ]


def splice(content: bytes, dice: random.Random) -> bytes:
    """A part of it stands elsewhere too, or in the place of another part."""
    if not content:
        return content
    start, length, place = (
        dice.randrange(len(content)),
        dice.randrange(1, 4096),
        dice.randrange(len(content)),
    )
    part = content[start : start + length]
    return content[:place] + part + content[place + (len(part) if dice.random() < 0.5 else 0) :]


def blank(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content) + 1)
    length = dice.choice([4, 64, 4096])
    return (
        content[:start]
        + dice.choice([b"\0", b"\xff", b" "]) * len(content[start : start + length])
        + content[start + length :]
    )


def other_file(content: bytes, dice: random.Random) -> bytes:
    """Something else under this name."""
    pickle = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch PWNED_\x85R."
    return dice.choice(
        [
            b"",
            b"\0" * 5000,
            pickle,
            b"PK\x03\x04" + content[:100],
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            b"#!/bin/sh\ntouch PWNED\n",
            b"\xff\xfe" + content,
        ]
    )


def tiff_tag(content: bytes, dice: random.Random) -> bytes:
    """One entry of one of the first directories has another value, type or count; or the next
    directory is an odd one.
    """
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 16 or content[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return flip(content, dice)
    big = content[2:4] in (b"+\0", b"\0+")
    word, size, head = ("Q", 20, 8) if big else ("I", 12, 2)
    changed = bytearray(content)
    place = struct.unpack_from(f"{order}{word}", content, 8 if big else 4)[0]
    for _ in range(dice.choice([0, 0, 0, 1, 2])):
        count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, place)[0]
        following = struct.unpack_from(f"{order}{word}", content, place + head + count * size)[0]
        place = following or place
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, place)[0]
    value = dice.choice(
        [
            0,
            1,
            3,
            255,
            2**16 - 1,
            2**31 - 1,
            2**32 - 1,
            2_000_000,
            len(content),
            len(content) - 1,
            dice.randrange(2**20),
        ]
    )
    if dice.random() < 0.1:
        struct.pack_into(
            f"{order}{word}", changed, place + head + count * size, dice.choice([place, 4, value])
        )
        return bytes(changed)
    entry = place + head + size * dice.randrange(count)
    part = dice.random()
    if part < 0.15:
        struct.pack_into(f"{order}H", changed, entry + 2, dice.randrange(20))
    elif part < 0.3:
        struct.pack_into(f"{order}{word}", changed, entry + 4, value)
    else:
        struct.pack_into(f"{order}{word}", changed, entry + (12 if big else 8), value)
    return bytes(changed)


WORDS = re.compile(
    rb"MPP = [0-9.]+|AppMag = [0-9.]+|Aperio[ -~]{8}|[0-9]+x[0-9]+|size[XY]=\"[0-9]+\"|\[[0-9,]+ "
    rb"|Background Color=[0-9a-fA-F]{6}|OverlapsXY=[0-9 ]+|offset[XY]=\"[0-9]+\""
)
"""Of a slide's description, what readers take numbers from."""


def tiff_text(content: bytes, dice: random.Random) -> bytes:
    """Words of a description are others of the same length."""
    words = list(WORDS.finditer(content))
    if not words:
        return flip(content, dice)
    hit = dice.choice(words)
    new = dice.choice(
        [
            b"\xff" * 20,
            b"MPP = 0",
            b"MPP = -1",
            b"MPP = nan",
            b"MPP = 1e999",
            b"MPP = inf",
            b"AppMag = nan",
            b"9" * 20,
            b"\0" * 20,
            b"|=|=|=|=",
            b"-99999x-9",
        ]
    )
    return (
        content[: hit.start()]
        + new[: hit.end() - hit.start()].ljust(hit.end() - hit.start())
        + content[hit.end() :]
    )


def png_chunk(content: bytes, dice: random.Random) -> bytes:
    """Another size, depth or colour in a header with a right checksum, or a chunk that should not
    be there.
    """

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return flip(content, dice)
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    what = dice.randrange(4)
    if what == 0:
        width, height = dice.choice(
            [
                (2**31 - 1, 1),
                (1, 2**31 - 1),
                (100_000, 100_000),
                (0, height),
                (60_000, 3),
                (13_000, 13_000),
                (width + 1, height),
            ]
        )
    elif what == 1:
        depth, colour = dice.choice(
            [(16, 0), (1, 0), (8, 3), (8, 6), (16, 6), (3, 0), (8, 9), (4, 3)]
        )
    header = chunk(
        b"IHDR",
        struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, dice.choice([0, 0, 1, 7])),
    )
    more = b""
    if what == 2:
        name = dice.choice([b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
        bomb = zlib.compress(b"\0" * 80_000_000, 1)
        more = chunk(
            name,
            {
                b"zTXt": b"a\0\0" + bomb,
                b"iTXt": b"a\0\1\0\0\0" + bomb,
                b"iCCP": b"a\0\0" + bomb,
            }.get(name, b"a\0" + b"x" * 3_000_000),
        )
    elif what == 3:
        more = chunk(
            dice.choice([b"acTL", b"tRNS", b"PLTE", b"gAMA", b"eXIf", b"pHYs", b"abcd"]),
            bytes(dice.randrange(256) for _ in range(dice.choice([0, 1, 4, 8, 800]))),
        )
    return content[:8] + header + more + content[33:]


def json_value(content: bytes, dice: random.Random) -> bytes:
    """One value of the tree is another, is missing, or has its own parent in it."""
    try:
        tree = json.loads(content)
    except ValueError:
        return flip(content, dice)
    mark = "\u0001nasty\u0001"
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in (
            value
            if isinstance(value, dict)
            else range(len(value))
            if isinstance(value, list)
            else ()
        ):
            places.append((value, key))
            walk(value[key])

    walk(tree)
    if not places:
        return dice.choice(NASTY_JSON).encode()
    for _ in range(dice.choice([1, 1, 1, 2])):
        parent, key = dice.choice(places)
        try:
            if dice.random() < 0.2:
                del parent[key]
            elif dice.random() < 0.1:
                parent[key] = [parent[key]] * dice.choice([1, 2, 50])
            else:
                parent[key] = mark
        except (KeyError, IndexError):
            continue
    text = json.dumps(tree)
    while (quoted := json.dumps(mark)) in text:
        text = text.replace(quoted, dice.choice(NASTY_JSON), 1)
    return text.encode()


def geojson_ring(content: bytes, dice: random.Random) -> bytes:
    """Rings that cross themselves, without area, of huge or tiny coordinates, or very many."""
    size = dice.choice([3, 40, 300, 1000])
    reach = dice.choice([100.0, 1e-300, 1e17, 1e300, 1e9, 512.0])
    ring = [[dice.uniform(0, reach), dice.uniform(0, reach)] for _ in range(size)]
    ring = dice.choice(
        [
            [*ring, ring[0]],
            ring,
            [ring[0]] * 5,
            ring[:2],
            [[*point, 1.0, 2.0] for point in [*ring, ring[0]]],
            [],
        ]
    )
    kind = dice.choice(["Polygon", "MultiPolygon", "Point", "GeometryCollection", "LineString"])
    coordinates: Any = {
        "Polygon": [ring] * dice.choice([1, 2, 9]),
        "MultiPolygon": [[ring]] * dice.choice([1, 3]),
        "Point": [1, 2],
        "LineString": ring,
    }.get(kind)
    feature = {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"classification": {"name": "tumour"}},
    }
    return json.dumps(
        {"type": "FeatureCollection", "features": [feature] * dice.choice([1, 1, 30])}
    ).encode()


def xml_node(content: bytes, dice: random.Random) -> bytes:
    text = content.decode("latin-1")
    entities = (
        '<!DOCTYPE a [<!ENTITY x "'
        + "y" * 100
        + '">'
        + "".join(
            f'<!ENTITY x{n} "{("&x" + (str(n - 1) if n else "") + ";") * 10}">' for n in range(9)
        )
        + "]>"
    )
    outside = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    choice = dice.randrange(6)
    if choice == 0:
        text = re.sub(
            r'[XY]="[^"]*"',
            lambda hit: (
                hit[0][:2] + f'"{dice.choice(NASTY_CELLS)}"' if dice.random() < 0.3 else hit[0]
            ),
            text,
        )
    elif choice == 1:
        text = entities + re.sub(
            "<Annotation ",
            "<Annotation>&x8;</Annotation><Annotation ",
            re.sub(r"<\?xml.*?\?>", "", text),
            count=1,
        )
    elif choice == 2:
        text = outside + re.sub(r"<\?xml.*?\?>", "", text).replace("tumor", "&x;")
    elif choice == 3:
        text = "<a>" * dice.choice([300, 20_000, 200_000]) + text
    elif choice == 4:
        text = re.sub(
            r'PartOfGroup="[^"]*"',
            f'PartOfGroup="{dice.choice(["", "x" * 9999, "&#0;", "_2", "é"])}"',
            text,
        )
    else:
        text = text.replace(
            'encoding="', f'encoding="{dice.choice(["utf-16", "utf-7", "rot13", "idna", "x"])}" x="'
        )
    return (
        text.encode("utf-8", "surrogateescape")
        if dice.random() < 0.9
        else text.encode("utf-16", "surrogatepass")
    )


def csv_cell(content: bytes, dice: random.Random) -> bytes:
    """One cell, row, column, line end or encoding is another."""
    rows = [line.split(",") for line in content.decode("utf-8", "replace").splitlines()] or [[""]]
    choice = dice.randrange(8)
    row = dice.randrange(len(rows))
    column = dice.randrange(len(rows[row]))
    ends = "\n"
    if choice <= 2:
        rows[row][column] = dice.choice(NASTY_CELLS)
    elif choice == 3:
        rows[row] = dice.choice([rows[row][:-1], rows[row] + ["x"], rows[row] * 400, [], rows[0]])
    elif choice == 4:
        rows = [
            cells[:column] + cells[column + 1 :] if dice.random() < 0.9 else cells for cells in rows
        ]
    elif choice == 5:
        rows += [rows[row]] * dice.choice([1, 3000])
    elif choice == 6:
        ends = dice.choice(["\r\n", "\r", "\n\n", "\x00\n", "\x0b\n"])
    text = ends.join(",".join(cells) for cells in rows) + ends
    coding = (
        dice.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"])
        if choice == 7
        else "utf-8"
    )
    return text.encode(coding, "surrogateescape" if coding == "utf-8" else "replace") + (
        b"\xe9" if choice == 7 else b""
    )


def yaml_value(content: bytes, dice: random.Random) -> bytes:
    lines = content.decode("utf-8").splitlines()
    places = [
        number for number, line in enumerate(lines) if ":" in line or line.lstrip().startswith("-")
    ]
    if not places:
        return dice.choice(NASTY_YAML).encode()
    number = dice.choice(places)
    key, colon, _ = lines[number].partition(":")
    choice = dice.randrange(7)
    if choice <= 2:
        lines[number] = f"{key}{colon} {dice.choice(NASTY_YAML)}"
    elif choice == 3:
        lines[number] = lines[number].replace(
            key.strip(),
            dice.choice(
                ["x", "'a; b'", "1", "? ", "<<", "é", "", "x" * 2000, "!!python/name:os.system"]
            ),
            1,
        )
    elif choice == 4:
        lines.insert(number, lines[number])
    elif choice == 5:
        lines[number] = dice.choice(["\t", "  ", "        "]) + lines[number]
    else:
        return (
            "a0: &a0 [x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
            + "\n".join(lines)
        ).encode()
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def hdf5_member(content: bytes, dice: random.Random) -> bytes:
    """One dataset or attribute is of another kind, size or place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            name = dice.choice(list(file))
            old = file[name][:]
            attributes = sorted(file.attrs)
            if attributes and dice.random() < 0.25:
                attribute = dice.choice(attributes)
                file.attrs[attribute] = dice.choice(ODD_ATTRIBUTES)
            else:
                del file[name]
                dice.choice(DATASETS)(file, name, old, dice)
        return path.read_bytes()


ODD_ATTRIBUTES: list[Any] = [
    -1,
    0,
    2**62,
    float("nan"),
    float("inf"),
    "",
    "x" * 3000,
    "../x",
    np.zeros((3, 3)),
    np.zeros(0),
    h5py.Empty("f"),
    b"\xff\xfe",
    1e308,
]


def _compressed(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file.create_dataset(name, data=old, chunks=True, compression="gzip")


def _huge(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    wide = (2,) if old.ndim == 2 else ()
    file.create_dataset(name, shape=(2**33, *wide), dtype=old.dtype, chunks=(2**10, *wide))


def _kept_in_another_file(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    place = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(name, shape=old.shape, dtype=old.dtype, external=place)


def _external_link(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file[name] = h5py.ExternalLink("/etc/hostname", "/")


def _soft_link(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file[name] = h5py.SoftLink("/nowhere")


def _virtual(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    layout = h5py.VirtualLayout(shape=old.shape, dtype=old.dtype)
    layout[...] = h5py.VirtualSource("/tmp/elsewhere.h5", "x", shape=old.shape)
    file.create_virtual_dataset(name, layout)


def _group(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file.create_group(name)


def _scalar(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file.create_dataset(name, data=dice.choice([3, "text", b"\xff", h5py.Empty("f")]))


def _strings(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file.create_dataset(name, data=np.array(["a", "b"], dtype=h5py.string_dtype()))


def _records(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    record = np.dtype([("a", "f4"), ("b", "i8")])
    file.create_dataset(name, data=np.zeros(max(1, old.shape[0]), record))


def _other_type(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    kinds = ["float64", "complex64", "bool", "uint8", ">i8", "float16"]
    file.create_dataset(name, data=old.astype(dice.choice(kinds)))


def _one_value(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    value = dice.choice([-1, 2**31 - 1, np.nan, np.inf, -np.inf, 1e30])
    file.create_dataset(name, data=np.full(old.shape, value, "float64"))


def _other_shape(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    deeper = dice.random() < 0.5
    data = old.reshape(*old.shape, 1) if deeper else old.ravel()[: max(0, old.size - 1)]
    file.create_dataset(name, data=data)


def _no_rows(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    file.create_dataset(name, shape=(0, *old.shape[1:]), dtype=old.dtype)


def _one_number(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    changed = old.copy()
    flat = changed.reshape(-1)
    if len(flat):
        byte = old.dtype == np.uint8
        value = dice.choice([0, 1, 255, 127] if byte else [0, -1, 10**6, 2**31 - 1])
        flat[dice.randrange(len(flat))] = value
    file.create_dataset(name, data=changed)


def _never_filled(file: h5py.File, name: str, old: np.ndarray, dice: random.Random) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((2**31, *old.shape[1:]))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(old.dtype), space, plist)


DATASETS: list[Callable[[h5py.File, str, np.ndarray, random.Random], None]] = [
    _compressed,
    _huge,
    _kept_in_another_file,
    _external_link,
    _soft_link,
    _virtual,
    _group,
    _scalar,
    _strings,
    _records,
    _other_type,
    _one_value,
    _other_shape,
    _no_rows,
    _one_number,
    _never_filled,
]
"""What may stand in a dataset's place; each takes the file, the name, the old values and dice."""


ODD_COLUMNS = [
    "[]",
    "1",
    "{}",
    '[{"name": 5}]',
    (
        '[{"name": "x", "field_name": "x", "pandas_type": "datetimetz", "numpy_type": "x",'
        ' "metadata": {"timezone": "x"}}]'
    ),
]
ODD_INDICES = [
    "[]",
    '["x"]',
    '[{"kind": "range", "name": null, "start": 0, "stop": 9999999999, "step": 1}]',
    "5",
]


def parquet_column(content: bytes, dice: random.Random) -> bytes:
    """One column has other values or another type, or the footer says something odd."""
    table = pq.read_table(io.BytesIO(content))
    name = dice.choice(table.column_names)
    rows = table.num_rows
    place = table.column_names.index(name)
    odd: list[Any] = [
        pa.nulls(rows),
        pa.array([None] * rows, pa.string()),
        pa.array(["=1+1"] * rows),
        pa.array([[1, 2]] * rows),
        pa.array([{"a": 1}] * rows),
        pa.array([-1] * rows),
        pa.array([2**40] * rows),
        pa.array([float("nan")] * rows),
        pa.array([float("inf")] * rows, pa.float32()),
        pa.array([b"\xff"] * rows),
        pa.array([True] * rows),
        pa.array(["../x"] * rows).dictionary_encode(),
        pa.array([0] * rows, pa.timestamp("s")),
        pa.array(["x" * 3000] * rows),
        pa.array([None] * rows, pa.int32()),
        pa.array([1e300] * rows),
        pa.array(["\u0000"] * rows),
    ]
    choice = dice.randrange(6)
    if choice <= 2:
        table = table.set_column(place, name, dice.choice(odd))
    elif choice == 3:
        table = dice.choice(
            [
                table.drop_columns([name]),
                table.append_column("extra", odd[1]),
                table.append_column(name, table.column(name)),
                table.slice(0, 0),
                pa.concat_tables([table, table]),
            ]
        )
    elif choice == 4:
        columns = dice.choice(ODD_COLUMNS)
        text = (
            f'{{"index_columns": {dice.choice(ODD_INDICES)}, "columns": {columns},'
            f' "column_indexes": {dice.choice(["[]", "5"])}, "pandas_version": "9"}}'
        )
        table = table.replace_schema_metadata(
            {b"pandas": dice.choice([text.encode(), b"x", b"\xff", b"[]"])}
        )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression=dice.choice(["snappy", "none", "gzip", "zstd"]))
    changed = stream.getvalue()
    return flip(changed, dice) if choice == 5 else changed


def safetensors_header(content: bytes, dice: random.Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    if dice.random() < 0.2:
        return (
            struct.pack("<Q", dice.choice([0, 2**63, 2**40, length + 1, length - 1, len(content)]))
            + content[8:]
        )
    header = json_value(content[8 : 8 + length], dice)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


BLIND: list[Mutation] = [flip, flip, cut_short, splice, blank, other_file]
BY_SUFFIX: dict[str, list[Mutation]] = {
    ".svs": [tiff_tag, tiff_tag, tiff_text],
    ".scn": [tiff_tag, tiff_tag, tiff_text],
    ".tif": [tiff_tag, tiff_tag, tiff_text],
    ".png": [png_chunk, png_chunk],
    ".geojson": [json_value, json_value, geojson_ring],
    ".json": [json_value, json_value],
    ".xml": [xml_node, xml_node],
    ".csv": [csv_cell, csv_cell, csv_cell],
    ".yaml": [yaml_value, yaml_value, yaml_value],
    ".lock": [yaml_value, yaml_value, yaml_value],
    ".h5": [hdf5_member, hdf5_member, hdf5_member],
    ".parquet": [parquet_column, parquet_column],
    ".safetensors": [safetensors_header, safetensors_header],
}


def mutated(content: bytes, suffix: str, dice: random.Random) -> bytes:
    """One mutation, or now and then two."""
    chosen = BY_SUFFIX.get(suffix, []) if dice.random() < 0.65 else BLIND
    content = dice.choice(chosen or BLIND)(content, dice)
    return dice.choice(BLIND)(content, dice) if dice.random() < 0.1 else content
