import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import simplejpeg

from hnm.errors import TableError
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack
from hnm.tables import TILES


@pytest.fixture
def pixels():
    """Five smooth tiles of 24 px, each of its own colour."""
    ramp = np.linspace(0, 60, 24)[:, None, None]
    return np.stack(
        [
            np.broadcast_to(ramp + np.array(colour), (24, 24, 3))
            for colour in np.arange(15).reshape(5, 3) * 12
        ]
    ).astype(np.uint8)


def written(path: Path, pixels, planned: int = 7) -> Path:
    tiles = (
        PackTile(100 * i, 10 * i, 0.5 + i / 10, encode(tile, 90)) for i, tile in enumerate(pixels)
    )
    write_pack(
        path, tiles, slide_id="s-1", mpp=0.998, tile_px=24, side=48, planned=planned, places=19
    )
    return path


def test_what_goes_in_comes_out(tmp_path, pixels):
    pack = Pack(written(tmp_path / "s-1.h5", pixels))
    assert (
        len(pack),
        pack.slide_id,
        pack.mpp,
        pack.tile_px,
        pack.side,
        pack.lost,
        pack.places,
    ) == (5, "s-1", 0.998, 24, 48, 2, 19)
    assert pack.coords.tolist() == [[0, 0], [100, 10], [200, 20], [300, 30], [400, 40]]
    decoded = pack.tiles(range(5))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - pixels).max() <= 6
    np.testing.assert_array_equal(decoded[3], simplejpeg.decode_jpeg(encode(pixels[3], 90)))


def test_tiles_come_in_the_order_asked_for(tmp_path, pixels):
    pack = Pack(written(tmp_path / "s-1.h5", pixels))
    every = pack.tiles(np.arange(5))
    np.testing.assert_array_equal(pack.tiles([4, 0, 4, 2]), every[[4, 0, 4, 2]])
    assert pack.tiles([]).shape == (0, 24, 24, 3)


def test_the_layout_is_plain_hdf5(tmp_path, pixels):
    with h5py.File(written(tmp_path / "s-1.h5", pixels)) as file:
        assert {name: (str(file[name].dtype), file[name].chunks) for name in file} == {
            "coords": ("int64", None),
            "jpeg": ("uint8", None),
            "offsets": ("int64", None),
            "tissue": ("float32", None),
        }
        start, end = file["offsets"][2:4]
        assert file["jpeg"][start:end].tobytes() == encode(pixels[2], 90)


def test_equal_content_has_equal_bytes(tmp_path, pixels):
    assert (
        written(tmp_path / "a.h5", pixels).read_bytes()
        == written(tmp_path / "b" / "c.h5", pixels).read_bytes()
    )
    assert written(tmp_path / "d.h5", pixels[::-1]).read_bytes() != (tmp_path / "a.h5").read_bytes()


def test_a_pack_that_fails_half_way_leaves_nothing(tmp_path, pixels):
    def tiles():
        yield PackTile(0, 0, 1.0, encode(pixels[0], 90))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_pack(
            tmp_path / "p" / "s.h5", tiles(), slide_id="s", mpp=1.0, tile_px=24, side=24, planned=2
        )
    assert list((tmp_path / "p").iterdir()) == []


def test_the_index_is_a_part_of_the_table(tmp_path, pixels):
    pack = Pack(written(tmp_path / "s-1.h5", pixels))
    index = TILES.check(pack.index(), "index")
    assert index.iloc[3].to_dict() == {
        "slide_id": "s-1",
        "tile": 3,
        "x": 300,
        "y": 30,
        "side": 48,
        "tissue": pytest.approx(0.8),
    }


def test_a_pack_can_be_sent_to_a_worker(tmp_path, pixels):
    pack = Pack(written(tmp_path / "s-1.h5", pixels))
    sent = pickle.loads(pickle.dumps(pack))
    np.testing.assert_array_equal(sent.tiles([1]), pack.tiles([1]))


def test_a_pack_that_went_away_is_named(tmp_path, pixels):
    pack = Pack(written(tmp_path / "s-1.h5", pixels))
    pack.path.unlink()
    with pytest.raises(TableError, match=r"s-1.h5 does not exist; run the stage tiles"):
        pack.tiles([1])


def test_foreign_and_broken_files_are_named(tmp_path, pixels):
    with pytest.raises(TableError, match=r"none.h5 does not exist; run the stage tiles"):
        Pack(tmp_path / "none.h5")
    path = written(tmp_path / "s-1.h5", pixels)
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:-200])
    (tmp_path / "text.h5").write_text("no pack")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "torn.h5", "w") as file, h5py.File(path) as whole:
        for name in whole:
            file[name] = whole[name][: 3 if name == "coords" else None]
        file.attrs.update(whole.attrs)
    for name in ("cut.h5", "text.h5", "foreign.h5", "torn.h5"):
        with pytest.raises(
            TableError,
            match=rf"{name} is no pack of tiles.*; give `hnm verify --remove`, then `dvc repro`",
        ):
            Pack(tmp_path / name)


def test_a_tile_that_is_no_jpeg_is_named(tmp_path, pixels):
    tiles = [
        PackTile(0, 0, 1.0, encode(pixels[0], 90)),
        PackTile(1, 0, 1.0, b"no jpeg"),
        PackTile(2, 0, 1.0, encode(pixels[0][:16], 90)),
    ]
    write_pack(tmp_path / "s.h5", tiles, slide_id="s", mpp=1.0, tile_px=24, side=24, planned=3)
    pack = Pack(tmp_path / "s.h5")
    with pytest.raises(TableError, match=r"s.h5: tile 1 is no JPEG image"):
        pack.tiles([0, 1])
    with pytest.raises(TableError, match=r"s.h5: tile 2 has \(16, 24\) pixels, not tile_px=24"):
        pack.tiles([2])


def test_tiles_of_every_quality_are_read_back(tmp_path: Path) -> None:
    """At some qualities a table of the JPEG image holds the bytes of a marker."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tiles = [
        PackTile(0, number, 1.0, encode(pixels, quality))
        for number, quality in enumerate(range(1, 101))
    ]
    write_pack(tmp_path / "s.h5", tiles, slide_id="s", mpp=1.0, tile_px=16, side=16, planned=100)
    assert Pack(tmp_path / "s.h5").tiles(range(100)).shape == (100, 16, 16, 3)


def test_a_tile_that_the_pack_lacks_is_named(tmp_path: Path) -> None:
    tile_bytes = encode(np.zeros((16, 16, 3), np.uint8), 90)
    write_pack(
        tmp_path / "s.h5",
        [PackTile(0, 0, 1.0, tile_bytes)],
        slide_id="s",
        mpp=1.0,
        tile_px=16,
        side=16,
        planned=1,
    )
    for tile in (1, -1):
        with pytest.raises(
            TableError,
            match=rf"s\.h5 holds 1 tiles, not tile {tile}: it is of another index of tiles",
        ):
            Pack(tmp_path / "s.h5").tiles([tile])
