"""One tiny cohort and one finished project for all faults; each test breaks a copy."""

from pathlib import Path

import pytest

from hnm.synthetic import make_demo_cohort
from tests.support.built import built_once
from tests.support.stages import ORDER, Launcher, Project, make_project


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slides of about 500 pixels, in a folder with their manifest."""

    def paint(folder: Path) -> None:
        make_demo_cohort(folder, slides=8, width_px=512, odd_slides=False)

    return built_once(tmp_path_factory, "cohort-of-faults", paint)


@pytest.fixture
def fresh(tmp_path: Path, cohort: Path, launcher: Launcher) -> Project:
    """A project in which nothing has run."""
    return make_project(tmp_path / "project", cohort, launcher)


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, cohort: Path, launcher: Launcher
) -> Project:
    """A project in which every stage but `evaluate` has run; nobody changes it. Beside it lie the
    failpoints that each stage reached.
    """

    def run_all(folder: Path) -> None:
        project = make_project(folder / "project", cohort, launcher)
        for stage in ORDER[:-1]:
            project.succeed(stage, HNM_FAILPOINT_LOG=str(folder / f"{stage}.points"))

    return Project(built_once(tmp_path_factory, "undisturbed", run_all) / "project", launcher)


@pytest.fixture
def project(tmp_path: Path, undisturbed: Project) -> Project:
    """A copy of the finished project, to be broken."""
    return undisturbed.copy(tmp_path / "project")
