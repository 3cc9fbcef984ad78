"""What a person can know of a mined set without truth: how many, from where, how sure, and which
slides look odd.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from hnm import params
from hnm.mining.overlap import overlap_of
from hnm.mining.select import MinedSet, below_the_top, best_first, budget, tiles_labelled
from hnm.tables import MINED_SLIDES

BINS = 20
"""Of the histograms of scores, of equal width from 0 to 1."""
HARDEST_SHARE = 0.05
"""Share of the negative slides' tiles that counts as the hardest, whatever the policy and the
budget.
"""
SUSPECT_LIFT = 3.0
"""A suspect slide supplies at least so many times the hardest tiles that its size explains."""
SUSPECT_CHANCE = 0.01
"""Largest chance that any slide of a cohort without odd slides is called suspect, were tiles
independent.
"""
DIGITS = 6


def summarise(
    mined: MinedSet,
    before: pd.DataFrame,
    slides: pd.DataFrame,
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    section: params.Mining,
    round_: int,
) -> dict[str, Any]:
    """Counts, budgets, spread over slides and patients, and scores of a mined set, by role, and its
    overlap with the round before; JSON-ready.

    `short_of_budget` counts the tiles that caps and guards kept out without another to take their
    place, `passed_over` by reason those that guards refused;
    `score_histogram` counts the mined tiles, `candidate_histogram` all that the role could have
    mined, in `BINS` bins.

    Args:
        mined: what was mined.
        before: the `MINED` table of the round before; where it is empty, `jaccard` and `churn` are
            None.
        slides: the `MINED_SLIDES` table of what was mined.
        scores: the `TILE_SCORES` table that it was mined from.
        labels: the `LABELS` of the train slides.
        section: the settings that it was mined with.
        round_: its round.
    """
    positive = tiles_labelled(1, scores, labels)
    positive = positive[positive["score"] > section.threshold]
    negative = tiles_labelled(0, scores, labels)
    positives = negatives = 0
    if section.policy != "none":
        positives = budget(section.positive_fraction, section.growth, round_, len(positive))
        negatives = min(
            budget(section.negative_fraction, section.growth, round_, len(negative)),
            len(below_the_top(best_first(negative), section)),
        )
    overlap = overlap_of(before, mined.tiles)
    summary: dict[str, Any] = {"round": round_, "policy": section.policy}
    for name, share in (("jaccard", overlap.jaccard), ("churn", overlap.churn)):
        summary[name] = None if before.empty or share is None else round(share, DIGITS)
    return summary | {
        "suspect_slides": slides.loc[slides["suspect"], "slide_id"].tolist(),
        "positive": _role_summary("positive", mined, positive, positives, slides),
        "hard_negative": _role_summary("hard_negative", mined, negative, negatives, slides),
    }


def slide_supply(
    mined: pd.DataFrame,
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    patients: Mapping[str, str],
    section: params.Mining,
) -> pd.DataFrame:
    """What each train slide supplies, and which negative slides are suspect: a `MINED_SLIDES`
    table.

    A negative slide that supplies an odd share of the hardest tiles may carry a wrong label, as
    normal_086 of CAMELYON16 does, or be full of something that the head takes for tumour, an
    artefact among others. Of the negative slides' tiles the best-scoring `HARDEST_SHARE` are the
    hardest. Drawn evenly, a slide's number among them is hypergeometric (binomial with the finite
    cohort's correction). A slide is suspect when so many or more have a chance below
    `SUSPECT_CHANCE` over the number of negative slides, so that a large cohort accuses no more
    slides than a small one, *and* when they are `SUSPECT_LIFT` times what its size explains:
    neighbouring tiles look alike, so the chance alone, which takes them for independent, would
    accuse every slide that differs.

    Args:
        mined: the `MINED` table.
        scores: the `TILE_SCORES` table that it was mined from.
        labels: the `LABELS` of the train slides.
        patients: slide id -> patient id, of the train slides at least.
        section: the settings that it was mined with.
    """
    negative = tiles_labelled(0, scores, labels)
    positive = tiles_labelled(1, scores, labels)
    candidates = pd.concat([negative, positive[positive["score"] > section.threshold]])
    hardest = best_first(negative).head(round(HARDEST_SHARE * len(negative)))
    slides = labels.set_index("slide_id").sort_index()
    for column, tiles in (("candidates", candidates), ("mined", mined), ("hardest", hardest)):
        slides[column] = tiles["slide_id"].value_counts().reindex(slides.index, fill_value=0)
    slides["patient_id"] = pd.Series(
        [patients[str(slide_id)] for slide_id in slides.index], slides.index, dtype="str"
    )
    of_role = slides.groupby("label")["mined"].transform("sum").clip(lower=1)
    of_patient = slides.groupby(["label", "patient_id"])["mined"].transform("sum")
    slides["share"] = np.round(slides["mined"] / of_role, DIGITS)
    slides["patient_share"] = np.round(of_patient / of_role, DIGITS)
    suspicion = _suspicion(slides, len(negative), len(hardest))
    return MINED_SLIDES.check(slides.join(suspicion).reset_index(), "mined slides")


def _suspicion(slides: pd.DataFrame, tiles: int, hardest: int) -> pd.DataFrame:
    """Returns `expected`, `chance` and `suspect` of each slide, where the negative slides have
    `tiles`, of which `hardest` are the hardest.
    """
    is_negative = slides["label"] == 0
    pool = slides["candidates"].where(is_negative, 0)
    expected = pool * (hardest / max(tiles, 1))
    tail = hypergeom.sf(slides["hardest"] - 1, tiles, hardest, pool)
    chance = np.where(pool > 0, np.clip(tail, 0, 1), 1.0)  # of no tiles at all there is no chance
    is_suspect = (
        is_negative
        & (chance * is_negative.sum() < SUSPECT_CHANCE)
        & (slides["hardest"] >= SUSPECT_LIFT * expected)
    )
    return pd.DataFrame(
        {
            "expected": np.round(expected, DIGITS),
            # The last bits are the machine's.
            "chance": [float(f"{value:.{DIGITS}g}") for value in chance],
            "suspect": is_suspect,
        }
    )


def _role_summary(
    role: str, mined: MinedSet, pool: pd.DataFrame, budget: int, slides: pd.DataFrame
) -> dict[str, Any]:
    tiles = mined.tiles[mined.tiles["role"] == role]
    passed_over = mined.passed_over[mined.passed_over["role"] == role]
    counts = {
        "candidates": len(pool),
        "tiles": len(tiles),
        "short_of_budget": max(budget - len(tiles), 0),
        "passed_over": passed_over["reason"].value_counts().to_dict(),
        "candidate_histogram": _histogram(pool["score"]),
    }
    if tiles.empty:
        return counts
    scores = tiles["score"]
    supplying = slides[(slides["mined"] > 0) & (slides["label"] == int(role == "positive"))]
    return {
        **counts,
        "score_histogram": _histogram(scores),
        "slides": len(supplying),
        "patients": supplying["patient_id"].nunique(),
        "largest_slide_share": round(float(supplying["share"].max()), DIGITS),
        "largest_patient_share": round(float(supplying["patient_share"].max()), DIGITS),
        "highest_score": round(float(scores.max()), DIGITS),
        "median_score": round(float(scores.median()), DIGITS),
        "lowest_score": round(float(scores.min()), DIGITS),
    }


def _histogram(scores: "pd.Series[float]") -> list[int]:
    return [int(count) for count in np.histogram(scores, bins=BINS, range=(0, 1))[0]]
