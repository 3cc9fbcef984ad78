"""A model folder: all that is needed to predict a slide, in JSON and safetensors.

    model.json                                how slides are cut, the threshold, and what the model was made of
    encoder/encoder.json, weights.safetensors
    head/head.json, weights.safetensors

Nothing else may lie in it, and nothing in it is ever run: a pickle is refused, whatever its name.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hnm.errors import PredictionError
from hnm.files import digest_of, whole, write_json
from hnm.learning.encoder import TileEncoder, load_encoder
from hnm.learning.heads import Head, load_head
from hnm.params import Compute, Embed, Section, Share, Tiles, Tissue

RECORD = "model.json"
FILES = (RECORD, *(f"{part}/{name}" for part in ("encoder", "head") for name in (f"{part}.json", "weights.safetensors")))
"""All files of a model folder."""
CLASSES = ("negative", "positive")
"""What the labels 0 and 1 are called."""


class ModelRecord(Section):
    """What must be known beside the weights to predict a slide, and to tell what the model was made of."""

    form: Literal[1] = 1
    """Of this file; a later form is for a later version of hnm."""
    cohort: str
    round: str
    classes: tuple[str, str] = CLASSES
    threshold: Share
    """The score from which a slide is called `classes[1]`, chosen on validation."""
    mpp_from_objective: bool
    """As `cohort.mpp_from_objective`."""
    tissue: Tissue
    tiles: Tiles
    embed: Embed
    compute: Compute
    validation: dict[str, float] = Field(default_factory=dict)
    """Numbers of the round on validation: `auc`, `auc_low`, `auc_high`, `log_loss`."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Path of each data version that the model comes from -> DVC's md5."""
    commit: str | None = None
    """Of the repository that the model was taken from; `-dirty` at its end where tracked files differed."""


@dataclass(frozen=True)
class Model:
    """A model that is ready to predict."""

    record: ModelRecord
    encoder: TileEncoder
    head: Head
    digest: str
    """SHA-256 of the model folder: equal digests are equal models."""
    name: str
    """How its user called it: `round 2`, `models:/hnm-demo@champion`."""


def write_model(record: ModelRecord, encoder: Mapping[str, Path], head: Mapping[str, Path], folder: Path) -> None:
    """Writes a model folder.

    Args:
        record: goes into `model.json`.
        encoder: the encoder's files by name; other files than those that predict are left out.
        head: the head's, likewise.
        folder: new or empty.

    Raises:
        PredictionError: a file is missing.
    """
    for part, files in (("encoder", encoder), ("head", head)):
        for name in (f"{part}.json", "weights.safetensors"):
            if name not in files:
                raise PredictionError(f"the {part} has no {name}, but a model needs it; run the stage that makes it (dvc repro)")
            with whole(folder / part / name) as temporary:
                shutil.copyfile(files[name], temporary)
    write_json(record.model_dump(mode="json"), folder / RECORD)


def read_record(folder: Path) -> ModelRecord:
    """The record of a model folder; `PredictionError` where it is none, or holds a file that is not a model's."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if missing := sorted(set(FILES) - found):
        raise PredictionError(f"{folder} is no model folder: it lacks {', '.join(missing)}; `hnm promote` and `hnm export` write whole ones")
    if unknown := sorted(found - set(FILES)):
        raise PredictionError(f"{folder} holds {', '.join(unknown)}, which no model of hnm has; it is not read, as a file from elsewhere may run code")
    try:
        return ModelRecord.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PredictionError(f"{folder / RECORD} is no record of a model: {where}: {first['msg']}; take the folder anew from where it was made") from None


def read_model(folder: Path, name: str) -> Model:
    """The model in `folder`, called `name`; `HnmError` where a file is missing, unknown, or not what its name says."""
    record = read_record(folder)
    return Model(record, load_encoder(folder / "encoder"), load_head(folder / "head"), digest_of(folder), name)
