"""What a project lacks: files, cache objects, a remote, slides, tools; and what to do about
each.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import HnmError, TrackingError, error_of_machine
from hnm.files import read_bounded
from hnm.params import load_params
from hnm.redaction import redacted
from hnm.repository.outputs import Outputs, dvc_says, in_cache
from hnm.repository.reruns import reruns
from hnm.repository.stages import current_stages, locked_stages, yaml_of
from hnm.rows import text_rows
from hnm.slides.reading.urls import is_url
from hnm.tracking.artifact_places import places_elsewhere
from hnm.tracking.record import refusals, spool_trouble, waiting_records
from hnm.tracking.runs import store_file

QUARANTINES = ("data/cohort/quarantine.csv", "data/tiles/quarantine.csv")
LOST_TO_THE_MACHINE = re.compile(
    r"the process that read it died|took longer than|storage (?:has )?fail|stale file"
    r" handle|input/output error|transport endpoint|no space left"
    r"|cannot allocate memory|too many open files|connection (?:reset|timed out)",
    re.IGNORECASE,
)
"""Reasons of quarantine that speak of the machine and not of the slide; earlier versions of hnm
quarantined for them.
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    thing: str
    fine: bool
    says: str
    """What was found, and the cure where it is not fine."""


def examine(root: Path) -> Iterator[Finding]:
    """Looks at one thing after the other; nothing is changed, and only listings are hashed (`hnm
    verify` hashes all). No check hides another.
    """
    checks: dict[str, Callable[[Path], Finding]] = {
        "tools": _tools,
        "pipeline": _pipeline,
        "params": _params,
        "slides": _slides,
        "lost": _lost,
        "causes": _causes,
        "runs": _runs,
        "place": _place,
        "outputs": _outputs,
        "remote": _remote,
    }
    for thing, check in checks.items():
        try:
            yield check(root)
        except HnmError as error:
            yield Finding(thing, False, str(error))
        except Exception as error:
            yield Finding(
                thing,
                False,
                str(
                    error_of_machine(error)
                    or redacted(
                        f"cannot be examined ({type(error).__name__}: {error}); please report this"
                    )
                ),
            )


def _tools(root: Path) -> Finding:
    missing = [name for name in ("git", "dvc") if shutil.which(name) is None]
    return Finding(
        "tools",
        not missing,
        (
            f"{', '.join(missing)} not on the path; source .venv/bin/activate, install git"
            if missing
            else "git, dvc"
        ),
    )


def _pipeline(root: Path) -> Finding:
    cure = "; restore it from git (git checkout -- dvc.yaml)"
    content = yaml_of(
        read_bounded(root / "dvc.yaml", TrackingError, what="dvc.yaml", cure=cure), "dvc.yaml", cure
    )
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not stages:
        return Finding(
            "pipeline",
            False,
            f"dvc.yaml holds no stages, so that DVC calls everything up to date{cure}",
        )
    return Finding("pipeline", True, f"{len(stages)} kinds of stages")


def _params(root: Path) -> Finding:
    params = load_params(root / "params.yaml")
    return Finding("params", True, f"cohort {params.cohort.name}, {len(params.rounds)} rounds")


def _slides(root: Path) -> Finding:
    try:
        named = load_params(root / "params.yaml").cohort.manifest
    except HnmError:
        return Finding("slides", False, "unknown without params")
    manifest = root / named
    needless = "; none is needed as long as the stages cohort and tiles need not run"
    if not os.path.lexists(manifest):
        return Finding("slides", False, f"the manifest {named} does not exist{needless}")
    paths = _column(manifest, f"the manifest {named}", "path")
    gone = [path for path in paths if not is_url(path) and not _exists(manifest.parent / path)]
    if gone:
        return Finding(
            "slides",
            False,
            f"{len(gone)} of {len(paths)} are not where the manifest says, the first {gone[0]};"
            f" mount their folder{needless}",
        )
    return Finding("slides", True, f"all {len(paths)} of {named}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _lost(root: Path) -> Finding:
    lost = [
        f"{row.get('slide_id')} ({row.get('reason')})"
        for name in QUARANTINES
        if os.path.lexists(root / name)
        for row in _rows(root / name, name, "reason")
        if LOST_TO_THE_MACHINE.search(row.get("reason") or "")
    ]
    if not lost:
        return Finding("lost", True, "no slide was lost to the machine")
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    cure = (
        f"these are no faults of the slides; delete {' and '.join(QUARANTINES)} and run dvc repro,"
        " which reads them again"
    )
    return Finding(
        "lost",
        False,
        redacted(
            f"{len(lost)} slides were lost to the machine: {', '.join(lost[:5])}{more}; {cure}"
        ),
    )


def _column(path: Path, what: str, name: str) -> list[str]:
    return [row.get(name) or "" for row in _rows(path, what, name)]


def _rows(path: Path, what: str, needed: str) -> list[dict[str, str]]:
    """The rows of a table that anyone may have written, which has at least the column `needed`."""
    columns, rows = text_rows(path, what, refuse=TrackingError, cure="; write it as CSV in UTF-8")
    if needed not in columns:
        raise TrackingError(
            f"{what} has no column {needed}, but {', '.join(columns) or 'none'}; name the column so"
        )
    return [row for _, row in rows]


def _causes(root: Path) -> Finding:
    changes = reruns(root, load_params(root / "params.yaml").compute.device)
    return Finding(
        "causes",
        True,
        "; ".join(changes) or "code, libraries and machine are those of the last runs",
    )


def _runs(root: Path) -> Finding:
    waiting, refused, trouble = len(waiting_records(root)), refusals(root), spool_trouble(root)
    says = [f"{waiting} wait in .hnm/spool; run hnm track sync"] if waiting else []
    says += [f"not brought: {refused}"] if refused else []
    says += [trouble] if trouble else []
    return Finding("runs", not says, ". ".join(says) or "none waits")


def _place(root: Path) -> Finding:
    database = store_file(root)
    elsewhere = (
        places_elsewhere(root, database) if database is not None and database.exists() else []
    )
    if elsewhere:
        return Finding(
            "place",
            False,
            f"this project was moved or copied, but its runs still name files in {elsewhere[0]};"
            " run hnm track sync, which mends it",
        )
    return Finding("place", True, "the runs keep their files here, or on a server")


def _outputs(root: Path) -> Finding:
    states = locked_stages(root)
    if not states:
        return Finding(
            "outputs",
            False,
            "dvc.lock holds no stage; run dvc repro, or check out a version that has it",
        )
    cache = Outputs(root).cache
    outs = {
        path: md5
        for state in (current_stages(states) or states).values()
        for path, md5 in state.outs.items()
    }
    absent = {path: md5 for path, md5 in outs.items() if not (root / path).exists()}
    nowhere = sorted(path for path, md5 in absent.items() if not in_cache(cache, md5))
    if nowhere:
        return Finding(
            "outputs",
            False,
            f"{len(nowhere)} of {len(outs)} are neither here nor in the cache, the first"
            f" {nowhere[0]}; run dvc pull, or dvc repro",
        )
    if absent:
        return Finding(
            "outputs",
            False,
            f"{len(absent)} of {len(outs)} are in the cache alone, the first {min(absent)}; run dvc"
            " checkout",
        )
    unkept = [
        path for path, md5 in outs.items() if path.startswith("data/") and not in_cache(cache, md5)
    ]
    return Finding(
        "outputs",
        True,
        f"all {len(outs)} are here"
        + (
            f"; {len(unkept)} not in the cache, so that they cannot be pushed: run dvc commit"
            if unkept
            else ""
        ),
    )


def _remote(root: Path) -> Finding:
    config = dict(
        line.partition("=")[::2] for line in dvc_says(root, "config", "--list").splitlines()
    )
    name = config.get("core.remote")
    if name is None:
        return Finding(
            "remote",
            False,
            "there is no default remote, so nothing can be shared; dvc remote add --default"
            " NAME URL",
        )
    if config.get(f"remote.{name}.verify") != "true":
        return Finding(
            "remote",
            False,
            f"{name} is believed without hashing what it sends; dvc remote modify {name} verify"
            " true",
        )
    return Finding(
        "remote", True, redacted(f"{name}, {config.get(f'remote.{name}.url', 'without a URL')}")
    )
