"""`hnm mined`: look at mined tiles, and say which are not to be."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Mined tiles: look at them, and say which are not to be.", no_args_is_help=True
)
RESULTS = Path("results/mined")
Round = Annotated[
    int | None, typer.Option("--round", min=1, help="The last one where none is named.")
]


@app.command("suspects")
def suspects(round_: Round = None) -> None:
    """List the negative slides that supply an odd share of the hardest tiles, the oddest first."""
    from hnm.tables import MINED_SLIDES

    table = MINED_SLIDES.read(_mined_folder(round_) / "slides.csv")
    for slide in table[table["suspect"]].sort_values(["chance", "slide_id"]).itertuples():
        typer.echo(
            f"{slide.slide_id}\t{slide.hardest} of the hardest tiles, {slide.expected:.1f} by its"
            f" size\tpatient {slide.patient_id}"
        )
    typer.echo(
        f"{table['suspect'].sum()} of {(table['label'] == 0).sum()} negative slides are suspect"
    )


@app.command("export")
def export(
    round_: Round = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the files, one a slide; results/mined/ROUND where none is named."
        ),
    ] = None,
    origin: Annotated[
        Literal["bounds", "level_0"],
        typer.Option(
            help="What coordinates count from: the scan's bounds, as in QuPath, or level 0."
        ),
    ] = "bounds",
) -> None:
    """Write the mined tiles as GeoJSON for QuPath: outline, role, score."""
    from hnm.loop.paths import Paths
    from hnm.mining.export import export_mined
    from hnm.project import project_root
    from hnm.tables import MINED, SLIDES

    slides = SLIDES.read(Paths(project_root()).cohort.slides)
    folder = _mined_folder(round_)
    out = out or project_root() / RESULTS / folder.name
    written = export_mined(MINED.read(folder / "mined.parquet"), slides, out, origin)
    for path in written:
        typer.echo(path)
    if others := sorted(path.name for path in set(out.glob("*.geojson")) - set(written)):
        typer.echo(
            f"{out} has files of slides without mined tiles too, perhaps of an earlier export:"
            f" {', '.join(others)}",
            err=True,
        )


@app.command("gallery")
def gallery(
    round_: Round = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sheets, one a role; results/mined/ROUND where none is named."
        ),
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, help="How many tiles a sheet shows.")] = 60,
) -> None:
    """Draw the best-scoring mined tiles with their scores and places, and those that guards passed
    over.
    """
    from hnm.loop.paths import Paths
    from hnm.mining.gallery import write_gallery
    from hnm.project import project_root
    from hnm.tables import MINED, PASSED_OVER

    folder = _mined_folder(round_)
    for path in write_gallery(
        MINED.read(folder / "mined.parquet"),
        PASSED_OVER.read(folder / "passed_over.csv"),
        Paths(project_root()).tiles.packs,
        out or project_root() / RESULTS / folder.name,
        tiles,
    ):
        typer.echo(path)


@app.command("diff")
def diff(
    before: Annotated[str, typer.Argument(help="A Git revision.")],
    after: Annotated[
        str, typer.Argument(help="Another, or what lies in the working tree.")
    ] = "workspace",
    round_: Annotated[
        int | None,
        typer.Option("--round", min=1, help="The last one that both have, where none is named."),
    ] = None,
) -> None:
    """Compare the mined tiles of two Git revisions: params, overlap, and what came and went by
    slide.
    """
    from hnm.history.mined_sets import mined_difference
    from hnm.project import project_root

    difference = mined_difference(project_root(), before, after, round_)
    typer.echo(f"round {difference.round}, {before} to {after}")
    for name, (was, is_) in difference.params.items():
        typer.echo(f"{name}\t{was} -> {is_}")
    scorers = " -> ".join(scorer or "none" for scorer in difference.scorers)
    is_same = len(set(difference.scorers)) == 1
    typer.echo(f"scorer\t{'the same' if is_same else scorers}")
    for role, overlap in difference.by_role.items():
        shares = [
            f"{name} {'-' if share is None else format(share, '.3f')}"
            for name, share in (("jaccard", overlap.jaccard), ("churn", overlap.churn))
        ]
        typer.echo(
            f"{role}\t{overlap.stayed + overlap.went} -> {overlap.stayed + overlap.came} tiles\t"
            + "\t".join(shares)
        )
    for slide in difference.by_slide.itertuples():
        typer.echo(
            f"{slide.slide_id}\t{slide.role}\t{slide.came} came, {slide.went} went, {slide.stayed}"
            " stayed"
        )


def _mined_folder(round_: int | None) -> Path:
    """The folder of a round's mined tiles; of the last round where None."""
    from hnm.errors import MiningError
    from hnm.loop.paths import Paths
    from hnm.project import project_root

    folder = Paths(project_root()).evaluate.mined
    rounds = [
        int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.name != "0"
    ]  # for round 0 nothing is mined
    if round_ is None and not rounds:
        raise MiningError(f"{folder} holds no round; run dvc repro")
    return folder / str(max(rounds) if round_ is None else round_)
