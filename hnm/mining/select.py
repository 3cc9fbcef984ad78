"""Which tiles of the train slides are mined: the surest tiles of positive slides, the hard
negatives of negative ones.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from hnm import params
from hnm.errors import MiningError
from hnm.mining.guards import Caps, GuardedChoice, Guards
from hnm.mining.screen import flaws_of
from hnm.mining.similarity import TileReader, likest, read_tiles
from hnm.mining.vetoes import without
from hnm.seeds import seed_of
from hnm.tables import MINED, PASSED_OVER

BEST_FIRST = ["score", "logit", "slide_id", "tile"]
LIKE_HARD_NEGATIVE = "like_hard_negative"


class MinedSet(NamedTuple):
    """What was mined, and what guards refused on the way."""

    tiles: pd.DataFrame
    """The table `MINED`."""
    passed_over: pd.DataFrame
    """The table `PASSED_OVER`: better tiles than some mined ones, or positives that are like a hard
    negative.
    """


def mine(
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    section: params.Mining,
    round_: int,
    *,
    patients: Mapping[str, str] | None = None,
    vetoed: pd.DataFrame | None = None,
    features: TileReader | None = None,
    pixels: TileReader | None = None,
) -> MinedSet:
    """Returns the mined tiles of one round.

    *Positives* are the best `positive_fraction` of the positive slides' tiles whose score exceeds
    `threshold`; *hard negatives* are drawn from the negative slides' tiles, all of which are truly
    negative, by `policy`: the paper's takes the best-scoring `negative_fraction`. No slide supplies
    more than `max_slide_share` of a role's budget and no patient more than `max_patient_share`, so
    that a few odd slides cannot supply most of it; where that leaves a budget short, the mined set
    is smaller. Ties go by slide id, then tile.

    In that order a hard negative whose feature has a cosine above `max_similarity` to one already
    taken is passed over as its near-duplicate, and the next takes its place. A positive whose
    feature has a cosine above `max_positive_similarity` to any mined hard negative is struck out,
    and nothing takes its place: what looks like a tile that is truly negative is no sure positive.
    A tile of either role that `screen` refuses for its pixels is passed over, and the next takes
    its place.

    Args:
        scores: a `TILE_SCORES` table; its tiles of slides without a label here are never mined.
        labels: the `LABELS` of the train slides.
        section: the settings.
        round_: the round that the mined tiles are for, from 1.
        patients: slide id -> patient id; where None, each slide is another patient's.
        vetoed: slide_id and tile of the tiles that must not be mined, in either role.
        features: reads features of the encoder that made the scores; where both similarities are 1,
            it is not called.
        pixels: reads pixels; where `screen` is off, it is not called.

    Raises:
        MiningError: a role has no tile; the message says which param would let some in.
    """
    _check_readers(section, features, pixels)
    if section.policy == "none":
        return MinedSet(MINED.empty(), PASSED_OVER.empty())
    tiles = (scores if vetoed is None else without(scores, vetoed)).reset_index(drop=True)
    patient_ids = tiles["slide_id"] if patients is None else tiles["slide_id"].map(patients)
    tiles = tiles.assign(patient_id=patient_ids)
    negative = tiles_labelled(0, tiles, labels)
    _check_negatives(negative)
    sure = _sure(tiles_labelled(1, tiles, labels), section.threshold)
    hard, hard_refused = negatives(negative, section, round_, features, pixels)
    surest, sure_refused = positives(sure, hard, section, round_, features, pixels)
    mined = _with_roles(surest, hard).assign(
        round=round_,
        policy=section.policy,
        scorer=scorer_of(scores[scores["slide_id"].isin(labels["slide_id"])]),
    )
    mined = mined.astype({"round": "int32", "rank": "int32"})[list(MINED.columns)]
    passed_over = _with_roles(sure_refused, hard_refused).astype({"reason": "str"})
    return MinedSet(mined, passed_over[list(PASSED_OVER.columns)])


def _check_negatives(negative: pd.DataFrame) -> None:
    if negative.empty:
        raise MiningError(
            "no negative train slide has tiles that may be mined, so there are no hard negatives;"
            " add negative slides to the train split or lift vetoes"
        )


def _sure(positive: pd.DataFrame, threshold: float) -> pd.DataFrame:
    sure = positive[positive["score"] > threshold]
    if sure.empty:
        best = "there is none" if positive.empty else f"best: {positive['score'].max():.3g}"
        raise MiningError(
            f"no tile of a positive train slide scores above mining.threshold={threshold:g}"
            f" ({best}); lower it or train the head longer"
        )
    return sure


def _with_roles(positive: pd.DataFrame, negative: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(
        [positive.assign(role="positive"), negative.assign(role="hard_negative")],
        ignore_index=True,
    ).astype({"role": "str"})


def tiles_labelled(label: int, tiles: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Those of `tiles` whose slide has this label."""
    return tiles[tiles["slide_id"].isin(labels.loc[labels["label"] == label, "slide_id"])]


def scorer_of(scores: pd.DataFrame) -> str:
    """The first 16 digits of the SHA-256 of what the encoder and head said: slide id, tile and
    logit of every tile of a `TILE_SCORES` table.

    It names the scorer by its work, so that another head, another encoder or other tiles give
    another digest, and the same ones give the same, whatever file they were written to.
    """
    ordered = scores.sort_values(["slide_id", "tile"], kind="stable")
    digest = hashlib.sha256("\n".join(ordered["slide_id"]).encode())
    digest.update(ordered["tile"].to_numpy("<i4").tobytes())
    digest.update(ordered["logit"].to_numpy("<f4").tobytes())
    return digest.hexdigest()[:16]


def negatives(
    tiles: pd.DataFrame,
    section: params.Mining,
    round_: int,
    features: TileReader | None = None,
    pixels: TileReader | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mined ones of the negative slides' tiles, by policy, with their `rank` by score from 1;
    and those passed over, with the `reason`.

    `hard` takes the best-scoring; `semi_hard` the best-scoring below the top `skip_fraction`;
    `random` any, drawn anew in each round; `mixed` a `hard_share` of the budget by `hard` and the
    rest by `random` from what is left; `all` every tile, whatever the fraction, the caps and the
    guards. At one budget `random` is the control that a claim for the others must beat, and `all`
    the one for its cost.

    Args:
        tiles: the candidates, with `patient_id`.
        section: the settings; its policy is not `none`.
        round_: the round that the tiles are for, from 1.
        features: reads features; not called where `max_similarity` is 1.
        pixels: reads pixels; not called where `screen` is off.

    Raises:
        MiningError: `screen` refuses all.
    """
    count = budget(section.negative_fraction, section.growth, round_, len(tiles))
    ordered = best_first(tiles)
    # by place, not by score, so that one seed draws the same tiles whatever the head
    shuffled = tiles.sort_values(["slide_id", "tile"]).iloc[
        np.random.default_rng(seed_of(section.seed, "mining", round_)).permutation(len(ordered))
    ]
    guards = Guards(
        _screen(section, pixels),
        features if section.max_similarity < 1 else None,
        section.max_similarity,
    )
    choice = GuardedChoice(tiles, caps_of(count, section), guards)
    match section.policy:
        case "hard":
            choice.take(ordered, count)
        case "semi_hard":
            choice.take(below_the_top(ordered, section), count)
        case "random":
            choice.take(shuffled, count)
        case "mixed":
            choice.take(ordered, rounded_up(section.hard_share * count))
            choice.take(shuffled, count)
        case _:
            return ranked(ordered), choice.refused
    is_semi_hard = section.policy == "semi_hard"
    cure = "lower mining.skip_fraction" if is_semi_hard else "raise mining.negative_fraction"
    _check_taken(choice, "hard negatives", cure)
    return ranked(choice.taken), choice.refused


def below_the_top(ordered: pd.DataFrame, section: params.Mining) -> pd.DataFrame:
    """What is left of the negatives, the best first, when `semi_hard` has skipped its
    `skip_fraction`; all of them under the other policies.
    """
    if section.policy != "semi_hard":
        return ordered
    return ordered.iloc[rounded_up(section.skip_fraction * len(ordered)) :]


def positives(
    tiles: pd.DataFrame,
    hard: pd.DataFrame,
    section: params.Mining,
    round_: int,
    features: TileReader | None = None,
    pixels: TileReader | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mined ones of the positive slides' tiles, with their `rank` by score from 1; and those
    passed over or struck out, with the `reason`.

    Args:
        tiles: the candidates, which score above the threshold, with `patient_id`.
        hard: the mined hard negatives.
        section: the settings.
        round_: the round that the tiles are for, from 1.
        features: reads features; not called where `max_positive_similarity` is 1.
        pixels: reads pixels; not called where `screen` is off.

    Raises:
        MiningError: `screen` refuses all, or all are struck out.
    """
    count = budget(section.positive_fraction, section.growth, round_, len(tiles))
    choice = GuardedChoice(tiles, caps_of(count, section), Guards(_screen(section, pixels)))
    choice.take(best_first(tiles), count)
    _check_taken(choice, "positives", "raise mining.positive_fraction")
    if features is None or section.max_positive_similarity == 1:
        return ranked(choice.taken), choice.refused
    likeness = likest(choice.taken, hard, features)
    struck = likeness > section.max_positive_similarity
    if struck.all():
        raise MiningError(
            f"each of the {len(struck)} positives is more like a hard negative than"
            f" mining.max_positive_similarity={section.max_positive_similarity:g} (the least like:"
            f" {likeness.min():.3g}); raise it"
        )
    return ranked(choice.taken[~struck]), pd.concat(
        [choice.refused, choice.taken[struck].assign(reason=LIKE_HARD_NEGATIVE)]
    )


def budget(fraction: float, growth: float, round_: int, candidates: int) -> int:
    """How many of the candidates round `round_` mines at most: `fraction` of them in round 1, times
    `growth` in each round after (self-paced), rounded up.
    """
    share = min(1.0, fraction * growth ** (round_ - 1))
    return rounded_up(share * candidates)


def rounded_up(number: float) -> int:
    """The whole number that is not below `number`, but for the rounding of floats."""
    return math.ceil(round(number, 6))  # 0.07 * 100 is 7.000000000000001


def caps_of(budget: int, section: params.Mining) -> Caps:
    """The caps of a role with this budget, rounded up."""
    return Caps(
        rounded_up(section.max_slide_share * budget), rounded_up(section.max_patient_share * budget)
    )


def best_first(tiles: pd.DataFrame) -> pd.DataFrame:
    """`tiles` from best to worst score."""
    return tiles.sort_values(BEST_FIRST, ascending=[False, False, True, True], kind="stable")


def ranked(tiles: pd.DataFrame) -> pd.DataFrame:
    """`tiles` from best to worst score, with their `rank` from 1."""
    return best_first(tiles).assign(rank=range(1, len(tiles) + 1))


def _screen(
    section: params.Mining, pixels: TileReader | None
) -> Callable[[pd.DataFrame], list[str]] | None:
    """What refuses tiles for their pixels; None where the screen is off."""
    if pixels is None or section.screen == params.Screen():
        return None
    return lambda tiles: flaws_of(read_tiles(tiles, pixels), section.screen)


def _check_readers(
    section: params.Mining, features: TileReader | None, pixels: TileReader | None
) -> None:
    compared = [
        f"mining.{name}={limit:g}"
        for name in ("max_similarity", "max_positive_similarity")
        if (limit := getattr(section, name)) < 1
    ]
    if compared and features is None:
        raise MiningError(
            f"{' and '.join(compared)} compare features, but none can be read here; pass a reader"
            " of features, or set 1"
        )
    screened = [f"mining.screen.{name}={limit:g}" for name, limit in section.screen if limit < 1]
    if screened and pixels is None:
        raise MiningError(
            f"{' and '.join(screened)} look at pixels, but none can be read here; pass a reader of"
            " pixels, or set 1"
        )


def _check_taken(choice: GuardedChoice, what: str, cure: str) -> None:
    if choice.taken.empty and choice.refused.empty:
        raise MiningError(f"no tile is left to be {what}; {cure}")
    if choice.taken.empty:
        counts = ", ".join(
            f"{reason}: {count}"
            for reason, count in sorted(choice.refused["reason"].value_counts().items())
        )
        raise MiningError(
            f"mining.screen refuses each of the {len(choice.refused)} tiles that could be {what}"
            f" ({counts}); raise its limits"
        )
