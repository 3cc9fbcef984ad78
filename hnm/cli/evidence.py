"""Commands about what a run is worth: its rounds, cross-validation, comparison."""

from typing import Annotated

import typer


def rounds() -> None:
    """Show the last run: a line a round, and where to look next."""
    from rich.console import Console

    from hnm.evidence.test_ledger import LEDGER
    from hnm.history.last_run import last_run
    from hnm.project import project_root

    table, looked = last_run(project_root())
    console = Console()
    console.print(table)
    times = "once" if looked.times == 1 else f"{looked.times} times"
    results = "1 result" if looked.states == 1 else f"{looked.states} different results"
    console.print(f"test labels read {times} so far, for {results} ({LEDGER})")
    console.print("report      results/report.html")
    console.print("runs        make ui            (MLflow)")
    console.print("versions    dvc exp show, dvc metrics diff, dvc plots show")


def cv(seeds: Annotated[int, typer.Option(min=1, help="How often each fold is run.")] = 1) -> None:
    """Cross-validate: the loop on split.folds folds of the patients, each a stage of DVC; each
    slide is test once.
    """
    from rich.console import Console

    from hnm.cross_validation.stages import SLIDES, SUMMARY, cross_validate
    from hnm.evidence.numbers.pooling import pooled_table
    from hnm.project import project_root

    Console().print(pooled_table(cross_validate(project_root(), seeds)))
    typer.echo(
        f"slides {SLIDES}, numbers {SUMMARY}; commit cv/dvc.yaml, cv/dvc.lock, cv/causes and the"
        " numbers"
    )


def cv_fold(seed: Annotated[int, typer.Option()], fold: Annotated[int, typer.Option()]) -> None:
    """Stage `fold` of cv/dvc.yaml: one fold's loop with one seed, and its out-of-fold
    predictions.
    """
    from hnm.processes import die_with_parent, keep_freed_memory

    die_with_parent()  # before imports that take seconds, in which the parent may be killed
    keep_freed_memory()
    from hnm.cross_validation.stages import fold_stage
    from hnm.project import project_root

    scores = fold_stage(project_root(), seed=seed, fold=fold)
    aucs = ", ".join(f"{result.auc:.3f}" for result in scores.rounds)
    typer.echo(f"seed {seed}, fold {fold}: validation AUC by round {aucs}")


def cv_pool(seeds: Annotated[int, typer.Option()], folds: Annotated[int, typer.Option()]) -> None:
    """Stage `pool` of cv/dvc.yaml: the folds' predictions together, and their numbers."""
    from hnm.cross_validation.stages import pool_stage
    from hnm.project import project_root

    pool_stage(project_root(), seeds=seeds, folds=folds)


def compare(
    states: Annotated[
        list[str],
        typer.Argument(
            help=(
                "Git revisions, DVC experiments, MLflow summaries, `workspace`; the first is the"
                " reference."
            )
        ),
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare states by their test slides: gain with interval, DeLong, McNemar, slides that changed
    sides, params, cost.
    """
    import json

    from rich.console import Console

    from hnm.evidence.numbers.comparison import (
        comparison_json,
        comparison_markdown,
        comparison_tables,
        notes,
    )
    from hnm.history.states import comparison_of
    from hnm.project import project_root

    comparison = comparison_of(project_root(), states)
    if json_:
        typer.echo(json.dumps(comparison_json(comparison), indent=2))
    elif markdown:
        typer.echo(comparison_markdown(comparison))
    else:
        console = Console()
        for part in (*comparison_tables(comparison), *notes(comparison)):
            console.print(part)
