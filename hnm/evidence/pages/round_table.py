"""The table that ends a run: a line a round."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def round_table(metrics: Mapping[str, Any], seconds: Mapping[str, float | None]) -> Table:
    """The rounds of `metrics` (the content of metrics.json), with what they took.

    Args:
        metrics: as `hnm.evidence.evaluation.metrics_of` gives it.
        seconds: DVC's name of a stage (`head@1`) -> seconds of its last execution; a round sums its
        own stages.
    """
    table = Table(
        title=(
            f"Rounds, {metrics['test']['slides']} test slides of {metrics['test']['patients']}"
            " patients"
        ),
        caption=f"Validation picks round {metrics['chosen_round']} (*). AUC with interval.",
        box=box.SIMPLE_HEAD,
    )
    for header in (
        "round",
        "validation slide AUC",
        "test slide AUC",
        "test tile AUC",
        "mined negatives",
        "seconds",
    ):
        table.add_column(header, justify="left" if header == "round" else "right")
    for name, entry in metrics["rounds"].items():
        own = [
            value
            for stage, value in seconds.items()
            if stage.endswith(f"@{name}") and value is not None
        ]
        chosen = name == str(metrics["chosen_round"])
        table.add_row(
            f"{name} *" if chosen else name,
            _auc(entry["validation"]),
            _auc(entry["test"]),
            _auc(entry["test_tiles"], with_interval=False),
            f"{entry['mined']['hard_negatives']:,}" if "mined" in entry else "-",
            f"{sum(own):.0f}" if own else "-",
            style="bold" if chosen else None,
        )
    return table


def _auc(numbers: Mapping[str, Any], *, with_interval: bool = True) -> str:
    if numbers["auc"] is None:
        return "-"
    interval = (
        f" ({numbers['auc_low']:.2f}-{numbers['auc_high']:.2f})"
        if with_interval and numbers["auc_low"] is not None
        else ""
    )
    return f"{numbers['auc']:.3f}{interval}"
