import os
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from hnm.errors import SlideError
from hnm.files import digest_of
from hnm.params import Tiles, Tissue
from hnm.slides.cutting import cut as cutting_module
from hnm.slides.cutting.cut import Cutting, Layout, cut, plan_of
from hnm.slides.cutting.pack import Pack, encode
from hnm.slides.cutting.tiling import grid_of
from hnm.slides.reading.canvas import Box
from hnm.slides.reading.failures import ChangedError
from hnm.slides.reading.reader import OpenSlideReader

TISSUE = Tissue(mpp=8.0, min_area_um2=1000.0)
TILES = Tiles(mpp=1.0, tile_px=32, min_tissue=0.5, jpeg_quality=95)


def cutting(path, pack, mpp=(1.0, 1.0), **changes):
    return Cutting(layout(path, mpp, **changes), pack)


def layout(path, mpp=(1.0, 1.0), mask=None, **changes):
    fingerprint = ""
    if path.exists():
        with OpenSlideReader(path) as slide:
            fingerprint = slide.fingerprint()
    digest = digest_of(mask) if mask else ""
    return Layout(
        "s-1", str(path), mpp, fingerprint, mask, digest, TISSUE, TILES.model_copy(update=changes)
    )


def test_the_tiles_of_a_slide(tmp_path, tiny):
    """Tissue from x=64 to 192 and y=96 to 160 of 320 x 256 pixels holds 4 x 2 whole tiles of 32
    px.
    """
    pixels = tiny.painted(256, 320, (64, 96, 128, 64, tiny.STROMA), (100, 100, 20, 20, tiny.NUCLEI))
    cut(cutting(tiny.aperio(tmp_path / "a.svs", pixels), tmp_path / "a.h5"))
    pack = Pack(tmp_path / "a.h5")
    assert pack.coords.tolist() == [
        [64, 96],
        [96, 96],
        [128, 96],
        [160, 96],
        [64, 128],
        [96, 128],
        [128, 128],
        [160, 128],
    ]
    assert (pack.slide_id, pack.mpp, pack.tile_px, pack.side, pack.lost, pack.places) == (
        "s-1",
        1.0,
        32,
        32,
        0,
        80,
    )
    assert pack.tissue.min() > 0.9
    for (x, y), tile in zip(pack.coords, pack.tiles(range(8)), strict=True):
        assert np.abs(tile.astype(int) - pixels[y : y + 32, x : x + 32]).mean() < 2


def test_a_canvas_larger_than_the_scan_changes_corners_only(tmp_path, tiny):
    pixels = tiny.painted(256, 320, (64, 96, 128, 64, tiny.STROMA))
    cut(cutting(tiny.aperio(tmp_path / "a.svs", pixels), tmp_path / "a.h5"))
    cut(cutting(tiny.leica(tmp_path / "l.scn", pixels, margin=500), tmp_path / "l.h5"))
    plain = Pack(tmp_path / "a.h5")
    leica = Pack(tmp_path / "l.h5")
    np.testing.assert_array_equal(leica.coords, plain.coords + 500)
    assert np.abs(leica.tiles(range(8)).astype(int) - plain.tiles(range(8))).mean() < 3


def test_axes_of_different_resolution_give_tiles_square_in_micrometres(tmp_path, tiny):
    """At 0.5 and 1 µm per pixel a tile of 32 µm is 64 x 32 pixels."""
    pixels = tiny.painted(256, 320, (0, 0, 320, 256, tiny.STROMA))
    path = tiny.aperio(tmp_path / "a.svs", pixels)
    with OpenSlideReader(path) as slide:
        plan = plan_of(slide, layout(path, (0.5, 1.0)))
    assert plan.grid.size == (64.0, 32.0)
    assert len(plan.with_tissue) == 5 * 8
    cut(cutting(path, tmp_path / "a.h5", mpp=(0.5, 1.0)))
    pack = Pack(tmp_path / "a.h5")
    assert pack.side == 64
    assert pack.tiles([7]).shape == (1, 32, 32, 3)


def test_pixels_come_from_the_nearest_finer_level(tmp_path, tiny):
    pixels = tiny.painted(256, 320, (64, 96, 128, 64, tiny.STROMA))
    path = tiny.aperio(tmp_path / "a.svs", pixels, levels=2)
    cut(cutting(path, tmp_path / "a.h5", mpp=(0.5, 0.5)))
    pack = Pack(tmp_path / "a.h5")
    with OpenSlideReader(path) as slide:
        assert pack.coords.tolist() == [[64, 64], [128, 64], [64, 128], [128, 128]]
        assert pack.side == 64
        assert np.abs(pack.tiles([3])[0].astype(int) - slide.read(128, 128, 1, 32, 32)).mean() < 2


@pytest.mark.parametrize(
    ("slide_mpp", "level", "across", "down"),
    [(0.5, 0, (0, 64, 128, 192, 236), (0, 64, 128, 146)), (0.25, 1, (0, 128, 171), (0, 81))],
)
def test_a_pyramid_whose_steps_are_no_powers_of_two(tmp_path, slide_mpp, level, across, down):
    """Levels of 300, 100 and 33 pixels: tiles of 2 level-0 pixels a pixel come from level 0, of 4
    from level 1, and show the same, up to the edges.
    """
    y, x = np.mgrid[:210, :300]
    pixels = np.stack([120 + x // 4, 60 + y // 4, 160 + (x + y) // 10], axis=2).astype(np.uint8)
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        for size in ((300, 210), (100, 70), (33, 23)):
            text = (
                "Aperio Image Library v11.2.1 \r\n300x210 [0,0 300x210] (64x64) ->"
                f" {size[0]}x{size[1]} JPEG/RGB Q=90"
            )
            shrunk = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
            file.write(
                shrunk,
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                description=text,
                metadata=None,
            )
    with OpenSlideReader(path) as slide:
        assert (
            plan_of(slide, layout(path, (slide_mpp, slide_mpp), min_tissue=0.0)).grid.level == level
        )
    cut(cutting(path, tmp_path / "a.h5", mpp=(slide_mpp, slide_mpp), min_tissue=0.0))
    pack = Pack(tmp_path / "a.h5")
    assert pack.coords.tolist() == [[x, y] for y in down for x in across]
    factor = round(1 / slide_mpp)
    for (left, top), tile in zip(pack.coords, pack.tiles(range(len(pack))), strict=True):
        region = pixels[top : top + 32 * factor, left : left + 32 * factor]
        expected = region.reshape(32, factor, 32, factor, 3).mean((1, 3))
        assert np.abs(tile - expected).max() < 5


def test_lost_tiles_are_left_out_and_counted(tmp_path, tiny):
    """TIFF tile 0 (64 x 64 pixels) holds 4 of the 80 tiles; in the thumbnail 5 % of the area is
    lost.
    """
    pixels = tiny.painted(256, 320, (0, 0, 320, 256, tiny.STROMA))
    path = tiny.damage(tiny.aperio(tmp_path / "a.svs", pixels), 0)
    with pytest.raises(
        SlideError, match=r"^more than tiles.max_lost_share=0.01 of its area cannot be read$"
    ) as caught:
        cut(cutting(path, tmp_path / "a.h5"))
    assert caught.value.step == "tiles"
    assert not (tmp_path / "a.h5").exists()
    cut(cutting(path, tmp_path / "a.h5", max_lost_share=0.2, min_tissue=0.0))
    pack = Pack(tmp_path / "a.h5")
    assert (len(pack), pack.lost, pack.places) == (76, 4, 80)
    assert [0, 0] not in pack.coords.tolist()


def test_a_slide_that_claims_rows_that_it_has_not_ends_soon(tmp_path, tiny, monkeypatch):
    """256 rows of 65,535: each read beyond them fails, and each failed read has the file opened
    anew.
    """
    path = tiny.trestle(
        tmp_path / "a.tif", tiny.painted(256, 320, (0, 0, 320, 256, tiny.STROMA)), "E6E6FA"
    )
    with tifffile.TiffFile(path) as file:
        rows = file.pages[0].tags["ImageLength"].valueoffset
    with path.open("r+b") as stream:
        stream.seek(rows)
        stream.write(struct.pack("<I", 65535))
    opened = []
    again = OpenSlideReader._reopen
    monkeypatch.setattr(OpenSlideReader, "_reopen", lambda slide: (opened.append(1), again(slide)))
    with pytest.raises(
        SlideError, match=r"^more than tiles.max_lost_share=0.01 of its area cannot be read$"
    ):
        cut(cutting(path, tmp_path / "a.h5"))
    assert 0 < len(opened) < 100


def test_too_many_lost_tiles(tmp_path, tiny):
    """The thumbnail comes from level 1, which is whole; level 0 has lost one of 20 TIFF tiles, and
    with it 4 of 80 tiles.
    """
    pixels = tiny.painted(256, 320, (0, 0, 320, 256, tiny.STROMA))
    path = tiny.damage(tiny.aperio(tmp_path / "a.svs", pixels, levels=2), 3)
    with pytest.raises(
        SlideError,
        match=r"more than tiles.max_lost_share=0.03 of its 80 tiles are lost: region x=192 y=32",
    ) as caught:
        cut(cutting(path, tmp_path / "a.h5", max_lost_share=0.03))
    assert caught.value.step == "tiles"
    cut(cutting(path, tmp_path / "a.h5", max_lost_share=0.05))
    pack = Pack(tmp_path / "a.h5")
    assert (len(pack), pack.lost) == (76, 4)


def test_a_slide_without_tissue(tmp_path, tiny):
    blank = tiny.aperio(tmp_path / "blank.svs", tiny.painted(256, 320))
    with pytest.raises(
        SlideError, match=r"it has no tissue of at least tissue.min_area_um2=1000"
    ) as caught:
        cut(cutting(blank, tmp_path / "a.h5"))
    assert caught.value.step == "tissue"
    sparse = tiny.aperio(
        tmp_path / "sparse.svs", tiny.painted(256, 320, (64, 96, 8, 160, tiny.STROMA))
    )
    with pytest.raises(
        SlideError,
        match=r"no tile holds tiles.min_tissue=0.9 of tissue \(the best: 0\.\d\d\); lower that",
    ) as caught:
        cut(cutting(sparse, tmp_path / "a.h5", min_tissue=0.9))
    assert caught.value.step == "tissue"


def test_a_time_limit_is_no_cause_of_tiles_and_a_place_neither(tmp_path):
    known = layout(tmp_path / "a.svs").causes()
    assert (
        layout(tmp_path / "moved" / "a.svs", slide_seconds=7.0, read_seconds=3.0).causes() == known
    )
    assert layout(tmp_path / "a.svs", tile_px=64).causes() != known


STROMA_ON_GLASS = (64, 96, 128, 64)


def test_a_slide_that_was_replaced_before_it_is_cut_is_not_kept(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.STROMA)))
    job = cutting(path, tmp_path / "store" / "a.h5")
    for content in (
        tiny.aperio(
            tmp_path / "b.svs", tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.NUCLEI))
        ).read_bytes(),
        tiny.aperio(
            tmp_path / "b.svs", tiny.painted(256, 320)
        ).read_bytes(),  # without tissue: it is not this slide that has none
        path.read_bytes()[:5000],
        b"no slide",
    ):
        path.write_bytes(content)
        with pytest.raises(
            ChangedError,
            match=(
                r"^a.svs changed since its fingerprint was taken, and nothing of it is kept; .* run"
                r" the same command again"
            ),
        ):
            cut(job)
        assert not (tmp_path / "store").exists()


def test_a_slide_that_changes_while_it_is_cut_is_not_kept(tmp_path, tiny, monkeypatch):
    """It is replaced, or one byte of it is written, when the first tile has been encoded."""
    path = tmp_path / "a.svs"

    def replaced() -> None:
        tiny.aperio(
            tmp_path / "b.svs", tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.NUCLEI))
        ).replace(path)

    def written() -> None:
        with path.open("r+b") as stream:
            stream.seek(-100, os.SEEK_END)
            stream.write(b"x")

    def gone_bad() -> None:
        path.write_bytes(b"no slide")

    for change in (replaced, written, gone_bad):
        job = cutting(
            tiny.aperio(path, tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.STROMA))),
            tmp_path / "store" / "a.h5",
        )
        encoded = []

        def encode_and_change(pixels, quality, change=change, encoded=encoded):
            if not encoded:
                change()
            encoded.append(encode(pixels, quality))
            return encoded[-1]

        monkeypatch.setattr(cutting_module, "encode", encode_and_change)
        with pytest.raises(ChangedError, match=r"^a.svs changed since its fingerprint was taken"):
            cut(job)
        assert encoded
        assert list((tmp_path / "store").iterdir()) == []


def test_a_mask_that_changed_is_not_used(tmp_path, tiny):
    path = tiny.aperio(tmp_path / "a.svs", tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.STROMA)))
    pixels = np.zeros((8, 10), np.uint8)
    pixels[3:5, 2:6] = 1
    pixels[7, 9] = 1
    Image.fromarray(pixels).save(tmp_path / "m.png")
    job = cutting(path, tmp_path / "a.h5", mask=tmp_path / "m.png")
    cut(job)
    assert len(Pack(tmp_path / "a.h5")) == 9
    (tmp_path / "a.h5").unlink()
    Image.fromarray(pixels[::-1]).save(tmp_path / "m.png")
    with pytest.raises(ChangedError, match=r"^its mask m.png changed since its digest was taken"):
        cut(job)
    assert not (tmp_path / "a.h5").exists()


def test_a_full_disk_is_no_fault_of_the_slide(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HNM_FAILPOINT", "whole.syncing:*.h5=ENOSPC")
    with pytest.raises(OSError, match="No space left on device"):
        cut(
            cutting(
                tiny.aperio(
                    tmp_path / "a.svs", tiny.painted(256, 320, (*STROMA_ON_GLASS, tiny.STROMA))
                ),
                tmp_path / "a.h5",
            )
        )


def test_a_slide_of_too_many_tiles_and_a_tile_of_too_many_pixels():
    message = (
        r"^its grid would have 200000 x 200000 tiles, more than 10000000; raise tiles.tile_px or"
        r" tiles.mpp$"
    )
    with pytest.raises(SlideError, match=message) as caught:
        grid_of(
            Box(0, 0, 3_200_000, 3_200_000),
            (0.5, 0.5),
            (1.0,),
            TILES.model_copy(update={"mpp": 0.5, "tile_px": 16}),
        )
    assert caught.value.step == "tiles"
    message = (
        r"^one tile would be read from 40960 x 40960 pixels, more than are read at once, as the"
        r" file has no coarser level; lower tiles.mpp or tiles.tile_px$"
    )
    with pytest.raises(SlideError, match=message):
        grid_of(
            Box(0, 0, 100_000, 100_000),
            (0.5, 0.5),
            (1.0,),
            TILES.model_copy(update={"mpp": 5.0, "tile_px": 4096}),
        )
