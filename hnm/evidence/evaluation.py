"""Scores and truth brought together: what each round is worth, and which round validation picks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hnm.errors import EvidenceError
from hnm.evidence.numbers.areas import auc_gain
from hnm.evidence.numbers.delong import delong_bounds, delong_p
from hnm.evidence.numbers.intervals import Number, Resampling, flat_numbers, rounded
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import choose_threshold, slide_metrics
from hnm.evidence.numbers.tile_metrics import Detections, froc, lesion_metrics, tile_metrics
from hnm.evidence.truth import LESION, UNCLEAR, detect, tile_truth
from hnm.params import Evaluate
from hnm.selection import best_row
from hnm.slides.annotations import Region
from hnm.slides.reading.canvas import aspects_of

STEPS = ("open", "mpp", "tissue", "tiles")
ROUND_METRICS = ("auc", "average_precision", "accuracy", "f1", "sensitivity", "specificity")
"""Test metrics of each round in metrics.json; of the chosen round it has all."""


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
        slides = len(set(self.slides["slide_id"]) | set(self.quarantine["slide_id"]))
        opened = slides - int(failed["open"]) - int(failed["mpp"])
        tiled = set(self.tiles["slide_id"])
        used = {split: len(tiled & set(table["slide_id"])) for split, table in self.labels.items()}
        return {
            "found": slides,
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
        before = evidence[-1].results.mined if evidence else None
        evidence.append(_round_evidence(cohort, results, truth, before, section))
    validation = [of_round.numbers["validation"] for of_round in evidence]
    chosen = evidence[
        best_row(
            [numbers["auc"].value for numbers in validation],
            [numbers["log_loss"].value for numbers in validation],
        )
    ]
    before_mining = Predictions.of(evidence[0].slides["test"])
    test = Predictions.of(chosen.slides["test"])
    return Evaluation(
        cohort,
        evidence,
        chosen,
        auc_gain(before_mining, test, Resampling.of(section, "test")),
        delong_p(before_mining, test),
        delong_bounds(test, section.confidence),
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
    low, high = evaluation.auc_bounds or (None, None)
    slides = chosen.slides["test"]
    return {
        "chosen_round": int(chosen.name),
        "threshold": chosen.threshold,
        "test": {
            **flat_numbers(chosen.numbers["test"]),
            "auc_delong_low": rounded(low),
            "auc_delong_high": rounded(high),
            "slides": len(slides),
            "positives": int(slides["label"].sum()),
            "patients": slides["patient_id"].nunique(),
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
    test = {name: evidence.numbers["test"][name] for name in ROUND_METRICS}
    validation = {name: evidence.numbers["validation"][name] for name in ("auc", "log_loss")}
    metrics = {
        "threshold": evidence.threshold,
        "validation": flat_numbers(validation, bounds_of=("auc",)),
        "test": flat_numbers(test, bounds_of=("auc",)),
        "test_tiles": flat_numbers(evidence.numbers["test_tiles"], bounds_of=("auc",)),
    }
    if evidence.mined is not None:
        metrics["mined"] = {**mined_summary(evidence.mined), **evidence.overlap}
    return metrics


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
        "again_share": rounded(mined["again"].mean()) if len(mined) else None,
    }


def lesions_among_negatives(evidence: RoundEvidence) -> str | None:
    """Returns a warning of hard negatives of the round that lie on a drawn lesion, slide by slide;
    None where there is none.
    """
    if evidence.mined is None:
        return None
    hard = evidence.mined[evidence.mined["role"] == "hard_negative"]
    wrong = hard.loc[hard["region"] == LESION, "slide_id"].value_counts().sort_index()
    if wrong.empty:
        return None
    slides = ", ".join(f"{slide_id} ({count})" for slide_id, count in wrong.items())
    return (
        f"round {evidence.name} has hard negatives on drawn lesions of slides labelled 0: {slides};"
        " a label or an annotation is wrong: correct it in the manifest, or veto the tiles"
    )


def look_alike_share(tiles: pd.DataFrame) -> float | None:
    """Returns the share of `tiles` on a drawn region that is no lesion, among those of annotated
    slides.
    """
    return _share(~tiles["region"].isin(["", LESION]), tiles)


def lesion_share(tiles: pd.DataFrame) -> float | None:
    """Returns the share of `tiles` on a lesion, among those of annotated slides."""
    return _share(tiles["region"] == LESION, tiles)


def _share(on_region: "pd.Series[bool]", tiles: pd.DataFrame) -> float | None:
    annotated = on_region[tiles["region"].notna()]
    return rounded(annotated.mean()) if len(annotated) else None


def _round_evidence(
    cohort: CohortTruth,
    results: RoundResults,
    truth: pd.DataFrame,
    mined_before: pd.DataFrame | None,
    section: Evaluate,
) -> RoundEvidence:
    slides = {split: _scored_slides(cohort, split, results) for split in ("validation", "test")}
    validation = Predictions.of(slides["validation"])
    test = Predictions.of(slides["test"])
    threshold = choose_threshold(validation)
    highest = results.tile_scores.groupby("slide_id")["score"].max()
    by_highest_tile = slides["validation"].assign(
        score=slides["validation"]["slide_id"].map(highest)
    )
    tile_threshold = choose_threshold(Predictions.of(by_highest_tile))
    tiles = (
        results.tile_scores[results.tile_scores["slide_id"].isin(slides["test"]["slide_id"])]
        .merge(truth, on=["slide_id", "tile"], validate="one_to_one")
        .merge(cohort.slides[["slide_id", "patient_id"]], on="slide_id", validate="many_to_one")
    )
    clear = tiles[tiles["truth"] != UNCLEAR]
    detections = detect(tiles, cohort.label_of, cohort.annotations, cohort.aspects, section)
    of_tiles = tile_metrics(
        Predictions.of(clear.assign(label=clear["truth"] == LESION)),
        Resampling.of(section, "test tiles"),
    )
    of_lesions = lesion_metrics(detections, tile_threshold, Resampling.of(section, "lesions"))
    numbers = {
        "validation": slide_metrics(validation, threshold, Resampling.of(section, "validation")),
        "test": slide_metrics(test, threshold, Resampling.of(section, "test")),
        "test_tiles": of_tiles | of_lesions,
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
    key = ["role", "slide_id", "tile"]
    again = (
        False if before is None else mined.set_index(key).index.isin(before.set_index(key).index)
    )
    return mined.assign(again=again).merge(
        truth, on=["slide_id", "tile"], how="left", validate="many_to_one"
    )


def _tile_counts(evidence: RoundEvidence) -> dict[str, int]:
    clear = evidence.tiles[evidence.tiles["truth"] != UNCLEAR]
    return {
        "tiles": len(clear),
        "lesion_tiles": int((clear["truth"] == LESION).sum()),
        "lesions": len(evidence.detections.lesion_scores),
        "slides": evidence.detections.slides,
    }
