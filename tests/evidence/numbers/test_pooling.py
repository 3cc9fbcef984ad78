"""Out-of-fold predictions put together, by hand."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hnm.evidence.numbers.pooling import (
    out_of_fold,
    pooled,
    pooled_table,
    read_predictions,
    write_predictions,
)
from hnm.params import Evaluate

SECTION = Evaluate(resamples=100)


def held_out(*rounds: dict[str, float]) -> pd.DataFrame:
    """Validation slides v1 (positive), v0, test slides t1 (positive), t0; the scores of each
    round.
    """
    rows = [
        {
            "slide_id": slide,
            "patient_id": f"p-{slide}",
            "split": "validation" if slide[0] == "v" else "test",
            "label": int(slide[1]),
            "round": number,
            "score": score,
        }
        for number, scores in enumerate(rounds)
        for slide, score in scores.items()
    ]
    return pd.DataFrame(rows)


class TestOutOfFold:
    def test_validation_picks_round_and_threshold(self) -> None:
        table = out_of_fold(
            held_out(
                {"v1": 0.4, "v0": 0.6, "t1": 0.9, "t0": 0.1},
                {"v1": 0.8, "v0": 0.3, "t1": 0.5, "t0": 0.7},
            ),
            seed=2,
            fold=1,
        )
        assert table.to_dict("list") == {
            "seed": [2, 2],
            "fold": [1, 1],
            "slide_id": ["t0", "t1"],
            "patient_id": ["p-t0", "p-t1"],
            "label": [0, 1],
            "first_score": [0.1, 0.9],
            "round": [1, 1],
            "threshold": [0.55, 0.55],
            "score": [0.7, 0.5],
            "called": [1, 0],
        }

    def test_equal_aucs_go_to_the_lower_log_loss_and_then_to_the_earlier_round(self) -> None:
        worse, better = (
            {"v1": 0.6, "v0": 0.5, "t1": 0.9, "t0": 0.1},
            {
                "v1": 0.9,
                "v0": 0.1,
                "t1": 0.9,
                "t0": 0.1,
            },
        )
        assert out_of_fold(held_out(worse, better), seed=0, fold=0)["round"].tolist() == [1, 1]
        assert out_of_fold(held_out(better, worse, better), seed=0, fold=0)["round"].tolist() == [
            0,
            0,
        ]


def rows(seed: int, fold: int, *slides: tuple[int, float, float]) -> pd.DataFrame:
    """(label, first score, score) of each slide."""
    labels, first, last = zip(*slides, strict=True)
    names = [f"s{fold}{place}" for place in range(len(slides))]
    table = pd.DataFrame(
        {
            "seed": seed,
            "fold": fold,
            "slide_id": names,
            "patient_id": names,
            "label": labels,
            "first_score": first,
            "round": fold,
            "score": last,
        }
    )
    return table.assign(called=(table["score"] >= 0.5).astype(int))


FOLDS = [
    # AUC of the folds: 2/2, 1/2 with seed 0 (round 0: 1/2 each), 1/2, 0 with seed 1
    rows(0, 0, (1, 0.5, 0.9), (0, 0.4, 0.2), (0, 0.6, 0.1)),
    rows(0, 1, (1, 0.5, 0.5), (0, 0.4, 0.3), (0, 0.6, 0.7)),
    rows(1, 0, (1, 0.5, 0.5), (0, 0.4, 0.3), (0, 0.6, 0.7)),
    rows(1, 1, (1, 0.5, 0.1), (0, 0.4, 0.3), (0, 0.6, 0.7)),
]


class TestPooled:
    def test_by_hand(self) -> None:
        numbers = pooled(pd.concat(FOLDS), SECTION)
        assert (numbers["slides"], numbers["patients"]) == (6, 6)
        assert [
            (fold["seed"], fold["fold"], fold["auc"], fold["gain"]) for fold in numbers["folds"]
        ] == [
            (0, 0, 1.0, 0.5),
            (0, 1, 0.5, 0.0),
            (1, 0, 0.5, 0.0),
            (1, 1, 0.0, -0.5),
        ]
        # seed 0: positives 0.9 beats 4, 0.5 beats 3 of 0.2, 0.1, 0.3, 0.7
        assert numbers["seeds"]["0"]["auc"] == pytest.approx(7 / 8)
        assert numbers["seeds"]["0"]["gain"] == pytest.approx(7 / 8 - 1 / 2)
        assert (
            numbers["seeds"]["0"]["accuracy"],
            numbers["seeds"]["0"]["sensitivity"],
            numbers["seeds"]["0"]["specificity"],
        ) == (0.833333, 1.0, 0.75)
        assert (
            numbers["seeds"]["0"]["accuracy_low"]
            < 0.833333
            < numbers["seeds"]["0"]["accuracy_high"]
        )

    def test_intervals_are_of_patients(self) -> None:
        """A second slide of each patient that says the same is no second witness: no number
        changes.
        """
        draw = np.random.default_rng(4)
        labels = [1, 0, 0] * 8
        slides = [
            (label, float(first), float(last))
            for label, first, last in zip(
                labels, draw.random(24), draw.random(24) * 0.6 + 0.3 * np.array(labels), strict=True
            )
        ]
        once = pd.concat([rows(0, 0, *slides[:12]), rows(0, 1, *slides[12:])])
        twice = pd.concat([once, once.assign(slide_id="again-" + once["slide_id"])])
        alone, doubled = (pooled(table, SECTION)["seeds"]["0"] for table in (once, twice))
        intervals = [name for name in alone if name.endswith(("_low", "_high"))]
        assert {
            "auc_low",
            "gain_high",
            "accuracy_low",
            "sensitivity_high",
            "specificity_low",
        } <= set(intervals)
        assert {name: doubled[name] for name in intervals} == pytest.approx(
            {name: alone[name] for name in intervals}, abs=1e-6
        )

    def test_variance_of_folds_and_of_seeds(self) -> None:
        auc = pooled(pd.concat(FOLDS), SECTION)["variance"]["auc"]
        # seeds' means: 0.75, 0.25 by fold; within each fold the seeds differ by 0.5
        assert auc == {
            "mean": 0.5,
            "sd_folds": pytest.approx(np.std([0.75, 0.25], ddof=1), abs=1e-6),
            "sd_seeds": pytest.approx(np.std([1, 0.5], ddof=1), abs=1e-6),
        }

    def test_one_seed_says_nothing_of_seeds(self) -> None:
        assert pooled(pd.concat(FOLDS[:2]), SECTION)["variance"]["auc"]["sd_seeds"] is None

    def test_order_does_not_matter(self) -> None:
        assert pooled(pd.concat(FOLDS[::-1]), SECTION) == pooled(pd.concat(FOLDS), SECTION)

    def test_table_stays_whole_in_80_columns(self) -> None:
        stream = io.StringIO()
        Console(file=stream, width=80).print(pooled_table(pooled(pd.concat(FOLDS), SECTION)))
        lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
        assert lines[0] == "Cross-validation, 6 slides of 6 patients, each test once"
        assert lines[2:4] == [
            "gain over rounds",
            "seed pooled AUC round 0 DeLong p acc. sens. spec. chosen",
        ]
        assert "+0.375" in stream.getvalue() and "0, 1" in stream.getvalue()
        assert lines[-2:] == [
            "AUC: mean of folds 0.500, SD between folds 0.354, between seeds 0.354",
            "gain: mean of folds 0.000, SD between folds 0.354, between seeds 0.354",
        ]


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    scores = {
        "v1": 0.8,
        "v0": 0.3,
        "t1": np.float32(1 / 3),
        "t0": np.float32(0.1) + np.float32(1e-8),
    }
    table = out_of_fold(
        held_out(scores).assign(
            score=lambda table: table["score"].astype(np.float32), patient_id="007"
        ),
        seed=0,
        fold=1,
    )
    write_predictions(table, tmp_path / "predictions.csv")
    read = read_predictions(tmp_path / "predictions.csv")
    assert read.dtypes["score"] == np.float32 and read[["score", "first_score"]].equals(
        table[["score", "first_score"]]
    )
    assert read["patient_id"].tolist() == ["007", "007"] and list(read) == list(table)
