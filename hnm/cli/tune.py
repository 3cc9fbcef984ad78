"""`hnm tune`: studies by validation."""

from typing import TYPE_CHECKING, Annotated

import typer

from hnm.errors import StudyError

if TYPE_CHECKING:
    from hnm.studies.study_files import StudyFiles

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


@app.callback()
def run(
    context: typer.Context,
    study: StudyName = "default",
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop at so many finished trials, those of earlier runs among them."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Start no trial after so many seconds.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes that run trials at once; each uses compute.threads threads."
        ),
    ] = 1,
    storage: Storage = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(help="Another study, whose best trial is tried early; may be given again."),
    ] = None,
) -> None:
    """Run trials of a study; the same command goes on where it was interrupted."""
    if command := context.invoked_subcommand:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        if misplaced := [
            name
            for name, source in sources.items()
            if source is not None and source.name == "COMMANDLINE"
        ]:
            raise StudyError(
                f"--{misplaced[0]} stands before {command}, which does not see it there; give"
                f" {command} its options after its name"
            )
        return
    _expect_trials(workers)
    from hnm.loop.rounds import Loop, Upstream, check_one_process
    from hnm.params import load_params
    from hnm.processes import keep_freed_memory
    from hnm.store import project_root, project_store
    from hnm.studies.study import Limits, run_study
    from hnm.studies.study_files import best_values

    keep_freed_memory()
    root, files = project_root(), _study_files(study)
    upstream, results = Upstream(root), project_store()
    winners = [best_values(_study_files(name)) for name in enqueue or ()]
    params, loop, limits = (
        load_params(root / "params.yaml"),
        Loop(upstream, results),
        Limits(trials, timeout),
    )
    check_one_process(params)
    run_study(
        files,
        params,
        upstream,
        loop,
        results,
        limits,
        storage=storage,
        workers=workers,
        winners=winners,
        root=root,
        plots=True,
        say=typer.echo,
    )
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
    from hnm.store import project_root
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
    from hnm.evidence.numbers.intervals import Resampling
    from hnm.evidence.numbers.winner import Finalist, Reruns, judged, report_markdown
    from hnm.files import whole
    from hnm.loop.rounds import Loop, Upstream, check_one_process
    from hnm.params import load_params
    from hnm.seeds import seed_of
    from hnm.store import project_root, project_store
    from hnm.studies.finalists import run_finalists
    from hnm.studies.folds import folds_of
    from hnm.studies.space import with_values
    from hnm.studies.study import check_identity, identity_of
    from hnm.studies.study_files import load_study, read_trials, written
    from hnm.tables import LABELS, SLIDE_SCORES, SLIDES

    root, files, results = project_root(), _study_files(study), project_store()
    params, upstream, known = (
        load_params(root / "params.yaml"),
        Upstream(root),
        load_study(files, storage),
    )
    check_one_process(params)
    check_identity(known, identity_of(params, upstream))
    params = with_values(params, known.user_attrs["defaults"])
    folds = folds_of(upstream, params.tune.folds, params.tune.seed, results)
    found = run_finalists(
        files,
        params,
        Loop(upstream, results),
        folds,
        count=finalists,
        seeds=seeds,
        workers=workers,
        say=typer.echo,
    )
    slides, labels = (
        SLIDES.read(upstream.paths.cohort.slides),
        [LABELS.read(fold.validation) for fold in folds],
    )
    reruns = [
        Finalist(
            own.trial,
            own.value,
            Reruns(
                [
                    [
                        judged(SLIDE_SCORES.read(path), true, slides)
                        for path, true in zip(run, labels, strict=True)
                    ]
                    for run in own.slide_scores
                ]
            ),
        )
        for own in found
    ]
    section = params.evaluate
    resampling = Resampling(
        section.resamples, section.confidence, seed_of(section.seed, "bootstrap", "study")
    )
    report = report_markdown(
        study, reruns, int((read_trials(files)[0]["state"] != "failed").sum()), resampling
    )
    with written(files.report), whole(files.report) as temporary:
        temporary.write_text(report, encoding="utf-8")
    typer.echo(report)


@app.command("export")
def export(study: StudyName = "default", storage: Storage = None) -> None:
    """Write a study's table, best trial and plots from its storage; its DVC stage runs this."""
    from hnm.studies.study_files import export, load_study

    files = _study_files(study)
    export(files, load_study(files, storage), plots=True)


def _expect_trials(workers: int) -> None:
    """Has the modules that workers need imported while this process imports its own; torch's first
    optimiser imports the second.
    """
    if workers > 1:
        from hnm.studies.workers import expect_workers

        expect_workers("hnm.studies.study", "torch._dynamo")


def _study_files(name: str) -> "StudyFiles":
    """Files of the study `name` of this repository."""
    from hnm.names import ID_WORDS, is_id, quoted
    from hnm.store import project_root
    from hnm.studies.study_files import StudyFiles

    if not is_id(name):
        raise StudyError(f"--study {quoted(name)} must be {ID_WORDS}")
    return StudyFiles(project_root() / "studies" / name)
