"""Scores and truth brought together: what each round is worth, and which round validation picks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hnm.errors import EvidenceError
from hnm.evidence.numbers.metrics import (
    Detections,
    Number,
    Predictions,
    Resampling,
    auc_gain,
    choose_threshold,
    delong_bounds,
    delong_p,
    froc,
    lesion_metrics,
    slide_metrics,
    tile_metrics,
)
from hnm.evidence.truth import LESION, UNCLEAR, detect, tile_truth
from hnm.params import Evaluate
from hnm.seeds import seed_of
from hnm.selection import best_row
from hnm.slides.annotations import Region
from hnm.slides.reading.canvas import aspects_of

DECISIONS = ("accuracy", "sensitivity", "specificity")
STEPS = ("open", "mpp", "tissue", "tiles")
DIGITS = 6
"""Decimals of the numbers in metrics.json: enough to compare, too few for the last bits of a
machine.
"""


@dataclass(frozen=True)
class CohortTruth:
    """The cohort as `evaluate` alone sees it."""

    slides: pd.DataFrame
    """A `SLIDES` table."""
    labels: Mapping[str, pd.DataFrame]
    """Split -> its `LABELS` table."""
    quarantine: pd.DataFrame
    """A `QUARANTINE` table: all slides that cannot be used."""
    tiles: pd.DataFrame
    """A `TILES` table."""
    annotations: Mapping[str, Sequence[Region]]
    """Slide id -> its regions, for the slides that have an annotation."""
    places: int
    """Tiles of the whole grids of the slides that were cut."""
    unreadable: int
    """Of those, how many could not be read."""

    @property
    def label_of(self) -> dict[str, int]:
        """Slide id -> label, of all splits."""
        return {
            slide_id: int(label)
            for table in self.labels.values()
            for slide_id, label in zip(table["slide_id"], table["label"], strict=True)
        }

    @property
    def aspects(self) -> dict[str, float]:
        """Slide id -> height of a tile over its width, in level-0 pixels."""
        return aspects_of(self.slides)

    def funnel(self) -> dict[str, int]:
        """How many slides were found, and how many of them passed each step; `used` have a label
        and tiles.

        `places` are the tiles of the cut slides' grids. What holds too little tissue and what is
        unreadable goes, and `tiles` are left.
        """
        failed = self.quarantine["step"].value_counts().reindex(STEPS, fill_value=0)
        found = len(set(self.slides["slide_id"]) | set(self.quarantine["slide_id"]))
        opened = found - int(failed["open"]) - int(failed["mpp"])
        tiled = set(self.tiles["slide_id"])
        used = {split: len(tiled & set(table["slide_id"])) for split, table in self.labels.items()}
        return {
            "found": found,
            "opened": opened,
            "tissue": opened - int(failed["tissue"]),
            "tiled": opened - int(failed["tissue"]) - int(failed["tiles"]),
            "used": sum(used.values()),
            **used,
            "places": self.places,
            "little_tissue": self.places - self.unreadable - len(self.tiles),
            "unreadable": self.unreadable,
            "tiles": len(self.tiles),
        }


@dataclass(frozen=True)
class RoundResults:
    """What one round left behind."""

    name: str
    slide_scores: pd.DataFrame
    """A `SLIDE_SCORES` table."""
    tile_scores: pd.DataFrame
    """A `TILE_SCORES` table."""
    head_history: pd.DataFrame
    mined: pd.DataFrame | None = None
    """A `MINED` table; None for round 0."""
    encoder_history: pd.DataFrame | None = None
    """None where the round's encoder was not trained."""
    records: Mapping[str, Any] = field(default_factory=dict)
    """What its stages noted of themselves: `encoder`, `head`, `mine`."""


@dataclass(frozen=True)
class RoundEvidence:
    """What one round is worth."""

    results: RoundResults
    threshold: float
    """Of slides; chosen on validation."""
    tile_threshold: float
    """Of tiles: chosen on validation likewise, where a slide's score is its highest tile's. It
    needs no truth of tiles.
    """
    slides: Mapping[str, pd.DataFrame]
    """Split (validation, test) -> slide_id, patient_id, label, score of its slides that have
    tiles.
    """
    tiles: pd.DataFrame
    """slide_id, tile, x, y, side, patient_id, score, truth, region of the test tiles."""
    mined: pd.DataFrame | None
    """The mined tiles with their `truth`, `region` and `again`: whether the round before had mined
    them in the same role.
    """
    detections: Detections
    """The peaks of the test tiles' scores against the lesions."""
    numbers: Mapping[str, Mapping[str, Number]]
    """`validation`, `test` and `test_tiles` -> metric -> number."""

    @property
    def name(self) -> str:
        """The round."""
        return self.results.name

    @property
    def overlap(self) -> dict[str, float | None]:
        """`jaccard` and `churn` of the mined tiles against those of the round before, as mining
        told them; None where either has none.
        """
        return {name: self.results.records["mine"][name] for name in ("jaccard", "churn")}

    @property
    def froc(self) -> list[float] | None:
        """Share of the test slides' lesions found at each of `FROC_RATES`; None where none is
        drawn.
        """
        return froc(self.detections).tolist() if len(self.detections.lesion_scores) else None


@dataclass(frozen=True)
class Evaluation:
    """All rounds, and the one that validation picks."""

    cohort: CohortTruth
    rounds: Sequence[RoundEvidence]
    chosen: RoundEvidence
    gain: Number
    """Test slide AUC of the chosen round over that of round 0, on the same slides."""
    gain_p: float | None
    """DeLong's p-value of no gain; it takes slides, not patients, for independent."""
    auc_bounds: tuple[float, float] | None
    """DeLong's interval of the chosen round's test AUC; it takes slides for independent as well."""
    section: Evaluate
    tile_truth: pd.DataFrame = field(repr=False)
    """slide_id, tile, truth, region of all tiles of labelled slides."""


def evaluate_rounds(
    cohort: CohortTruth, rounds: Sequence[RoundResults], section: Evaluate
) -> Evaluation:
    """What each of `rounds` is worth, in their order.

    The round, by `hnm.selection`, and the threshold of each round are chosen on validation alone.

    Raises:
        EvidenceError: a labelled slide has neither a score nor a place in quarantine.
    """
    truth = tile_truth(cohort.tiles, cohort.label_of, cohort.annotations, cohort.aspects, section)
    evidence: list[RoundEvidence] = []
    for results in rounds:
        evidence.append(
            _round_evidence(
                cohort, results, truth, evidence[-1].results.mined if evidence else None, section
            )
        )
    validation = [round_evidence.numbers["validation"] for round_evidence in evidence]
    chosen = evidence[
        best_row(
            [numbers["auc"].value for numbers in validation],
            [numbers["log_loss"].value for numbers in validation],
        )
    ]
    before, after = predictions(evidence[0].slides["test"]), predictions(chosen.slides["test"])
    gain, gain_p = auc_gain(before, after, _resampling(section, "test")), delong_p(before, after)
    return Evaluation(
        cohort,
        evidence,
        chosen,
        gain,
        gain_p,
        delong_bounds(after, section.confidence),
        section,
        truth,
    )


def metrics_of(evaluation: Evaluation) -> dict[str, Any]:
    """The content of metrics.json.

    `chosen_round`, `threshold`; `test` and `test_tiles`: every metric of the chosen round, with
    `<metric>_low` and `<metric>_high`; `gain`: its test AUC less round 0's and DeLong's p-value;
    `rounds`: a few metrics of each round; `funnel`. A number that cannot be given is null, and
    `<metric>_reason` says why. Thresholds are exact, for a model that decides by a rounded one
    could call a slide otherwise.
    """
    chosen = evaluation.chosen
    return {
        "chosen_round": int(chosen.name),
        "threshold": chosen.threshold,
        "test": {
            **flat_numbers(chosen.numbers["test"]),
            **_delong(evaluation),
            **_counts(chosen.slides["test"]),
        },
        "test_tiles": {
            **flat_numbers(chosen.numbers["test_tiles"]),
            "threshold": chosen.tile_threshold,
            **_tile_counts(chosen),
        },
        "gain": {
            **flat_numbers({"test_auc": evaluation.gain}),
            "delong_p": rounded(evaluation.gain_p),
        },
        "rounds": {evidence.name: _round_metrics(evidence) for evidence in evaluation.rounds},
        "funnel": evaluation.cohort.funnel(),
    }


def _round_metrics(evidence: RoundEvidence) -> dict[str, Any]:
    test = {
        name: evidence.numbers["test"][name]
        for name in ("auc", "average_precision", "accuracy", "f1", "sensitivity", "specificity")
    }
    validation = {name: evidence.numbers["validation"][name] for name in ("auc", "log_loss")}
    return {
        "threshold": evidence.threshold,
        "validation": flat_numbers(validation, bounds_of=("auc",)),
        "test": flat_numbers(test, bounds_of=("auc",)),
        "test_tiles": flat_numbers(evidence.numbers["test_tiles"], bounds_of=("auc",)),
        **(
            {}
            if evidence.mined is None
            else {"mined": {**mined_summary(evidence.mined), **evidence.overlap}}
        ),
    }


def mined_summary(mined: pd.DataFrame) -> dict[str, Any]:
    """Counts of a round's mined tiles, and the truth that mining did not know, as shares of the
    tiles of annotated slides.

    `look_alike_share`: hard negatives on a drawn region that is no lesion. `lesion_share`:
    positives on a lesion. `again_share`: mined tiles that the round before had mined in the same
    role. `hard_negative_lesions` counts hard negatives on a lesion: any at all is a wrong label or
    a wrong annotation.
    """
    hard, positive = (mined[mined["role"] == role] for role in ("hard_negative", "positive"))
    return {
        "hard_negatives": len(hard),
        "positives": len(positive),
        "slides": mined["slide_id"].nunique(),
        "look_alike_share": look_alike_share(hard),
        "lesion_share": lesion_share(positive),
        "hard_negative_lesions": int((hard["region"] == LESION).sum()),
        "again_share": round(float(mined["again"].mean()), DIGITS) if len(mined) else None,
    }


def lesions_among_negatives(evidence: RoundEvidence) -> str | None:
    """What to say of hard negatives of the round that lie on a drawn lesion, slide by slide; None
    where there is none.
    """
    if evidence.mined is None:
        return None
    wrong = evidence.mined[
        (evidence.mined["role"] == "hard_negative") & (evidence.mined["region"] == LESION)
    ]
    if wrong.empty:
        return None
    slides = ", ".join(
        f"{slide_id} ({count})"
        for slide_id, count in wrong["slide_id"].value_counts().sort_index().items()
    )
    return (
        f"round {evidence.name} has hard negatives on drawn lesions of slides labelled 0: {slides};"
        " a label or an annotation is wrong: correct it in the manifest, or veto the tiles"
    )


def look_alike_share(tiles: pd.DataFrame) -> float | None:
    """Share of `tiles` on a drawn region that is no lesion, among those of annotated slides."""
    known = tiles["region"].dropna()
    return round(float((~known.isin(["", LESION])).mean()), DIGITS) if len(known) else None


def lesion_share(tiles: pd.DataFrame) -> float | None:
    """Share of `tiles` on a lesion, among those of annotated slides."""
    known = tiles["region"].dropna()
    return round(float((known == LESION).mean()), DIGITS) if len(known) else None


def _round_evidence(
    cohort: CohortTruth,
    results: RoundResults,
    truth: pd.DataFrame,
    mined_before: pd.DataFrame | None,
    section: Evaluate,
) -> RoundEvidence:
    slides = {split: _scored_slides(cohort, split, results) for split in ("validation", "test")}
    validation, test = (predictions(slides[split]) for split in ("validation", "test"))
    threshold, tile_threshold = (
        choose_threshold(validation),
        choose_threshold(predictions(_by_highest_tile(slides["validation"], results))),
    )
    patients = cohort.slides[["slide_id", "patient_id"]]
    tiles = (
        results.tile_scores[results.tile_scores["slide_id"].isin(slides["test"]["slide_id"])]
        .merge(truth, on=["slide_id", "tile"], validate="one_to_one")
        .merge(patients, on="slide_id", validate="many_to_one")
    )
    known = tiles[tiles["truth"] != UNCLEAR]
    detections = detect(tiles, cohort.label_of, cohort.annotations, cohort.aspects, section)
    of_tiles = tile_metrics(
        predictions(known.assign(label=known["truth"] == LESION)),
        _resampling(section, "test tiles"),
    )
    numbers = {
        "validation": slide_metrics(validation, threshold, _resampling(section, "validation")),
        "test": slide_metrics(test, threshold, _resampling(section, "test")),
        "test_tiles": (
            of_tiles | lesion_metrics(detections, tile_threshold, _resampling(section, "lesions"))
        ),
    }
    return RoundEvidence(
        results,
        threshold,
        tile_threshold,
        slides,
        tiles,
        _mined_truth(results.mined, mined_before, truth),
        detections,
        numbers,
    )


def _by_highest_tile(slides: pd.DataFrame, results: RoundResults) -> pd.DataFrame:
    """The slides with their highest tile's score in the place of their own."""
    return slides.assign(
        score=slides["slide_id"].map(results.tile_scores.groupby("slide_id")["score"].max())
    )


def _scored_slides(cohort: CohortTruth, split: str, results: RoundResults) -> pd.DataFrame:
    """slide_id, patient_id, label, score of the slides of `split` that are not in quarantine."""
    labels = cohort.labels[split][
        ~cohort.labels[split]["slide_id"].isin(cohort.quarantine["slide_id"])
    ]
    scored = labels.merge(
        results.slide_scores[["slide_id", "score"]],
        on="slide_id",
        how="left",
        validate="one_to_one",
    )
    lost = scored.loc[scored["score"].isna(), "slide_id"]
    if len(lost):
        raise EvidenceError(
            f"slide {lost.iloc[0]} of {split} has neither a score in round {results.name} nor a"
            f" place in quarantine (and {len(lost) - 1} more); run dvc repro"
        )
    with_patients = scored.merge(
        cohort.slides[["slide_id", "patient_id"]], on="slide_id", validate="one_to_one"
    )
    return with_patients[["slide_id", "patient_id", "label", "score"]]


def _mined_truth(
    mined: pd.DataFrame | None, before: pd.DataFrame | None, truth: pd.DataFrame
) -> pd.DataFrame | None:
    if mined is None:
        return None
    seen = (
        set()
        if before is None
        else set(zip(before["role"], before["slide_id"], before["tile"], strict=True))
    )
    again = [
        key in seen for key in zip(mined["role"], mined["slide_id"], mined["tile"], strict=True)
    ]
    return mined.assign(again=again).merge(
        truth, on=["slide_id", "tile"], how="left", validate="many_to_one"
    )


def predictions(frame: pd.DataFrame) -> Predictions:
    """The columns label, score and patient_id of `frame`."""
    return Predictions(
        frame["label"].to_numpy(np.int64),
        frame["score"].to_numpy(np.float64),
        frame["patient_id"].to_numpy(str),
    )


def decisions_of(slides: pd.DataFrame, resampling: Resampling) -> dict[str, Number]:
    """Accuracy, sensitivity and specificity of what slides were called, whatever threshold called
    them.

    Args:
        slides: patient_id, label, called.
        resampling: of the intervals.
    """
    numbers = slide_metrics(predictions(slides.assign(score=slides["called"])), 0.5, resampling)
    return {name: numbers[name] for name in DECISIONS}


def _resampling(section: Evaluate, purpose: str) -> Resampling:
    """The same draws for each round, so that rounds are compared on the same resamples."""
    return Resampling(
        section.resamples, section.confidence, seed_of(section.seed, "bootstrap", purpose)
    )


def flat_numbers(
    numbers: Mapping[str, Number], bounds_of: Sequence[str] | None = None
) -> dict[str, Any]:
    """Numbers as JSON: `<name>`, `<name>_low`, `<name>_high`, and `<name>_reason` where there is
    one; bounds only of the named ones.
    """
    flat: dict[str, Any] = {}
    for name, number in numbers.items():
        flat[name] = rounded(number.value)
        with_bounds = bounds_of is None or name in bounds_of
        if with_bounds:
            flat |= {f"{name}_low": rounded(number.low), f"{name}_high": rounded(number.high)}
        if number.reason and (with_bounds or number.value is None):
            flat[f"{name}_reason"] = number.reason
    return flat


def rounded(value: float | None) -> float | None:
    """To `DIGITS` decimals."""
    return None if value is None else round(float(value), DIGITS)


def _delong(evaluation: Evaluation) -> dict[str, float | None]:
    low, high = evaluation.auc_bounds or (None, None)
    return {"auc_delong_low": rounded(low), "auc_delong_high": rounded(high)}


def _counts(slides: pd.DataFrame) -> dict[str, int]:
    return {
        "slides": len(slides),
        "positives": int(slides["label"].sum()),
        "patients": slides["patient_id"].nunique(),
    }


def _tile_counts(evidence: RoundEvidence) -> dict[str, int]:
    known = evidence.tiles[evidence.tiles["truth"] != UNCLEAR]
    return {
        "tiles": len(known),
        "lesion_tiles": int((known["truth"] == LESION).sum()),
        "lesions": len(evidence.detections.lesion_scores),
        "slides": evidence.detections.slides,
    }
