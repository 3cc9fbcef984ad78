"""The pipeline as its user runs it: the real `dvc`, on a tiny cohort, with a small network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from hnm.synthetic import make_demo_cohort
from hnm.tables import LABELS, MINED, SLIDE_SCORES, SLIDES, TILE_SCORES
from tests.support.stages import Launcher, stand_in

ROOT = Path(__file__).parents[1]
ALWAYS = ["causes", "cohort"]
"""The stages that run each time; the bytes of their outputs decide what follows."""
FORKED: dict[Path, tuple[Path, ...]] = {}
"""Repository -> the folders whose `python` and `dvc` are forked from a process that has imported
what they need.
"""
SMALL = {
    "tiles": {"tile_px": 64},
    "encoder": {"name": "test_resnet", "weights": "random"},
    "head": {"epochs": 4},
    "mining": {"policy": "hard", "threshold": 0.0, "negative_fraction": 0.2},
    "finetune": {"epochs": 1, "warmup_epochs": 0, "batch_tiles": 16},
    "evaluate": {"resamples": 100},
}


def make_repository(folder: Path, cohort: Path) -> Path:
    """A project of two rounds with the tiny cohort, outside of the clone: the code is beside it, as
    an installed package is.
    """
    folder.mkdir(parents=True)
    for name in ("hnm", "pipelines"):
        shutil.copytree(
            ROOT / name, code_of(folder) / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("vetoes", "extra", "weights"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(cohort, folder / "data" / "demo")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=environment(folder))
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    change_params(folder, rounds=1, **SMALL)
    return folder


def code_of(folder: Path) -> Path:
    """Where the packages lie that the stages of the project `folder` run."""
    return folder.with_name(f"{folder.name}-code")


def upgrade(folder: Path, name: str, version: str) -> None:
    """Has the stages of the project see another version of a library; "" is the true one again."""
    for said in code_of(folder).glob(f"{name}-*.dist-info"):
        shutil.rmtree(said)
    if version:
        place = code_of(folder) / f"{name}-{version}.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )


def change_params(folder: Path, *, rounds: int | None = None, **sections: dict[str, Any]) -> None:
    yaml = YAML()
    raw = yaml.load(folder / "params.yaml")
    for name, values in sections.items():
        raw[name].update(values)
    if rounds is not None:
        later = {str(r): {"previous": str(r - 1)} for r in range(1, rounds + 1)}
        raw["later_rounds"], raw["rounds"] = later, {"0": {}, **later}
    yaml.dump(raw, folder / "params.yaml")


def environment(folder: Path, **changes: str) -> dict[str, str]:
    path = ":".join(
        str(place)
        for place in (*FORKED.get(folder, ()), Path(sys.executable).parent, os.environ["PATH"])
    )
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC", "HNM", "MLFLOW"))
    }
    return {
        **inherited,
        "PATH": path,
        "PYTHONPATH": str(code_of(folder)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HNM_TRACKING": "off",
        **changes,
    }


def repro(folder: Path, **changes: str) -> list[str]:
    """Runs `dvc repro`; the stages that ran, in order."""
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(folder, **changes),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return [
        line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")
    ]


def concerned(folder: Path, **changes: str) -> set[str]:
    """The stages that would run again for what `dvc repro causes` writes down now."""
    for command in (["dvc", "repro", "causes"], ["dvc", "status", "--json"]):
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(folder, **changes),
            text=True,
            capture_output=True,
            check=True,
        )
    changed = {
        name: [kind for entry in entries if isinstance(entry, dict) for kind in entry]
        for name, entries in json.loads(done.stdout).items()
    }
    return {name for name, kinds in changed.items() if "changed deps" in kinds}


def kept(folder: Path, kind: str) -> set[str]:
    """Keys of the results of one kind in the store."""
    return {path.name for path in (folder / ".hnm" / "store" / kind).rglob("*.h5")}


def hashes(folder: Path) -> dict[str, dict[str, str]]:
    """dvc.lock's hash of each output of each stage."""
    lock = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in lock.items()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_cohort(
        tmp_path_factory.mktemp("cohort"), slides=12, width_px=640, odd_slides=False
    ).parent


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, cohort: Path, launcher: Launcher
) -> Iterator[Path]:
    """A repository whose pipeline has run once."""
    folder = tmp_path_factory.mktemp("one") / "repository"
    with forked(folder, launcher, tmp_path_factory.mktemp("s")):
        make_repository(folder, cohort)
        run_once(folder)
        yield folder


@contextmanager
def forked(folder: Path, launcher: Launcher, place: Path) -> Iterator[None]:
    """The real DVC runs the real stages in `folder`, all forked by the launcher."""
    with stand_in(launcher, place) as programs, pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORKED, folder, (programs / "stages", programs / "dvc"))
        yield


@pytest.fixture
def unforked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages run in processes of their own, which see the project's copy of the code and what
    `upgrade` says.
    """
    monkeypatch.setitem(FORKED, repository, FORKED[repository][1:])


def run_once(folder: Path) -> None:
    assert set(repro(folder)) == {
        "causes",
        "cohort",
        "tiles",
        "encoder",
        "embed@0",
        "head@0",
        "mine@1",
        "finetune@1",
        "embed@1",
        "head@1",
        "evaluate",
    }


@pytest.mark.timeout(900)
class TestPipeline:
    """In this order: the later tests change the repository."""

    def test_what_it_makes_fits_together(self, repository: Path) -> None:
        data = repository / "data"
        slides = SLIDES.read(data / "cohort" / "slides.parquet")
        train = LABELS.read(data / "cohort" / "labels" / "train.csv")
        mined = MINED.read(data / "mined" / "1" / "mined.parquet").merge(
            train, on="slide_id", how="left"
        )
        assert set(mined.loc[mined["role"] == "hard_negative", "label"]) == {0} and set(
            mined.loc[mined["role"] == "positive", "label"]
        ) == {1}
        scores = TILE_SCORES.read(data / "scores" / "0" / "tiles.parquet").merge(
            train, on="slide_id"
        )
        negative = scores[scores["label"] == 0]["score"].sort_values(ascending=False).tolist()
        own = mined[mined["role"] == "hard_negative"].sort_values("rank")["score"].tolist()
        assert (
            len(own) <= -(-len(negative) // 5)
            and own[0] == negative[0]
            and own == sorted(own, reverse=True)
        )
        for name in ("0", "1"):
            assert (
                SLIDE_SCORES.read(data / "scores" / name / "slides.parquet")["slide_id"].tolist()
                == slides["slide_id"].tolist()
            )
        metrics = json.loads((repository / "results" / "metrics.json").read_text())
        assert set(metrics["rounds"]) == {"0", "1"} and metrics["chosen_round"] in (0, 1)
        assert metrics["rounds"]["1"]["mined"]["hard_negatives"] == len(own)

    def test_predict_gives_a_slide_the_score_that_the_pipeline_gave_it(
        self, repository: Path
    ) -> None:
        manifest = pd.read_csv(repository / "data" / "demo" / "slides.csv").set_index("slide_id")[
            "path"
        ]
        command = [
            "python",
            "-m",
            "hnm.cli",
            "predict",
            *(f"data/demo/{path}" for path in manifest[:2]),
            "--round",
            "1",
            "--out",
            "predictions",
        ]
        done = subprocess.run(
            command, cwd=repository, env=environment(repository), text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        told = json.loads((repository / "predictions" / "predictions.json").read_text())
        known = SLIDE_SCORES.read(
            repository / "data" / "scores" / "1" / "slides.parquet"
        ).set_index("slide_id")["score"]
        # its tiles have other places in their batches than in the stage embed, where another kernel
        # may round otherwise
        scores = {slide["slide_id"]: slide["score"] for slide in told["slides"]}
        assert scores == pytest.approx(
            {slide_id: float(known[slide_id]) for slide_id in manifest.index[:2]}, abs=1e-4
        )
        assert (
            told["model"]["versions"]["data/heads/1"]
            == hashes(repository)["head@1"]["data/heads/1"]
        )

    @pytest.mark.parametrize(
        "interpreters",
        ["forked", pytest.param("one for each stage, as a user has", marks=pytest.mark.soak)],
    )
    def test_elsewhere_in_another_country_with_other_workers_the_hashes_are_the_same(
        self, repository: Path, cohort: Path, tmp_path: Path, interpreters: str
    ) -> None:
        country = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "77"}
        other = tmp_path / "a folder" / "far" / "away"
        with ExitStack() as stack:
            if interpreters == "forked":
                launcher = stack.enter_context(closing(Launcher(**country)))
                stack.enter_context(forked(other, launcher, tmp_path / "s"))
            make_repository(other, cohort)
            repro(other, **country, HNM_WORKERS="1")
        assert hashes(other) == hashes(repository)

    def test_a_second_run_checks_causes_and_fingerprints_and_nothing_else(
        self, repository: Path
    ) -> None:
        assert repro(repository) == ALWAYS

    @pytest.mark.usefixtures("unforked")
    def test_words_of_a_step_and_code_of_the_plumbing_run_nothing(self, repository: Path) -> None:
        for file, text in (
            ("errors", "UNUSED = 1\n"),
            ("slides/cutting/tiling", "# a comment\n"),
            ("learning/encoder", '"""Words."""\n'),
        ):
            module = code_of(repository) / "hnm" / f"{file}.py"
            module.write_text(module.read_text() + text)
        assert repro(repository) == ALWAYS

    @pytest.mark.usefixtures("unforked")
    def test_a_template_of_the_report_concerns_evaluate_alone(self, repository: Path) -> None:
        template = code_of(repository) / "hnm" / "evidence" / "pages" / "report.html.jinja"
        text = template.read_text()
        template.write_text(f"{text}<!-- more -->\n")
        assert concerned(repository) == {"evaluate"}
        template.write_text(text)

    @pytest.mark.usefixtures("unforked")
    def test_other_kernels_of_the_processor_concern_what_torch_computes(
        self, repository: Path
    ) -> None:
        computed = {"encoder", "embed@0", "head@0", "mine@1", "finetune@1", "embed@1", "head@1"}
        assert concerned(repository, ATEN_CPU_CAPABILITY="default") == computed

    @pytest.mark.usefixtures("unforked")
    def test_an_upgrade_concerns_what_the_library_makes(self, repository: Path) -> None:
        wanted = {
            "mlflow": set(),
            "kornia": {"encoder", "finetune"},
            "openslide_bin": {"cohort", "tiles"},
            "plotly": {"evaluate"},
        }
        for name in wanted:
            upgrade(repository, name, "99.1")
        assert concerned(repository) == {
            f"{stage}@1" if stage == "finetune" else stage
            for stage in set().union(*wanted.values())
        }
        libraries = {
            file.stem: json.loads(file.read_text())["libraries"]
            for file in (repository / "data" / "causes").glob("*.json")
        }
        for name, stages in wanted.items():
            distribution = name.replace("_", "-")
            changed = {
                stage
                for stage, versions in libraries.items()
                if versions.get(distribution) == "99.1"
            }
            assert changed == stages, name
            upgrade(repository, name, "")
        assert concerned(repository) == set(), "all is as it was, before this test and those above"

    @pytest.mark.usefixtures("unforked")
    def test_another_library_of_slides_cuts_them_anew_and_equal_packs_end_the_matter(
        self, repository: Path
    ) -> None:
        before = kept(repository, "tiles")
        upgrade(repository, "openslide_bin", "99.1")
        assert repro(repository) == [*ALWAYS, "tiles"]
        assert before < kept(repository, "tiles") and len(kept(repository, "tiles")) == 2 * len(
            before
        )
        upgrade(repository, "openslide_bin", "")
        assert repro(repository) == ALWAYS, "DVC has the results of these causes"

    def test_another_negative_fraction_starts_at_mine(self, repository: Path) -> None:
        change_params(repository, mining={"negative_fraction": 0.4})
        assert repro(repository) == [
            *ALWAYS,
            "mine@1",
            "finetune@1",
            "embed@1",
            "head@1",
            "evaluate",
        ]

    def test_one_more_round_runs_that_round_alone(self, repository: Path) -> None:
        change_params(repository, rounds=2)
        assert repro(repository) == [
            *ALWAYS,
            "mine@2",
            "finetune@2",
            "embed@2",
            "head@2",
            "evaluate",
        ]

    def test_a_param_put_back_costs_no_tile(self, repository: Path) -> None:
        """The results of earlier params are kept: DVC's run cache and the store give them back."""
        change_params(repository, rounds=1, mining={"negative_fraction": 0.2})
        before = hashes(repository)["embed@0"]
        repro(repository)
        assert hashes(repository)["embed@0"] == before

    def test_a_misspelt_param_stops_the_run_and_loses_nothing(self, repository: Path) -> None:
        text = (repository / "params.yaml").read_text()
        (repository / "params.yaml").write_text(
            text.replace("negative_fraction:", "negativ_fraction:")
        )
        done = subprocess.run(
            ["dvc", "repro"],
            cwd=repository,
            env=environment(repository),
            text=True,
            capture_output=True,
        )
        (repository / "params.yaml").write_text(text)
        assert done.returncode != 0 and "did you mean mining.negative_fraction?" in done.stderr
        assert repro(repository) == ALWAYS

    def test_a_changed_slide_is_noticed_and_equal_pixels_end_the_matter(
        self, repository: Path
    ) -> None:
        manifest = repository / "data" / "demo" / "slides.csv"
        slide = manifest.parent / pd.read_csv(manifest)["path"][0]
        slide.write_bytes(slide.read_bytes() + b"\0")
        assert repro(repository) == [*ALWAYS, "tiles", "mine@1", "evaluate"]
