"""Tiny slides that OpenSlide opens, for any test: made here, so that the tests need no data."""

from collections.abc import Iterator
from types import ModuleType

import dvc.logger  # noqa: F401  # its handlers keep the stdout of the first import; a test that imports it first would close that under later ones
import pytest
from hypothesis import Phase, settings

from tests.support import slides
from tests.support.stages import Launcher

pytest_plugins = ["tests.support.tracked"]
"""Fixtures of repositories whose stages log runs."""

settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=50
)  # a shared machine keeps no deadline
# `make mutants` asks whether a fault is seen, not for its smallest example
settings.register_profile(
    "mutants", settings.get_profile("suite"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("suite")


LONGEST = [
    "tests/test_pipeline.py",
    "tests/cross_validation/test_runs.py",
    "tests/tracking/test_replay.py",
    "tests/tracking/test_courier.py",
    "tests/tracking/test_time_limits.py",
    "tests/faults/test_disk.py",
    "tests/faults/test_cohorts.py",
    "tests/faults/test_hanging.py",
    "tests/faults/test_kills.py",
    "tests/loop/test_tiles.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker waits for one at the end."""
    order = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Forks stages and commands from a process that has imported what they need."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Writes tiny slides: `tiny.aperio(path, tiny.painted(200, 300, (50, 40, 120, 90,
    tiny.STROMA)))`.
    """
    return slides
