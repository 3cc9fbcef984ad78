"""The examination of a project: what it lacks of files, cache objects, a remote, slides and tools,
and what to do about each.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hnm.errors import HnmError, TrackingError, error_of_machine
from hnm.files import read_bounded
from hnm.loop.paths import Paths
from hnm.params import load_params
from hnm.redaction import redacted
from hnm.repository.outputs import Cache, dvc_says
from hnm.repository.reruns import reruns
from hnm.repository.stages import current_stages, locked_stages, outs_of, yaml_of
from hnm.rows import text_rows
from hnm.slides.reading.urls import is_url
from hnm.tracking.artifact_places import places_elsewhere
from hnm.tracking.connection import store_file
from hnm.tracking.record import refusals, spool_trouble, waiting_records

QUARANTINES = (str(Paths().cohort.quarantine), str(Paths().tiles.quarantine))
LOST_TO_THE_MACHINE = re.compile(
    r"the process that read it died|took longer than|storage (?:has )?fail|stale file"
    r" handle|input/output error|transport endpoint|no space left"
    r"|cannot allocate memory|too many open files|connection (?:reset|timed out)",
    re.IGNORECASE,
)
"""Reasons of quarantine that are faults of the machine and not of the slide. Earlier versions of
hnm quarantined for them.
"""


class MissingError(HnmError):
    """The project lacks something; the message says what, and the cure."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    thing: str
    fine: bool
    says: str
    """What is there, or what is missing and the cure."""


def examine(root: Path) -> Iterator[Finding]:
    """Looks at one thing after the other. Nothing is changed, and only listings are hashed (`hnm
    verify` hashes all). No check hides another.
    """
    checks: dict[str, Callable[[Path], str]] = {
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
            yield Finding(thing, True, redacted(check(root)))
        except HnmError as error:
            yield Finding(thing, False, str(error))
        except Exception as error:
            reason = f"cannot be examined ({type(error).__name__}: {error}); please report this"
            yield Finding(thing, False, str(error_of_machine(error) or redacted(reason)))


def _tools(root: Path) -> str:
    missing = [name for name in ("git", "dvc") if shutil.which(name) is None]
    if missing:
        raise MissingError(
            f"{', '.join(missing)} not on the path; source .venv/bin/activate, install git"
        )
    return "git, dvc"


def _pipeline(root: Path) -> str:
    cure = "; restore it from git (git checkout -- dvc.yaml)"
    content = read_bounded(root / "dvc.yaml", TrackingError, what="dvc.yaml", cure=cure)
    pipeline = yaml_of(content, "dvc.yaml", cure)
    stages = pipeline.get("stages") if isinstance(pipeline, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise MissingError(
            f"dvc.yaml holds no stages, so that DVC calls everything up to date{cure}"
        )
    return f"{len(stages)} kinds of stages"


def _params(root: Path) -> str:
    params = load_params(root / "params.yaml")
    return f"cohort {params.cohort.name}, {len(params.rounds)} rounds"


def _slides(root: Path) -> str:
    try:
        name = load_params(root / "params.yaml").cohort.manifest
    except HnmError:
        raise MissingError("unknown without params") from None
    manifest = root / name
    needless = "; none is needed as long as the stages cohort and tiles need not run"
    if not os.path.lexists(manifest):
        raise MissingError(f"the manifest {name} does not exist{needless}")
    rows = _rows(manifest, f"the manifest {name}", "path")
    paths = [row.get("path") or "" for row in rows]
    gone = [path for path in paths if not is_url(path) and not _exists(manifest.parent / path)]
    if gone:
        raise MissingError(
            f"{len(gone)} of {len(paths)} are not where the manifest says, the first {gone[0]};"
            f" mount their folder{needless}"
        )
    return f"all {len(paths)} of {name}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _lost(root: Path) -> str:
    lost = [
        f"{row.get('slide_id')} ({row.get('reason')})"
        for name in QUARANTINES
        if os.path.lexists(root / name)
        for row in _rows(root / name, name, "reason")
        if LOST_TO_THE_MACHINE.search(row.get("reason") or "")
    ]
    if not lost:
        return "no slide was lost to the machine"
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    raise MissingError(
        f"{len(lost)} slides were lost to the machine: {', '.join(lost[:5])}{more}; these are no"
        f" faults of the slides; delete {' and '.join(QUARANTINES)} and run dvc repro, which reads"
        " them again"
    )


def _rows(path: Path, what: str, needed: str) -> list[dict[str, str]]:
    """The rows of a table that anyone may have written, which has at least the column `needed`."""
    columns, rows = text_rows(path, what, refuse=TrackingError, cure="; write it as CSV in UTF-8")
    if needed not in columns:
        raise MissingError(
            f"{what} has no column {needed}, but {', '.join(columns) or 'none'}; name the column so"
        )
    return [row for _, row in rows]


def _causes(root: Path) -> str:
    changes = reruns(root, load_params(root / "params.yaml").compute.device)
    return "; ".join(changes) or "code, libraries and machine are those of the last runs"


def _runs(root: Path) -> str:
    troubles = []
    if waiting := waiting_records(root):
        troubles.append(f"{len(waiting)} wait in .hnm/spool; run hnm track sync")
    if refused := refusals(root):
        troubles.append(f"not brought: {refused}")
    if trouble := spool_trouble(root):
        troubles.append(trouble)
    if troubles:
        raise MissingError(". ".join(troubles))
    return "none waits"


def _place(root: Path) -> str:
    database = store_file(root)
    if database is None or not database.exists():
        return "the runs keep their files here, or on a server"
    if elsewhere := places_elsewhere(root, database):
        raise MissingError(
            "this project was moved or copied, but its runs still name files in"
            f" {elsewhere[0]}; run hnm track sync, which mends it"
        )
    return "the runs keep their files here, or on a server"


def _outputs(root: Path) -> str:
    states = locked_stages(root)
    if not states:
        raise MissingError(
            "dvc.lock holds no stage; run dvc repro, or check out a version that has it"
        )
    cache = Cache.of(root)
    outs = outs_of(current_stages(states) or states)
    absent = sorted(path for path in outs if not (root / path).exists())
    nowhere = [path for path in absent if not cache.holds(outs[path])]
    if nowhere:
        raise MissingError(
            f"{len(nowhere)} of {len(outs)} are neither here nor in the cache, the first"
            f" {nowhere[0]}; run dvc pull, or dvc repro"
        )
    if absent:
        raise MissingError(
            f"{len(absent)} of {len(outs)} are in the cache alone, the first {absent[0]}; run dvc"
            " checkout"
        )
    says = f"all {len(outs)} are here"
    data = [md5 for path, md5 in outs.items() if path.startswith("data/")]
    if uncached := sum(not cache.holds(md5) for md5 in data):
        says += f"; {uncached} not in the cache, so that they cannot be pushed: run dvc commit"
    return says


def _remote(root: Path) -> str:
    lines = dvc_says(root, "config", "--list").splitlines()
    config = dict(line.partition("=")[::2] for line in lines)
    name = config.get("core.remote")
    if name is None:
        raise MissingError(
            "there is no default remote, so nothing can be shared; dvc remote add --default"
            " NAME URL"
        )
    if config.get(f"remote.{name}.verify") != "true":
        raise MissingError(
            f"{name} is believed without hashing what it sends; dvc remote modify {name} verify"
            " true"
        )
    return f"{name}, {config.get(f'remote.{name}.url', 'without a URL')}"
