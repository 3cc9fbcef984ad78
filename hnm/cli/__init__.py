"""The command `hnm`: what users do beside `dvc repro`. Heavy imports stay inside the commands, so that --help is quick."""

import os

import typer

from hnm.cli import evidence, mined, models, repository, slides, store, tune
from hnm.errors import HnmError, error_of_machine

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported: on a busy machine, threads that spin cost more than they save


class _Group(typer.core.TyperGroup):
    """Prints what a user caused as one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except HnmError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except (OSError, MemoryError) as error:
            if (machine := error_of_machine(error)) is None:
                raise
            typer.echo(f"error: {machine}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Whole-slide-image classification with hard negative mining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(slides.demo)
app.add_typer(slides.cohort, name="cohort")
app.command()(slides.preview)
app.command()(evidence.rounds)
app.command()(evidence.compare)
app.command()(evidence.cv)
app.command(hidden=True)(evidence.cv_fold)
app.command(hidden=True)(evidence.cv_pool)
app.add_typer(mined.app, name="mined")
app.add_typer(tune.app, name="tune")
app.command()(models.predict)
app.command()(models.export)
app.command()(models.promote)
app.add_typer(repository.track, name="track")
app.command()(repository.ui)
app.command()(repository.lineage)
app.command()(repository.verify)
app.command()(repository.doctor)
app.add_typer(store.app, name="store")
