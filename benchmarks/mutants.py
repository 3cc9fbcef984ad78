"""How many small faults the tests see: mutmut puts them in, one at a time, and runs the tests that
reach the changed function.

    python benchmarks/mutants.py --sample 60 --out benchmarks/results/mutants.csv

The files and their tests stand in pyproject.toml (`tool.mutmut`). Of each file a sample of its
mutants is tried, drawn by a fixed seed. What was tried stays in the folder `mutants`: a run that
was stopped goes on where it stopped, and after a change of the code or of the tests `--again` tries
the survivors once more.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd

SEED = 21
SMALLEST = "hnm.loop.seal.*"
"""mutmut writes all mutants before it tries any; asked for these few it does so in the shortest
time.
"""
LINES_OF_ALL = ("results", "--all", "True")
SEEN = ("killed", "segfault", "suspicious")
"""Not `timeout`: an endless loop is one, but so is a busy machine. Neither raises nor lowers the
score.
"""


def statuses() -> dict[str, str]:
    """The status of each mutant, by mutmut's name for it; empty where there is no mutant yet."""
    if not Path("mutants").is_dir():
        return {}
    lines = mutmut(*LINES_OF_ALL, capture=True).splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line)


def mutmut(*arguments: str, capture: bool = False, minutes: float | None = None) -> str:
    """What mutmut prints; with all that it has started it is stopped after so many minutes."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    output = subprocess.PIPE if capture else None
    with subprocess.Popen(command, stdout=output, text=True, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=None if minutes is None else 60 * minutes)
        except subprocess.TimeoutExpired:
            return ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise SystemExit(
            f"mutmut {arguments[0]} has failed; delete the folder mutants if the code has changed"
        )
    return printed or ""


def module_of(mutant: str) -> str:
    """The file of a mutant such as `hnm.store.xǁStoreǁlink__mutmut_3`."""
    return mutant.rsplit(".", 1)[0].replace(".", "/") + ".py"


def sampled(names: list[str], size: int) -> list[str]:
    """So many mutants of each file, drawn by `SEED`."""
    of_file = defaultdict(list)
    for name in sorted(names):
        of_file[module_of(name)].append(name)
    sample: list[str] = []
    for file, mutants in sorted(of_file.items()):
        sample += random.Random(f"{SEED} {file}").sample(mutants, min(size, len(mutants)))
    return sample


def table_of(mutants: dict[str, str]) -> pd.DataFrame:
    """A row for each file: its mutants, those tried, how they ended, and the share of those seen
    among the seen and the survived.
    """
    rows = []
    for file in sorted(set(map(module_of, mutants))):
        of_file = [status for name, status in mutants.items() if module_of(name) == file]
        tried = [status for status in of_file if status != "not checked"]
        seen = sum(status in SEEN for status in tried)
        survived = tried.count("survived")
        rows.append(
            {
                "file": file,
                "mutants": len(of_file),
                "tried": len(tried),
                "seen": seen,
                "survived": survived,
                "timeout": tried.count("timeout"),
                "no_test": tried.count("no tests"),
                "score": round(seen / (seen + survived), 3) if seen + survived else None,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Tries what is left of the sample, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=60, help="mutants of each file")
    parser.add_argument(
        "--files", nargs="*", default=[""], help="parts of the names of files; others are left"
    )
    parser.add_argument("--minutes", type=float, help="stop after so many; the next run goes on")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try the survivors once more")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mutants.csv"))
    arguments = parser.parse_args()
    processes = ("--max-children", str(arguments.processes))
    if not statuses():
        mutmut("run", *processes, SMALLEST)
    sample = sampled(list(statuses()), arguments.sample)
    before = statuses()
    wanted = ("not checked", "survived") if arguments.again else ("not checked",)
    chosen = [name for name in sample if any(part in module_of(name) for part in arguments.files)]
    left = [name for name in chosen if before[name] in wanted]
    if left:
        mutmut("run", *processes, *left, minutes=arguments.minutes)
    table = table_of(statuses())
    table.to_csv(arguments.out, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
