"""What a project lacks: files, cache objects, a remote, slides, tools; and what to do about each."""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import HnmError
from hnm.experiments.record import refusals, waiting_records
from hnm.experiments.state import Outputs, current_stages, locked_stages
from hnm.experiments.verification import listed
from hnm.params import load_params
from hnm.slides.urls import is_url


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    thing: str
    fine: bool
    says: str
    """What was found, and the cure where it is not fine."""


def examine(root: Path) -> Iterator[Finding]:
    """Looks at one thing after the other; nothing is changed, and nothing is hashed (`hnm verify` does that)."""
    checks: tuple[Callable[[Path], Finding], ...] = (_tools, _params, _slides, _runs, _outputs, _remote)
    for check in checks:
        yield check(root)


def _tools(root: Path) -> Finding:
    missing = [name for name in ("git", "dvc") if shutil.which(name) is None]
    return Finding("tools", not missing, f"{', '.join(missing)} not on the path; source .venv/bin/activate, install git" if missing else "git, dvc")


def _params(root: Path) -> Finding:
    try:
        params = load_params(root / "params.yaml")
    except HnmError as error:
        return Finding("params", False, str(error))
    return Finding("params", True, f"cohort {params.cohort.name}, {len(params.rounds)} rounds")


def _slides(root: Path) -> Finding:
    try:
        named = load_params(root / "params.yaml").cohort.manifest
    except HnmError:
        return Finding("slides", False, "unknown without params")
    manifest = root / named
    needless = "; none is needed as long as the stages cohort and tiles need not run"
    if not manifest.is_file():
        return Finding("slides", False, f"the manifest {named} does not exist{needless}")
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        paths = [row.get("path") or "" for row in csv.DictReader(stream)]
    gone = [path for path in paths if not is_url(path) and not (manifest.parent / path).exists()]
    if gone:
        return Finding("slides", False, f"{len(gone)} of {len(paths)} are not where the manifest says, the first {gone[0]}; mount their folder{needless}")
    return Finding("slides", True, f"all {len(paths)} of {named}")


def _outputs(root: Path) -> Finding:
    states = locked_stages(root)
    if not states:
        return Finding("outputs", False, "dvc.lock holds no stage; run dvc repro, or check out a version that has it")
    cache = Outputs(root).cache
    outs = {path: md5 for state in (current_stages(states) or states).values() for path, md5 in state.outs.items()}
    absent = {path: md5 for path, md5 in outs.items() if not (root / path).exists()}
    nowhere = sorted(path for path, md5 in absent.items() if not in_cache(cache, md5))
    if nowhere:
        return Finding("outputs", False, f"{len(nowhere)} of {len(outs)} are neither here nor in the cache, the first {nowhere[0]}; run dvc pull, or dvc repro")
    if absent:
        return Finding("outputs", False, f"{len(absent)} of {len(outs)} are in the cache alone, the first {min(absent)}; run dvc checkout")
    unkept = [path for path, md5 in outs.items() if not in_cache(cache, md5) and path.startswith("data/")]
    return Finding(
        "outputs", True, f"all {len(outs)} are here" + (f"; {len(unkept)} not in the cache, so that they cannot be pushed: run dvc commit" if unkept else "")
    )


def in_cache(cache: Path, md5: str) -> bool:
    """Whether the cache has all objects of a version; they are not hashed."""
    kept = cache / md5[:2] / md5[2:]
    return kept.is_file() and (not md5.endswith(".dir") or all((cache / inner[:2] / inner[2:]).is_file() for inner in listed(kept)))


def _remote(root: Path) -> Finding:
    done = subprocess.run([sys.executable, "-m", "dvc", "config", "--list"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        return Finding("remote", False, f"DVC cannot be asked: {done.stderr.strip().splitlines()[-1]}")
    config = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    name = config.get("core.remote")
    if name is None:
        return Finding("remote", False, "there is no default remote, so nothing can be shared; dvc remote add --default NAME URL")
    if config.get(f"remote.{name}.verify") != "true":
        return Finding("remote", False, f"{name} is believed without hashing what it sends; dvc remote modify {name} verify true")
    return Finding("remote", True, f"{name}, {config.get(f'remote.{name}.url', 'without a URL')}")


def _runs(root: Path) -> Finding:
    waiting, refused = len(waiting_records(root)), refusals(root)
    found = [f"{waiting} wait in .hnm/spool; run hnm track sync"] if waiting else []
    found += [f"MLflow refuses {refused}"] if refused else []
    return Finding("runs", not found, ". ".join(found) or "none waits")
