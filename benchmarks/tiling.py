"""How fast slides become tiles and tiles features, against the libraries alone, in one run: `python
benchmarks/tiling.py`.

Every row is a ratio of two things measured one after the other, several times, in turns; the best
of each counts. What runs in workers is counted in processor seconds; embedding and loading in
seconds of the wall clock, because there overlap is the point. Slides are a tissue texture,
repeated, as Aperio files of JPEG tiles.
"""

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pandas as pd
import psutil
import simplejpeg
import tifffile
import torch
from PIL import Image

from hnm import params
from hnm.learning import features as feature_files
from hnm.learning.compute import set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.encoder import make_encoder, save_encoder, to_input
from hnm.processes import keep_freed_memory
from hnm.slides.cohort.manifest import read_manifest
from hnm.slides.cutting.cut import Cutting, Layout, cut, plan_of
from hnm.slides.cutting.pack import Pack, PackTile, encode, write_pack
from hnm.slides.cutting.tiling import tile_pixels
from hnm.slides.reading.raw_tiles import RawTileReader, open_slide
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.slide import Mpp
from hnm.synthetic import make_demo_cohort
from hnm.tables import QUARANTINE, SLIDES

ROOT = Path(__file__).parents[1]
WORKERS, SOURCE_PX, TEXTURE_PX, TILE_PX, MPP = 2, 256, 1024, 224, 0.5
TISSUE = params.Tissue(mpp=16.0)
Timed = Callable[[], float]
"""Does its work once and says what it cost."""


def main() -> None:
    keep_freed_memory()  # as stages do
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=16384, help="of the slide, in pixels; a multiple of 1024"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--slides", type=int, nargs=2, default=(20, 200), help="for the memory rows"
    )
    options = parser.parse_args()
    print(
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; slide of"
        f" {options.side} px, {WORKERS} workers"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, aim, ratio in rows(folder, options.side, options.repeats, *options.slides):
            print(f"| {what} | {aim} | {ratio:.2f} |", flush=True)


def rows(
    folder: Path, side: int, repeats: int, few: int, many: int
) -> Iterator[tuple[str, str, float]]:
    texture = tissue_texture(folder)
    jpeg, deflate = (
        slide_of(texture, side, folder / "jpeg.svs"),
        slide_of(texture, side, folder / "deflate.svs", compression="deflate"),
    )
    small = slide_of(texture, TEXTURE_PX, folder / "small.svs")
    with open_slide(jpeg) as raw, OpenSlideReader(jpeg) as known:
        assert isinstance(raw, RawTileReader)
        at = np.random.default_rng(0).integers(0, side - TILE_PX, (200, 2))
        assert all(
            np.array_equal(
                raw.read(x, y, 0, TILE_PX, TILE_PX), known.read(x, y, 0, TILE_PX, TILE_PX)
            )
            for x, y in at.tolist()
        )

    ours, openslides, decoder, whole = best(
        repeats,
        *(in_workers(job, jpeg) for job in (read_tiles, read_openslide, decode_source, cut_slide)),
    )
    yield (
        "JPEG slide at base mpp: pixels of the tiles, of OpenSlide's read loop",
        ">= 3",
        openslides / ours,
    )
    yield (
        "JPEG slide at base mpp: pixels of the tiles, of raw JPEG decoding",
        ">= 0.5",
        decoder / ours,
    )
    yield (
        "JPEG slide at base mpp: whole stage (mask, tiles, JPEG, pack), of OpenSlide's read loop",
        "",
        openslides / whole,
    )
    ours, openslides, whole = best(
        repeats, *(in_workers(job, deflate) for job in (read_tiles, read_openslide, cut_slide))
    )
    yield (
        "slide that only OpenSlide reads: pixels of the tiles, of its read loop",
        ">= 0.9",
        openslides / ours,
    )
    yield "slide that only OpenSlide reads: whole stage, of its read loop", "", openslides / whole
    ours, shrunk = best(
        repeats,
        *(in_workers(job, jpeg) for job in (partial(read_tiles, mpp=4 * MPP), shrink_level_0)),
    )
    yield "a quarter of its mpp: tiles, of reading level 0 and shrinking", ">= 8", shrunk / ours

    pack = pack_of(texture, folder / "pack.h5", 4000, TILE_PX)
    ours, alone = best(2 * repeats, partial(read_pack, pack), partial(decode_ready, pack))
    yield "random tiles of a pack, of the JPEG decoder alone", ">= 0.9", alone / ours
    ours, alone = best(2 * repeats, *embedding(pack_of(texture, folder / "small.h5", 768, 96)))
    yield "embed, of the encoder's bare forward on ready batches", ">= 0.9", alone / ours
    half, single, chunked = best(5 * repeats, *loading(folder))
    yield (
        "loading 15,000 x 1,536 features of float16: time, of (1, D)-chunked HDF5 of float32",
        "<= 0.125",
        half / chunked,
    )
    yield (
        "loading 15,000 x 1,536 features of float32: time, of (1, D)-chunked HDF5 of float32",
        "<= 0.125",
        single / chunked,
    )
    few_peaks, many_peaks = (
        peaks_of_stages(folder / f"m{count}", small, count) for count in (few, many)
    )
    for stage in few_peaks:
        yield (
            f"memory of the stage {stage}, {many} against {few} slides",
            "<= 1.1",
            many_peaks[stage] / few_peaks[stage],
        )


def best(repeats: int, *measured: Timed) -> list[float]:
    """The least cost of each, measured in turns."""
    costs = [[one() for one in measured] for _ in range(repeats)]
    return [min(of_one) for of_one in zip(*costs, strict=True)]


def in_workers(job: Callable[[Path], tuple[int, float]], slide: Path) -> Timed:
    """Processor seconds a tile of `job` on a slide for each worker, at the same time."""

    def measure() -> float:
        with ProcessPoolExecutor(WORKERS, get_context("fork")) as pool:
            done = list(pool.map(job, [slide] * WORKERS))
        return sum(seconds for _, seconds in done) / sum(count for count, _ in done)

    return measure


def layout_of(slide: Path, mpp: float) -> Layout:
    return Layout(
        "s",
        str(slide),
        Mpp(MPP, MPP),
        "",
        None,
        "",
        TISSUE,
        params.Tiles(mpp=mpp, tile_px=TILE_PX, min_tissue=0.0),
    )


def read_tiles(path: Path, mpp: float = MPP) -> tuple[int, float]:
    with open_slide(path) as slide:
        grid = plan_of(slide, layout_of(path, mpp)).grid
        begin = time.process_time()
        for x, y in grid.corners.tolist():
            tile_pixels(
                slide.read(x, y, grid.level, *(int(np.ceil(px)) for px in grid.read_px)), grid
            )
        return len(grid.corners), time.process_time() - begin


def cut_slide(path: Path) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        count = cut(Cutting(layout_of(path, MPP), Path(folder) / "p.h5"))
        return count, time.process_time() - begin


def read_openslide(path: Path) -> tuple[int, float]:
    with openslide.OpenSlide(path) as slide:
        steps = [range(0, side - TILE_PX + 1, TILE_PX) for side in slide.dimensions]
        begin = time.process_time()
        for y in steps[1]:
            for x in steps[0]:
                np.asarray(slide.read_region((x, y), 0, (TILE_PX, TILE_PX)).convert("RGB"))
        return len(steps[0]) * len(steps[1]), time.process_time() - begin


def shrink_level_0(path: Path) -> tuple[int, float]:
    with openslide.OpenSlide(path) as slide:
        begin, side = time.process_time(), 4 * TILE_PX
        corners = [
            (x, y)
            for y in range(0, slide.dimensions[1] - side, side)
            for x in range(0, slide.dimensions[0] - side, side)
        ][:64]
        for corner in corners:
            np.asarray(
                slide.read_region(corner, 0, (side, side))
                .convert("RGB")
                .resize((TILE_PX, TILE_PX), Image.Resampling.BOX)
            )
        return len(corners), time.process_time() - begin


def decode_source(path: Path) -> tuple[int, float]:
    """Decodes each source tile once; counted in tiles of `TILE_PX`."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        jpegs = [
            file.filehandle.read_array("u1", count, offset=offset).tobytes()
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    begin = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False, fastupsample=False)
    seconds = time.process_time() - begin
    return len(jpegs) * SOURCE_PX**2 // TILE_PX**2, seconds


def read_pack(path: Path) -> float:
    pack = Pack(path)
    order = np.random.default_rng(0).permutation(len(pack))
    begin = time.process_time()
    for start in range(0, len(order), 64):
        pack.tiles(order[start : start + 64])
    return time.process_time() - begin


def decode_ready(path: Path) -> float:
    pack = Pack(path)
    jpegs = list(pack.jpegs(np.random.default_rng(0).permutation(len(pack))))
    begin = time.process_time()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, colorspace="RGB", fastdct=False, fastupsample=False)
    return time.process_time() - begin


def embedding(path: Path) -> tuple[Timed, Timed]:
    machine = set_up_torch(params.Compute(threads=WORKERS))
    encoder = make_encoder(params.Encoder(weights="random")).eval()
    encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pack = Pack(path)
    ready = [
        torch.from_numpy(pack.tiles(range(start, start + 128)))
        for start in range(0, len(pack), 128)
    ]

    def ours() -> float:
        begin = time.perf_counter()
        for _ in embed_tiles(
            encoder,
            [len(pack)],
            lambda _, first, end: pack.tiles(range(first, end)),
            batch_tiles=128,
            machine=machine,
        ):
            pass
        return time.perf_counter() - begin

    @torch.inference_mode()
    def bare() -> float:
        begin = time.perf_counter()
        for batch in ready:
            encoder(to_input(batch, machine.device).contiguous(memory_format=torch.channels_last))
        return time.perf_counter() - begin

    return ours, bare


def loading(folder: Path) -> tuple[Timed, Timed, Timed]:
    rows = np.random.default_rng(0).normal(size=(15_000, 1536)).astype(np.float32)
    feature_files.write(
        rows.astype(np.float16), np.zeros((len(rows), 2), np.int64), folder / "float16.h5"
    )
    feature_files.write(rows, np.zeros((len(rows), 2), np.int64), folder / "float32.h5")
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("features", data=rows, chunks=(1, rows.shape[1]))

    def ours(name: str) -> float:
        begin = time.perf_counter()
        feature_files.read(folder / name)
        return time.perf_counter() - begin

    def chunked() -> float:
        begin = time.perf_counter()
        with h5py.File(folder / "chunked.h5") as file:
            file["features"][:]
        return time.perf_counter() - begin

    return partial(ours, "float16.h5"), partial(ours, "float32.h5"), chunked


def peaks_of_stages(folder: Path, slide: Path, count: int) -> dict[str, int]:
    """Largest resident memory, in bytes, of the stages `tiles` and `embed` with all that they
    start, on `count` links to a slide.
    """
    (folder / "in").mkdir(parents=True)
    rows = []
    for number in range(count):
        (folder / "in" / f"s{number}.svs").symlink_to(slide)
        rows.append(
            (
                f"s{number}",
                f"s{number}.svs",
                f"s{number}",
                "train",
                "aperio",
                MPP,
                MPP,
                1,
                1,
                str(number),
                "",
                "",
            )
        )
    SLIDES.write(pd.DataFrame(rows, columns=list(SLIDES.columns)), folder / "slides.parquet")
    QUARANTINE.write(QUARANTINE.empty(), folder / "unopened.csv")
    save_encoder(
        make_encoder(params.Encoder(name="test_resnet", weights="random")), folder / "encoder"
    )
    text = (ROOT / "params.yaml").read_text().replace("data/demo/slides.csv", "in/slides.csv")
    (folder / "params.yaml").write_text(text)
    made = {"packs": "packs", "pack-digests": "packs.csv", "index": "index.parquet"}
    peaks = {
        "tiles": peak_of(
            "tiles",
            folder,
            {
                "slides": "slides.parquet",
                "unopened": "unopened.csv",
                **made,
                "quarantine": "quarantine.csv",
            },
        ),
        "embed": peak_of("embed", folder, {**made, "encoder": "encoder", "features": "features"}),
    }
    shutil.rmtree(folder)
    return peaks


def peak_of(stage: str, folder: Path, flags: dict[str, str]) -> int:
    command = [
        sys.executable,
        "-m",
        f"pipelines.{stage}",
        *(part for flag, path in flags.items() for part in (f"--{flag}", path)),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(folder),
        "HNM_WORKERS": str(WORKERS),
        "HNM_TRACKING": "off",
    }
    peak = 0
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
    assert process.returncode == 0, stage
    return peak


def resident(pid: int) -> int:
    """Bytes of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_info().rss
    return total


def tissue_texture(folder: Path) -> np.ndarray:
    """(1024, 1024, 3) from the middle of a procedural slide with tumour."""
    manifest = make_demo_cohort(
        folder / "demo", slides=8, width_px=2 * TEXTURE_PX, odd_slides=False
    )
    first = next(entry.path for entry in read_manifest(manifest) if entry.label == "1")
    with OpenSlideReader(manifest.parent / first) as slide:
        left, top = ((side - TEXTURE_PX) // 2 for side in slide.dimensions)
        return slide.read(left, top, 0, TEXTURE_PX, TEXTURE_PX)


def slide_of(texture: np.ndarray, side: int, path: Path, compression: str = "jpeg") -> Path:
    """An Aperio slide of three levels; each of its source tiles is encoded once and written many
    times.
    """
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in (1, 4, 16):
            shrunk = np.asarray(
                Image.fromarray(texture).resize((TEXTURE_PX // factor,) * 2, Image.Resampling.BOX)
            )
            tiled = np.tile(shrunk, (max(1, SOURCE_PX // len(shrunk)),) * 2 + (1,))
            period, level = len(tiled) // SOURCE_PX, side // factor
            text = (
                f"Aperio Image Library v11.2.1 \r\n{side}x{side} [0,0 {side}x{side}]"
                f" ({SOURCE_PX}x{SOURCE_PX})" + (f" -> {level}x{level}" if factor > 1 else "")
            )
            options: dict[str, Any] = {
                "tile": (SOURCE_PX, SOURCE_PX),
                "description": f"{text} JPEG/RGB Q=80|MPP = {MPP}",
                "metadata": None,
            }
            cells = [
                [encoded(tiled, row, column, compression) for column in range(period)]
                for row in range(period)
            ]
            across = -(-level // SOURCE_PX)
            tiles = (
                cells[row % period][column % period]
                for row in range(across)
                for column in range(across)
            )
            colours: dict[str, Any] = (
                {"photometric": "ycbcr", "subsampling": (2, 2)}
                if compression == "jpeg"
                else {"photometric": "rgb"}
            )
            file.write(
                tiles,
                compression=compression,
                shape=(level, level, 3),
                dtype=np.uint8,
                **colours,
                **options,
            )
    return path


def encoded(pixels: np.ndarray, row: int, column: int, compression: str) -> bytes:
    cell = np.ascontiguousarray(
        pixels[
            row * SOURCE_PX : (row + 1) * SOURCE_PX, column * SOURCE_PX : (column + 1) * SOURCE_PX
        ]
    )
    if compression == "deflate":
        return zlib.compress(cell.data)
    return bytes(simplejpeg.encode_jpeg(cell, quality=80, colorspace="RGB", colorsubsampling="420"))


def pack_of(texture: np.ndarray, path: Path, count: int, tile_px: int) -> Path:
    corners = np.random.default_rng(1).integers(0, TEXTURE_PX - tile_px, (count, 2)).tolist()
    tiles = (
        PackTile(x, y, 1.0, encode(texture[y : y + tile_px, x : x + tile_px], 90))
        for x, y in corners
    )
    write_pack(path, tiles, slide_id="s", mpp=MPP, tile_px=tile_px, side=tile_px, planned=count)
    return path


def processor() -> str:
    found = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return found[0] if found else platform.processor()


if __name__ == "__main__":
    main()
