"""`hnm tune`: studies by validation."""

from typing import TYPE_CHECKING, Annotated

import typer

from hnm.errors import StudyError

if TYPE_CHECKING:
    from hnm.studies.files import StudyFiles

app = typer.Typer(
    help="Search the params of tune.space by validation.", invoke_without_command=True
)
StudyName = Annotated[str, typer.Option(help="Name; its files are in studies/NAME.")]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="HNM_STUDY_STORAGE",
        help=(
            "URL of Optuna's storage (journal:///, sqlite:///, postgresql://); else a journal in"
            " studies/NAME."
        ),
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Stop at so many finished trials, those of earlier runs among them."),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1, help="Processes that run trials at once; each uses compute.threads threads."
    ),
]


@app.callback()
def run(
    context: typer.Context,
    study: StudyName = "default",
    trials: Trials = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Start no trial after so many seconds.")
    ] = None,
    workers: Workers = 1,
    storage: Storage = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(help="Another study, whose best trial is tried early; may be given again."),
    ] = None,
) -> None:
    """Run trials of a study; the same command goes on where it was interrupted."""
    if context.invoked_subcommand:
        _refuse_misplaced(context, context.invoked_subcommand)
        return
    _expect_trials(workers)
    from hnm.loop.rounds import Loop, Upstream, check_one_process
    from hnm.params import load_params
    from hnm.processes import keep_freed_memory
    from hnm.project import project_root
    from hnm.store import project_store
    from hnm.studies.files import best_values
    from hnm.studies.study import StudySettings, run_study

    keep_freed_memory()
    root = project_root()
    files = _study_files(study)
    upstream = Upstream(root)
    store = project_store()
    winners = [best_values(_study_files(name)) for name in enqueue or ()]
    params = load_params(root / "params.yaml")
    check_one_process(params)
    settings = StudySettings(
        files,
        params,
        upstream,
        Loop(upstream, store),
        store,
        trials=trials,
        seconds=timeout,
        storage=storage,
        workers=workers,
        winners=winners,
        root=root,
        plots=True,
    )
    run_study(settings, typer.echo)
    typer.echo(
        f"trials {files.trials.relative_to(root)}, the best in {files.best.relative_to(root)}"
    )


@app.command("apply")
def apply(
    trial: Annotated[
        int | None,
        typer.Argument(
            min=0, help="Number of a trial in trials.parquet; the best where none is named."
        ),
    ] = None,
    study: StudyName = "default",
) -> None:
    """Write a trial's values into params.yaml, whose comments and order stay."""
    from hnm.project import project_root
    from hnm.studies.apply import trial_values, write_values

    number, values = trial_values(_study_files(study), trial)
    for name, (old, new) in write_values(project_root() / "params.yaml", values).items():
        typer.echo(f"{name}: {old} -> {new}")
    typer.echo(f"params.yaml holds trial {number}; dvc repro runs it")


@app.command("report")
def report(
    study: StudyName = "default",
    storage: Storage = None,
    finalists: Annotated[
        int, typer.Option(min=1, help="How many of the best trials are run again.")
    ] = 3,
    seeds: Annotated[int, typer.Option(min=5, help="Fresh seeds of each.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes that run at once.")] = 1,
) -> None:
    """Run the best trials and params.yaml again with fresh seeds, and say whether the winner is
    better.
    """
    _expect_trials(workers)
    from hnm.loop.rounds import Upstream, check_one_process
    from hnm.params import load_params
    from hnm.project import project_root
    from hnm.store import project_store
    from hnm.studies.finalists import Race
    from hnm.studies.report import write_report

    root = project_root()
    files = _study_files(study)
    store = project_store()
    params = load_params(root / "params.yaml")
    check_one_process(params)
    upstream = Upstream(root)
    race = Race(finalists, seeds, workers)
    typer.echo(write_report(files, params, upstream, store, race, storage, typer.echo))


@app.command("export")
def export(study: StudyName = "default", storage: Storage = None) -> None:
    """Write a study's table, best trial and plots from its storage; its DVC stage runs this."""
    from hnm.studies.files import export, load_study

    files = _study_files(study)
    export(files, load_study(files, storage), plots=True)


def _refuse_misplaced(context: typer.Context, command: str) -> None:
    """Raises `StudyError` where an option stands before the subcommand, which does not see it."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise StudyError(
                f"--{name} stands before {command}, which does not see it there; give"
                f" {command} its options after its name"
            )


def _expect_trials(workers: int) -> None:
    """Has the modules that workers need imported while this process imports the same; torch's first
    optimiser imports the second.
    """
    if workers > 1:
        from hnm.studies.workers import expect_workers

        expect_workers("hnm.studies.study", "torch._dynamo")


def _study_files(name: str) -> "StudyFiles":
    """Returns the files of the study `name` of this repository."""
    from hnm.names import ID_WORDS, is_id, quoted
    from hnm.project import project_root
    from hnm.studies.files import StudyFiles

    if not is_id(name):
        raise StudyError(f"--study {quoted(name)} must be {ID_WORDS}")
    return StudyFiles(project_root() / "studies" / name)
