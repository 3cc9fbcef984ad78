"""The command `hnm`: what users do beside `dvc repro`. Heavy imports stay inside the commands, so
that --help is quick.
"""

import os
from typing import Any

import typer

from hnm.cli import evidence, mined, models, repository, slides, store, tune
from hnm.output import forgive_output
from hnm.processes import ending_in_a_line

os.environ.setdefault(
    "OMP_WAIT_POLICY",
    "passive",
    # read when torch is first imported: on a busy machine, threads that spin cost more than they
    # save
)

GOES_ON = "what was finished is kept, and the same command goes on or begins again"

_OF_COMMAND_LINE = (
    typer.Exit,
    typer.Abort,
    *(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)
"""What typer itself makes of a wrong option, and of a command that is done."""


class _Group(typer.core.TyperGroup):
    """Prints what a user caused as one line instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        forgive_output(everything=False)
        with ending_in_a_line(GOES_ON, passing=_OF_COMMAND_LINE):
            return super().main(*args, **kwargs)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        with ending_in_a_line(
            GOES_ON, passing=_OF_COMMAND_LINE
        ):  # in `main` typer has made other kinds of some of them
            return super().invoke(ctx)


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
