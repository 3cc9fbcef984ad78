"""Prints the least versions that pyproject.toml allows, one a line as pip takes them: `pillow==13`.

torch and torchvision are those of constraints.txt: an older torch comes with gigabytes of CUDA
where no CPU build is offered.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
"""Of the extra `dev`: what the tests run on."""
AS_TESTED = ("torch", "torchvision")


def minima() -> dict[str, str]:
    """Name -> least version, of what the package and its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = [
        requirement
        for requirement in project["optional-dependencies"]["dev"]
        if re.split(r"[>=]", requirement)[0] in TOOLS
    ]
    parsed = [
        re.fullmatch(r"([A-Za-z0-9._-]+)[>=]=([0-9.]+)(?:,<[0-9.]+)?", requirement)
        for requirement in project["dependencies"] + tools
    ]
    return {match[1]: match[2] for match in parsed if match is not None}


def tested() -> dict[str, str]:
    """Name, as pip writes it, -> the version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


if __name__ == "__main__":
    for name, version in minima().items():
        print(f"{name}=={tested()[name] if name in AS_TESTED else version}")
