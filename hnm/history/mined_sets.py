"""Mined sets of Git revisions, as DVC keeps them, and what differs between two."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hnm.errors import MiningError
from hnm.loop.paths import Paths
from hnm.mining.overlap import Overlap, overlap_by_slide, overlap_of
from hnm.params import flat
from hnm.repository.outputs import AbsentError, Outputs, taking_apart
from hnm.repository.revision import WORKSPACE, UnknownRevisionError, bytes_of, file_at
from hnm.repository.stages import lock_entries, yaml_of
from hnm.tables import MINED

FOLDER = str(Paths().evaluate.mined)


@dataclass(frozen=True)
class MinedDifference:
    """What of the mined set of one round changed between two revisions."""

    round: int
    params: dict[str, tuple[Any, Any]]
    """Dotted name -> its two values, of the params of mining that differ; None where a revision has
    none.
    """
    scorers: tuple[str, str]
    """Digests of the scores that were mined; "" where nothing was."""
    by_role: dict[str, Overlap]
    by_slide: pd.DataFrame
    """slide_id, role, stayed, came, went of the slides where something came or went, the most
    changed first.
    """


def mined_difference(root: Path, before: str, after: str, round_: int | None) -> MinedDifference:
    """Returns what differs between the mined sets of `round_` (where None, of the last round that
    both have) at two Git revisions, or `workspace`.

    Raises:
        MiningError: a revision is unknown or has no such round, or its table is not in DVC's cache.
        TableError: a table is of another schema.
    """
    first = _revision(root, before)
    second = _revision(root, after)
    if round_ is None:
        common = set(first.versions) & set(second.versions)
        if not common:
            raise MiningError(
                f"{before} and {after} have no mined round in common; name revisions whose dvc.lock"
                " was committed after dvc repro"
            )
        round_ = max(common)
    tables = [_mined(root, revision, round_) for revision in (first, second)]
    params = {
        name: (first.params.get(name), second.params.get(name))
        for name in sorted({*first.params, *second.params})
    }
    by_slide = overlap_by_slide(*tables)
    moves = by_slide["came"] + by_slide["went"]
    order = ["moves", "slide_id", "role"]
    moved = by_slide.assign(moves=moves)[moves > 0].sort_values(
        order, ascending=[False, True, True], ignore_index=True
    )
    return MinedDifference(
        round_,
        {name: values for name, values in params.items() if values[0] != values[1]},
        (_scorer(tables[0]), _scorer(tables[1])),
        {
            role: overlap_of(*(table[table["role"] == role] for table in tables))
            for role in ("positive", "hard_negative")
        },
        moved.drop(columns="moves"),
    )


@dataclass(frozen=True)
class _Revision:
    name: str
    versions: Mapping[int, str]
    """Round -> DVC's md5 of its mined tiles; "" in the working tree. Round 0 has none."""
    params: Mapping[str, Any]
    """Params of mining by dotted name."""


def _revision(root: Path, name: str) -> _Revision:
    try:
        content = file_at(root, name, "params.yaml")
        lock = file_at(root, name, "dvc.lock")
    except UnknownRevisionError:
        raise MiningError(
            f"{name} is no Git revision; name a commit, a branch, a tag, or {WORKSPACE}"
        ) from None
    if content is None:
        raise MiningError(f"{name} holds no params.yaml; name a revision of this pipeline")
    raw = yaml_of(content, f"params.yaml of {name}")
    mining = raw.get("mining") if isinstance(raw, dict) else None
    entries = lock_entries(lock or b"", f"dvc.lock of {name}")
    if name == WORKSPACE:
        files = (root / FOLDER).glob("*/mined.parquet")
        outs = {path.relative_to(root).as_posix(): "" for path in files}
    else:
        outs = {path: md5 for entry in entries.values() for path, md5 in entry["outs"].items()}
    versions = {
        int(match[1]): md5
        for path, md5 in outs.items()
        if (match := re.fullmatch(rf"{FOLDER}/([1-9][0-9]{{0,5}})/mined\.parquet", path))
    }
    return _Revision(name, versions, flat(mining if isinstance(mining, dict) else {}, "mining."))


def _mined(root: Path, revision: _Revision, round_: int) -> pd.DataFrame:
    path = f"{FOLDER}/{round_}/mined.parquet"
    md5 = revision.versions.get(round_)
    if md5 is None:
        raise MiningError(
            f"{revision.name} has no mined tiles of round {round_} ({path}); name another --round,"
            " or a revision that has it"
        )
    if revision.name == WORKSPACE:
        return MINED.read(root / path)
    try:
        table = bytes_of(Outputs(root), path, md5)
    except AbsentError:
        raise MiningError(
            f"{revision.name}: {path} is not in DVC's cache (md5 {md5}); bring it with dvc fetch"
            " --all-commits, or dvc repro at that revision"
        ) from None
    with taking_apart(f"{path} of {revision.name}", MiningError):
        content = pd.read_parquet(io.BytesIO(table))
    return MINED.check(content, f"{revision.name}: {path}")


def _scorer(mined: pd.DataFrame) -> str:
    return "" if mined.empty else str(mined["scorer"].iloc[0])
