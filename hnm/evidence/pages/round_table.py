"""The table that ends a run: a line a round."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from hnm.evidence.numbers.intervals import Number


def round_table(metrics: Mapping[str, Any], seconds: Mapping[str, float | None]) -> Table:
    """Returns the rounds of `metrics` (the content of metrics.json), with what they took.

    Args:
        metrics: as `hnm.evidence.evaluation.metrics_of` gives it.
        seconds: DVC's name of a stage (`head@1`) -> seconds of its last execution; a round's
            seconds are the sum over its stages.
    """
    table = Table(
        title=(
            f"Rounds, {metrics['test']['slides']} test slides of {metrics['test']['patients']}"
            " patients"
        ),
        caption=f"Validation picks round {metrics['chosen_round']} (*). AUC with interval.",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("round")
    for header in ("validation slide AUC", "test slide AUC"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("tile\nAUC", "mined\nnegatives", "seconds"):
        table.add_column(header, justify="right")
    for name, entry in metrics["rounds"].items():
        of_stages = [
            value
            for stage, value in seconds.items()
            if stage.endswith(f"@{name}") and value is not None
        ]
        chosen = name == str(metrics["chosen_round"])
        table.add_row(
            f"{name} *" if chosen else name,
            Number.from_json(entry["validation"], "auc").with_interval(".3f", ".2f"),
            Number.from_json(entry["test"], "auc").with_interval(".3f", ".2f"),
            Number(entry["test_tiles"]["auc"]).text(),
            Number(entry.get("mined", {}).get("hard_negatives")).text(",d"),
            Number(sum(of_stages) if of_stages else None).text(".0f"),
            style="bold" if chosen else None,
        )
    return table
