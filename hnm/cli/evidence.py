"""Commands about what a run is worth: its rounds, cross-validation, comparison."""

from typing import Annotated

import typer


def rounds() -> None:
    """Show the last run: a line a round, and where to look next."""
    from rich.console import Console

    from hnm.evidence.test_ledger import LEDGER
    from hnm.history.last_run import last_run
    from hnm.store import project_root

    table, looked = last_run(project_root())
    console = Console()
    console.print(table)
    console.print(
        f"test set    opened {looked.times} times for {looked.states} different results ({LEDGER})"
    )
    console.print("report      results/report.html")
    console.print("runs        make ui            (MLflow)")
    console.print("versions    dvc exp show, dvc metrics diff, dvc plots show")


def cv(seeds: Annotated[int, typer.Option(min=1, help="How often each fold is run.")] = 1) -> None:
    """Cross-validate: the loop on split.folds folds of the patients, each a stage of DVC; each
    slide is test once.
    """
    from rich.console import Console

    from hnm.cross_validation.runs import deal, reproduce, write_stages
    from hnm.errors import EvidenceError
    from hnm.evidence.numbers.pooling import pooled_table
    from hnm.files import read_json
    from hnm.loop.rounds import check_one_process
    from hnm.params import load_params
    from hnm.store import project_root

    root = project_root()
    params = load_params(root / "params.yaml")
    check_one_process(params)
    deal(root / "data", params)  # what cannot be dealt is said before DVC starts anything
    reproduce(
        write_stages(root, seeds=seeds, folds=params.split.folds, device=params.compute.device)
    )
    Console().print(
        pooled_table(read_json(root / "results" / "cv" / "summary.json", EvidenceError))
    )
    typer.echo(
        "slides results/cv/slides.csv, numbers results/cv/summary.json; commit cv/dvc.yaml,"
        " cv/dvc.lock, cv/causes and the numbers"
    )


def cv_fold(seed: Annotated[int, typer.Option()], fold: Annotated[int, typer.Option()]) -> None:
    """Stage `fold` of cv/dvc.yaml: one fold's loop with one seed, and its out-of-fold
    predictions.
    """
    from hnm.processes import die_with_parent, keep_freed_memory

    die_with_parent()  # before imports that take seconds, in which the parent may be killed
    keep_freed_memory()
    from hnm.cross_validation.runs import fold_file, run_fold
    from hnm.evidence.numbers.pooling import out_of_fold, write_predictions
    from hnm.evidence.test_ledger import LEDGER, LedgerEntry, enter
    from hnm.files import digest_of, key_of
    from hnm.params import load_params
    from hnm.repository.stages import git_tags
    from hnm.store import project_home, project_root, project_store

    root = project_root()
    own = run_fold(
        root / "data", load_params(root / "params.yaml"), project_store(), seed=seed, fold=fold
    )
    tags = git_tags(root)
    commit, dirty = tags.get("mlflow.source.git.commit", ""), tags.get("hnm.git_dirty", "")
    enter(
        project_home() / LEDGER,
        LedgerEntry(
            key_of(slides=own.slides.to_dict("records")),
            digest_of(root / "params.yaml"),
            commit,
            dirty,
            "cv",
        ),
    )
    write_predictions(out_of_fold(own.slides, seed=seed, fold=fold), root / fold_file(seed, fold))
    typer.echo(
        f"seed {seed}, fold {fold}: validation AUC by round"
        f" {', '.join(f'{result.auc:.3f}' for result in own.rounds)}"
    )


def cv_pool(seeds: Annotated[int, typer.Option()], folds: Annotated[int, typer.Option()]) -> None:
    """Stage `pool` of cv/dvc.yaml: the folds' predictions together, and their numbers."""
    import pandas as pd

    from hnm.cross_validation.runs import fold_file
    from hnm.evidence.numbers.pooling import pooled, read_predictions, write_predictions
    from hnm.files import write_json
    from hnm.params import load_params
    from hnm.store import project_root

    root = project_root()
    parts = [
        read_predictions(root / fold_file(seed, fold))
        for seed in range(seeds)
        for fold in range(folds)
    ]
    table = pd.concat(parts, ignore_index=True)
    write_predictions(table, root / "results" / "cv" / "slides.csv")
    write_json(
        pooled(table, load_params(root / "params.yaml").evaluate),
        root / "results" / "cv" / "summary.json",
    )


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
    from hnm.store import project_root

    comparison = comparison_of(project_root(), states)
    if json_:
        typer.echo(json.dumps(comparison_json(comparison), indent=2))
    elif markdown:
        typer.echo(comparison_markdown(comparison))
    else:
        console = Console()
        for part in (*comparison_tables(comparison), *notes(comparison)):
            console.print(part)
