"""The command `hnm`: what users do beside `dvc repro`. Heavy imports stay inside the commands, so that --help is quick."""

from pathlib import Path
from typing import Annotated

import typer

from hnm.errors import HnmError

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
    slides: Annotated[int, typer.Option(min=8, help="How many slides.")] = 36,
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
    from hnm.evidence.round_table import round_table
    from hnm.experiments.ledger import stage_seconds
    from hnm.store import project_root, read_json

    console = Console()
    console.print(round_table(read_json(project_root() / "results" / "metrics.json", EvidenceError), stage_seconds(project_root())))
    console.print("report      results/report.html")
    console.print("runs        make ui            (MLflow)")
    console.print("versions    dvc exp show, dvc metrics diff, dvc plots show")


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


track = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)
app.add_typer(track, name="track")


@track.command("sync")
def track_sync() -> None:
    """Bring waiting runs to MLflow, make those of stages that DVC restored, and the summary of this state."""
    from hnm.experiments.sync import sync
    from hnm.store import project_root

    done = sync(project_root())
    typer.echo(f"runs: {len(done.brought)} brought, {len(done.replayed)} made from files; summary: {done.summary or 'none'}")
    for reason in done.missing:
        typer.echo(f"not made: {reason}", err=True)


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from hnm.experiments.tracking import serve_ui

    serve_ui(port)


if __name__ == "__main__":
    app()
