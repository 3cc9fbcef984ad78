"""One tiny cohort and one finished project for all faults; each test breaks a copy."""

from pathlib import Path

import pytest

from hnm.synthetic import make_demo_cohort
from tests.support.stages import ORDER, Launcher, Project, make_project


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slides of about 500 pixels, in a folder with their manifest."""
    return make_demo_cohort(
        tmp_path_factory.mktemp("cohort"), slides=8, width_px=512, odd_slides=False
    ).parent


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
    project = make_project(tmp_path_factory.mktemp("undisturbed") / "project", cohort, launcher)
    for stage in ORDER[:-1]:
        project.succeed(stage, HNM_FAILPOINT_LOG=str(project.folder.parent / f"{stage}.points"))
    return project


@pytest.fixture
def project(tmp_path: Path, undisturbed: Project) -> Project:
    """A copy of the finished project, to be broken."""
    return undisturbed.copy(tmp_path / "project")
