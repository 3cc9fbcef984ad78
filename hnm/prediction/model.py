"""A model folder: all that is needed to predict a slide, in JSON and safetensors.

    model.json                                how slides are cut, the threshold, and what the model
    was made of encoder/encoder.json, weights.safetensors
    head/head.json, weights.safetensors

Nothing else may lie in it, and nothing in it is ever run: a pickle is refused, whatever its name.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from hnm.errors import PredictionError
from hnm.evidence.numbers.threshold import ABOVE_ALL
from hnm.files import key_of, parse_json, read_bounded, whole, write_json
from hnm.learning.encoder import TileEncoder, encoder_of
from hnm.learning.heads import Head, head_of
from hnm.learning.weights import FILE, MOST_RECORD, MOST_WEIGHTS, Parts
from hnm.params import Compute, Embed, Section, Tiles, Tissue, batch_fault
from hnm.redaction import readable

RECORD = "model.json"
FILES = (
    RECORD,
    *(
        f"{part}/{name}"
        for part in ("encoder", "head")
        for name in (f"{part}.json", "weights.safetensors")
    ),
)
"""All files of a model folder."""
CLASSES = ("negative", "positive")
"""What the labels 0 and 1 are called."""
MOST_TEXT = 255
MOST_ENTRIES = 100
"""Of a folder, that are looked at."""
CURE = "; take the folder anew from where it was made"


class ModelRecord(Section):
    """What must be known beside the weights to predict a slide, and to tell what the model was made
    of.
    """

    form: Literal[1] = 1
    """Of this file; a later form is for a later version of hnm."""
    cohort: str
    round: str
    classes: tuple[str, str] = CLASSES
    threshold: Annotated[float, Field(ge=0, le=ABOVE_ALL)]
    """The score from which a slide is called `classes[1]`, chosen on validation; above 1 where no
    score is (`choose_threshold`).
    """
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
    """Of the repository that the model was taken from; `-dirty` at its end where tracked files
    differed.
    """


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


def write_model(
    record: ModelRecord, encoder: Mapping[str, Path], head: Mapping[str, Path], folder: Path
) -> None:
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
                raise PredictionError(
                    f"the {part} has no {name}, but a model needs it; run the stage that makes it"
                    " (dvc repro)"
                )
            with whole(folder / part / name) as temporary:
                shutil.copyfile(files[name], temporary)
    write_json(record.model_dump(mode="json"), folder / RECORD)


def read_record(folder: Path) -> ModelRecord:
    """The record of a model folder; `PredictionError` where it is none, or holds a file that is not
    a model's.
    """
    _check_listing(folder)
    return _record_of(_bytes_of(folder, RECORD), folder / RECORD)


def read_model(folder: Path, name: str) -> Model:
    """The model in `folder`, called `name`; `HnmError` where a file is missing, unknown, or not
    what its name says.

    Each file is read once, and the model's digest is of the bytes that the model is made of.
    """
    _check_listing(folder)
    files = {file: _bytes_of(folder, file) for file in FILES}
    record = _record_of(files[RECORD], folder / RECORD)
    digest = key_of(
        files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    )
    parts = {
        part: Parts(
            str(folder / part), files.pop(f"{part}/{part}.json"), files.pop(f"{part}/{FILE}")
        )
        for part in ("encoder", "head")
    }
    encoder, head = encoder_of(parts.pop("encoder")), head_of(parts.pop("head"))
    if encoder.record.features != len(head.mean):
        raise PredictionError(
            f"{folder}: its encoder gives {encoder.record.features} numbers a tile, but its head"
            f" takes {len(head.mean)}{CURE}"
        )
    return Model(record, encoder, head, digest, name)


def _check_listing(folder: Path) -> None:
    """Raises `PredictionError` where anything lies in the folder but the files of a model: links
    and named pipes are no files.
    """
    if folder.exists() and not folder.is_dir():
        raise PredictionError(f"{folder} is no folder; name the folder that `hnm export` wrote")
    there: set[str] = set()
    for inner in ("", "encoder", "head"):
        place = folder / inner
        if place.is_symlink() and inner:
            raise PredictionError(
                f"{folder} holds a link, {inner}, in the place of a folder; copy what it leads to"
                " there (cp -rL)"
            )
        for entry in itertools.islice(os.scandir(place), MOST_ENTRIES) if place.is_dir() else ():
            name = Path(inner, entry.name).as_posix()
            if name in ("encoder", "head") and entry.is_dir(follow_symlinks=False):
                continue
            if name in FILES and not entry.is_file(follow_symlinks=False):
                raise PredictionError(
                    f"{folder} holds {name}, which is no regular file but a link, a folder or a"
                    " pipe; copy the file itself there (cp -rL)"
                )
            there.add(name)
    if missing := sorted(set(FILES) - there):
        raise PredictionError(
            f"{folder} is no model folder: it lacks {', '.join(missing)}; `hnm promote` and `hnm"
            " export` write whole ones"
        )
    if unknown := sorted(there - set(FILES)):
        named = readable(", ".join(unknown[:5]))
        raise PredictionError(
            f"{folder} holds {named}, which no model of hnm has; it is not read, as a file from"
            " elsewhere may run code"
        )


def _bytes_of(folder: Path, file: str) -> bytes:
    most = MOST_WEIGHTS if file.endswith(FILE) else MOST_RECORD
    return read_bounded(
        folder / file, PredictionError, what=str(folder / file), cure=CURE, most=most
    )


def _record_of(content: bytes, path: Path) -> ModelRecord:
    parse_json(
        content, PredictionError, what=str(path), cure=CURE
    )  # which refuses numbers that are none
    try:
        record = ModelRecord.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PredictionError(
            f"{path} is no record of a model: {where}: {first['msg']}{CURE}"
        ) from None
    if fault := _fault(record):
        raise PredictionError(f"{path} is no record of a model: {fault}{CURE}")
    return record


def _fault(record: ModelRecord) -> str | None:
    """What of a record would cost the machine more than any model does, or cannot be printed; None
    where nothing.
    """
    if fault := batch_fault(record.embed, record.tiles):
        return fault
    texts = {
        "cohort": record.cohort,
        "round": record.round,
        "classes": record.classes[0],
        "classes.1": record.classes[1],
        "commit": record.commit or "-",
    }
    for name, text in (
        *texts.items(),
        *((f"versions.{path}", md5) for path, md5 in record.versions.items()),
    ):
        if not text or len(text) > MOST_TEXT or not text.isprintable() or not name.isprintable():
            return (
                f"{name[:80]!r}: {text[:80]!r} is no text of 1 to {MOST_TEXT} characters that can"
                " be printed"
            )
    if record.classes[0] == record.classes[1]:
        return f"both classes are called {record.classes[0]!r}"
    return None
