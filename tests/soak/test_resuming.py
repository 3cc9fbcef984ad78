"""Sixty slides, real stages in processes of their own: what a change costs, and what is left when
they are killed at any moment.

`make soak` runs it and prints what it measured.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from hnm.files import digest_of
from hnm.synthetic import make_demo_cohort

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
SLIDES = 60
KILLS = 20
SEED = 20261122
OUTPUTS = ("data/tiles", "data/features")
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


@dataclass(frozen=True)
class Project:
    """A folder with a cohort, in which stages run."""

    folder: Path

    def start(self, stage: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DVC_ROOT": str(self.folder),
            "HNM_TRACKING": "off",
        }
        command = STAGES[stage].get("do", STAGES[stage])["cmd"].replace("{round}", "0").split()
        return subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        )

    def run(self, *stages: str) -> float:
        """Seconds that the stages took."""
        begin = time.perf_counter()
        for stage in stages:
            assert self.start(stage).wait() == 0, stage
        return time.perf_counter() - begin

    def set(self, **sections: dict[str, object]) -> None:
        """Changes params.yaml."""
        yaml = YAML()
        params = yaml.load((self.folder / "params.yaml").read_text())
        for name, changes in sections.items():
            params[name].update(changes)
        with (self.folder / "params.yaml").open("w") as stream:
            yaml.dump(params, stream)

    def stored(self, kind: str) -> dict[str, int]:
        """When each finished result was made, by its key."""
        return {
            path.name: path.stat().st_mtime_ns
            for path in (self.folder / ".hnm" / "store" / kind).rglob("[!.]*.h5")
        }

    def digests(self) -> dict[str, str]:
        return {name: digest_of(self.folder / name) for name in OUTPUTS}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("soak")
    make_demo_cohort(folder / "in", slides=SLIDES + 2, width_px=512, odd_slides=False)
    manifest = pd.read_csv(folder / "in" / "slides.csv").drop(columns="annotation")
    manifest.to_csv(folder / "in" / "slides.csv", index=False)
    manifest.drop(manifest.index[manifest["split"] == "train"][-2:]).to_csv(
        folder / "in" / "sixty.csv", index=False
    )
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    project = Project(folder)
    project.set(
        cohort={"manifest": "in/sixty.csv"},
        tiles={"mpp": 1.0, "tile_px": 32},
        encoder={"name": "test_resnet", "weights": "random"},
        tissue={"min_area_um2": 1000.0},
    )
    print(
        f"\nfirst run of {SLIDES} slides:"
        f" {project.run('cohort', 'tiles', 'encoder', 'embed'):.0f} s"
    )
    assert (len(project.stored("tiles")), len(project.stored("features"))) == (SLIDES, SLIDES)
    return project


def test_nothing_changed(project):
    digests, before = project.digests(), (project.stored("tiles"), project.stored("features"))
    print(f"\nnothing changed: {project.run('cohort', 'tiles', 'embed'):.0f} s")
    assert project.digests() == digests
    assert (project.stored("tiles"), project.stored("features")) == before


def test_one_slide_more_costs_one(project):
    manifest, every = (
        pd.read_csv(project.folder / "in" / name) for name in ("sixty.csv", "slides.csv")
    )
    another = every[~every["slide_id"].isin(manifest["slide_id"])].head(1)
    before = (project.stored("tiles"), project.stored("features"))
    pd.concat([manifest, another]).to_csv(project.folder / "in" / "sixty.csv", index=False)
    print(f"\none slide more: {project.run('cohort', 'tiles', 'embed'):.0f} s")
    for kind, old in zip(("tiles", "features"), before, strict=True):
        assert old.items() <= project.stored(kind).items()
        assert len(project.stored(kind)) == len(old) + 1
    manifest.to_csv(project.folder / "in" / "sixty.csv", index=False)
    project.run("cohort", "tiles", "embed")


def test_changed_bytes_of_one_slide_cost_one(project):
    slide = project.folder / "in" / pd.read_csv(project.folder / "in" / "sixty.csv")["path"][7]
    other = (
        project.folder
        / "in"
        / pd.read_csv(project.folder / "in" / "slides.csv")
        .set_index("slide_id")
        .drop(pd.read_csv(project.folder / "in" / "sixty.csv")["slide_id"])["path"]
        .iloc[-1]
    )
    digests, original, before = (
        project.digests(),
        slide.read_bytes(),
        (project.stored("tiles"), project.stored("features")),
    )
    slide.write_bytes(other.read_bytes())
    print(f"\nthe bytes of one slide changed: {project.run('cohort', 'tiles', 'embed'):.0f} s")
    for kind, old in zip(("tiles", "features"), before, strict=True):
        assert old.items() <= project.stored(kind).items()
        assert len(project.stored(kind)) == len(old) + 1
    slide.write_bytes(original)
    project.run("cohort", "tiles", "embed")
    assert project.digests() == digests


def test_tiles_mpp_there_and_back_costs_nothing(project):
    digests, before = project.digests(), project.stored("tiles")
    project.set(tiles={"mpp": 2.0})
    there = project.run("tiles")
    assert len(project.stored("tiles")) == len(before) + SLIDES
    after = project.stored("tiles")
    project.set(tiles={"mpp": 1.0})
    back = project.run("tiles")
    print(f"\ntiles.mpp there: {there:.0f} s, back: {back:.0f} s")
    assert project.stored("tiles") == after
    project.run("embed")
    assert project.digests() == digests


def test_another_encoder_cuts_nothing(project):
    before = (project.stored("tiles"), project.stored("features"))
    project.set(encoder={"seed": 1})
    print(f"\nanother encoder: {project.run('encoder', 'tiles', 'embed'):.0f} s")
    assert project.stored("tiles") == before[0]
    assert len(project.stored("features")) == len(before[1]) + SLIDES
    project.set(encoder={"seed": 0})
    project.run("encoder", "embed")


@pytest.mark.parametrize(
    ("stage", "kind", "kills"), [("tiles", "tiles", KILLS), ("embed", "features", KILLS // 4)]
)
def test_killed_at_any_moment(project, stage, kind, kills):
    """Each kill loses no finished slide, and none is made twice; the outputs come out as if nothing
    had happened.
    """
    digests, moments = project.digests(), random.Random(SEED)
    store = project.folder / ".hnm" / "store" / kind
    aside = store.with_name(f"{kind}-aside")
    store.rename(aside)
    seconds = project.run(stage)
    caught, finished, stored = 0, [], {}
    while caught < kills:
        if len(stored) in (0, SLIDES):
            subprocess.run(["rm", "-rf", str(store)], check=True)
            stored = {}
        process = project.start(stage)
        time.sleep(moments.uniform(0.1, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        was_caught = process.wait() == -signal.SIGKILL
        time.sleep(0.5)  # its workers end with it
        after = project.stored(kind)
        assert stored.items() <= after.items()
        stored = after
        if was_caught:
            caught += 1
            finished.append(len(stored))
    assert project.run(stage) > 0
    assert stored.items() <= project.stored(kind).items()
    assert len(project.stored(kind)) == SLIDES
    assert project.digests() == digests
    leftovers = [path for path in store.rglob(".*") if path.is_file()]
    print(
        f"\n{stage} (whole: {seconds:.0f} s) killed {caught} times, with so many slides finished:"
        f" {finished}; leftovers for gc: {len(leftovers)}"
    )
    subprocess.run(["rm", "-rf", str(store)], check=True)
    aside.rename(store)
