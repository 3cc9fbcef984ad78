"""The registered model `hnm-<cohort>`: which version of it is the champion, and why."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hnm.errors import PredictionError, TrackingError
from hnm.files import digest_of
from hnm.models.packaging import cards_of, package_round
from hnm.prediction.model import Model, ModelRecord, read_model
from hnm.repository.outputs import taking_apart
from hnm.repository.stages import current_stages, locked_stages, stage_in
from hnm.tracking.connection import connect, experiment_id_of, has_store, store_errors, tracking_uri
from hnm.tracking.lookup import finished_run
from hnm.tracking.record import first_line
from hnm.tracking.replay import sync
from hnm.tracking.summary import state_key
from hnm.tracking.time_limits import RECEIVE_SECONDS, within

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]
LOGGED = "slide_classifier"
"""Type of the logged model."""


@dataclass(frozen=True)
class Promoted:
    """A version of the registered model, and what it is called now."""

    name: str
    version: str
    alias: Alias
    round: str
    was: str | None
    """The version that had the alias before, where it was another."""


def promote(root: Path, round_: int | None, alias: Alias, *, force: bool) -> Promoted:
    """Registers a round's model, once, and gives it the alias.

    Args:
        root: the repository.
        round_: the round; None takes the one that validation has chosen.
        alias: a challenger may be anything; a champion may not be worse on validation than the
            lower end of the present champion's interval.
        force: makes it the champion all the same.

    Raises:
        PredictionError: the round has no model, or is no better champion.
        TrackingError: the registry does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="hnm-promote-") as temporary:
        folder = Path(temporary) / "model"
        record = package_round(root, round_, folder)
        try:
            sync(root)
            client = connect(root)
            name = f"hnm-{record.cohort}"
            tags = _tags(root, record, digest_of(folder))
            champion = _version_at(client, name, "champion")
            if alias == "champion" and champion is not None and not force:
                _refuse_worse(record, tags, champion)
            holder = _version_at(client, name, alias)
            version = _registered(client, name, tags["hnm.model_digest"])
            if version is None:
                version = _register(root, client, record, tags, folder)
            client.set_registered_model_alias(name, alias, version.version)
        except store_errors() as error:
            raise TrackingError(
                f"MLflow at {tracking_uri(root)} does not take the model: {first_line(error)};"
                " promote it again when it does"
            ) from None
    was = None if holder is None or holder.version == version.version else str(holder.version)
    return Promoted(name, str(version.version), alias, record.round, was)


def _refuse_worse(record: ModelRecord, tags: Mapping[str, str], champion: "ModelVersion") -> None:
    if reason := why_not(tags, champion.tags):
        raise PredictionError(
            f"round {record.round} is no champion: {reason} (version {champion.version});"
            " take --alias challenger, or insist by --force"
        )


def why_not(candidate: Mapping[str, str], champion: Mapping[str, str]) -> str | None:
    """Why the model with the tags `candidate` may not follow the champion with its own; None where
    it may.
    """
    labels = candidate["hnm.validation_labels"]
    champion_labels = champion.get("hnm.validation_labels", "none")
    if labels != champion_labels:
        return (
            f"it was validated on labels of md5 {labels[:8]}, the champion on"
            f" {champion_labels[:8]}, so that their AUCs cannot be compared"
        )
    auc = candidate.get("hnm.validation_auc")
    low = champion.get("hnm.validation_auc_low")
    high = champion.get("hnm.validation_auc_high")
    if auc is None or low is None:
        return "one of the two has no validation AUC"
    if float(auc) < float(low):
        return f"its validation AUC {auc} lies below the champion's interval, {low} to {high}"
    return None


def registered_model(root: Path, uri: str) -> Model:
    """The model at `models:/<name>@<alias>`, `models:/<name>/<version>` or `models:/<id>`, from the
    registry alone; nothing of it is run.

    Raises:
        PredictionError: the registry has no such model, or it is none of hnm's.
    """
    from hnm.models.predictor import default_store, fetch_model

    if not has_store(root):
        raise PredictionError(
            f"there is no registry: {tracking_uri(root)} does not exist; run in the repository, or"
            " set MLFLOW_TRACKING_URI to the team's server"
        )
    with tempfile.TemporaryDirectory(prefix="hnm-model-") as temporary:
        folder = Path(temporary).resolve()
        try:
            client = connect(root)
            name = uri
            if "@" in uri:
                registered, _, alias = uri.removeprefix("models:/").partition("@")
                version = client.get_model_version_by_alias(registered, alias)
                name = f"models:/{registered}/{version.version}"
            with default_store(tracking_uri(root)), within(RECEIVE_SECONDS):
                place = fetch_model(name, folder)
            if not place.resolve().is_relative_to(folder):
                raise PredictionError(
                    f"the files of {uri} lie outside of the folder that they were brought into; do"
                    f" not trust {tracking_uri(root)}"
                )
            return read_model(place, name)
        except store_errors() as error:
            raise PredictionError(
                f"{uri} cannot be had from {tracking_uri(root)}: {first_line(error)}; `hnm promote`"
                " registers models"
            ) from None


def model_of_run(root: Path, run_id: str) -> str:
    """`models:/<id>` of the slide classifier that was taken from the state whose summary is
    `run_id`.

    Raises:
        PredictionError: there is no such run, or no model was taken from it.
    """
    try:
        client = connect(root)
        experiment = client.get_run(run_id).info.experiment_id
        models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    except store_errors() as error:
        raise PredictionError(
            f"the run {run_id} cannot be had from {tracking_uri(root)}: {first_line(error)}"
        ) from None
    for model in models:
        if model.model_type == LOGGED:
            return f"models:/{model.model_id}"
    raise PredictionError(
        f"no whole model was taken from the run {run_id}: it needs encoder, head and threshold;"
        " `hnm promote` takes one from a state"
    )


def _tags(root: Path, record: ModelRecord, digest: str) -> dict[str, str]:
    """The tags of a version, which the registry's page shows."""
    head = stage_in(locked_stages(root), f"head@{record.round}")
    with taking_apart("dvc.lock"):
        tags = {
            "hnm.round": record.round,
            "hnm.head": record.versions[head.argument("folder")],
            "hnm.model_digest": digest,
            "hnm.threshold": str(record.threshold),
            "hnm.validation_labels": record.versions[head.argument("validation_labels")],
        }
    for metric, value in record.validation.items():
        tags[f"hnm.validation_{metric}"] = str(value)
    return tags


def _version_at(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    models = client.search_registered_models(f"name = '{name}'")
    version = models[0].aliases.get(alias) if models else None
    return None if version is None else client.get_model_version(name, version)


def _registered(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """The version that is this very model already."""
    query = f"name = '{name}' and tags.`hnm.model_digest` = '{digest}'"
    versions = client.search_model_versions(query)
    return versions[0] if versions else None


def _register(
    root: Path, client: "MlflowClient", record: ModelRecord, tags: dict[str, str], folder: Path
) -> "ModelVersion":
    from hnm.models.predictor import default_store, save_predictor

    package = folder.parent / "mlflow"
    save_predictor(folder, package)
    cards = cards_of(root, record.round)
    for file, card in cards.items():
        shutil.copyfile(card, package / file)
    description = None
    if "model_card.md" in cards:
        description = cards["model_card.md"].read_text(encoding="utf-8")
    key = state_key(current_stages(locked_stages(root)))
    summary = finished_run(client, record.cohort, "hnm.state_key", key)
    run_id = None if summary is None else summary.info.run_id
    model = client.create_logged_model(
        experiment_id_of(client, root, record.cohort),
        name=f"{LOGGED}_r{record.round}",
        source_run_id=run_id,
        tags=tags,
        model_type=LOGGED,
    )
    client.log_model_artifacts(model.model_id, str(package))
    client.finalize_logged_model(model.model_id, "READY")
    name = f"hnm-{record.cohort}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    with default_store(tracking_uri(root)):
        return client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run_id=run_id,
            tags=tags,
            model_id=model.model_id,
            description=description,
        )
