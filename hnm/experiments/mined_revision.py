"""Mined sets of Git revisions, as DVC keeps them, and what differs between two."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from hnm.errors import MiningError
from hnm.mining.overlap import Overlap, overlap_by_slide, overlap_of
from hnm.params import flat
from hnm.tables import MINED

WORKSPACE = "workspace"
"""What lies in the working tree, in place of a revision."""
FOLDER = "data/mined"


@dataclass(frozen=True)
class MinedDifference:
    """What of the mined set of one round changed between two revisions."""

    round: int
    params: dict[str, tuple[Any, Any]]
    """Dotted name -> its two values, of the params of mining that differ; None where a revision has none."""
    scorers: tuple[str, str]
    """Digests of the scores that were mined; "" where nothing was."""
    by_role: dict[str, Overlap]
    by_slide: pd.DataFrame
    """slide_id, role, kept, came, went of the slides where something came or went, the most changed first."""


def mined_difference(root: Path, before: str, after: str, round_: int | None) -> MinedDifference:
    """The mined sets of `round_` (where None, of the last round that both have) at two Git revisions, or `workspace`.

    Raises:
        MiningError: a revision is unknown or has no such round, or its table is not in DVC's cache.
        TableError: a table is of another schema.
    """
    files, sections = zip(*(_opened(root, revision) for revision in (before, after)), strict=True)
    if round_ is None:
        common = set.intersection(*(_rounds(own) for own in files))
        if not common:
            raise MiningError(f"{before} and {after} have no mined round in common; name revisions whose dvc.lock was committed after dvc repro")
        round_ = max(common)
    tables = [_mined(own, revision, round_) for own, revision in zip(files, (before, after), strict=True)]
    names = sorted(set(sections[0]) | set(sections[1]))
    moved = overlap_by_slide(*tables).assign(moves=lambda table: table["came"] + table["went"])
    return MinedDifference(
        round_,
        {name: (sections[0].get(name), sections[1].get(name)) for name in names if sections[0].get(name) != sections[1].get(name)},
        (_scorer(tables[0]), _scorer(tables[1])),
        {role: overlap_of(*(table[table["role"] == role] for table in tables)) for role in ("positive", "hard_negative")},
        moved[moved["moves"] > 0].sort_values(["moves", "slide_id", "role"], ascending=[False, True, True], ignore_index=True).drop(columns="moves"),
    )


def _opened(root: Path, revision: str) -> tuple[Any, dict[str, Any]]:
    """The files of a revision, in DVC's and in Git's keeping, and its params of mining by dotted name."""
    from dvc.api import DVCFileSystem
    from dvc.scm import SCMError

    try:
        files = DVCFileSystem(str(root), rev=None if revision == WORKSPACE else revision)
        raw = YAML(typ="safe").load(files.read_text("params.yaml"))  # only a read looks the revision up
    except FileNotFoundError:
        raise MiningError(f"{revision} holds no params.yaml; name a revision of this pipeline") from None
    except SCMError:
        raise MiningError(f"{revision} is no Git revision; name a commit, a branch, a tag, or {WORKSPACE}") from None
    return files, flat(raw.get("mining") or {}, "mining.")


def _rounds(files: Any) -> set[int]:
    if not files.exists(FOLDER):
        return set()
    names = (Path(entry["name"]).name for entry in files.ls(FOLDER))
    return {int(name) for name in names if name.isdecimal()} - {0}  # nothing is mined for round 0; its table has no rows


def _mined(files: Any, revision: str, round_: int) -> pd.DataFrame:
    path = f"{FOLDER}/{round_}/mined.parquet"
    if not files.exists(path):
        raise MiningError(f"{revision} has no mined tiles of round {round_} ({path}); name another --round, or a revision that has it")
    try:
        table = files.read_bytes(path)
    except OSError as error:
        raise MiningError(f"{revision}: {path} is not in DVC's cache ({error}); bring it with dvc fetch --all-commits, or dvc repro at that revision") from None
    return MINED.check(pd.read_parquet(io.BytesIO(table)), f"{revision}: {path}")


def _scorer(mined: pd.DataFrame) -> str:
    return "" if mined.empty else str(mined["scorer"].iloc[0])
