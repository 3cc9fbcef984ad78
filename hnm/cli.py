"""The command `hnm`: what users do beside `dvc repro`. Heavy imports stay inside the commands, so that --help is quick."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hnm.errors import HnmError, StudyError
from hnm.store import Kept

if TYPE_CHECKING:
    from hnm.experiments.study_files import StudyFiles
    from hnm.prediction.model import Model
    from hnm.slides.sources import Found

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported: on a busy machine, threads that spin cost more than they save

app = typer.Typer(
    help="Whole-slide-image classification with hard negative mining.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


class _Group(typer.core.TyperGroup):
    """Prints what a user caused as one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except HnmError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None


app.info.cls = _Group


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    slides: Annotated[int, typer.Option(min=8, help="How many slides.")] = 72,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw the demo cohort: procedural slides, slides.csv and annotations."""
    from hnm.slides.synthetic import make_demo_cohort

    manifest = make_demo_cohort(folder, slides=slides, seed=seed)
    typer.echo(f"{manifest}: {slides} slides")


@app.command()
def rounds() -> None:
    """Show the last run: a line a round, and where to look next."""
    from rich.console import Console

    from hnm.errors import EvidenceError
    from hnm.evidence.openings import LEDGER, looks, read_openings
    from hnm.evidence.round_table import round_table
    from hnm.experiments.ledger import stage_seconds
    from hnm.store import project_root, read_json

    console = Console()
    looked = looks(read_openings(project_root() / LEDGER))
    console.print(round_table(read_json(project_root() / "results" / "metrics.json", EvidenceError), stage_seconds(project_root())))
    console.print(f"test set    opened {looked.openings} times for {looked.states} different results ({LEDGER})")
    console.print("report      results/report.html")
    console.print("runs        make ui            (MLflow)")
    console.print("versions    dvc exp show, dvc metrics diff, dvc plots show")


@app.command()
def cv(seeds: Annotated[int, typer.Option(min=1, help="How often each fold is run.")] = 1) -> None:
    """Cross-validate: the loop on split.folds folds of the patients, each a stage of DVC; each slide is test once."""
    from rich.console import Console

    from hnm.errors import EvidenceError
    from hnm.evidence.pooling import pooled_table
    from hnm.experiments.cross_validation import deal, reproduce, write_stages
    from hnm.params import load_params
    from hnm.store import project_root, read_json

    root = project_root()
    params = load_params(root / "params.yaml")
    deal(root / "data", params)  # what cannot be dealt is said before DVC starts anything
    reproduce(write_stages(root, seeds=seeds, folds=params.split.folds))
    Console().print(pooled_table(read_json(root / "results" / "cv" / "summary.json", EvidenceError)))
    typer.echo("slides results/cv/slides.csv, numbers results/cv/summary.json; commit cv/dvc.yaml, cv/dvc.lock and the numbers")


@app.command(hidden=True)
def cv_fold(seed: Annotated[int, typer.Option()], fold: Annotated[int, typer.Option()]) -> None:
    """Stage `fold` of cv/dvc.yaml: one fold's loop with one seed, and its out-of-fold predictions."""
    from hnm.processes import die_with_parent, keep_freed_memory

    die_with_parent()  # before imports that take seconds, in which the parent may be killed
    keep_freed_memory()
    from hnm.evidence.openings import LEDGER, Opening, enter_opening
    from hnm.evidence.pooling import out_of_fold, write_predictions
    from hnm.experiments.cross_validation import fold_file, run_fold
    from hnm.experiments.state import git_tags
    from hnm.params import load_params
    from hnm.store import digest_of, key_of, project_root, project_store

    root = project_root()
    own = run_fold(root / "data", load_params(root / "params.yaml"), project_store(), seed=seed, fold=fold)
    tags = git_tags(root)
    commit, dirty = tags.get("mlflow.source.git.commit", ""), tags.get("hnm.git_dirty", "")
    enter_opening(root / LEDGER, Opening(key_of(slides=own.slides.to_dict("records")), digest_of(root / "params.yaml"), commit, dirty, "cv"))
    write_predictions(out_of_fold(own.slides, seed=seed, fold=fold), root / fold_file(seed, fold))
    typer.echo(f"seed {seed}, fold {fold}: validation AUC by round {', '.join(f'{result.auc:.3f}' for result in own.rounds)}")


@app.command(hidden=True)
def cv_pool(seeds: Annotated[int, typer.Option()], folds: Annotated[int, typer.Option()]) -> None:
    """Stage `pool` of cv/dvc.yaml: the folds' predictions together, and their numbers."""
    import pandas as pd

    from hnm.evidence.pooling import pooled, read_predictions, write_predictions
    from hnm.experiments.cross_validation import fold_file
    from hnm.params import load_params
    from hnm.store import project_root, write_json

    root = project_root()
    parts = [read_predictions(root / fold_file(seed, fold)) for seed in range(seeds) for fold in range(folds)]
    table = pd.concat(parts, ignore_index=True)
    write_predictions(table, root / "results" / "cv" / "slides.csv")
    write_json(pooled(table, load_params(root / "params.yaml").evaluate), root / "results" / "cv" / "summary.json")


@app.command()
def compare(
    states: Annotated[list[str], typer.Argument(help="Git revisions, DVC experiments, MLflow summaries, `workspace`; the first is the reference.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare states by their test slides: gain with interval, DeLong, McNemar, slides that changed sides, params, cost."""
    import json

    from rich.console import Console

    from hnm.evidence.comparison import State, compare_states, comparison_json, comparison_markdown, comparison_tables, notes
    from hnm.experiments.lineage import read_state
    from hnm.params import load_params
    from hnm.store import project_root

    root = project_root()
    found = [State(past.name, past.slides, past.test, past.params, past.seconds) for past in (read_state(root, name) for name in states)]
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


@app.command()
def preview(
    slide_ids: Annotated[list[str] | None, typer.Argument(help="Slides of the cohort; all when none is named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("results/preview"),
) -> None:
    """Draw the tissue mask and the grid of tiles over each slide's thumbnail, and a contact sheet."""
    from hnm.params import load_params
    from hnm.slides.preview import preview_cohort

    params = load_params(Path("params.yaml"))
    for path in preview_cohort(Path("data/cohort/slides.parquet"), slide_ids, out, cohort=params.cohort, tissue=params.tissue, tiles=params.tiles):
        typer.echo(path)


cohort = typer.Typer(help="A manifest from what a cohort looks like on a disk.", no_args_is_help=True)
app.add_typer(cohort, name="cohort")
Folder = Annotated[Path, typer.Argument(help="Folder of the slides.")]
Manifest = Annotated[Path, typer.Option(help="The manifest to write.")]


@cohort.command("camelyon16")
def cohort_camelyon16(
    folder: Folder,
    out: Manifest = Path("data/slides.csv"),
    validation_share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Of the train slides, by label.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """CAMELYON16: normal_*, tumor_* and test_* slides, ASAP's XML, reference.csv."""
    from hnm.slides.sources import camelyon16

    _write_manifest(camelyon16(folder, out.parent / "annotations", validation_share=validation_share, seed=seed), out)


@cohort.command("tcga")
def cohort_tcga(
    folder: Folder,
    sheet: Annotated[Path, typer.Argument(help="The GDC's sample sheet (TSV).")],
    out: Manifest = Path("data/slides.csv"),
    labels: Annotated[Path | None, typer.Option(help="CSV with label, and patient_id or slide_id.")] = None,
    column: Annotated[str, typer.Option(help="Column of the sheet that --positive is about.")] = "Project ID",
    positive: Annotated[str | None, typer.Option(help="Its value that is label 1.")] = None,
) -> None:
    """TCGA: slides as the GDC's client lays them out; patients from barcodes; labels from the sheet or a CSV."""
    from hnm.errors import CohortError
    from hnm.slides.sources import tcga

    if (labels is None) == (positive is None):
        raise CohortError("name either --labels or --positive, which say where the labels come from")
    _write_manifest(tcga(folder, sheet, labels=labels, column=column, positive=positive), out)


@cohort.command("directory")
def cohort_directory(
    folder: Folder, positive: Annotated[str, typer.Option(help="The class, a folder, that is label 1.")], out: Manifest = Path("data/slides.csv")
) -> None:
    """One folder a class."""
    from hnm.slides.sources import directory

    _write_manifest(directory(folder, positive=positive), out)


def _write_manifest(found: "Found", out: Path) -> None:
    from hnm.slides.sources import write_manifest

    write_manifest(found.entries, out)
    for note in found.notes:
        typer.echo(f"note: {note}")
    positives = sum(entry.label for entry in found.entries)
    typer.echo(f"{out}: {len(found.entries)} slides, {positives} of them positive; set cohort.manifest to it in params.yaml")


track = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)
app.add_typer(track, name="track")


@track.command("sync")
def track_sync(retry: Annotated[bool, typer.Option("--retry", help="Try again what MLflow has refused for good, too.")] = False) -> None:
    """Bring waiting runs to MLflow, make those of stages that DVC restored, and the summary of this state."""
    from hnm.experiments.record import refusals
    from hnm.experiments.sync import sync
    from hnm.store import project_root

    done = sync(project_root(), retry=retry)
    typer.echo(f"runs: {len(done.brought)} brought, {len(done.replayed)} made from files; summary: {done.summary or 'none'}")
    for reason in done.missing:
        typer.echo(f"not made: {reason}", err=True)
    if refused := refusals(project_root()):
        typer.echo(f"refused by MLflow: {refused}", err=True)


mined = typer.Typer(help="Mined tiles: look at them, and say which are not to be.", no_args_is_help=True)
app.add_typer(mined, name="mined")
Round = Annotated[int | None, typer.Option("--round", min=1, help="The last one where none is named.")]


@mined.command("suspects")
def mined_suspects(round_: Round = None) -> None:
    """List the negative slides that supply an odd share of the hardest tiles, the oddest first."""
    from hnm.tables import MINED_SLIDES

    table = MINED_SLIDES.read(_mined_folder(round_) / "slides.csv")
    for slide in table[table["suspect"]].sort_values(["chance", "slide_id"]).itertuples():
        typer.echo(f"{slide.slide_id}\t{slide.hardest} of the hardest tiles, {slide.expected:.1f} by its size\tpatient {slide.patient_id}")
    typer.echo(f"{table['suspect'].sum()} of {(table['label'] == 0).sum()} negative slides are suspect")


@mined.command("export")
def mined_export(round_: Round = None, out: Annotated[Path, typer.Option(help="Folder of the files, one a slide.")] = Path("results/mined")) -> None:
    """Write the mined tiles as GeoJSON for QuPath: outline, role, score."""
    from hnm.mining.export import export_mined
    from hnm.store import project_root
    from hnm.tables import MINED, SLIDES

    slides = SLIDES.read(project_root() / "data" / "cohort" / "slides.parquet")
    aspects = dict(zip(slides["slide_id"], slides["mpp_x"] / slides["mpp_y"], strict=True))
    for path in export_mined(MINED.read(_mined_folder(round_) / "mined.parquet"), aspects, out):
        typer.echo(path)


@mined.command("gallery")
def mined_gallery(
    round_: Round = None,
    out: Annotated[Path, typer.Option(help="Folder of the sheets, one a role.")] = Path("results/mined"),
    tiles: Annotated[int, typer.Option(min=1, help="How many tiles a sheet shows.")] = 60,
) -> None:
    """Draw the best-scoring mined tiles with their scores and places, and those that guards passed over."""
    from hnm.mining.gallery import write_gallery
    from hnm.store import project_root
    from hnm.tables import MINED, PASSED_OVER

    folder, packs = _mined_folder(round_), project_root() / "data" / "tiles" / "packs"
    for path in write_gallery(MINED.read(folder / "mined.parquet"), PASSED_OVER.read(folder / "passed_over.csv"), packs, out, tiles):
        typer.echo(path)


@mined.command("diff")
def mined_diff(
    before: Annotated[str, typer.Argument(help="A Git revision.")],
    after: Annotated[str, typer.Argument(help="Another, or what lies in the working tree.")] = "workspace",
    round_: Annotated[int | None, typer.Option("--round", min=1, help="The last one that both have, where none is named.")] = None,
) -> None:
    """Compare the mined tiles of two Git revisions: params, overlap, and what came and went by slide."""
    from hnm.experiments.mined_revision import mined_difference
    from hnm.store import project_root

    found = mined_difference(project_root(), before, after, round_)
    typer.echo(f"round {found.round}, {before} to {after}")
    for name, (was, is_) in found.params.items():
        typer.echo(f"{name}\t{was} -> {is_}")
    typer.echo(f"scorer\t{'the same' if found.scorers[0] == found.scorers[1] else ' -> '.join(own or 'none' for own in found.scorers)}")
    for role, overlap in found.by_role.items():
        shares = [f"{name} {'-' if share is None else format(share, '.3f')}" for name, share in (("jaccard", overlap.jaccard), ("churn", overlap.churn))]
        typer.echo(f"{role}\t{overlap.kept + overlap.went} -> {overlap.kept + overlap.came} tiles\t" + "\t".join(shares))
    for slide in found.by_slide.itertuples():
        typer.echo(f"{slide.slide_id}\t{slide.role}\t{slide.came} came, {slide.went} went, {slide.kept} stayed")


def _mined_folder(round_: int | None) -> Path:
    """The folder of a round's mined tiles; of the last round where None."""
    from hnm.errors import MiningError
    from hnm.store import project_root

    folder = project_root() / "data" / "mined"
    rounds = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    if round_ is None and not rounds:
        raise MiningError(f"{folder} holds no round; run dvc repro")
    return folder / str(max(rounds) if round_ is None else round_)


store = typer.Typer(help="Results that are kept, so that nothing is computed twice.", no_args_is_help=True)
app.add_typer(store, name="store")


@store.command("ls")
def store_ls() -> None:
    """Show how many results of each kind are kept, and how much of the disk they hold."""
    from collections import defaultdict

    from hnm.store import project_store

    by_kind: defaultdict[str, list[Kept]] = defaultdict(list)
    for result in project_store().kept():
        by_kind[result.kind].append(result)
    for kind, results in sorted(by_kind.items()):
        alone = [result for result in results if not result.shared]
        typer.echo(f"{kind:<20} {len(results):>7} results {_megabytes(results)}, of which {_megabytes(alone)} lie in the store alone")
    typer.echo(f"in {project_store().root}")


@store.command("gc")
def store_gc(
    max_days: Annotated[float | None, typer.Option(min=0, help="Remove results that were not used for longer.")] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="Remove the least recently used until so much is left.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove old results and what killed writes left; outputs that were linked from them stay."""
    import time

    from hnm.store import expired, project_store

    results, now, day = project_store(), time.time(), 24 * 3600
    kept = results.kept()
    gone = expired(kept, now=now, max_seconds=max_days and max_days * day, max_bytes=max_gb and max_gb * 1e9)
    leftovers = results.leftovers(before=now - day)
    for path in [*(result.path for result in gone), *leftovers]:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            results.remove(path)
    going = set(gone)
    left = [result for result in kept if result not in going]
    typer.echo(f"{len(gone)} results ({_megabytes(gone)}) and {len(leftovers)} leftovers go, {len(left)} results ({_megabytes(left)}) stay")


@store.command("verify")
def store_verify(remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged; the stage makes it again.")] = False) -> None:
    """Open each kept pack and feature file, and name those that are cut short or of another form."""
    from hnm.errors import TableError
    from hnm.learning import features
    from hnm.slides.pack import Pack
    from hnm.store import damaged, project_store

    results = project_store()
    checks: dict[str, Callable[[Path], object]] = {"tiles": lambda path: Pack(path).close(), "features": features.read}
    looked_at = [result for result in results.kept() if result.kind in checks]
    refused = damaged(looked_at, checks)
    for path, error in refused.items():
        typer.echo(error)
        if remove:
            results.remove(path)
    typer.echo(f"{len(looked_at)} results opened, {len(refused)} damaged{' and removed' if remove and refused else ''}")
    if refused and not remove:
        raise TableError(
            "the store holds damaged results; remove them with `hnm store verify --remove`, and `dvc repro` makes them again where they are needed"
        )


tune = typer.Typer(help="Search the params of tune.space by validation.", invoke_without_command=True)
app.add_typer(tune, name="tune")
StudyName = Annotated[str, typer.Option(help="Name; its files are in studies/NAME.")]
Storage = Annotated[
    str | None,
    typer.Option(envvar="HNM_STUDY_STORAGE", help="URL of Optuna's storage (journal:///, sqlite:///, postgresql://); else a journal in studies/NAME."),
]


@tune.callback()
def tune_run(
    context: typer.Context,
    study: StudyName = "default",
    trials: Annotated[int | None, typer.Option(min=1, help="Stop at so many finished trials, those of earlier runs among them.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Start no trial after so many seconds.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that run trials at once; each uses compute.threads threads.")] = 1,
    storage: Storage = None,
    enqueue: Annotated[list[str] | None, typer.Option(help="Another study, whose best trial is tried early; may be given again.")] = None,
) -> None:
    """Run trials of a study; the same command goes on where it was interrupted."""
    if command := context.invoked_subcommand:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        if misplaced := [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]:
            raise StudyError(f"--{misplaced[0]} stands before {command}, which does not see it there; give {command} its options after its name")
        return
    _expect_trials(workers)
    from hnm.experiments.study import Limits, run_study
    from hnm.experiments.study_files import best_values
    from hnm.experiments.trial import Loop, Upstream
    from hnm.params import load_params
    from hnm.processes import keep_freed_memory
    from hnm.store import project_root, project_store

    keep_freed_memory()
    root, files = project_root(), _study_files(study)
    upstream, results = Upstream(root / "data"), project_store()
    winners = [best_values(_study_files(name)) for name in enqueue or ()]
    params, loop, limits = load_params(root / "params.yaml"), Loop(upstream, results), Limits(trials, timeout)
    run_study(files, params, upstream, loop, results, limits, storage=storage, workers=workers, winners=winners, root=root, plots=True, say=typer.echo)
    typer.echo(f"trials {files.trials.relative_to(root)}, the best in {files.best.relative_to(root)}")


@tune.command("apply")
def tune_apply(
    trial: Annotated[int | None, typer.Argument(min=0, help="Number of a trial in trials.parquet; the best where none is named.")] = None,
    study: StudyName = "default",
) -> None:
    """Write a trial's values into params.yaml, whose comments and order stay."""
    from hnm.experiments.apply import trial_values, write_values
    from hnm.store import project_root

    number, values = trial_values(_study_files(study), trial)
    for name, (old, new) in write_values(project_root() / "params.yaml", values).items():
        typer.echo(f"{name}: {old} -> {new}")
    typer.echo(f"params.yaml holds trial {number}; dvc repro runs it")


@tune.command("report")
def tune_report(
    study: StudyName = "default",
    storage: Storage = None,
    finalists: Annotated[int, typer.Option(min=1, help="How many of the best trials are run again.")] = 3,
    seeds: Annotated[int, typer.Option(min=5, help="Fresh seeds of each.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes that run at once.")] = 1,
) -> None:
    """Run the best trials and params.yaml again with fresh seeds, and say whether the winner is better."""
    _expect_trials(workers)
    from hnm.draws import seed_of
    from hnm.evidence.metrics import Resampling
    from hnm.evidence.verdict import Finalist, Reruns, judged, report_markdown
    from hnm.experiments.finalists import run_finalists
    from hnm.experiments.folds import folds_of
    from hnm.experiments.space import with_values
    from hnm.experiments.study import check_identity, identity_of
    from hnm.experiments.study_files import load_study, read_trials, written
    from hnm.experiments.trial import Loop, Upstream
    from hnm.params import load_params
    from hnm.store import project_root, project_store, whole
    from hnm.tables import LABELS, SLIDE_SCORES, SLIDES

    root, files, results = project_root(), _study_files(study), project_store()
    params, upstream, known = load_params(root / "params.yaml"), Upstream(root / "data"), load_study(files, storage)
    check_identity(known, identity_of(params, upstream))
    params = with_values(params, known.user_attrs["defaults"])
    folds = folds_of(upstream, params.tune.folds, params.tune.seed, results)
    found = run_finalists(files, params, Loop(upstream, results), folds, count=finalists, seeds=seeds, workers=workers, say=typer.echo)
    slides, labels = SLIDES.read(upstream.slides), [LABELS.read(fold.validation) for fold in folds]
    reruns = [
        Finalist(
            own.trial,
            own.value,
            Reruns([[judged(SLIDE_SCORES.read(path), true, slides) for path, true in zip(run, labels, strict=True)] for run in own.slide_scores]),
        )
        for own in found
    ]
    section = params.evaluate
    resampling = Resampling(section.resamples, section.confidence, seed_of(section.seed, "bootstrap", "study"))
    report = report_markdown(study, reruns, int((read_trials(files)[0]["state"] != "failed").sum()), resampling)
    with written(files.report), whole(files.report) as temporary:
        temporary.write_text(report, encoding="utf-8")
    typer.echo(report)


@tune.command("export")
def tune_export(study: StudyName = "default", storage: Storage = None) -> None:
    """Write a study's table, best trial and plots from its storage; its DVC stage runs this."""
    from hnm.experiments.study_files import export, load_study

    files = _study_files(study)
    export(files, load_study(files, storage), plots=True)


def _expect_trials(workers: int) -> None:
    """Has the modules that workers need imported while this process imports its own; torch's first optimiser imports the second."""
    if workers > 1:
        from hnm.experiments.workers import expect_workers

        expect_workers("hnm.experiments.study", "torch._dynamo")


def _study_files(name: str) -> "StudyFiles":
    """Files of the study `name` of this repository."""
    import re

    from hnm.experiments.study_files import StudyFiles
    from hnm.params import ID
    from hnm.store import project_root

    if not re.match(ID, name):
        raise StudyError(f"--study {name!r} must match [A-Za-z0-9][A-Za-z0-9._-]*")
    return StudyFiles(project_root() / "studies" / name)


@app.command()
def predict(
    slides: Annotated[list[str], typer.Argument(help="Files or URLs of slides.")],
    out: Annotated[Path, typer.Option(help="Folder of what is written.")],
    round_: Annotated[int | None, typer.Option("--round", min=0, help="A round of this repository's last run; the chosen one where no model is named.")] = None,
    run: Annotated[str | None, typer.Option(help="Id of the MLflow run of a state that a model was promoted from.")] = None,
    model: Annotated[str | None, typer.Option(help="A model folder, or a registered model: models:/hnm-demo@champion.")] = None,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel, in place of what the files state.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; as the model was trained where none is named.")] = None,
) -> None:
    """Predict slides: table, heatmap, and GeoJSON of the region and the top tiles for QuPath."""
    from hnm.errors import PredictionError
    from hnm.prediction.files import write_predictions

    if sum(source is not None for source in (round_, run, model)) > 1:
        raise PredictionError("name one of --round, --run and --model")
    write_predictions(_model_of(round_, run, model), slides, out, mpp=mpp, device=device, say=typer.echo)
    typer.echo(f"table {out / 'predictions.csv'}; <slide>.png and <slide>.geojson beside it")


def _model_of(round_: int | None, run: str | None, model: str | None) -> "Model":
    import tempfile

    from hnm.experiments.packaging import package_round
    from hnm.experiments.registry import model_of_run, registered_model
    from hnm.prediction.model import read_model
    from hnm.store import project_root

    root = project_root()
    if run is not None:
        return registered_model(root, model_of_run(root, run))
    if model is not None:
        return registered_model(root, model) if model.startswith("models:") else read_model(Path(model), model)
    with tempfile.TemporaryDirectory(prefix="hnm-model-") as folder:
        record = package_round(root, round_, Path(folder))
        return read_model(Path(folder), f"round {record.round}")


@app.command()
def promote(
    round_: Annotated[int | None, typer.Option("--round", min=0, help="The chosen one where none is named.")] = None,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    force: Annotated[bool, typer.Option("--force", help="Make it the champion though validation is against it.")] = False,
) -> None:
    """Register a round's model in MLflow as hnm-<cohort>, and make it champion or challenger."""
    from hnm.errors import PredictionError
    from hnm.experiments import registry
    from hnm.store import project_root

    if alias not in ("champion", "challenger"):
        raise PredictionError(f"--alias {alias} is neither champion nor challenger")
    done = registry.promote(project_root(), round_, "champion" if alias == "champion" else "challenger", force=force)
    before = f"; it was version {done.was}" if done.was else ""
    typer.echo(f"models:/{done.name}@{done.alias} is version {done.version}, round {done.round}{before}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    round_: Annotated[int | None, typer.Option("--round", min=0, help="The chosen one where none is named.")] = None,
) -> None:
    """Write a round's model as one folder of JSON and safetensors that `hnm predict --model` reads anywhere."""
    from hnm.errors import PredictionError
    from hnm.experiments.packaging import package_round
    from hnm.store import project_root

    if out.exists() and any(out.iterdir()):
        raise PredictionError(f"{out} is not empty; name a new folder")
    record = package_round(project_root(), round_, out)
    typer.echo(f"{out}: round {record.round} of {record.cohort}, threshold {record.threshold:g}")


@app.command()
def verify(whole_cache: Annotated[bool, typer.Option("--whole-cache", help="Hash every object of DVC's cache, not those of dvc.lock alone.")] = False) -> None:
    """Hash workspace and DVC cache against dvc.lock: what was tampered with or cut short is named."""
    from hnm.errors import TrackingError
    from hnm.experiments import verification
    from hnm.store import project_root

    found = verification.verify(project_root(), whole_cache=whole_cache)
    for path, md5 in found.damaged.items():
        typer.echo(f"damaged\t{path}\tits bytes have md5 {md5}")
    for name, (wanted, md5) in found.changed.items():
        typer.echo(f"changed\t{name}\tmd5 {md5}, but {wanted} in dvc.lock")
    typer.echo(f"{found.objects} cache objects and {found.paths} paths hashed; {len(found.missing)} paths are not here (hnm doctor)")
    if found.damaged:
        raise TrackingError(
            f"{len(found.damaged)} cache objects are damaged; delete them and the outputs that are linked from them, run `hnm store verify`,"
            " then dvc pull or dvc repro"
        )
    if found.changed:
        raise TrackingError(f"{len(found.changed)} paths differ from dvc.lock; dvc repro makes them anew, dvc checkout --force puts them back")


@app.command()
def doctor() -> None:
    """Say what this project lacks: files, cache objects, remote, slides, tools; and what to do."""
    from hnm.experiments.doctor import examine
    from hnm.store import project_root

    findings = list(examine(project_root()))
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.fine else 'MISS'} {finding.thing:<8} {finding.says}")
    raise typer.Exit(0 if all(finding.fine for finding in findings) else 1)


@app.command()
def lineage(
    target: Annotated[str, typer.Argument(help="An output, a stage (head@1), the id of a stage's run, or models:/hnm-demo@champion.")],
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart.")] = False,
) -> None:
    """Trace an output back to slides, params, code and runs, and forward to what was made of it."""
    from hnm.experiments import provenance
    from hnm.store import project_root

    found = provenance.lineage(project_root(), target)
    typer.echo(provenance.as_mermaid(found) if mermaid else provenance.as_text(found))


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from hnm.experiments.tracking import serve_ui

    serve_ui(port)


def _megabytes(results: Iterable[Kept]) -> str:
    return f"{sum(result.bytes for result in results) / 1e6:,.1f} MB"


if __name__ == "__main__":
    app()
