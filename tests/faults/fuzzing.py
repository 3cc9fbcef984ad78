"""Mutated files through the functions that really read them: each is used, or refused in one
sentence that names it, within bounds.

`make fuzz` runs it whole; a slice with a fixed seed runs in the suite. Each input is read in a
worker process with a limit of time and of memory, so that no input can end the run, and what a
worker may not survive is told with its seed.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
"""Processor time that one input may take, so that a loaded machine finds nothing; the stages allow
more, but the files here are tiny.
"""
WAITS = 15
"""Of so many times `SECONDS` by the clock, after which an input hangs that takes no processor
time.
"""
MEMORY_BYTES = 1 << 30
"""What one input may ask for, beside what the worker's libraries take."""
LONGEST_MESSAGE = 2000
READ_APART = frozenset({"slide", "mask"})
"""Kinds that the stages read in processes of their own, because a native library may crash: there a
dead worker costs one slide.
"""


def _slide(path: Path, folder: Path) -> None:
    from hnm.prediction.reading import Reading, read_slide
    from hnm.slides.cohort.identity import SlideSource, identify

    identify(SlideSource("a", str(path), None))
    read_slide(Reading("a", str(path), None, True, None, *_sections(), folder / "scratch" / "a.h5"))


def _mask(path: Path, folder: Path) -> None:
    from hnm.files import digest_of
    from hnm.slides.cutting.cut import Cutting, Layout, cut

    cut(
        Cutting(
            Layout(
                "a",
                str(folder / "seeds" / "slide.svs"),
                (1.0, 1.0),
                _fingerprint(folder),
                path,
                digest_of(path),
                *_sections(),
            ),
            folder / "scratch" / "a.h5",
        )
    )


def _fingerprint(folder: Path) -> str:
    from hnm.slides.reading.reader import OpenSlideReader

    with OpenSlideReader(folder / "seeds" / "slide.svs") as slide:
        return slide.fingerprint()


def _sections() -> tuple[Any, Any]:
    from hnm.params import Tiles, Tissue

    return Tissue(mpp=4.0, min_area_um2=100.0), Tiles(mpp=1.0, tile_px=32, min_tissue=0.5)


def _annotation(path: Path, folder: Path) -> None:
    import numpy as np

    from hnm.slides.annotations import check_inside, covered_shares, drawn_in, write_annotation
    from hnm.slides.reading.canvas import Box, Canvas

    canvas = Canvas(600, 600, Box(20, 30, 512, 512))
    drawn = drawn_in(path.read_bytes(), str(path), canvas, named=True)
    check_inside(drawn, canvas, str(path))
    regions = drawn.regions
    write_annotation(regions, folder / "scratch" / "a.geojson")
    corners = np.arange(0, 512, 32)
    covered_shares(regions, ["tumour"], corners, corners, 32, 32)


def _outline(path: Path, folder: Path) -> None:
    from hnm.slides.annotations import write_annotation
    from hnm.slides.cohort.outlines import outlined

    write_annotation(outlined(path), folder / "scratch" / "a.geojson")


def _manifest(path: Path, folder: Path) -> None:
    from hnm.params import Split
    from hnm.slides.cohort.labels import check_classes, labels_of, splits_of
    from hnm.slides.cohort.manifest import read_manifest

    rows = read_manifest(path)
    labels = labels_of(rows, (), path)
    check_classes(labels, splits_of(rows, labels, Split()), str(path))


def _pack(path: Path, folder: Path) -> None:
    from hnm.slides.cutting.pack import Pack
    from hnm.tables import TILES

    pack = Pack(path)
    TILES.check(pack.index(), str(path))
    pack.tiles(range(len(pack)))


def _features(path: Path, folder: Path) -> None:
    import numpy as np

    from hnm.learning import features

    features.read(path)
    features.read(path, np.array([1, 0]))


def _table(path: Path, folder: Path) -> None:
    from hnm import tables

    {
        "slides": tables.SLIDES,
        "index": tables.TILES,
        "mined": tables.MINED,
        "scores": tables.TILE_SCORES,
        "labels": tables.LABELS,
        "quarantine": tables.QUARANTINE,
    }[path.stem].read(path)


def _ledger(path: Path, folder: Path) -> None:
    from hnm.evidence.test_ledger import read_ledger

    read_ledger(path)


def _vetoes(path: Path, folder: Path) -> None:
    import pandas as pd

    from hnm.mining.vetoes import vetoed_tiles
    from hnm.tables import SLIDES

    vetoes = folder / "scratch" / "vetoes"
    vetoes.mkdir(parents=True, exist_ok=True)
    for old in vetoes.iterdir():
        old.unlink()
    shutil.copy(folder / "seeds" / "vetoes" / "vetoes.csv", vetoes / "vetoes.csv")
    shutil.copy(path, vetoes / ("vetoes.csv" if path.suffix == ".csv" else "a.geojson"))
    tiles = pd.DataFrame(
        {"slide_id": "a", "tile": range(16), "x": [32 * n for n in range(16)], "y": 0, "side": 32}
    )
    vetoed_tiles(vetoes, tiles, SLIDES.read(folder / "seeds" / "slides.parquet"))


def _model(path: Path, folder: Path) -> None:
    import torch

    from hnm.learning.encoder import to_input
    from hnm.prediction.model import read_model

    whole = folder / "scratch" / "model"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(folder / "seeds" / "model", whole)
    part = {
        "model": ".",
        "encoder": "encoder",
        "head": "head",
        "encoder-weights": "encoder",
        "head-weights": "head",
    }[path.stem]
    shutil.copy(
        path, whole / part / ("weights.safetensors" if path.suffix == ".safetensors" else path.name)
    )
    model = read_model(whole, "a")
    with torch.inference_mode():
        model.head(
            model.encoder(
                to_input(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.device("cpu"))
            )
        )


def _params(path: Path, folder: Path) -> None:
    from hnm.params import load_params

    load_params(path)


def _lock(path: Path, folder: Path) -> None:
    from hnm.repository.stages import current_stages, locked_stages

    states = locked_stages(path.parent)
    for state in current_stages(states).values():
        assert state.key and state.stage
        _ = state.round, state.data


READERS: dict[str, Callable[[Path, Path], None]] = {
    "slide": _slide,
    "mask": _mask,
    "annotation": _annotation,
    "outline": _outline,
    "manifest": _manifest,
    "pack": _pack,
    "features": _features,
    "table": _table,
    "ledger": _ledger,
    "vetoes": _vetoes,
    "model": _model,
    "params": _params,
    "dvc.lock": _lock,
}
SHARES = {
    "slide": 6,
    "mask": 4,
    "annotation": 4,
    "outline": 2,
    "manifest": 2,
    "pack": 3,
    "features": 3,
    "table": 4,
    "ledger": 1,
    "vetoes": 2,
    "model": 4,
    "params": 2,
    "dvc.lock": 2,
}
"""How many of 39 inputs are of a kind."""


def make_seeds(folder: Path) -> dict[str, list[Path]]:
    """Whole files of each kind in `folder`, small."""
    folder.mkdir(parents=True)
    slides = _make_slides(folder)
    _make_drawings(folder)
    _make_manifest(folder)
    _make_tables(folder)
    (folder / "vetoes").mkdir()
    (folder / "vetoes" / "vetoes.csv").write_text(
        "slide_id,tile,x,y,reason\na,1,,,blur\na,,70,5,pen\n"
    )
    _make_ledger(folder / "test_ledger.csv")
    model = _make_model(folder)
    shutil.copy(ROOT / "params.yaml", folder)
    _make_lock(folder)
    return {
        "slide": slides,
        "mask": [folder / "mask.png", folder / "drawn.geojson"],
        "annotation": [folder / "drawn.geojson"],
        "outline": [folder / "tumor_001.xml", folder / "tumor_002.json"],
        "manifest": [folder / "manifest.csv"],
        "pack": [folder / "pack.h5"],
        "features": [folder / "features.h5"],
        "table": [
            folder / name
            for name in (
                "index.parquet",
                "slides.parquet",
                "mined.parquet",
                "scores.parquet",
                "labels.csv",
                "quarantine.csv",
            )
        ],
        "ledger": [folder / "test_ledger.csv"],
        "vetoes": [folder / "vetoes" / "vetoes.csv", folder / "drawn.geojson"],
        "model": model,
        "params": [folder / "params.yaml"],
        "dvc.lock": [folder / "dvc.lock"],
    }


def _make_slides(folder: Path) -> list[Path]:
    """Slides of three makers, a mask, and a pack with its features."""
    import numpy as np
    from PIL import Image

    from hnm.learning import features
    from hnm.slides.cutting.pack import PackTile, encode, write_pack
    from tests.support.slides import NUCLEI, STROMA, aperio, leica, painted, trestle

    pixels = painted(256, 320, (50, 40, 180, 170, STROMA), (90, 80, 40, 40, NUCLEI))
    slides = [
        aperio(folder / "slide.svs", pixels, levels=2),
        leica(folder / "leica.scn", pixels, margin=32),
        trestle(folder / "trestle.tif", pixels, "E6E6FA"),
    ]
    Image.fromarray((pixels[..., 0] < 230).astype(np.uint8) * 255).save(folder / "mask.png")
    packed = [
        PackTile(32 * n, 0, 0.75, encode(pixels[40 + n : 72 + n, 60:92], 90)) for n in range(5)
    ]
    write_pack(folder / "pack.h5", packed, slide_id="a", mpp=1.0, tile_px=32, side=32, planned=5)
    features.write(
        np.random.default_rng(0).random((5, 8), np.float32).astype(np.float16),
        np.zeros((5, 2), np.int64),
        folder / "features.h5",
    )
    return slides


def _make_drawings(folder: Path) -> None:
    """One lesion as GeoJSON, as ASAP writes it, and as CAMELYON's JSON."""
    ring = [[50, 40], [230, 40], [230, 210], [50, 210], [50, 40]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumour"}},
    }
    (folder / "drawn.geojson").write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    feature,
                    feature | {"geometry": {"type": "MultiPolygon", "coordinates": [[ring]]}},
                ],
            }
        )
    )
    corners = "".join(
        f'<Coordinate Order="{n}" X="{x}" Y="{y}" />' for n, (x, y) in enumerate(ring)
    )
    shape = (
        '<Annotation Name="a" Type="Polygon" PartOfGroup="{}"'
        f' Color="#F4FA58"><Coordinates>{corners}</Coordinates></Annotation>'
    )
    (folder / "tumor_001.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><ASAP_Annotations><Annotations>'
        f"{shape.format('_0')}{shape.format('_2')}</Annotations></ASAP_Annotations>"
    )
    (folder / "tumor_002.json").write_text(
        json.dumps({"positive": [{"name": "a", "vertices": ring}], "negative": []})
    )


def _make_manifest(folder: Path) -> None:
    splits = ("train", "validation", "test")
    rows = [
        f"s{n},slides/s{n}.svs,{n % 2},p{n},{splits[n // 2 % 3]},0.5,a.geojson,m.png"
        for n in range(12)
    ]
    (folder / "manifest.csv").write_text(
        "\n".join(["slide_id,path,label,patient_id,split,mpp,annotation,mask", *rows]) + "\n"
    )


def _make_tables(folder: Path) -> None:
    """A small table of each kind; the tiles are those of the pack."""
    import pandas as pd

    from hnm import tables
    from hnm.slides.cutting.pack import Pack
    from tests.support import evidence

    tables.TILES.write(Pack(folder / "pack.h5").index(), folder / "index.parquet")
    slide = {
        "slide_id": "a",
        "path": "a.svs",
        "patient_id": "p",
        "split": "train",
        "vendor": "aperio",
        "mpp_x": 1.0,
        "mpp_y": 1.0,
    }
    scan = {
        "width": 512,
        "height": 512,
        "bounds_x": 0,
        "bounds_y": 0,
        "bounds_width": 512,
        "bounds_height": 512,
        "origin": "auto",
    }
    tables.SLIDES.write(
        pd.DataFrame([{**slide, **scan, "fingerprint": "f", "mask": "", "mask_digest": ""}]),
        folder / "slides.parquet",
    )
    tables.MINED.write(evidence.mined(1), folder / "mined.parquet")
    tables.TILE_SCORES.write(evidence.rounds(1)[0].tile_scores, folder / "scores.parquet")
    tables.LABELS.write(
        pd.DataFrame({"slide_id": ["a", "b"], "label": [0, 1]}), folder / "labels.csv"
    )
    tables.QUARANTINE.write(
        pd.DataFrame({"slide_id": ["a"], "step": ["open"], "reason": ["it is torn"]}),
        folder / "quarantine.csv",
    )


def _make_model(folder: Path) -> list[Path]:
    """A model's records, then its weights."""
    from tests.support.model import make_model

    model = make_model(folder / "parts").rename(folder / "model")
    records = ("model.json", "encoder/encoder.json", "head/head.json")
    copies = {name: Path(name).name for name in records} | {
        f"{part}/weights.safetensors": f"{part}-weights.safetensors" for part in ("encoder", "head")
    }
    return [Path(shutil.copy(model / name, folder / copy)) for name, copy in copies.items()]


def _make_lock(folder: Path) -> None:
    from ruamel.yaml import YAML

    md5 = "0" * 32
    stage = {
        "cmd": (
            "python -m pipelines.head --features data/features/0 --folder data/heads/0 --round 0"
        ),
        "deps": [
            {"path": "data/features/0", "hash": "md5", "md5": f"{md5}.dir", "size": 3, "nfiles": 1}
        ],
        "params": {"params.yaml": {"head": {"epochs": 4}, "rounds": {"0": {}}}},
        "outs": [
            {"path": "data/heads/0", "hash": "md5", "md5": f"{md5}.dir", "size": 3, "nfiles": 1}
        ],
    }
    with (folder / "dvc.lock").open("w") as stream:
        YAML().dump(
            {
                "schema": "2.0",
                "stages": {
                    "head@0": stage,
                    "evaluate": {
                        **stage,
                        "cmd": "python -m pipelines.evaluate --metrics results/metrics.json",
                    },
                },
            },
            stream,
        )


def _make_ledger(path: Path) -> None:
    from hnm.evidence.test_ledger import LedgerEntry, enter

    for state in ("a" * 64, "b" * 64):
        enter(path, LedgerEntry(state, "c" * 64, "d" * 40, "false", "evaluate"))


@dataclass(frozen=True)
class Finding:
    """One input that was neither used nor refused as it should be."""

    kind: str
    number: int
    """Of the input: with the seed it makes it again."""
    problem: str
    file: Path


@dataclass
class Tally:
    """What a run has seen."""

    used: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    apart: Counter[str] = field(default_factory=Counter)
    """Inputs that ended their worker, of a kind for which a worker may die."""
    findings: list[Finding] = field(default_factory=list)


class Worker:
    """A process that reads one input after the other, and is started anew where one has ended
    it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def read(self, kind: str, path: Path) -> dict[str, Any]:
        """`outcome`: used, refused (with `message`), raised (with `message`), died or hung."""
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            log = (self._folder / "worker.log").open("a")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fuzzing", "--worker", str(self._folder)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            log.close()
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        process.stdin.flush()
        begin = _processor_seconds(process.pid)
        end = time.monotonic() + WAITS * SECONDS
        while not select.select([process.stdout], [], [], 1.0)[0]:
            if _processor_seconds(process.pid) - begin > SECONDS or time.monotonic() > end:
                self.stop()
                return {"outcome": "hung", "message": f"it took longer than {SECONDS:g} s"}
        if line := process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()
        self.stop()
        return {"outcome": "died", "message": f"its process died (exit code {code})"}

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _processor_seconds(process: int) -> float:
    """Processor time of a process, by the system's count."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def problem_of(kind: str, path: Path, answer: dict[str, Any]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    outcome = answer["outcome"]
    message = answer.get("message", "")
    if outcome == "used" or (outcome == "died" and kind in READ_APART):
        return None
    if outcome != "refused":
        return f"{outcome}: {message}"
    names = {
        path.name,
        path.stem,
        {"params": "params.yaml", "vetoes": "vetoes", "model": "model"}.get(kind, path.name),
    }
    if kind not in READ_APART and not any(name in message for name in names):
        return f"the message does not name the file: {message[:300]!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"the message has {len(message)} characters: {message[:200]!r}"
    if not message.strip() or any(
        character not in "\n\t" and not character.isprintable() for character in message
    ):
        return f"the message is empty or holds what a terminal obeys: {message[:300]!r}"
    return None


def inputs(
    seeds: dict[str, list[Path]], seed: int, count: int, kinds: Iterable[str]
) -> Iterable[tuple[int, str, Path, bytes]]:
    """(number, kind, seed file, content) of each input; a number and a seed always make the same
    one.
    """
    from tests.faults.mutations import mutated

    order = [kind for kind in kinds for _ in range(SHARES[kind])]
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        kind = order[number % len(order)]
        path = dice.choice(seeds[kind])
        yield number, kind, path, mutated(path.read_bytes(), path.suffix, dice)


def run(
    folder: Path,
    *,
    seed: int,
    count: int,
    kinds: Iterable[str] = tuple(SHARES),
    seconds: float = 1e9,
) -> Tally:
    """Reads `count` inputs, or as many as `seconds` allow; `folder` gets the files of the
    findings.
    """
    seeds = make_seeds(folder / "seeds")
    (folder / "scratch").mkdir()
    (folder / "findings").mkdir()
    tally = Tally()
    worker = Worker(folder)
    end = time.monotonic() + seconds
    for kind, paths in seeds.items():
        for path in paths:
            if kind in kinds:
                answer = worker.read(kind, path)
                assert answer["outcome"] == "used", (
                    f"the whole {kind} {path.name} cannot be read: {answer}"
                )
    try:
        for number, kind, path, content in inputs(seeds, seed, count, kinds):
            if time.monotonic() > end:
                break
            target = folder / "scratch" / "input" / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            answer = worker.read(kind, target)
            if problem := problem_of(kind, target, answer):
                copy = folder / "findings" / f"{kind}-{number}{path.suffix}"
                shutil.copy(target, copy)
                tally.findings.append(Finding(kind, number, problem, copy))
            {"used": tally.used, "refused": tally.refused}.get(answer["outcome"], tally.apart)[
                kind
            ] += 1
    finally:
        worker.stop()
    if (pwned := [place for place in (ROOT, folder) if (place / "PWNED").exists()]) or (
        folder / "scratch" / "PWNED"
    ).exists():
        raise AssertionError(f"an input ran a command: {pwned}")
    return tally


def _work(folder: Path) -> None:
    """The worker: one line in, one line out; whatever else is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from hnm.errors import HnmError

    for kind in SHARES:  # what the readers import is no input's memory
        try:
            READERS[kind](folder / "seeds" / "nothing.h5", folder)
        except (HnmError, OSError, KeyError):
            continue
    with Path("/proc/self/statm").open() as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        kind, path = json.loads(line)
        shutil.rmtree(folder / "scratch" / "a.h5", ignore_errors=True)
        try:
            READERS[kind](Path(path), folder)
            answer = {"outcome": "used"}
        except HnmError as error:
            answer = {"outcome": "refused", "message": str(error), "error": type(error).__name__}
        except BaseException as error:
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "/hnm/" in frame.filename
            ]
            place = (
                f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}"
                if frames
                else "?"
            )
            answer = {
                "outcome": "raised",
                "message": f"{type(error).__name__} at {place}: {str(error)[:200]}",
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> int:
    """Prints what was read and what was found; 1 where something was found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kinds", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments.worker)
        return 0
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    begin = time.monotonic()
    tally = run(
        folder,
        seed=arguments.seed,
        count=arguments.inputs,
        kinds=arguments.kinds,
        seconds=arguments.seconds,
    )
    for kind in arguments.kinds:
        print(
            f"{kind:<11}{tally.used[kind]:>5} used {tally.refused[kind]:>5} refused"
            f" {tally.apart[kind]:>4} ended their worker or were found"
        )
    for finding in tally.findings:
        print(
            f"FOUND {finding.kind} (seed {arguments.seed}, input {finding.number}):"
            f" {finding.problem}\n      {finding.file}"
        )
    total = sum((tally.used + tally.refused + tally.apart).values())
    print(f"{total} inputs in {time.monotonic() - begin:.0f} s, {len(tally.findings)} findings")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
