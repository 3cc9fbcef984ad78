from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely

from hnm.errors import EvidenceError
from hnm.evidence.evaluation import Evaluation, evaluate_rounds, lesions_among_negatives, metrics_of
from hnm.params import Evaluate
from hnm.slides.annotations import Region
from tests.support import evidence as tiny

SECTION = Evaluate(resamples=100)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_rounds(tiny.cohort(), tiny.rounds(), SECTION)


def rescored(count: int, split: str, scores: dict[str, float]) -> list:
    """The tiny rounds with other slide scores in `split`, the same in each round."""
    changed = []
    for results in tiny.rounds(count):
        table = results.slide_scores.copy()
        for slide_id, score in scores.items():
            assert tiny.CAST[slide_id][0] == split
            table.loc[table["slide_id"] == slide_id, "score"] = np.float32(score)
        changed.append(replace(results, slide_scores=table))
    return changed


class TestChoice:
    def test_the_higher_validation_auc_wins_then_the_lower_log_loss(
        self, evaluation: Evaluation
    ) -> None:
        # validation AUC 0, 1, 1; log loss of round 1: 0.359, of round 2: 0.857
        assert [evidence.numbers["validation"]["auc"].value for evidence in evaluation.rounds] == [
            0.0,
            1.0,
            1.0,
        ]
        assert evaluation.chosen.name == "1"

    def test_of_equal_rounds_the_earlier_wins(self) -> None:
        rounds = tiny.rounds(2)
        twin = replace(rounds[1], name="2", mined=tiny.mined(2))
        assert evaluate_rounds(tiny.cohort(), [*rounds, twin], SECTION).chosen.name == "1"

    def test_threshold_lies_between_the_validation_slides(self, evaluation: Evaluation) -> None:
        assert evaluation.chosen.threshold == pytest.approx((0.75 + 0.35) / 2)

    def test_test_slides_have_no_say(self, evaluation: Evaluation) -> None:
        turned = evaluate_rounds(
            tiny.cohort(),
            rescored(3, "test", {"te1": 0.01, "te2": 0.99, "te3": 0.02, "te4": 0.98}),
            SECTION,
        )
        assert turned.chosen.numbers["test"]["auc"].value == 0.0
        assert turned.chosen.name == evaluation.chosen.name
        assert [evidence.threshold for evidence in turned.rounds] == [
            evidence.threshold for evidence in evaluation.rounds
        ]


class TestNumbers:
    def test_test_slides_of_the_chosen_round(self, evaluation: Evaluation) -> None:
        # scores 0.91, 0.41 against 0.22, 0.58: 3 of 4 pairs; at 0.55 one of two positives and one
        # of two negatives
        test = metrics_of(evaluation)["test"]
        assert (test["auc"], test["accuracy"], test["sensitivity"], test["specificity"]) == (
            0.75,
            0.5,
            0.5,
            0.5,
        )
        assert (test["slides"], test["positives"], test["patients"]) == (4, 2, 3)
        assert test["auc_low"] <= test["auc"] <= test["auc_high"]

    def test_delong_s_interval_stands_beside_the_auc(self, evaluation: Evaluation) -> None:
        # wins of positives 1 and 1/2, over negatives 1 and 1/2: AUC 3/4, variance 1/8 / 2 + 1/8 / 2
        test = metrics_of(evaluation)["test"]
        assert (test["auc_delong_low"], test["auc_delong_high"]) == (
            pytest.approx(0.75 - 1.959964 * 8**-0.5, abs=2e-6),
            1.0,
        )

    def test_gain_over_round_0(self, evaluation: Evaluation) -> None:
        # round 0: 0.62, 0.31 against 0.64, 0.12: 2 of 4 pairs
        assert metrics_of(evaluation)["gain"]["test_auc"] == pytest.approx(0.25)

    def test_tiles_are_pooled_over_the_slides_whose_truth_is_known(
        self, evaluation: Evaluation
    ) -> None:
        # te1: 2 lesion tiles, 1 left out, 8 normal; te2, te4: 11 normal each; te3 is positive
        # without annotation
        tiles = metrics_of(evaluation)["test_tiles"]
        assert (tiles["tiles"], tiles["lesion_tiles"], tiles["lesions"], tiles["slides"]) == (
            32,
            2,
            1,
            3,
        )
        scores = evaluation.chosen.results.tile_scores.set_index(["slide_id", "tile"])["score"]
        lesion = [scores["te1", 0], scores["te1", 1]]
        normal = [scores["te1", tile] for tile in range(3, 11)] + [
            scores[slide, tile] for slide in ("te2", "te4") for tile in range(11)
        ]
        assert tiles["auc"] == pytest.approx(
            np.mean([[(a > b) + (a == b) / 2 for b in normal] for a in lesion])
        )

    def test_lesions_are_hit_at_the_score_that_validation_slides_choose(
        self, evaluation: Evaluation
    ) -> None:
        chosen, tiles = evaluation.chosen, metrics_of(evaluation)["test_tiles"]
        highest = chosen.results.tile_scores.groupby("slide_id")["score"].max().astype(float)
        # va1 is positive, va2 negative: the threshold lies midway where va1 has the higher tile,
        # and above both where it has not
        positive, negative = highest["va1"], highest["va2"]
        assert tiles["threshold"] == pytest.approx(
            (positive + negative) / 2 if positive > negative else (1 + negative) / 2, abs=1e-6
        )
        assert (
            tiles["threshold"] == chosen.tile_threshold
            and metrics_of(evaluation)["threshold"] == chosen.threshold
        )  # not rounded
        found = chosen.detections
        assert tiles["lesions_hit"] == float(
            found.lesion_scores[0] >= chosen.tile_threshold
        )  # te1 has one lesion
        assert tiles["false_detections"] == pytest.approx(
            (found.false_scores >= chosen.tile_threshold).sum() / 3, abs=1e-6
        )
        assert tiles["froc"] == pytest.approx(np.mean(chosen.froc), abs=1e-6)

    def test_mined_tiles_meet_the_truth(self, evaluation: Evaluation) -> None:
        rounds = metrics_of(evaluation)["rounds"]
        # round 1: hard negatives on the look-alike, on nothing, and on a slide without annotation;
        # positives on and beside the lesion
        assert rounds["1"]["mined"] == {
            "hard_negatives": 3,
            "positives": 2,
            "slides": 3,
            "look_alike_share": 0.5,
            "lesion_share": 0.5,
            "hard_negative_lesions": 0,
            "again_share": 0.0,
            "jaccard": None,
            "churn": None,
        }
        assert rounds["2"]["mined"] == {
            "hard_negatives": 1,
            "positives": 1,
            "slides": 2,
            "look_alike_share": 1.0,
            "lesion_share": 1.0,
            "hard_negative_lesions": 0,
            "again_share": 0.5,
            "jaccard": (
                0.166667
            ),  # tile 5 of tr3 is one of the five of round 1 and of the two of round 2
            "churn": 0.5,
        }
        assert "mined" not in rounds["0"]

    def test_hard_negatives_on_a_lesion_are_named_by_slide(self) -> None:
        drawn = {
            "tr3": [Region("look-alike", shapely.box(64, 64, 128, 128))],
            "tr4": [Region("Tumour", shapely.box(0, 0, 999, 999))],
        }
        rounds = evaluate_rounds(tiny.cohort(annotations=drawn), tiny.rounds(3), SECTION).rounds
        told = lesions_among_negatives(rounds[1])
        assert told is not None and told.startswith(
            "round 1 has hard negatives on drawn lesions of slides labelled 0: tr4 (1); a label or"
            " an annotation is wrong"
        )
        assert lesions_among_negatives(rounds[0]) is None is lesions_among_negatives(rounds[2])

    def test_no_annotation_at_all(self) -> None:
        metrics = metrics_of(evaluate_rounds(tiny.cohort(annotations={}), tiny.rounds(2), SECTION))
        assert metrics["test_tiles"]["auc"] is None
        assert metrics["test_tiles"]["auc_reason"] == "there is no positive"
        assert (metrics["test_tiles"]["froc"], metrics["test_tiles"]["froc_reason"]) == (
            None,
            "no lesion is drawn",
        )
        assert metrics["rounds"]["1"]["mined"]["look_alike_share"] is None

    def test_one_class_in_test_gives_null_with_a_reason(self) -> None:
        cohort = tiny.cohort()
        labels = {
            **cohort.labels,
            "test": pd.DataFrame({"slide_id": ["te2", "te4"], "label": [0, 0]}),
        }
        metrics = metrics_of(
            evaluate_rounds(replace(cohort, labels=labels), tiny.rounds(), SECTION)
        )
        assert (metrics["test"]["auc"], metrics["test"]["auc_reason"]) == (
            None,
            "there is no positive",
        )
        assert (metrics["gain"]["test_auc"], metrics["rounds"]["2"]["test"]["sensitivity"]) == (
            None,
            None,
        )
        assert metrics["test"]["accuracy"] == 0.5

    def test_rows_in_another_order_change_nothing(self, evaluation: Evaluation) -> None:
        cohort = tiny.cohort()
        turned = replace(cohort, slides=cohort.slides.iloc[::-1], tiles=cohort.tiles.iloc[::-1])
        rounds = [
            replace(
                own,
                slide_scores=own.slide_scores.iloc[::-1],
                tile_scores=own.tile_scores.iloc[::-1],
            )
            for own in tiny.rounds()
        ]
        assert metrics_of(evaluate_rounds(turned, rounds, SECTION)) == metrics_of(evaluation)


class TestFunnel:
    def test_counts(self) -> None:
        # 11 slides and one that could not be opened; te5 has no tissue
        assert tiny.cohort().funnel() == {
            "found": 12,
            "opened": 11,
            "tissue": 10,
            "tiled": 10,
            "used": 10,
            "train": 4,
            "validation": 2,
            "test": 4,
            "places": 200,  # of ten grids of 20
            "little_tissue": 80,
            "unreadable": 10,
            "tiles": 110,
        }

    def test_a_slide_that_is_neither_scored_nor_in_quarantine_is_an_error(self) -> None:
        cohort = tiny.cohort()
        with pytest.raises(
            EvidenceError,
            match=r"slide te5 of test has neither a score in round 0 nor a place in quarantine",
        ):
            evaluate_rounds(
                replace(cohort, quarantine=cohort.quarantine.iloc[:1]), tiny.rounds(1), SECTION
            )
