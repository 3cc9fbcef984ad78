"""Two mined sets compared: what of the one is in the other."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Overlap:
    """What of a mined set is in a later one; a tile in another role is another mined tile."""

    stayed: int
    came: int
    went: int

    @property
    def jaccard(self) -> float | None:
        """Share of the mined tiles of either set that is in both; None where both are empty."""
        union = self.stayed + self.came + self.went
        return self.stayed / union if union else None

    @property
    def churn(self) -> float | None:
        """Share of the later set that is new; None where it is empty."""
        return self.came / (self.stayed + self.came) if self.stayed + self.came else None


def overlap_of(before: pd.DataFrame, after: pd.DataFrame) -> Overlap:
    """The overlap of two `MINED` tables."""
    counts = _moves(before, after)["move"].value_counts()
    return Overlap(*(int(counts.get(move, 0)) for move in ("stayed", "came", "went")))


def overlap_by_slide(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """slide_id, role, and the numbers of its tiles that were `stayed`, `came` and `went`, for each
    slide in either `MINED` table.
    """
    counts = (
        _moves(before, after)
        .groupby(["slide_id", "role"])["move"]
        .value_counts()
        .unstack(fill_value=0)
    )
    return (
        counts.reindex(columns=["stayed", "came", "went"], fill_value=0)
        .astype("int64")
        .rename_axis(columns=None)
        .reset_index()
    )


def _moves(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    key = ["slide_id", "role", "tile"]
    both = before[key].merge(after[key], on=key, how="outer", indicator="move")
    return both.assign(
        move=both["move"]
        .astype(str)
        .replace({"both": "stayed", "right_only": "came", "left_only": "went"})
    )
