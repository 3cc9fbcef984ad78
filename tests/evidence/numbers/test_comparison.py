"""States against each other: worked by hand on the tiny cohort's test slides."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import chi2

from hnm.errors import EvidenceError
from hnm.evidence.numbers.areas import auc_gain
from hnm.evidence.numbers.comparison import (
    State,
    compare_states,
    comparison_json,
    comparison_markdown,
    comparison_tables,
    mcnemar_p,
    notes,
)
from hnm.evidence.numbers.delong import delong_p
from hnm.evidence.numbers.intervals import Resampling
from hnm.evidence.numbers.predictions import Predictions
from hnm.params import Evaluate

SECTION = Evaluate(resamples=200)
LABELS = {"a": 1, "b": 1, "c": 1, "d": 0, "e": 0, "f": 0, "g": 0}
PATIENTS = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p4", "f": "p5", "g": "p6"}


def state(name: str, scores: list[float], threshold: float = 0.5, **params: str) -> State:
    slides = pd.DataFrame(
        {
            "slide_id": [*LABELS, "t"],
            "patient_id": [*PATIENTS.values(), "p9"],
            "split": [*["test"] * 7, "train"],
            "fingerprint": "f",
        }
    )
    test = pd.DataFrame(
        {
            "slide_id": list(LABELS),
            "patient_id": list(PATIENTS.values()),
            "label": list(LABELS.values()),
            "score": scores,
        }
    )
    test["called"] = (test["score"] >= threshold).astype(int)
    return State(
        name, slides, test, {"head.seed": "0", **params}, {"head@0": 12.5, "evaluate": 3.0}
    )


BEFORE = state("before", [0.9, 0.6, 0.3, 0.7, 0.3, 0.2, 0.1], **{"mining.threshold": "0.5"})
AFTER = state(
    "after",
    [0.9, 0.4, 0.8, 0.45, 0.3, 0.2, 0.55],
    **{"mining.threshold": "0.6", "mining.scores": "in_sample"},
)


class TestPair:
    def test_by_hand(self) -> None:
        comparison = compare_states([BEFORE, AFTER], SECTION)
        first, second = comparison.sides
        # before: 0.9 beats 4, 0.6 beats 3, 0.3 beats 2 and ties one; after: 0.9 and 0.8 beat 4
        # each, 0.4 beats 2
        assert (first.auc.value, second.auc.value) == pytest.approx((9.5 / 12, 10 / 12))
        assert [number.value for number in first.decisions.values()] == pytest.approx(
            [5 / 7, 2 / 3, 3 / 4]
        )
        assert all(number.low < number.value < number.high for number in first.decisions.values())
        (pair,) = comparison.pairs
        assert pair.gain.value == pytest.approx(0.5 / 12)
        changed = [
            (row.slide_id, row.label, row.score_before, row.score, row.righted)
            for row in pair.changed.itertuples()
        ]
        assert changed == [
            ("b", 1, 0.6, 0.4, False),
            ("g", 0, 0.1, 0.55, False),
            ("c", 1, 0.3, 0.8, True),
            ("d", 0, 0.7, 0.45, True),
        ]
        assert pair.mcnemar_p == 1.0  # two righted, two wronged
        assert comparison.params == {
            "mining.scores": [None, "in_sample"],
            "mining.threshold": ["0.5", "0.6"],
        }

    def test_is_the_paired_bootstrap_of_patients_and_delong(self) -> None:
        (pair,) = compare_states([BEFORE, AFTER], SECTION).pairs
        first, second = (
            Predictions(
                s.test["label"].to_numpy(),
                s.test["score"].to_numpy(),
                s.test["patient_id"].to_numpy(str),
            )
            for s in (BEFORE, AFTER)
        )
        assert pair.delong_p == delong_p(first, second)
        assert (
            pair.gain.value == auc_gain(first, second, Resampling(200, 0.95, 0)).value
            and pair.gain.low < pair.gain.value < pair.gain.high
        )

    def test_intervals_are_of_patients(self) -> None:
        """A second slide of each patient that says the same is no second witness: no interval
        changes.
        """

        def doubled(state: State) -> State:
            again = [
                table.assign(slide_id="again-" + table["slide_id"])
                for table in (state.slides, state.test)
            ]
            both = [
                pd.concat(pair, ignore_index=True)
                for pair in zip((state.slides, state.test), again, strict=True)
            ]
            return replace(state, slides=both[0], test=both[1])

        once, twice = (
            compare_states(states, SECTION)
            for states in ([BEFORE, AFTER], [doubled(BEFORE), doubled(AFTER)])
        )
        numbers = [
            [
                c.pairs[0].gain,
                *(n for side in c.sides for n in (side.auc, *side.decisions.values())),
            ]
            for c in (once, twice)
        ]
        for one, other in zip(*numbers, strict=True):
            assert (other.value, other.low, other.high) == pytest.approx(
                (one.value, one.low, one.high), abs=1e-9
            )

    def test_does_not_depend_on_the_order_of_slides(self) -> None:
        turned = replace(AFTER, test=AFTER.test.iloc[::-1], slides=AFTER.slides.iloc[::-1])
        assert comparison_json(compare_states([BEFORE, turned], SECTION)) == comparison_json(
            compare_states([BEFORE, AFTER], SECTION)
        )

    def test_a_state_against_itself_changes_nothing(self) -> None:
        (pair,) = compare_states([BEFORE, replace(BEFORE, name="again")], SECTION).pairs
        assert (
            pair.gain.value,
            pair.gain.reason,
            pair.delong_p,
            pair.mcnemar_p,
            len(pair.changed),
        ) == (0.0, "all resamples agree", None, None, 0)


class TestMcNemar:
    def test_by_hand(self) -> None:
        # 1 of 6 or more extreme on either side: 2 * (1 + 6) / 64
        assert mcnemar_p(1, 5) == mcnemar_p(5, 1) == pytest.approx(14 / 64)
        assert mcnemar_p(0, 4) == pytest.approx(2 / 16)
        assert mcnemar_p(0, 0) is None

    @given(st.integers(30, 90), st.integers(30, 90))
    def test_approaches_the_chi_square_with_continuity_correction(
        self, righted: int, wronged: int
    ) -> None:
        expected = (
            chi2.sf((abs(righted - wronged) - 1) ** 2 / (righted + wronged), 1)
            if righted != wronged
            else 1.0
        )
        assert mcnemar_p(righted, wronged) == pytest.approx(expected, abs=0.02)


class TestRefusal:
    def test_one_state(self) -> None:
        with pytest.raises(EvidenceError, match="1 state named, but a comparison needs two"):
            compare_states([BEFORE], SECTION)

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            (
                "split",
                "validation",
                (
                    r"before and after are of different splits: slide t \(train, validation\);"
                    r" compare states with one manifest and one section split"
                ),
            ),
            ("patient_id", "p8", r"before and after are of different patients: slide t \(p9, p8\)"),
            ("fingerprint", "g", r"before and after are of different files: slide t \(f, g\)"),
            (
                "slide_id",
                "u",
                "before and after are of different cohorts: slides t, u only one of them holds",
            ),
        ],
    )
    def test_another_cohort_or_split(self, column: str, value: str, message: str) -> None:
        slides = AFTER.slides.copy()
        slides.loc[7, column] = value
        with pytest.raises(EvidenceError, match=message):
            compare_states([BEFORE, replace(AFTER, slides=slides)], SECTION)

    def test_another_test_slide_in_quarantine(self) -> None:
        with pytest.raises(
            EvidenceError,
            match="did not evaluate the same test slides: slide g only one of them has",
        ):
            compare_states([BEFORE, replace(AFTER, test=AFTER.test[:-1])], SECTION)

    def test_another_label(self) -> None:
        with pytest.raises(EvidenceError, match="have different labels of slide d"):
            compare_states(
                [BEFORE, replace(AFTER, test=AFTER.test.assign(label=[1, 1, 1, 1, 0, 0, 0]))],
                SECTION,
            )

    def test_a_long_list_is_cut(self) -> None:
        with pytest.raises(
            EvidenceError, match=r"slides a \(test, train\), b .*, e \(test, train\) and 2 more"
        ):
            compare_states(
                [BEFORE, replace(AFTER, slides=AFTER.slides.assign(split="train"))], SECTION
            )


class TestShown:
    def test_json(self) -> None:
        shown = json.loads(
            json.dumps(comparison_json(compare_states([BEFORE, AFTER], SECTION)), allow_nan=False)
        )
        assert [entry["name"] for entry in shown["states"]] == ["before", "after"]
        assert (
            shown["states"][0]["auc"],
            shown["states"][1]["seconds"],
            shown["states"][0]["test_slides"],
        ) == (0.791667, 15.5, 7)
        assert list(shown["states"][0]) == [
            *("name", "test_slides", "auc", "auc_low", "auc_high", "auc_reason"),
            *(
                f"{name}{end}"
                for name in ("accuracy", "sensitivity", "specificity")
                for end in ("", "_low", "_high")
            ),
            *("seconds", "seconds_of_stage"),
        ]
        # DeLong by hand: wins of a positive before 1, 3/4, 5/8 and after 1, 1/2, 1; over a negative
        # 1/3, 5/6, 1, 1 and 2/3, 1, 1, 2/3
        of_positives, of_negatives = (
            np.array([0, -1 / 4, 3 / 8]),
            np.array([1 / 3, 1 / 6, 0, -1 / 3]),
        )
        error = math.sqrt(np.var(of_positives, ddof=1) / 3 + np.var(of_negatives, ddof=1) / 4)
        assert shown["pairs"][0]["delong_p"] == pytest.approx(
            math.erfc(0.5 / 12 / error / math.sqrt(2)), abs=1e-6
        )
        assert (shown["pairs"][0]["mcnemar_p"], shown["params"]) == (
            1.0,
            {"mining.scores": [None, "in_sample"], "mining.threshold": ["0.5", "0.6"]},
        )
        assert (
            shown["pairs"][0]["auc_gain"],
            shown["pairs"][0]["before"],
            shown["pairs"][0]["after"],
        ) == (0.041667, "before", "after")
        assert shown["pairs"][0]["changed"][0] == {
            "slide_id": "b",
            "patient_id": "p1",
            "label": 1,
            "score_before": 0.6,
            "score": 0.4,
            "righted": False,
        }

    def test_markdown(self) -> None:
        text = comparison_markdown(compare_states([BEFORE, AFTER], SECTION))
        lines = text.splitlines()
        assert lines[0] == "### 7 test slides of 6 patients, 95 % intervals; gain over before"
        assert (
            lines[4].startswith("| before | 0.792 (")
            and lines[4].endswith(") |  |  |")
            and lines[5].startswith("| after | 0.833 (")
        )
        assert [line.split("<br>")[0] for line in lines if " | 16 |" in line] == [
            "| before | 0.714",
            "| after | 0.714",
        ]
        assert "| slide | patient | label | score before | score after | now |" in lines
        assert "| d | p3 | negative | 0.700 | 0.450 | right |" in lines
        assert "| mining.scores | – | in_sample |" in lines

    @pytest.mark.parametrize("width", [80, 200])
    def test_terminal(self, width: int) -> None:
        name = "experiments/a-branch-whose-name-is-far-too-long-for-a-column"
        after = replace(
            AFTER, name=name, params={**AFTER.params, "evaluate.lesion_names": "[tumour, /tumor]"}
        )
        comparison = compare_states([BEFORE, after], SECTION)
        stream = io.StringIO()
        for table in comparison_tables(comparison):
            Console(file=stream, width=width).print(table)
        shown = stream.getvalue()
        (pair,) = comparison.pairs
        assert (
            f"+0.042 ({pair.gain.low:+.3f} to {pair.gain.high:+.3f})" in shown and "0.400" in shown
        )
        assert "…" not in shown and f"Slidesthatchangedsides:beforeto{name}" in "".join(
            shown.split()
        )
        assert "[tumour, /tumor]" in " ".join(shown.split())  # brackets are no markup

    def test_notes_say_what_is_not_known(self) -> None:
        unknown = replace(AFTER, seconds={"head@0": None, "evaluate": 3.0})
        comparison = compare_states([BEFORE, unknown, replace(BEFORE, name="third")], SECTION)
        assert len(notes(compare_states([BEFORE, AFTER], SECTION))) == 1
        assert notes(comparison)[1:] == [
            "2 comparisons share the first state; no p-value is corrected for their number.",
            "after: what stage head@0 took is not known on this machine.",
        ]
