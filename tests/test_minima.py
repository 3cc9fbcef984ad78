"""The versions that pyproject.toml allows, those that are tested, and the holes that a minimum
closes, say the same.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ci() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minima", ROOT / ".ci" / "minima.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    parts = [line.split("==") for line in lines]
    assert all(len(part) == 2 for part in parts), "each line is name==version"
    return {canonicalize_name(package): Version(version) for package, version in parts}


def stated() -> list[Requirement]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        requirement for extra in project["optional-dependencies"].values() for requirement in extra
    ]
    return [
        Requirement(requirement)
        for requirement in (*project["dependencies"], *extras)
        if not requirement.startswith("hnm[")
    ]


def test_each_requirement_of_the_package_states_a_minimum(ci: ModuleType) -> None:
    import tomllib

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [
        name
        for requirement in dependencies
        if (name := Requirement(requirement).name) not in ci.minima()
    ] == []


def test_what_is_tested_is_allowed() -> None:
    tested = pinned("constraints.txt")
    for requirement in stated():
        version = tested[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is tested as {version}"


def test_the_lowest_are_the_minima(ci: ModuleType) -> None:
    lowest = pinned("constraints-lowest.txt")
    tested = pinned("constraints.txt")
    for name, minimum in ci.minima().items():
        wanted = tested[canonicalize_name(name)] if name in ci.AS_TESTED else Version(minimum)
        assert lowest[canonicalize_name(name)] == wanted, (
            f"{name}: constraints-lowest.txt is not of these minima; make constraints"
        )


def test_the_torch_that_is_tested_is_the_one_that_plain_pip_takes() -> None:
    cap = re.search(r"^TORCH := torch<(\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert cap is not None and pinned("constraints.txt")["torch"] < Version(cap[1])
    assert not any(
        name.startswith(("nvidia-", "cuda-"))
        for name in pinned("constraints.txt") | pinned("constraints-lowest.txt")
    )


def test_minima_close_the_holes_that_are_listed(ci: ModuleType) -> None:
    rows = re.findall(
        r"^\| `([\w.-]+)>=([\d.]+)` \| (.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(), re.M
    )
    assert {name for name, *_ in rows} >= {
        "torch",
        "pillow",
        "fsspec",
        "aiohttp",
        "filelock",
        "jinja2",
        "h5py",
        "openslide-bin",
        "mlflow",
    }
    for name, version, hole, path in rows:
        assert Version(ci.minima()[name]) >= Version(version), (
            f"pyproject.toml allows a {name} below {version}: {hole}"
        )
        assert hole.strip() and path.strip()
