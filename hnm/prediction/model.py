"""A model folder: all that is needed to predict a slide, in JSON and safetensors.

    model.json      how slides are cut, the threshold, and what the model was made of
    encoder/        encoder.json, weights.safetensors
    head/           head.json, weights.safetensors

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

from pydantic import Field

from hnm.errors import PredictionError
from hnm.evidence.numbers.threshold import ABOVE_ALL
from hnm.files import key_of, read_bounded, whole, write_json
from hnm.learning.encoder import TileEncoder, encoder_of
from hnm.learning.heads import Head, head_of
from hnm.learning.weights import FILE, MOST_RECORD, MOST_WEIGHTS, Parts, parse_record
from hnm.params import Compute, Embed, Section, Tiles, Tissue, batch_fault
from hnm.redaction import readable

RECORD = "model.json"
PARTS = ("encoder", "head")
FILES = (RECORD, *(f"{part}/{name}" for part in PARTS for name in (f"{part}.json", FILE)))
"""All files of a model folder."""
CLASSES = ("negative", "positive")
"""Names of the labels 0 and 1."""
MOST_TEXT = 255
"""Most characters of a text in a record."""
MOST_ENTRIES = 100
"""Most entries of a folder that are looked at."""
CURE = "; take the folder anew from where it was made"


class ModelRecord(Section):
    """What must be known beside the weights to predict a slide, and to say what the model was made
    of.
    """

    form: Literal[1] = 1
    """The form of this file. A later version of hnm may write a later form."""
    cohort: str
    round: str
    classes: tuple[str, str] = CLASSES
    threshold: Annotated[float, Field(ge=0, le=ABOVE_ALL)]
    """The score from which on a slide is called `classes[1]`. It was chosen on validation, and is
    above 1 where no slide is to be called so (`choose_threshold`).
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
    """Path of each data that the model comes from -> DVC's md5."""
    commit: str | None = None
    """The commit of the repository that the model was taken from, with `-dirty` at its end where
    tracked files differed from it.
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
    """The name that its user called it by: `round 2`, `models:/hnm-demo@champion`."""


def write_model(
    record: ModelRecord, encoder: Mapping[str, Path], head: Mapping[str, Path], folder: Path
) -> None:
    """Writes a model folder.

    Args:
        record: goes into `model.json`.
        encoder: the files of the encoder by name. Those that predict nothing are left out.
        head: the files of the head, likewise.
        folder: new or empty.

    Raises:
        PredictionError: a file is missing.
    """
    for part, files in (("encoder", encoder), ("head", head)):
        for name in (f"{part}.json", FILE):
            if name not in files:
                raise PredictionError(
                    f"the {part} has no {name}, but a model needs it; run the stage that makes it"
                    " (dvc repro)"
                )
            with whole(folder / part / name) as temporary:
                shutil.copyfile(files[name], temporary)
    write_json(record.model_dump(mode="json"), folder / RECORD)


def read_record(folder: Path) -> ModelRecord:
    """Returns the record of a model folder. Refuses a folder that is none, or holds a file that no
    model has.
    """
    _check_listing(folder)
    return _record_of(_bytes_of(folder, RECORD), folder / RECORD)


def read_model(folder: Path, name: str) -> Model:
    """Returns the model in `folder`, called `name`. Refuses a folder in which a file is missing,
    unknown, or not what its name says.

    Each file is read once, so that the digest of the model is of the bytes that it is made of.
    """
    _check_listing(folder)
    files = {file: _bytes_of(folder, file) for file in FILES}
    record = _record_of(files[RECORD], folder / RECORD)
    digest = key_of(
        files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    )
    encoder = encoder_of(_parts(folder, "encoder", files))
    head = head_of(_parts(folder, "head", files))
    if encoder.record.features != len(head.mean):
        raise PredictionError(
            f"{folder}: its encoder gives {encoder.record.features} numbers a tile, but its head"
            f" takes {len(head.mean)}{CURE}"
        )
    return Model(record, encoder, head, digest, name)


def _parts(folder: Path, part: str, files: dict[str, bytes]) -> Parts:
    """Takes the files of the encoder or of the head out of `files`, so that their memory is freed
    once the encoder or the head is made.
    """
    record = files.pop(f"{part}/{part}.json")
    return Parts(str(folder / part), record, files.pop(f"{part}/{FILE}"))


def _check_listing(folder: Path) -> None:
    """Refuses a folder in which a file of a model is missing, or in which anything else lies. Links
    and named pipes are no files.
    """
    if folder.exists() and not folder.is_dir():
        raise PredictionError(f"{folder} is no folder; name the folder that `hnm export` wrote")
    names: set[str] = set()
    for part in ("", *PARTS):
        if part and (folder / part).is_symlink():
            raise PredictionError(
                f"{folder} holds a link, {part}, in the place of a folder; copy what it leads to"
                " there (cp -rL)"
            )
        if not (folder / part).is_dir():
            continue
        for entry in itertools.islice(os.scandir(folder / part), MOST_ENTRIES):
            name = Path(part, entry.name).as_posix()
            if name in FILES and not entry.is_file(follow_symlinks=False):
                raise PredictionError(
                    f"{folder} holds {name}, which is no regular file but a link, a folder or a"
                    " pipe; copy the file itself there (cp -rL)"
                )
            if name not in PARTS or not entry.is_dir(follow_symlinks=False):
                names.add(name)
    if missing := sorted(set(FILES) - names):
        raise PredictionError(
            f"{folder} is no model folder: it lacks {', '.join(missing)}; `hnm promote` and `hnm"
            " export` write whole ones"
        )
    if unknown := sorted(names - set(FILES)):
        raise PredictionError(
            f"{folder} holds {readable(', '.join(unknown[:5]))}, which no model of hnm has; it is"
            " not read, as a file from elsewhere may run code"
        )


def _bytes_of(folder: Path, file: str) -> bytes:
    """Returns the bytes of a file of the folder."""
    most = MOST_WEIGHTS if file.endswith(FILE) else MOST_RECORD
    return read_bounded(
        folder / file, PredictionError, what=str(folder / file), cure=CURE, most=most
    )


def _record_of(content: bytes, path: Path) -> ModelRecord:
    """Returns the checked record of the file `path`."""
    record = parse_record(
        ModelRecord, content, PredictionError, what=str(path), noun="record of a model", cure=CURE
    )
    if fault := _fault(record):
        raise PredictionError(f"{path} is no record of a model: {fault}{CURE}")
    return record


def _fault(record: ModelRecord) -> str | None:
    """Returns a sentence about what would cost the machine more than any model does, or cannot be
    printed; None where nothing does.
    """
    if fault := batch_fault(record.embed, record.tiles):
        return fault
    if record.classes[0] == record.classes[1]:
        return f"both classes are called {record.classes[0]!r}"
    texts = {
        "cohort": record.cohort,
        "round": record.round,
        "classes": record.classes[0],
        "classes.1": record.classes[1],
        "commit": record.commit or "-",
        **{f"versions.{path}": md5 for path, md5 in record.versions.items()},
    }
    for name, text in texts.items():
        if not text or len(text) > MOST_TEXT or not text.isprintable() or not name.isprintable():
            return (
                f"{name[:80]!r}: {text[:80]!r} is no text of 1 to {MOST_TEXT} characters that can"
                " be printed"
            )
    return None
