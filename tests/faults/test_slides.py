"""Slides that are broken, missing or strange: each costs itself, and the others come out byte for
byte as without it.
"""

import csv
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import psutil
import pytest

from hnm.slides.cutting.pack import Pack
from hnm.tables import QUARANTINE, SLIDES
from tests.support.slides import STROMA, aperio, damage, painted
from tests.support.stages import Launcher, Project, make_project


def page() -> object:
    return painted(256, 320, (50, 40, 180, 170, STROMA), seed=9)


def write_strange_slides(folder: Path, whole: Path) -> list[str]:
    """Slides that cannot be used, by name; each is what its name says."""
    content = whole.read_bytes()
    (folder / "truncated.svs").write_bytes(content[: len(content) // 2])
    (folder / "no_header.svs").write_bytes(b"\0" * 16 + content[16:])
    (folder / "text.svs").write_text("this is no slide\n" * 100)
    (folder / "empty.svs").touch()
    (folder / "circle.svs").symlink_to("circle.svs")
    (folder / "folder.svs").mkdir()
    aperio(folder / "glass.svs", painted(256, 320, seed=8))
    damage(aperio(folder / "zeroed.svs", page(), tile=64), *range(20))
    for name, mpp in (("mpp_zero", 0.0), ("mpp_absurd", 1000.0), ("mpp_none", None)):
        path = aperio(
            folder / f"{name}.svs",
            painted(256, 320, (50, 40, 180, 170, STROMA), seed=len(name)),
            mpp=mpp or None,
            power=None,
        )
        if mpp == 0.0:
            aperio(path, page(), mpp=1.0, power=None)
            path.write_bytes(path.read_bytes().replace(b"MPP = 1.0", b"MPP = 0.0"))
    bomb = bytearray(
        aperio(
            folder / "bomb.svs", painted(256, 320, (50, 40, 180, 170, STROMA), seed=77)
        ).read_bytes()
    )
    claim(bomb, 2_000_000)
    (folder / "bomb.svs").write_bytes(bomb)
    return [
        "truncated",
        "no_header",
        "text",
        "empty",
        "circle",
        "folder",
        "glass",
        "zeroed",
        "mpp_zero",
        "mpp_absurd",
        "mpp_none",
        "bomb",
        "missing",
    ]


def claim(content: bytearray, pixels: int) -> None:
    """Makes a TIFF say that it is so many pixels wide and high."""
    (place,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, place)
    for entry in range(place + 2, place + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from("<H", content, entry)
        if tag in (256, 257):
            struct.pack_into("<HII", content, entry + 2, 4, 1, pixels)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cohort: Path, launcher: Launcher) -> Project:
    """A project with strange slides beside the whole ones, cut."""
    project = make_project(tmp_path_factory.mktemp("strange") / "project", cohort, launcher)
    project.set(cohort={"max_quarantined_share": 0.9})
    manifest = project.folder / "in" / "slides.csv"
    names = write_strange_slides(
        project.folder / "in" / "slides",
        sorted((project.folder / "in" / "slides").glob("*.svs"))[0],
    )
    with manifest.open("a") as stream:
        stream.writelines(f"{name},slides/{name}.svs,0,{name},train,\n" for name in names)
    project.succeed("cohort", "tiles")
    return project


def lost(done: Project) -> dict[str, tuple[str, str]]:
    table = QUARANTINE.read(done.folder / "data" / "tiles" / "quarantine.csv")
    return {slide_id: (step, reason) for slide_id, step, reason in table.itertuples(index=False)}


def test_whole_slides_do_not_notice(done: Project, undisturbed: Project) -> None:
    packs = done.bytes_of("data/tiles/packs")
    assert packs == undisturbed.bytes_of("data/tiles/packs")
    assert len(lost(done)) == 13


@pytest.mark.parametrize(
    ("slide", "step", "words"),
    [
        ("truncated", "open", ["truncated.svs"]),
        ("no_header", "open", ["no slide"]),
        ("text", "open", ["no slide"]),
        ("empty", "open", []),
        ("circle", "open", []),
        ("folder", "open", ["folder"]),
        ("missing", "open", ["does not exist"]),
        ("glass", "tissue", []),
        ("zeroed", "tiles", ["max_lost_share"]),
        ("mpp_zero", "mpp", ["µm per pixel", "column mpp"]),
        ("mpp_absurd", "mpp", ["1000", "column mpp"]),
        ("mpp_none", "mpp", ["states no µm per pixel"]),
        ("bomb", "", []),
    ],
)
def test_a_strange_slide_is_named_with_its_step_and_reason(
    done: Project, slide: str, step: str, words: list[str]
) -> None:
    seen = lost(done)[slide]
    assert seen[0] == step or not step, seen
    assert seen[1] and all(word in seen[1] for word in words), seen
    assert str(done.folder) not in seen[1], "an absolute path in a hashed output"


def test_truncated_slide(done: Project) -> None:
    assert (
        "truncated" in lost(done)
        and not (done.folder / "data" / "tiles" / "packs" / "truncated.h5").exists()
    )


def test_per_axis_mpp(tmp_path: Path, fresh: Project) -> None:
    """A slide of other µm per pixel along x than along y is cut into tiles that are square in
    µm.
    """
    manifest = fresh.folder / "in" / "slides.csv"
    rows = list(csv.DictReader(manifest.open()))
    path = fresh.folder / "in" / rows[0]["path"]
    import tifffile

    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        pixels = painted(256, 512, (0, 0, 512, 256, STROMA))
        file.write(
            pixels,
            tile=(64, 64),
            photometric="rgb",
            compression="deflate",
            resolution=(20_000, 10_000),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    manifest.write_text(
        manifest.read_text().replace(rows[0]["path"], rows[0]["path"].replace(".svs", ".tif"))
    )
    fresh.succeed("cohort", "tiles")
    slides = SLIDES.read(fresh.folder / "data" / "cohort" / "slides.parquet").set_index("slide_id")
    assert slides.loc[rows[0]["slide_id"], ["mpp_x", "mpp_y"]].tolist() == [0.5, 1.0]
    pack = Pack(fresh.folder / "data" / "tiles" / "packs" / f"{rows[0]['slide_id']}.h5")
    assert (pack.side, sorted(set(pack.coords[:, 0]))[:2], sorted(set(pack.coords[:, 1]))[:2]) == (
        128,
        [0, 128],
        [0, 64],
    )


def test_duplicate_slide(fresh: Project) -> None:
    """A copy of a slide under another name and id would count twice, or cross the splits."""
    manifest = fresh.folder / "in" / "slides.csv"
    first = next(csv.DictReader(manifest.open()))
    shutil.copy(fresh.folder / "in" / first["path"], fresh.folder / "in" / "slides" / "copy.svs")
    with manifest.open("a") as stream:
        stream.write("copy,slides/copy.svs,1,somebody,train,\n")
    failed = fresh.run("cohort")
    assert (failed.code, "copies of one file" in failed.err, "Traceback" in failed.err) == (
        1,
        True,
        False,
    ), failed.err
    assert "copy" in failed.err and first["slide_id"] in failed.err


def test_a_slide_that_is_replaced_between_cohort_and_tiles(fresh: Project) -> None:
    """What is cut is what the cohort saw, or nothing: no other slide's tiles are kept under its
    key.
    """
    fresh.succeed("cohort")
    slides = sorted((fresh.folder / "in" / "slides").glob("*.svs"))
    original = slides[0].read_bytes()
    slides[0].write_bytes(slides[1].read_bytes())
    failed = fresh.run("tiles")
    packs = {path.name for path in (fresh.folder / ".hnm" / "store" / "tiles").rglob("[!.]*.h5")}
    assert failed.code == 1 and "Traceback" not in failed.err and slides[0].stem in failed.err, (
        failed.err
    )
    assert len(packs) == len(slides) - 1
    slides[0].write_bytes(original)
    fresh.succeed("tiles")
    assert len(
        {path.name for path in (fresh.folder / ".hnm" / "store" / "tiles").rglob("[!.]*.h5")}
    ) == len(slides)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_native_crash(fresh: Project, undisturbed: Project, how: signal.Signals) -> None:
    """Workers that the machine kills cost no slide: their slides are cut after all, or the stage
    fails and names them.
    """
    fresh.succeed("cohort")
    pid = fresh.start("tiles", HNM_WORKERS="2")
    end = time.monotonic() + 20
    hit = 0
    while time.monotonic() < end and not hit:
        for worker in psutil.Process(pid).children(recursive=True):
            if worker.cpu_times().user > 0.05 and worker.ppid() != pid:
                worker.send_signal(how)
                hit += 1
                break
        else:
            time.sleep(0.01)
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
    first = fresh.wait(pid)
    assert "Traceback" not in first.err
    if first.code == 0:
        assert QUARANTINE.read(fresh.folder / "data" / "tiles" / "quarantine.csv").empty, (
            "a slide is lost to the machine"
        )
    else:
        assert first.code == 1 and "demo-" in first.err, first.err
        fresh.clear("tiles")
        fresh.succeed("tiles")
    assert fresh.bytes_of("data/tiles") == undisturbed.bytes_of("data/tiles")


@pytest.mark.timeout(60)
def test_hanging_read(fresh: Project) -> None:
    """A named pipe in the place of a slide, which no one writes to: it is refused at once, and the
    manifest's other slides are opened.
    """
    manifest = fresh.folder / "in" / "slides.csv"
    os.mkfifo(fresh.folder / "in" / "slides" / "pipe.svs")
    with manifest.open("a") as stream:
        stream.write("pipe,slides/pipe.svs,1,somebody,train,\n")
    fresh.set(cohort={"max_quarantined_share": 0.5})
    fresh.succeed("cohort")
    assert QUARANTINE.read(fresh.folder / "data" / "cohort" / "quarantine.csv")[
        "slide_id"
    ].tolist() == ["pipe"]


@pytest.mark.soak
def test_vanishing_mount(fresh: Project, undisturbed: Project) -> None:
    """A folder of slides that stays away longer than it is waited for: the stage fails and names
    them, no slide goes to quarantine.
    """
    fresh.succeed("cohort")
    slides = fresh.folder / "in" / "slides"
    slides.rename(slides.with_name("away"))
    failed = fresh.run("tiles", HNM_WORKERS="8")
    assert failed.code == 1 and "demo-001" in failed.err and "Traceback" not in failed.err, (
        failed.err
    )
    slides.with_name("away").rename(slides)
    fresh.succeed("tiles")
    assert fresh.bytes_of("data/tiles") == undisturbed.bytes_of("data/tiles")
