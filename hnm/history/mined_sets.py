"""Mined sets of Git revisions, as DVC keeps them, and what differs between two."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hnm.errors import MiningError
from hnm.mining.overlap import Overlap, overlap_by_slide, overlap_of
from hnm.params import flat
from hnm.repository.outputs import AbsentError, Outputs, taking_apart
from hnm.repository.revision import WORKSPACE, UnknownRevisionError, bytes_of, file_at
from hnm.repository.stages import lock_entries, yaml_of
from hnm.tables import MINED

FOLDER = "data/mined"


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
    """The mined sets of `round_` (where None, of the last round that both have) at two Git
    revisions, or `workspace`.

    Raises:
        MiningError: a revision is unknown or has no such round, or its table is not in DVC's cache.
        TableError: a table is of another schema.
    """
    opened, sections = zip(*(_opened(root, revision) for revision in (before, after)), strict=True)
    if round_ is None:
        common = set(opened[0]) & set(opened[1])
        if not common:
            raise MiningError(
                f"{before} and {after} have no mined round in common; name revisions whose dvc.lock"
                " was committed after dvc repro"
            )
        round_ = max(common)
    tables = [
        _mined(root, versions, revision, round_)
        for versions, revision in zip(opened, (before, after), strict=True)
    ]
    names = sorted(set(sections[0]) | set(sections[1]))
    moved = overlap_by_slide(*tables).assign(moves=lambda table: table["came"] + table["went"])
    return MinedDifference(
        round_,
        {
            name: (sections[0].get(name), sections[1].get(name))
            for name in names
            if sections[0].get(name) != sections[1].get(name)
        },
        (_scorer(tables[0]), _scorer(tables[1])),
        {
            role: overlap_of(*(table[table["role"] == role] for table in tables))
            for role in ("positive", "hard_negative")
        },
        moved[moved["moves"] > 0]
        .sort_values(
            ["moves", "slide_id", "role"], ascending=[False, True, True], ignore_index=True
        )
        .drop(columns="moves"),
    )


def _opened(root: Path, revision: str) -> tuple[dict[int, str], dict[str, Any]]:
    """Round -> md5 of its mined tiles at a revision ("" in the working tree), and the params of
    mining by dotted name.
    """
    try:
        content = file_at(root, revision, "params.yaml")
        lock = file_at(root, revision, "dvc.lock")
    except UnknownRevisionError:
        raise MiningError(
            f"{revision} is no Git revision; name a commit, a branch, a tag, or {WORKSPACE}"
        ) from None
    if content is None:
        raise MiningError(f"{revision} holds no params.yaml; name a revision of this pipeline")
    raw = yaml_of(content, f"params.yaml of {revision}")
    mining = raw.get("mining") if isinstance(raw, dict) else None
    outs = {
        path: md5
        for entry in lock_entries(lock or b"", f"dvc.lock of {revision}").values()
        for path, md5 in entry["outs"].items()
    }
    if revision == WORKSPACE:
        outs = {
            path.relative_to(root).as_posix(): ""
            for path in (root / FOLDER).glob("*/mined.parquet")
        }
    rounds = {
        int(found[1]): md5
        for path, md5 in outs.items()
        if (found := re.fullmatch(rf"{FOLDER}/([1-9][0-9]{{0,5}})/mined\.parquet", path))
    }
    return rounds, flat(
        mining if isinstance(mining, dict) else {}, "mining."
    )  # nothing is mined for round 0; its table has no rows


def _mined(root: Path, versions: Mapping[int, str], revision: str, round_: int) -> pd.DataFrame:
    path = f"{FOLDER}/{round_}/mined.parquet"
    if round_ not in versions:
        raise MiningError(
            f"{revision} has no mined tiles of round {round_} ({path}); name another --round, or a"
            " revision that has it"
        )
    if revision == WORKSPACE:
        return MINED.read(root / path)
    try:
        table = bytes_of(Outputs(root), path, versions[round_])
    except AbsentError:
        raise MiningError(
            f"{revision}: {path} is not in DVC's cache (md5 {versions[round_]}); bring it with dvc"
            " fetch --all-commits, or dvc repro at that revision"
        ) from None
    with taking_apart(f"{path} of {revision}", MiningError):
        content = pd.read_parquet(io.BytesIO(table))
    return MINED.check(content, f"{revision}: {path}")


def _scorer(mined: pd.DataFrame) -> str:
    return "" if mined.empty else str(mined["scorer"].iloc[0])
