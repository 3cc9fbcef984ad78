"""States of the project against each other, paired by test slide: who is better, by how much, and
which slides changed sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from hnm.errors import EvidenceError
from hnm.evidence.numbers.areas import auc_gain, auc_number
from hnm.evidence.numbers.delong import delong_p
from hnm.evidence.numbers.intervals import Number, Resampling, flat_numbers, rounded
from hnm.evidence.numbers.predictions import Predictions
from hnm.evidence.numbers.slide_metrics import DECISIONS, decisions_of
from hnm.params import Evaluate

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
    def measured_seconds(self) -> float | None:
        """Sum over the stages that were measured; None where none was."""
        measured = [value for value in self.seconds.values() if value is not None]
        return sum(measured) if measured else None


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
    resampling = Resampling.of(section, "test")
    names = sorted(set().union(*(state.params for state in states)))
    values = {name: [state.params.get(name) for state in states] for name in names}
    return Comparison(
        states,
        [_side(state.test, resampling) for state in states],
        [compare_pair(first.test, other.test, resampling) for other in others],
        {name: of_states for name, of_states in values.items() if len(set(of_states)) > 1},
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
    right_before, right = (table["called"] == table["label"] for table in (before, after))
    changed = after.assign(score_before=before["score"], righted=right)[
        before["called"] != after["called"]
    ]
    columns = ["slide_id", "patient_id", "label", "score_before", "score", "righted"]
    return Pair(
        auc_gain(Predictions.of(before), Predictions.of(after), resampling),
        delong_p(Predictions.of(before), Predictions.of(after)),
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
                **_with_reason("auc", side.auc),
                **flat_numbers(side.decisions),
                "seconds": state.measured_seconds,
                "seconds_of_stage": dict(state.seconds),
            }
            for state, side in zip(comparison.states, comparison.sides, strict=True)
        ],
        "pairs": [
            {
                "before": comparison.states[0].name,
                "after": state.name,
                **_with_reason("auc_gain", pair.gain),
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


class Sheet(NamedTuple):
    """One table of a comparison, as text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Returns the comparison for the terminal: in 80 columns numbers stay whole, names and params'
    values wrap.
    """
    tables = []
    for sheet in _sheets(comparison):
        table = Table(
            title=Text(sheet.title),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            collapse_padding=True,
        )
        for place, name in enumerate(sheet.header):
            table.add_column(
                Text(name),
                justify="right" if place else "left",
                overflow="fold",
                no_wrap=name in NUMBERS,
            )
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    return tables


def comparison_markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown."""
    return "\n\n".join(map(_markdown, _sheets(comparison))) + "\n"


def _markdown(sheet: Sheet) -> str:
    lines = [sheet.header, ["---", *["---:"] * (len(sheet.header) - 1)], *sheet.rows]
    rows = [
        " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in line)
        for line in lines
    ]
    return f"### {sheet.title}\n\n" + "\n".join(f"| {row} |" for row in rows)


def notes(comparison: Comparison) -> list[str]:
    """Returns what a reader must know of the numbers."""
    texts = ["DeLong and McNemar take slides for independent, the intervals resample patients."]
    if len(comparison.pairs) > 1:
        texts.append(
            f"{len(comparison.pairs)} comparisons share the first state; no p-value is corrected"
            " for their number."
        )
    for state in comparison.states:
        unknown = [name for name, value in state.seconds.items() if value is None]
        if unknown:
            texts.append(
                f"{state.name}: what {_listed(unknown, 'stage')} took is not known on this machine."
            )
    return texts


def _sheets(comparison: Comparison) -> list[Sheet]:
    sheets = [_aucs(comparison), _decisions(comparison)]
    sheets += [
        _changes(f"{comparison.states[0].name} to {state.name}", pair.changed)
        for state, pair in zip(comparison.states[1:], comparison.pairs, strict=True)
        if len(pair.changed)
    ]
    if comparison.params:
        rows = [
            [name, *("–" if value is None else value for value in values)]
            for name, values in comparison.params.items()
        ]
        header = ["param", *(state.name for state in comparison.states)]
        sheets.append(Sheet("Params that differ", header, rows))
    return sheets


def _aucs(comparison: Comparison) -> Sheet:
    first = comparison.states[0]
    gains = [["", ""]]
    gains += [[pair.gain.with_interval("+.3f"), _p(pair.delong_p)] for pair in comparison.pairs]
    rows = [
        [state.name, side.auc.with_interval(), *gain]
        for state, side, gain in zip(comparison.states, comparison.sides, gains, strict=True)
    ]
    title = (
        f"{len(first.test)} test slides of {first.test['patient_id'].nunique()} patients,"
        f" {100 * comparison.confidence:g} % intervals; gain over {first.name}"
    )
    return Sheet(title, ["state", "test AUC", "gain", "DeLong p"], rows)


def _decisions(comparison: Comparison) -> Sheet:
    p_values = ["", *(_p(pair.mcnemar_p) for pair in comparison.pairs)]
    rows = [
        [
            state.name,
            *(side.decisions[name].above_interval() for name in DECISIONS),
            p_value,
            Number(state.measured_seconds).text(",.0f"),
        ]
        for state, side, p_value in zip(comparison.states, comparison.sides, p_values, strict=True)
    ]
    title = "Decisions at each state's own threshold, and cost"
    return Sheet(title, ["state", *DECISIONS, "McNemar p", "seconds"], rows)


def _changes(states: str, changed: pd.DataFrame) -> Sheet:
    rows = [
        [
            str(slide.slide_id),
            str(slide.patient_id),
            "positive" if slide.label else "negative",
            f"{slide.score_before:.3f}",
            f"{slide.score:.3f}",
            "right" if slide.righted else "wrong",
        ]
        for slide in changed.itertuples()
    ]
    header = ["slide", "patient", "label", "score before", "score after", "now"]
    return Sheet(f"Slides that changed sides: {states}", header, rows)


def _side(test: pd.DataFrame, resampling: Resampling) -> Side:
    return Side(auc_number(Predictions.of(test), resampling), decisions_of(test, resampling))


def _with_reason(name: str, number: Number) -> dict[str, Any]:
    return {**flat_numbers({name: number}), f"{name}_reason": number.reason}


def _listed(names: Sequence[str], kind: str = "slide") -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}"


def _p(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else Number(value).text()
