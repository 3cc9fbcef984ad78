"""Commands about models: predict slides, hand a model on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from hnm.prediction.model import Model


def predict(  # noqa: PLR0913 - the options of a command
    slides: Annotated[list[str], typer.Argument(help="Files or URLs of slides.")],
    out: Annotated[Path, typer.Option(help="Folder of what is written.")],
    round_: Annotated[
        int | None,
        typer.Option(
            "--round",
            min=0,
            help="A round of this repository's last run; the chosen one where no model is named.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Id of the MLflow run of a state that a model was promoted from."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model folder, or a registered model: models:/hnm-demo@champion."),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel, in place of what the files state.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Tissue of the one slide, GeoJSON or an image, in place of the classical mask."
        ),
    ] = None,
    origin: Annotated[
        Literal["auto", "level_0", "bounds"],
        typer.Option(
            help=(
                "What a mask counts from that does not say so: level 0, or the scan's bounds, as in"
                " QuPath."
            )
        ),
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu or cuda; as the model was trained where none is named."),
    ] = None,
) -> None:
    """Predict slides: table, heatmap, and GeoJSON of the region and the top tiles for QuPath."""
    from hnm.errors import PredictionError
    from hnm.prediction.files import write_predictions

    if sum(source is not None for source in (round_, run, model)) > 1:
        raise PredictionError("name one of --round, --run and --model")
    write_predictions(
        _model_of(round_, run, model),
        slides,
        out,
        mpp=mpp,
        mask=mask,
        origin=origin,
        device=device,
        say=typer.echo,
    )
    typer.echo(f"table {out / 'predictions.csv'}; <slide>.png and <slide>.geojson beside it")


def _model_of(round_: int | None, run: str | None, model: str | None) -> "Model":
    """Returns the model that is named, or that of the chosen round where none is."""
    import tempfile

    from hnm.models.packaging import package_round
    from hnm.models.registry import model_of_run, registered_model
    from hnm.prediction.model import read_model
    from hnm.project import project_root

    root = project_root()
    if run is not None:
        return registered_model(root, model_of_run(root, run))
    if model is not None:
        if model.startswith("models:"):
            return registered_model(root, model)
        return read_model(Path(model), model)
    with tempfile.TemporaryDirectory(prefix="hnm-model-") as folder:
        record = package_round(root, round_, Path(folder))
        return read_model(Path(folder), f"round {record.round}")


def promote(
    round_: Annotated[
        int | None, typer.Option("--round", min=0, help="The chosen one where none is named.")
    ] = None,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    force: Annotated[
        bool, typer.Option("--force", help="Make it the champion though validation is against it.")
    ] = False,
) -> None:
    """Register a round's model in MLflow as hnm-<cohort>, and make it champion or challenger."""
    from hnm.errors import PredictionError
    from hnm.models import registry
    from hnm.project import project_root

    if alias not in ("champion", "challenger"):
        raise PredictionError(f"--alias {alias} is neither champion nor challenger")
    promoted = registry.promote(
        project_root(), round_, "champion" if alias == "champion" else "challenger", force=force
    )
    before = f"; it was version {promoted.was}" if promoted.was else ""
    typer.echo(
        f"models:/{promoted.name}@{promoted.alias} is version {promoted.version}, round"
        f" {promoted.round}{before}"
    )


def export(
    out: Annotated[Path, typer.Argument(help="New or empty folder.")],
    round_: Annotated[
        int | None, typer.Option("--round", min=0, help="The chosen one where none is named.")
    ] = None,
) -> None:
    """Write a round's model as one folder of JSON and safetensors that `hnm predict --model` reads
    anywhere.
    """
    from hnm.errors import PredictionError
    from hnm.models.packaging import package_round
    from hnm.project import project_root

    if out.exists() and any(out.iterdir()):
        raise PredictionError(f"{out} is not empty; name a new folder")
    record = package_round(project_root(), round_, out)
    typer.echo(f"{out}: round {record.round} of {record.cohort}, threshold {record.threshold:g}")
