"""Workers: what they are forked from has imported beforehand what they need."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

from hnm.studies.workers import expect_workers, run_workers


def has_it() -> bool:
    return "colorsys" in sys.modules


if __name__ == "__main__":
    expected, = sys.argv[1:]
    expect_workers(expected)
    print(*run_workers(has_it, [(), ()], print), has_it())
"""


def test_workers_find_the_expected_module_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    for expected, found in (("colorsys", "True 0 False"), ("hnm.seeds", "False 0 False")):
        told = subprocess.run(
            [sys.executable, script, expected], check=True, capture_output=True, text=True
        )
        assert told.stdout.strip() == found
