"""Which tiles of the train slides are mined: the surest tiles of positive slides, the hard negatives of negative ones."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hnm import params
from hnm.draws import seed_of
from hnm.errors import MiningError
from hnm.mining.vetoes import without
from hnm.tables import MINED

BEST_FIRST = ["score", "logit", "slide_id", "tile"]


@dataclass(frozen=True)
class Caps:
    """How many tiles of one role one slide and one patient may supply."""

    slide: int
    patient: int


def mine(
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    section: params.Mining,
    round_: int,
    *,
    patients: Mapping[str, str] | None = None,
    vetoed: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The mined tiles of one round.

    *Positives* are the best `positive_fraction` of the positive slides' tiles whose score exceeds `threshold`; *hard
    negatives* are drawn from the negative slides' tiles, all of which are truly negative, by `policy`: the paper's
    takes the best-scoring `negative_fraction`. No slide supplies more than `max_slide_share` of a role's budget and no
    patient more than `max_patient_share`, so that a few odd slides cannot supply most of it; where that leaves a budget
    short, the mined set is smaller. Ties go by slide id, then tile.

    Args:
        scores: a `TILE_SCORES` table; its tiles of slides without a label here are never mined.
        labels: the `LABELS` of the train slides.
        section: the settings.
        round_: the round that the mined tiles are for, from 1.
        patients: slide id -> patient id; where None, each slide is another patient's.
        vetoed: slide_id and tile of the tiles that must not be mined, in either role.

    Returns:
        A `MINED` table; empty where the policy is `none`.

    Raises:
        MiningError: a role has no tile; the message says which param would let some in.
    """
    if section.policy == "none":
        return MINED.empty()
    tiles = scores if vetoed is None else without(scores, vetoed)
    tiles = tiles.assign(patient_id=tiles["slide_id"] if patients is None else tiles["slide_id"].map(patients))
    positive, negative = (tiles_labelled(label, tiles, labels) for label in (1, 0))
    if negative.empty:
        raise MiningError(
            "no negative train slide has tiles that may be mined, so there are no hard negatives; add negative slides to the train split or lift vetoes"
        )
    sure = positive[positive["score"] > section.threshold]
    if sure.empty:
        best = "there is none" if positive.empty else f"best: {positive['score'].max():.3g}"
        raise MiningError(f"no tile of a positive train slide scores above mining.threshold={section.threshold:g} ({best}); lower it or train the head longer")
    count = budget(section.positive_fraction, section.growth, round_, len(sure))
    mined = [
        within_caps(best_first(sure), count, caps_of(count, section)).pipe(ranked).assign(role="positive"),
        negatives(negative, section, round_).assign(role="hard_negative"),
    ]
    table = pd.concat(mined, ignore_index=True).assign(round=round_, policy=section.policy, scorer=scorer_of(scores))
    return table.astype({"round": "int32", "rank": "int32", "role": "str"})[list(MINED.columns)]


def tiles_labelled(label: int, tiles: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Those of `tiles` whose slide has this label."""
    return tiles.merge(labels[labels["label"] == label], on="slide_id", validate="many_to_one")


def scorer_of(scores: pd.DataFrame) -> str:
    """The first 16 digits of the SHA-256 of what the encoder and head said: slide id, tile and logit of every tile of a `TILE_SCORES` table.

    It names the scorer by its work, so that another head, another encoder or other tiles give another digest, and the
    same ones give the same, whatever file they were written to.
    """
    ordered = scores.sort_values(["slide_id", "tile"], kind="stable")
    digest = hashlib.sha256("\n".join(ordered["slide_id"]).encode())
    digest.update(ordered["tile"].to_numpy("<i4").tobytes())
    digest.update(ordered["logit"].to_numpy("<f4").tobytes())
    return digest.hexdigest()[:16]


def negatives(tiles: pd.DataFrame, section: params.Mining, round_: int) -> pd.DataFrame:
    """The mined ones of the negative slides' tiles, by policy, with their `rank` by score from 1.

    `hard` takes the best-scoring; `semi_hard` the best-scoring below the top `skip_fraction`; `random` any, drawn
    anew in each round; `mixed` a `hard_share` of the budget by `hard` and the rest by `random` from what is left; `all`
    every tile, whatever the fraction and the caps. At one budget `random` is the control that a claim for the others
    must beat, and `all` the one for its cost.

    Args:
        tiles: the candidates, with `patient_id`.
        section: the settings; its policy is not `none`.
        round_: the round that the tiles are for, from 1.
    """
    count = budget(section.negative_fraction, section.growth, round_, len(tiles))
    ordered = best_first(tiles)
    shuffled = ordered.iloc[np.random.default_rng(seed_of(section.seed, "mining", round_)).permutation(len(ordered))]
    caps = caps_of(count, section)
    match section.policy:
        case "hard":
            chosen = within_caps(ordered, count, caps)
        case "semi_hard":
            skipped = math.ceil(round(section.skip_fraction * len(ordered), 6))
            chosen = within_caps(ordered.iloc[skipped:], count, caps)
        case "random":
            chosen = within_caps(shuffled, count, caps)
        case "mixed":
            hard = within_caps(ordered, math.ceil(round(section.hard_share * count, 6)), caps)
            chosen = within_caps(pd.concat([hard, shuffled.drop(hard.index)]), count, caps)
        case _:
            chosen = ordered
    return ranked(chosen)


def budget(fraction: float, growth: float, round_: int, candidates: int) -> int:
    """How many of the candidates round `round_` mines at most: `fraction` of them in round 1, times `growth` in each round after (self-paced), rounded up."""
    share = min(1.0, fraction * growth ** (round_ - 1))
    return math.ceil(round(share * candidates, 6))  # 0.07 * 100 is 7.000000000000001


def caps_of(budget: int, section: params.Mining) -> Caps:
    """The caps of a role with this budget, rounded up."""
    return Caps(*(math.ceil(round(share * budget, 6)) for share in (section.max_slide_share, section.max_patient_share)))


def within_caps(ordered: pd.DataFrame, count: int, caps: Caps) -> pd.DataFrame:
    """The first `count` of `ordered` tiles that keep both caps; further tiles of a full slide or patient give way to others'."""
    ordered = ordered[ordered.groupby("slide_id").cumcount() < caps.slide]
    return ordered[ordered.groupby("patient_id").cumcount() < caps.patient].head(count)


def best_first(tiles: pd.DataFrame) -> pd.DataFrame:
    """`tiles` from best to worst score."""
    return tiles.sort_values(BEST_FIRST, ascending=[False, False, True, True], kind="stable")


def ranked(tiles: pd.DataFrame) -> pd.DataFrame:
    """`tiles` from best to worst score, with their `rank` from 1."""
    return best_first(tiles).assign(rank=range(1, len(tiles) + 1))
