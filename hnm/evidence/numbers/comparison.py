"""States of the project against each other, paired by test slide: who is better, by how much, and
which slides changed sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from hnm.errors import EvidenceError
from hnm.evidence.evaluation import DECISIONS, decisions_of, flat_numbers, predictions, rounded
from hnm.evidence.numbers.metrics import Number, Resampling, auc_gain, auc_number, delong_p
from hnm.params import Evaluate
from hnm.seeds import seed_of

NAMED = 5
"""Slides that an error names at most."""
NUMBERS = (
    "test AUC",
    "gain",
    "DeLong p",
    "accuracy",
    "sensitivity",
    "specificity",
    "McNemar p",
    "seconds",
    "score before",
    "score after",
)
"""Columns that a terminal does not wrap."""


@dataclass(frozen=True)
class State:
    """One state of the project: what `evaluate` left behind, and what it took."""

    name: str
    slides: pd.DataFrame
    """slide_id, patient_id, split, fingerprint of the cohort."""
    test: pd.DataFrame
    """slide_id, patient_id, label, score, called of the test slides, of the round that validation
    picked.
    """
    params: Mapping[str, str]
    """Dotted name -> value, of the stages that made the state."""
    seconds: Mapping[str, float | None]
    """DVC's name of each stage -> what its execution took; None where nobody knows."""

    @property
    def known_seconds(self) -> float | None:
        """Sum over the stages whose cost is known; None where none is."""
        known = [value for value in self.seconds.values() if value is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Side:
    """What one state's test slides say by themselves."""

    auc: Number
    decisions: Mapping[str, Number]
    """Accuracy, sensitivity and specificity at the state's own threshold."""


@dataclass(frozen=True)
class Pair:
    """A state against the first one, on the same slides."""

    gain: Number
    """AUC less the first state's, with the interval of the paired bootstrap over patients."""
    delong_p: float | None
    """Two-sided; slides count as independent."""
    mcnemar_p: float | None
    """Two-sided and exact, of equally many right decisions; None where no slide changed sides."""
    changed: pd.DataFrame
    """slide_id, patient_id, label, `score_before`, `score` and `righted` (whether the decision
    became right) of the slides that changed sides.
    """


@dataclass(frozen=True)
class Comparison:
    """The first state is what the others are compared with."""

    states: Sequence[State]
    sides: Sequence[Side]
    pairs: Sequence[Pair]
    """One for each state after the first."""
    params: Mapping[str, Sequence[str | None]]
    """Params that are not the same everywhere -> their value in each state, None where it has no
    such param.
    """
    confidence: float


def compare_states(states: Sequence[State], section: Evaluate) -> Comparison:
    """Compares each of `states` with the first.

    Raises:
        EvidenceError: fewer than two states, or of other cohorts, splits, labels or test slides.
    """
    if len(states) < 2:
        raise EvidenceError(
            f"{len(states)} state named, but a comparison needs two; add a Git revision, a DVC"
            " experiment, a run, or `workspace`"
        )
    first, *others = states
    for other in others:
        check_same_cohort(first, other)
    resampling = Resampling(
        section.resamples, section.confidence, seed_of(section.seed, "bootstrap", "test")
    )
    names = sorted(set().union(*(state.params for state in states)))
    values = {name: [state.params.get(name) for state in states] for name in names}
    return Comparison(
        states,
        [_side(state.test, resampling) for state in states],
        [compare_pair(first.test, other.test, resampling) for other in others],
        {name: own for name, own in values.items() if len(set(own)) > 1},
        section.confidence,
    )


def check_same_cohort(first: State, other: State) -> None:
    """Raises `EvidenceError` unless both states hold the same slides in the same splits, and
    evaluated the same test slides.
    """
    pair = f"{first.name} and {other.name}"
    before, after = (state.slides.set_index("slide_id") for state in (first, other))
    if lone := sorted(before.index.symmetric_difference(after.index)):
        raise EvidenceError(
            f"{pair} are of different cohorts: {_listed(lone)} only one of them holds; compare"
            " states of one cohort"
        )
    after = after.loc[before.index]
    for column, what in (
        ("fingerprint", "different files"),
        ("patient_id", "different patients"),
        ("split", "different splits"),
    ):
        values = zip(
            before.index.tolist(), before[column].tolist(), after[column].tolist(), strict=True
        )
        if slides := [f"{slide_id} ({one}, {two})" for slide_id, one, two in values if one != two]:
            raise EvidenceError(
                f"{pair} are of {what}: {_listed(slides)}; compare states with one manifest and one"
                " section split"
            )
    one, two = (state.test.set_index("slide_id")["label"] for state in (first, other))
    if lone := sorted(one.index.symmetric_difference(two.index)):
        raise EvidenceError(
            f"{pair} did not evaluate the same test slides: {_listed(lone)} only one of them has,"
            " the other in quarantine; cure the quarantine"
        )
    if relabelled := [str(slide_id) for slide_id in one.index if one[slide_id] != two[slide_id]]:
        raise EvidenceError(
            f"{pair} have different labels of {_listed(relabelled)}; run the older state again with"
            " the labels of today"
        )


def compare_pair(before: pd.DataFrame, after: pd.DataFrame, resampling: Resampling) -> Pair:
    """Two `test` tables of the same slides against each other."""
    before, after = (table.sort_values("slide_id", ignore_index=True) for table in (before, after))
    first, second = predictions(before), predictions(after)
    right_before, right = (table["called"] == table["label"] for table in (before, after))
    changed = after.assign(score_before=before["score"], righted=right)[
        before["called"] != after["called"]
    ]
    columns = ["slide_id", "patient_id", "label", "score_before", "score", "righted"]
    return Pair(
        auc_gain(first, second, resampling),
        delong_p(first, second),
        mcnemar_p(int((right & ~right_before).sum()), int((right_before & ~right).sum())),
        changed.sort_values(["righted", "slide_id"], ignore_index=True)[columns],
    )


def mcnemar_p(righted: int, wronged: int) -> float | None:
    """McNemar's (1947) test of two classifiers on the same slides, exact: the binomial test of the
    slides that one alone decides rightly.

    Slides count as independent. None where there is no such slide.
    """
    return float(binomtest(righted, righted + wronged).pvalue) if righted + wronged else None


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON: `states`, `pairs` and `params`."""
    return {
        "confidence": comparison.confidence,
        "states": [
            {
                "name": state.name,
                "test_slides": len(state.test),
                "auc": rounded(side.auc.value),
                "auc_low": rounded(side.auc.low),
                "auc_high": rounded(side.auc.high),
                "auc_reason": side.auc.reason,
                **flat_numbers(side.decisions),
                "seconds": state.known_seconds,
                "seconds_of_stage": dict(state.seconds),
            }
            for state, side in zip(comparison.states, comparison.sides, strict=True)
        ],
        "pairs": [
            {
                "before": comparison.states[0].name,
                "after": state.name,
                "auc_gain": rounded(pair.gain.value),
                "auc_gain_low": rounded(pair.gain.low),
                "auc_gain_high": rounded(pair.gain.high),
                "auc_gain_reason": pair.gain.reason,
                "delong_p": rounded(pair.delong_p),
                "mcnemar_p": rounded(pair.mcnemar_p),
                "changed": [
                    {
                        **row,
                        "score_before": rounded(row["score_before"]),
                        "score": rounded(row["score"]),
                    }
                    for row in pair.changed.to_dict("records")
                ],
            }
            for state, pair in zip(comparison.states[1:], comparison.pairs, strict=True)
        ],
        "params": {name: list(values) for name, values in comparison.params.items()},
    }


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The comparison for the terminal: in 80 columns numbers stay whole, names and params' values
    wrap.
    """
    tables = []
    for title, header, rows in _sheets(comparison):
        table = Table(
            title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True
        )
        for place, name in enumerate(header):
            table.add_column(
                Text(name),
                justify="right" if place else "left",
                overflow="fold",
                no_wrap=name in NUMBERS,
            )
        for row in rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    return tables


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    parts = []
    for title, header, rows in _sheets(comparison):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        parts.append(
            f"### {title}\n\n"
            + "\n".join(
                "| "
                + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line)
                + " |"
                for line in lines
            )
        )
    return "\n\n".join(parts) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the numbers."""
    found = ["DeLong and McNemar take slides for independent, the intervals resample patients."]
    if len(comparison.pairs) > 1:
        found.append(
            f"{len(comparison.pairs)} comparisons share the first state; no p-value is corrected"
            " for their number."
        )
    unknown = {
        state.name: [name for name, value in state.seconds.items() if value is None]
        for state in comparison.states
    }
    found += [
        f"{name}: what {_listed(stages, 'stage')} took is not known on this machine."
        for name, stages in unknown.items()
        if stages
    ]
    return found


def _sheets(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of each table."""
    first = comparison.states[0]
    ranked, decided = [], []
    for place, (state, side) in enumerate(zip(comparison.states, comparison.sides, strict=True)):
        pair = comparison.pairs[place - 1] if place else None
        ranked.append(
            [
                state.name,
                _with_interval(side.auc, ".3f"),
                *(
                    ("", "")
                    if pair is None
                    else (_with_interval(pair.gain, "+.3f"), _p(pair.delong_p))
                ),
            ]
        )
        decided.append(
            [
                state.name,
                *(_above_interval(side.decisions[name]) for name in DECISIONS),
                "" if pair is None else _p(pair.mcnemar_p),
                _text(state.known_seconds, ",.0f"),
            ]
        )
    title = (
        f"{len(first.test)} test slides of {first.test['patient_id'].nunique()} patients,"
        f" {100 * comparison.confidence:g} % intervals; gain over {first.name}"
    )
    sheets = [
        (title, ["state", "test AUC", "gain", "DeLong p"], ranked),
        (
            "Decisions at each state's own threshold, and cost",
            ["state", *DECISIONS, "McNemar p", "seconds"],
            decided,
        ),
    ]
    for state, pair in zip(comparison.states[1:], comparison.pairs, strict=True):
        changed = [
            [
                str(row.slide_id),
                str(row.patient_id),
                "positive" if row.label else "negative",
                f"{row.score_before:.3f}",
                f"{row.score:.3f}",
                "right" if row.righted else "wrong",
            ]
            for row in pair.changed.itertuples()
        ]
        if changed:
            title = f"Slides that changed sides: {first.name} to {state.name}"
            sheets.append(
                (
                    title,
                    ["slide", "patient", "label", "score before", "score after", "now"],
                    changed,
                )
            )
    if comparison.params:
        values = [
            [name, *("–" if value is None else value for value in own)]
            for name, own in comparison.params.items()
        ]
        sheets.append(
            ("Params that differ", ["param", *(state.name for state in comparison.states)], values)
        )
    return sheets


def _side(test: pd.DataFrame, resampling: Resampling) -> Side:
    return Side(auc_number(predictions(test), resampling), decisions_of(test, resampling))


def _listed(names: Sequence[str], kind: str = "slide") -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}"


def _with_interval(number: Number, form: str) -> str:
    interval = (
        ""
        if number.low is None or number.high is None
        else f" ({format(number.low, form)} to {format(number.high, form)})"
    )
    return _text(number.value, form) + interval


def _above_interval(number: Number) -> str:
    """For a narrow column: the value, and on a second line the interval."""
    interval = (
        ""
        if number.low is None or number.high is None
        else f"\n{number.low:.2f} to {number.high:.2f}"
    )
    return _text(number.value, ".3f") + interval


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
