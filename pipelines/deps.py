"""The code deps of dvc.yaml: which modules each stage runs through. `python -m pipelines.deps --write` brings the file up to date."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

from hnm.code import imports_of
from hnm.files import whole

FILE = Path("dvc.yaml")
_STAGE = re.compile(r"  (\w+):")
_CODE = re.compile(r"( +)- (?:hnm|pipelines)/[\w/]+\.py")


def code_deps(stage: str) -> list[str]:
    """The files, counted from the repository's root, that the stage `stage` imports, directly or not, without the plumbing; sorted."""
    root = Path(__file__).parents[1]
    origins = (importlib.util.find_spec(module).origin for module in imports_of(f"pipelines.{stage}"))  # type: ignore[union-attr]
    return sorted(Path(str(origin)).relative_to(root).as_posix() for origin in origins)


def with_code_deps(text: str) -> str:
    """The text of dvc.yaml with each stage's code deps as they should be, at the place of those that it has."""
    lines: list[str] = []
    stage, pending = "", False
    for line in text.splitlines():
        if named := _STAGE.fullmatch(line):
            stage, pending = named[1], True
        if not (code := _CODE.fullmatch(line)):
            lines.append(line)
        elif pending:
            lines += [f"{code[1]}- {path}" for path in code_deps(stage)]
            pending = False
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the code deps into dvc.yaml, or says that they are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="change dvc.yaml; without it the command only says whether that is needed")
    write: bool = parser.parse_args().write
    text = FILE.read_text(encoding="utf-8")
    wanted = with_code_deps(text)
    if wanted == text:
        print(f"{FILE} names the code of each stage")
    elif write:
        with whole(FILE) as temporary:
            temporary.write_text(wanted, encoding="utf-8")
        print(f"{FILE} is brought up to date")
    else:
        sys.exit(f"error: {FILE} does not name the code of each stage; run python -m pipelines.deps --write")


if __name__ == "__main__":
    main()
