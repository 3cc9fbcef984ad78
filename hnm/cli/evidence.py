"""Commands about what a run is worth: its rounds, cross-validation, comparison."""

from typing import Annotated

import typer


def rounds() -> None:
    """Show the last run: a line a round, and where to look next."""
    from rich.console import Console

    from hnm.errors import EvidenceError
    from hnm.evidence.pages.round_table import round_table
    from hnm.evidence.test_ledger import LEDGER, looks, read_openings
    from hnm.files import read_json
    from hnm.project import project_root
    from hnm.repository.costs import stage_seconds
    from hnm.repository.outputs import taking_apart

    console = Console()
    looked = looks(read_openings(project_root() / LEDGER))
    metrics = read_json(project_root() / "results" / "metrics.json", EvidenceError)
    with taking_apart("results/metrics.json", EvidenceError):
        table = round_table(metrics, stage_seconds(project_root()))
    console.print(table)
    console.print(
        f"test set    opened {looked.openings} times for {looked.states} different results"
        f" ({LEDGER})"
    )
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
        State,
        compare_states,
        comparison_json,
        comparison_markdown,
        comparison_tables,
        notes,
    )
    from hnm.history.states import read_state
    from hnm.params import load_params
    from hnm.project import project_root

    root = project_root()
    found = [
        State(past.name, past.slides, past.test, past.params, past.seconds)
        for past in (read_state(root, name) for name in states)
    ]
    comparison = compare_states(found, load_params(root / "params.yaml").evaluate)
    if json_:
        typer.echo(json.dumps(comparison_json(comparison), indent=2))
    elif markdown:
        typer.echo(comparison_markdown(comparison))
    else:
        console = Console()
        for table in comparison_tables(comparison):
            console.print(table)
        for note in notes(comparison):
            console.print(note)
