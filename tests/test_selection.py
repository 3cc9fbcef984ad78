"""The selection rule: the highest AUC, then the lower log loss, then the earlier row; said once."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnm.selection import best_epoch, best_row

ROOT = Path(__file__).parents[1]
NAN = float("nan")
ORDERING = {"max", "min", "sorted", "sort", "sort_values", "nlargest", "nsmallest", "lexsort"}


@pytest.mark.parametrize(
    ("aucs", "log_losses", "best"),
    [
        ([0.5, 0.75, 0.625], [0.1, 0.9, 0.2], 1),
        ([0.75, 0.5, 0.75, 0.75], [0.4, 0.1, 0.3, 0.5], 2),
        ([0.5, 0.75, 0.75, 0.75], [0.1, 0.3, 0.3, 0.3], 1),
        ([NAN, 0.25, NAN], [0.1, 0.9, 0.1], 1),
        ([None, 0.25], [0.1, 0.9], 1),
        ([0.75, 0.75, 0.75], [NAN, 5.0, None], 1),
        ([0.75, 0.5], [NAN, 0.1], 0),
        ([NAN, None, NAN], [0.3, 0.2, 0.2], 1),
        ([None, NAN], [NAN, None], 0),
        ([0.25], [0.5], 0),
        ([float("-inf"), 0.0], [0.5, float("inf")], 1),
        ([0.5 + 2**-53, 0.5, 0.5 + 2**-52], [0.1, 0.2, 0.3], 2),
    ],
)
def test_the_auc_goes_before_the_log_loss_and_the_log_loss_before_the_order(
    aucs: list[float | None], log_losses: list[float | None], best: int
) -> None:
    assert best_row(aucs, log_losses) == best


NUMBERS = st.sampled_from([0.25, 0.5, 0.75, 1.0, None, NAN])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40))
def test_no_row_is_better_than_the_best_one_and_no_earlier_one_as_good(
    pairs: list[tuple[float | None, float | None]],
) -> None:
    aucs, log_losses = zip(*pairs, strict=True)
    best = best_row(aucs, log_losses)
    rows = [[None if number is NAN else number for number in pair] for pair in pairs]

    def is_higher(number: float | None, other: float | None) -> bool:
        return number is not None and (other is None or number > other)

    def better(row: list[float | None], other: list[float | None]) -> bool:
        if is_higher(row[0], other[0]) or is_higher(other[0], row[0]):
            return is_higher(row[0], other[0])
        if row[1] is None or other[1] is None:
            return row[1] is not None and other[1] is None
        return row[1] < other[1]

    assert not any(better(row, rows[best]) for row in rows)
    assert all(better(rows[best], row) for row in rows[:best])


def test_the_best_epoch_is_the_row_of_the_history() -> None:
    history = [
        {"epoch": 1, "validation_auc": 0.75, "validation_loss": 0.5},
        {"epoch": 2, "validation_auc": 0.875, "validation_loss": 0.7},
        {"epoch": 3, "validation_auc": 0.875, "validation_loss": 0.6},
        {"epoch": 4, "validation_auc": 0.875, "validation_loss": 0.6},
    ]
    assert best_epoch(history) is history[2]


def ranks_by_auc_and_loss(node: ast.AST) -> bool:
    """Whether the node compares or orders by an AUC and a loss."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        ranking = name in ORDERING
    else:
        ranking = isinstance(node, ast.Tuple) and any(
            isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub) and part is not node
            for part in ast.walk(node)
        )
    text = ast.unparse(node).lower() if ranking else ""
    return "auc" in text and "loss" in text


@pytest.mark.parametrize(
    ("code", "ranks"),
    [
        ("max(rows, key=lambda row: (row['validation_auc'], -row['validation_loss']))", True),
        ("table.sort_values(['validation_auc', 'validation_loss'])", True),
        ("rank = (auc, -float(log_loss(validation)))", True),
        ("np.lexsort((log_loss, -auc))", True),
        ("row = (auc, log_loss)", False),
        ("auc - step / 2 * log_loss", False),
    ],
)
def test_the_search_sees_a_second_rule(code: str, ranks: bool) -> None:
    assert any(map(ranks_by_auc_and_loss, ast.walk(ast.parse(code)))) is ranks


def test_nobody_else_orders_by_auc_and_log_loss() -> None:
    places = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hnm", "pipelines", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if any(map(ranks_by_auc_and_loss, ast.walk(ast.parse(path.read_text()))))
    }
    assert places == {"hnm/selection.py"}
