"""HDF5 files of plain arrays: what is written on a full disk, and what is not believed of a
stranger's file.
"""

import ctypes
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hnm import hdf5
from hnm.errors import TableError
from hnm.learning import features
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack

SECRET = "the stranger must not see this\n" * 40


def pack(path: Path, tiles: int = 5, slide_id: str = "s-1") -> Path:
    grey = [np.full((24, 24, 3), 40 * n, np.uint8) for n in range(tiles)]
    write_pack(
        path,
        [PackTile(100 * n, n, 0.5, encode(grey[n], 90)) for n in range(tiles)],
        slide_id=slide_id,
        mpp=0.998,
        tile_px=24,
        side=48,
        planned=7,
    )
    return path


def feature_file(path: Path) -> Path:
    features.write(np.arange(48, dtype=np.float16).reshape(6, 8), np.zeros((6, 2), np.int64), path)
    return path


def changed(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def put(name: str, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def with_attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def virtual(file: h5py.File) -> None:
    del file["tissue"]
    layout = h5py.VirtualLayout((5,), "<f4")
    layout[:] = h5py.VirtualSource(file.filename, "coords", (5,))
    file.create_virtual_dataset("tissue", layout)


def external_link(file: h5py.File) -> None:
    del file["jpeg"]
    file["jpeg"] = h5py.ExternalLink(str(Path(file.filename).with_name("secret.h5")), "/x")


def soft_link(file: h5py.File) -> None:
    del file["tissue"]
    file["tissue"] = h5py.SoftLink("/coords")


def group(file: h5py.File) -> None:
    del file["tissue"]
    file.create_group("tissue")


def objects(file: h5py.File) -> None:
    del file["tissue"]
    file.create_dataset("tissue", data=["a"] * 5, dtype=h5py.string_dtype())


class TestStrangersPacks:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (soft_link, "tissue is a link to something else"),
            (external_link, "jpeg is a link to something else"),
            (virtual, "tissue is not stored as plain bytes of this file"),
            (group, "tissue is no dataset"),
            (objects, "tissue holds no numbers of type float32"),
            (
                put("tissue", data=np.full(5, 0.5, "<f4"), chunks=(5,)),
                "tissue is not stored as plain bytes of this file",
            ),
            (
                put("tissue", data=np.full(5, 0.5, "<f4"), chunks=(5,), compression="gzip"),
                "tissue is not stored as plain bytes of this file",
            ),
            (
                put("jpeg", shape=(1 << 32,), dtype="u1"),
                r"jpeg of 4294967296 numbers does not lie in the file's \d+ bytes",
            ),
            (
                put("offsets", shape=(2**40,), dtype="<i8", fillvalue=7),
                r"offsets of 1099511627776 numbers does not lie in the file's \d+ bytes",
            ),
            (
                put("offsets", data=np.arange(6, dtype=">i8")),
                "offsets holds no numbers of type int64",
            ),
            (
                put("offsets", data=np.arange(6, dtype="<i4")),
                "offsets holds no numbers of type int64",
            ),
            (put("offsets", data=np.int64(3)), "offsets has another number of dimensions than 1"),
            (
                put("offsets", data=h5py.Empty("<i8")),
                "offsets has another number of dimensions than 1",
            ),
            (
                put("coords", data=np.zeros((5, 2, 1), np.int64)),
                "coords has another number of dimensions than 2",
            ),
            (put("coords", data=np.zeros((5, 3), np.int64)), "its datasets do not fit together"),
            (
                put("coords", data=np.full((5, 2), -1, np.int64)),
                r"a tile lies outside 0 to 2147483647 px",
            ),
            (
                put("coords", data=np.full((5, 2), 2**62, np.int64)),
                r"a tile lies outside 0 to 2147483647 px",
            ),
            (
                put("tissue", data=np.full(5, np.nan, "<f4")),
                "a share of tissue is not within 0 and 1",
            ),
            (put("tissue", data=np.full(5, 2, "<f4")), "a share of tissue is not within 0 and 1"),
            (
                lambda file: file["offsets"].__setitem__(slice(1, 3), [99, 3]),
                "its offsets do not cut the JPEG bytes into tiles",
            ),
            (
                lambda file: file["offsets"].__setitem__(0, -(2**62)),
                "its offsets do not cut the JPEG bytes into tiles",
            ),
            (lambda file: file.__delitem__("coords"), "it holds no coords"),
            (lambda file: file.attrs.__delitem__("mpp"), "it has no attribute mpp"),
            (with_attribute("mpp", np.nan), "mpp=nan is not within 0.0001 and 10000.0"),
            (with_attribute("mpp", [0.5, 0.5]), "its attribute mpp is no single value"),
            (with_attribute("mpp", "0.5"), "its attribute mpp is no number of the kind float"),
            (with_attribute("mpp", h5py.Empty("f8")), "its attribute mpp is no single value"),
            (with_attribute("tile_px", 65_500), "tile_px=65500 is not within 1 and 4096"),
            (with_attribute("tile_px", 2.5), "its attribute tile_px is no number of the kind int"),
            (with_attribute("lost", -1), "lost=-1 is not within 0 and 2147483647"),
            (
                with_attribute("places", 6),
                "places=6 is not within 7 and 2147483647",
            ),  # 5 tiles and 2 lost ones
            (lambda file: file.attrs.__delitem__("places"), "it has no attribute places"),
            (with_attribute("slide_id", 7), "its attribute slide_id is no text"),
            (with_attribute("slide_id", "../../etc/x"), r"slide_id='../../etc/x' is no id"),
            (with_attribute("slide_id", "a\n"), r"slide_id='a\\n' is no id"),
            (
                with_attribute("slide_id", "a" * 5000),
                "its attribute slide_id is longer than 255 bytes",
            ),
        ],
    )
    def test_what_is_no_plain_array_is_one_error_with_its_reason(
        self, tmp_path: Path, change: Callable[[h5py.File], None], reason: str
    ) -> None:
        path = changed(pack(tmp_path / "s.h5"), change)
        with pytest.raises(
            TableError,
            match=(
                rf"s\.h5 is no pack of tiles, or was cut short \({reason}.*\); give `hnm verify"
                r" --remove`, then `dvc repro`"
            ),
        ):
            Pack(path)

    def test_bytes_of_another_file_are_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)

        def outside(file: h5py.File) -> None:
            length = file["jpeg"].shape[0]
            del file["jpeg"]
            file.create_dataset(
                "jpeg", (length,), "u1", external=[(str(tmp_path / "secret"), 0, length)]
            )

        with pytest.raises(TableError, match="jpeg is not stored as plain bytes of this file"):
            Pack(changed(pack(tmp_path / "s.h5"), outside))

    def test_a_named_pipe_and_a_folder_do_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.h5")
        (tmp_path / "folder.h5").mkdir()
        for name in ("pipe.h5", "folder.h5"):
            with pytest.raises(
                TableError,
                match=rf"{name} is no pack of tiles, or was cut short \(it is no regular file\)",
            ):
                Pack(tmp_path / name)
            with pytest.raises(
                TableError,
                match=rf"{name} holds no features that can be read \(it is no regular file\)",
            ):
                features.read(tmp_path / name)


class TestStrangersFeatures:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (
                put("features", shape=(1 << 30, 1), dtype="<f4"),
                r"features of 1073741824x1 numbers does not lie in the file's \d+ bytes",
            ),
            (
                put("features", data=np.zeros((6, 8), "<f8")),
                "features holds no numbers of type float16 or float32",
            ),
            (
                put("features", data=np.zeros(6, "<f4")),
                "features has another number of dimensions than 2",
            ),
            (
                put("features", data=np.zeros((6, 0), "<f4")),
                r"6 features of 0 numbers with coords of \(6, 2\) are not what a slide has",
            ),
            (put("features", data=np.zeros((1, 70_000), "<f4")), "1 features of 70000 numbers"),
            (put("features", data=np.zeros((0, 8), "<f4")), "0 features of 8 numbers"),
            (
                put("coords", data=np.zeros((5, 2), np.int64)),
                r"6 features of 8 numbers with coords of \(5, 2\)",
            ),
            (lambda file: file.__delitem__("coords"), "it holds no coords"),
        ],
    )
    def test_what_no_slide_has_is_one_error_with_its_reason(
        self, tmp_path: Path, change: Callable[[h5py.File], None], reason: str
    ) -> None:
        path = changed(feature_file(tmp_path / "f.h5"), change)
        for tiles in (None, np.array([0, 2])):
            with pytest.raises(
                TableError,
                match=(
                    rf"f\.h5 holds no features that can be read \({reason}.*\); give `hnm verify"
                    r" --remove`, then `dvc repro`"
                ),
            ):
                features.read(path, tiles)

    def test_a_byte_of_another_file_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)

        def outside(file: h5py.File) -> None:
            del file["features"]
            file.create_dataset(
                "features", (6, 8), "<f2", external=[(str(tmp_path / "secret"), 0, 96)]
            )

        with pytest.raises(TableError, match="features is not stored as plain bytes of this file"):
            features.read(changed(feature_file(tmp_path / "f.h5"), outside))

    def test_a_tile_below_0_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(TableError, match=r"f\.h5 holds 6 tiles, not tile -1"):
            features.read(feature_file(tmp_path / "f.h5"), np.array([3, -1]))


class TestStrangersJpegs:
    def jpeg_pack(self, path: Path, jpeg: bytes) -> Pack:
        write_pack(
            path, [PackTile(0, 0, 1.0, jpeg)], slide_id="s", mpp=1.0, tile_px=24, side=24, planned=1
        )
        return Pack(path)

    def test_a_header_that_claims_65500_px_asks_for_no_memory(self, tmp_path: Path) -> None:
        jpeg = bytearray(encode(np.zeros((24, 24, 3), np.uint8), 90))
        place = jpeg.index(b"\xff\xc0") + 5
        jpeg[place : place + 4] = (65_500).to_bytes(2, "big") * 2
        with pytest.raises(
            TableError, match=r"s\.h5: tile 0 has \(65500, 65500\) pixels, not tile_px=24"
        ):
            self.jpeg_pack(tmp_path / "s.h5", bytes(jpeg)).tiles([0])

    def test_scans_that_cost_time_without_end_are_refused(self, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (24, 24), (90, 10, 20)).save(tmp_path / "p.jpg", progressive=True)
        with pytest.raises(TableError, match=r"s\.h5: tile 0 is a JPEG image of several scans"):
            self.jpeg_pack(tmp_path / "s.h5", (tmp_path / "p.jpg").read_bytes()).tiles([0])


@pytest.mark.parametrize("kind", ["pack", "features"])
def test_a_file_with_any_wrong_bytes_is_read_or_is_one_error(tmp_path: Path, kind: str) -> None:
    content = (pack if kind == "pack" else feature_file)(tmp_path / "whole.h5").read_bytes()
    written = [place for place, byte in enumerate(content[:2200]) if byte]
    draw, refused, path = random.Random(1), 0, tmp_path / "wrong.h5"
    for _ in range(500):
        wrong = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.choice(written) if draw.random() < 0.7 else draw.randrange(len(wrong))
            number = draw.choice(
                (0, 1, 255, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(wrong), draw.randrange(256))
            )
            width = draw.choice((1, 1, 2, 4, 8))
            wrong[place : place + width] = number.to_bytes(8, "little")[:width]
        path.write_bytes(wrong[: draw.randrange(len(wrong)) if draw.random() < 0.1 else None])
        try:
            if kind == "pack":
                Pack(path).tiles([0, 4])
            else:
                features.read(path)
        except (TableError, IndexError) as error:
            assert isinstance(error, IndexError) or "wrong.h5" in str(error)
            refused += 1
    assert 100 < refused < 500


def digests(folder: Path) -> list[str]:
    draw = np.random.default_rng(0)
    sizes = [(1, 1), (1, 3000), (5, 700), (64, 1025)]
    for number, (tiles, size) in enumerate(sizes):
        pack_tiles = [
            PackTile(
                7 * n, 3 * n, n % 10 / 10, draw.integers(0, 256, size, dtype=np.uint8).tobytes()
            )
            for n in range(tiles)
        ]
        write_pack(
            folder / f"{number}.h5",
            pack_tiles,
            slide_id=f"s-{number}",
            mpp=0.5,
            tile_px=32,
            side=64,
            planned=tiles,
        )
    for number, shape in enumerate([(1, 1), (33, 128), (3, 20_000)]):
        features.write(
            draw.standard_normal(shape).astype(np.float16),
            draw.integers(0, 10**6, (shape[0], 2)),
            folder / f"f{number}.h5",
        )
    return [
        hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in sorted(folder.glob("*.h5"))
    ]


def by_hdf5_alone(folder: Path, of: Path) -> None:
    """The same content as HDF5 writes it to a file by itself."""
    for path in of.glob("*.h5"):
        with h5py.File(path) as source, h5py.File(folder / path.name, "w") as target:
            names = (
                ["features", "coords"]
                if "features" in source
                else ["offsets", "coords", "tissue", "jpeg"]
            )
            for name in names:
                target.create_dataset(name, data=source[name][:])
            target.attrs.update(
                {
                    name: source.attrs[name]
                    for name in ("slide_id", "mpp", "tile_px", "side", "lost", "places")
                    if name in source.attrs
                }
            )


def test_the_bytes_are_those_that_hdf5_would_write(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    written = digests(tmp_path)
    by_hdf5_alone(tmp_path / "plain", tmp_path)
    assert (
        len(written) == 7
        and [
            hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            for path in sorted((tmp_path / "plain").glob("*.h5"))
        ]
        == written
    )


def test_a_layout_of_many_gigabytes_takes_little_memory() -> None:
    with hdf5._in_memory() as layout:
        (offset,) = hdf5._lay_out(
            layout, {"jpeg": hdf5.Streamed(20 << 30, [])}, {"lost": 1}
        ).values()
        status = Path(layout).stat()
    assert offset < 1 << 16 and status.st_size > 20 << 30 and status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    "point",
    [
        "whole.creating",
        "whole.writing",
        "hdf5.writing",
        "hdf5.writing@2",
        "whole.syncing",
        "whole.renaming",
        "pack.spooling",
    ],
)
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    name, _, count = point.partition("@")
    monkeypatch.setenv("HNM_FAILPOINT", f"{name}=ENOSPC" + (f"@{count}" if count else ""))
    with pytest.raises(OSError, match="No space left on device"):
        pack(tmp_path / "s.h5")
    if name != "pack.spooling":
        with pytest.raises(OSError, match="No space left on device"):
            feature_file(tmp_path / "f.h5")
    assert list(tmp_path.iterdir()) == []


FILLING = """
import errno, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_hdf5 import feature_file, pack
folder, left = Path({folder!r}), 0
outcomes = set()
for left in range(0, 72 << 10, 4 << 10):
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
        filler.truncate(max(filler.tell() - left, 0))
    for make in (pack, feature_file):
        path = folder / "x.h5"
        try:
            make(path)
            outcomes.add("whole")
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            assert not path.exists()
            outcomes.add("full")
        path.unlink(missing_ok=True)
    assert [file.name for file in folder.iterdir()] == ["filler"], list(folder.iterdir())
print(sorted(outcomes))
"""


def test_a_disk_with_any_room_left_takes_a_file_whole_or_says_that_it_is_full(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=256k") != 0:
        pytest.skip("mounting a small disk takes rights that this user has not")
    try:
        script = FILLING.format(tests=str(Path(__file__).parent), folder=str(folder))
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        libc.umount(str(folder).encode())
    assert (done.returncode, done.stdout, done.stderr[-500:]) == (0, "['full', 'whole']\n", "")
