"""Commands about slides: the demo's, manifests, and what is cut of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hnm.slides.cohort.draft import DraftManifest

cohort = typer.Typer(
    help="A manifest from what a cohort looks like on a disk.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(help="Folder of the slides.")]
Manifest = Annotated[Path, typer.Option(help="The manifest to write.")]


def demo(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    slides: Annotated[int, typer.Option(min=8, help="How many slides.")] = 72,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw the demo cohort: procedural slides, slides.csv and annotations."""
    from hnm.synthetic import make_demo_cohort

    manifest = make_demo_cohort(folder, slides=slides, seed=seed)
    typer.echo(f"{manifest}: {slides} slides")


def preview(
    slide_ids: Annotated[
        list[str] | None, typer.Argument(help="Slides of the cohort; all when none is named.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures; results/preview of the repository by default."),
    ] = None,
) -> None:
    """Draw the tissue mask and the grid of tiles over each slide's thumbnail, and a contact
    sheet.
    """
    from hnm.loop.paths import Paths
    from hnm.params import load_params
    from hnm.project import project_root
    from hnm.slides.cutting.preview import preview_cohort

    root = project_root()
    params = load_params(root / "params.yaml")
    cohort = params.cohort.model_copy(update={"manifest": str(root / params.cohort.manifest)})
    for path in preview_cohort(
        Paths(root).cohort.slides,
        slide_ids,
        out or root / "results" / "preview",
        cohort=cohort,
        tissue=params.tissue,
        tiles=params.tiles,
    ):
        typer.echo(path)


@cohort.command("camelyon16")
def cohort_camelyon16(
    folder: Folder,
    out: Manifest = Path("data/slides.csv"),
    validation_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of the train slides, by label.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """CAMELYON16: normal_*, tumor_* and test_* slides, ASAP's XML, reference.csv."""
    from hnm.slides.cohort.camelyon16 import camelyon16

    _write_manifest(
        camelyon16(
            folder, out.parent / "annotations", validation_share=validation_share, seed=seed
        ),
        out,
    )


@cohort.command("tcga")
def cohort_tcga(
    folder: Folder,
    sheet: Annotated[Path, typer.Argument(help="The GDC's sample sheet (TSV).")],
    out: Manifest = Path("data/slides.csv"),
    labels: Annotated[
        Path | None, typer.Option(help="CSV with label, and patient_id or slide_id.")
    ] = None,
    column: Annotated[
        str, typer.Option(help="Column of the sheet that --positive is about.")
    ] = "Project ID",
    positive: Annotated[str | None, typer.Option(help="Its value that is label 1.")] = None,
    normal: Annotated[
        str | None,
        typer.Option(
            help="Of normal tissue (sample types 10 to 19): leave-out, negative (label 0) or keep."
        ),
    ] = None,
) -> None:
    """TCGA: slides as the GDC's client lays them out; patients from barcodes; labels from the sheet
    or a CSV.
    """
    from hnm.errors import CohortError
    from hnm.slides.cohort.tcga import tcga

    if (labels is None) == (positive is None):
        raise CohortError(
            "name either --labels or --positive, which say where the labels come from"
        )
    _write_manifest(
        tcga(folder, sheet, labels=labels, column=column, positive=positive, normal=normal), out
    )


@cohort.command("directory")
def cohort_directory(
    folder: Folder,
    positive: Annotated[str, typer.Option(help="The class, a folder, that is label 1.")],
    out: Manifest = Path("data/slides.csv"),
) -> None:
    """One folder a class."""
    from hnm.slides.cohort.class_folders import directory

    _write_manifest(directory(folder, positive=positive), out)


def _write_manifest(draft: "DraftManifest", out: Path) -> None:
    from hnm.slides.cohort.draft import write_manifest

    write_manifest(draft.rows, out)
    for note in draft.notes:
        typer.echo(f"note: {note}")
    for line in draft.left_out.lines():
        typer.echo(line)
    positives = sum(row.label == "1" for row in draft.rows)
    left_out = f", {len(draft.left_out)} left out" if len(draft.left_out) else ""
    typer.echo(
        f"{out}: {len(draft.rows)} slides, {positives} of them positive{left_out}; set"
        " cohort.manifest to it in params.yaml"
    )
