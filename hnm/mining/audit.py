"""What a person can know of a mined set without truth: how many, from where, how sure."""

from typing import Any

import pandas as pd

from hnm import params
from hnm.mining.select import budget


def summarise(mined: pd.DataFrame, scores: pd.DataFrame, labels: pd.DataFrame, section: params.Mining, round_: int) -> dict[str, Any]:
    """Counts, budgets, spread over slides and range of scores of a `MINED` table, by role; JSON-ready.

    `short_of_budget` counts the tiles that `max_slide_share` kept out without another slide to take their place.
    """
    train = scores.merge(labels, on="slide_id", validate="many_to_one")
    positive = len(train[(train["label"] == 1) & (train["score"] > section.threshold)])
    negative = len(train[train["label"] == 0])
    return {
        "round": round_,
        "policy": section.policy,
        "positive": _role_summary(mined[mined["role"] == "positive"], positive, budget(section.positive_fraction, section.growth, round_, positive)),
        "hard_negative": _role_summary(mined[mined["role"] == "hard_negative"], negative, budget(section.negative_fraction, section.growth, round_, negative)),
    }


def _role_summary(tiles: pd.DataFrame, candidates: int, budget: int) -> dict[str, Any]:
    counts = {"candidates": candidates, "tiles": len(tiles), "short_of_budget": max(budget - len(tiles), 0)}
    if tiles.empty:
        return counts
    per_slide = tiles["slide_id"].value_counts()
    scores = tiles["score"]
    return {
        **counts,
        "slides": len(per_slide),
        "largest_slide_share": round(float(per_slide.max() / len(tiles)), 6),
        "highest_score": round(float(scores.max()), 6),
        "median_score": round(float(scores.median()), 6),
        "lowest_score": round(float(scores.min()), 6),
    }
