"""Which tiles of the train slides are mined: the surest tiles of positive slides, the hard negatives of negative ones."""

import math

import numpy as np
import pandas as pd

from hnm import params
from hnm.draws import seed_of
from hnm.errors import MiningError
from hnm.tables import MINED

BEST_FIRST = ["score", "logit", "slide_id", "tile"]


def mine(scores: pd.DataFrame, labels: pd.DataFrame, section: params.Mining, round_: int) -> pd.DataFrame:
    """The mined tiles of one round.

    *Positives* are the best `positive_fraction` of the positive slides' tiles whose score exceeds `threshold`; *hard
    negatives* are drawn from the negative slides' tiles, all of which are truly negative, by `policy`: the paper's
    takes the best-scoring `negative_fraction`. No slide supplies more than `max_slide_share` of a role's budget, so
    that a few odd slides cannot supply most of it; where that leaves a budget short, the mined set is smaller.
    Ties go by slide id, then tile.

    Args:
        scores: a `TILE_SCORES` table; its tiles of slides without a label here are never mined.
        labels: the `LABELS` of the train slides.
        section: the settings.
        round_: the round that the mined tiles are for, from 1.

    Returns:
        A `MINED` table; empty where the policy is `none`.

    Raises:
        MiningError: a role has no tile; the message says which param would let some in.
    """
    train = scores.merge(labels, on="slide_id", validate="many_to_one")
    negative, positive = train[train["label"] == 0], train[train["label"] == 1]
    if section.policy == "none":
        return MINED.empty()
    if negative.empty:
        raise MiningError("no negative train slide has tiles, so there are no hard negatives; add negative slides to the train split")
    sure = positive[positive["score"] > section.threshold]
    if sure.empty:
        best = "there is none" if positive.empty else f"best: {positive['score'].max():.3g}"
        raise MiningError(f"no tile of a positive train slide scores above mining.threshold={section.threshold:g} ({best}); lower it or train the head longer")
    count = budget(section.positive_fraction, section.growth, round_, len(sure))
    mined = [
        within_cap(ranked(sure), count, slide_cap(count, section.max_slide_share)).pipe(ranked).assign(role="positive"),
        negatives(negative, section, round_).assign(role="hard_negative"),
    ]
    table = pd.concat(mined, ignore_index=True).assign(round=round_).astype({"round": "int32", "rank": "int32", "role": "str"})
    return table[list(MINED.columns)]


def negatives(tiles: pd.DataFrame, section: params.Mining, round_: int) -> pd.DataFrame:
    """The mined ones of the negative slides' tiles, by policy, with their `rank` by score from 1.

    `hard` takes the best-scoring; `semi_hard` the best-scoring below the top `skip_fraction`; `random` any, drawn
    anew in each round; `mixed` a `hard_share` of the budget by `hard` and the rest by `random` from what is left; `all`
    every tile, whatever the fraction and the cap. At one budget `random` is the control that a claim for the others
    must beat, and `all` the one for its cost.
    """
    count = budget(section.negative_fraction, section.growth, round_, len(tiles))
    ordered = tiles.sort_values(BEST_FIRST, ascending=[False, False, True, True], kind="stable")
    shuffled = ordered.iloc[np.random.default_rng(seed_of(section.seed, "mining", round_)).permutation(len(ordered))]
    cap = slide_cap(count, section.max_slide_share)
    match section.policy:
        case "hard":
            chosen = within_cap(ordered, count, cap)
        case "semi_hard":
            skipped = math.ceil(round(section.skip_fraction * len(ordered), 6))
            chosen = within_cap(ordered.iloc[skipped:], count, cap)
        case "random":
            chosen = within_cap(shuffled, count, cap)
        case "mixed":
            hard = within_cap(ordered, math.ceil(round(section.hard_share * count, 6)), cap)
            chosen = within_cap(pd.concat([hard, shuffled.drop(hard.index)]), count, cap)
        case _:
            chosen = ordered
    return ranked(chosen)


def budget(fraction: float, growth: float, round_: int, candidates: int) -> int:
    """How many of the candidates round `round_` mines at most: `fraction` of them in round 1, times `growth` in each round after (self-paced), rounded up."""
    share = min(1.0, fraction * growth ** (round_ - 1))
    return math.ceil(round(share * candidates, 6))  # 0.07 * 100 is 7.000000000000001


def slide_cap(budget: int, max_slide_share: float) -> int:
    """How many tiles of a budget one slide may supply, rounded up."""
    return math.ceil(round(max_slide_share * budget, 6))


def within_cap(ordered: pd.DataFrame, count: int, cap: int) -> pd.DataFrame:
    """The first `count` of `ordered` tiles, of each slide at most `cap`; its further tiles give way to other slides'."""
    return ordered[ordered.groupby("slide_id").cumcount() < cap].head(count)


def ranked(tiles: pd.DataFrame) -> pd.DataFrame:
    """`tiles` from best to worst score, with their `rank` from 1."""
    ordered = tiles.sort_values(BEST_FIRST, ascending=[False, False, True, True], kind="stable")
    return ordered.assign(rank=range(1, len(ordered) + 1))
