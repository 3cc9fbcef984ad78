"""The folder that `hnm predict` writes: the table of slides, as CSV and JSON, and a picture and
GeoJSON of each slide.

The row of a slide is written when the slide is done, so that whatever ends the command costs only
the slides that were not done. The same command goes on where it ended: a slide whose file, model
and settings are those of its row is not predicted again.
"""

import csv
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from PIL import Image

from hnm.causes import causes_of
from hnm.errors import PredictionError, TableError
from hnm.failpoints import failpoint
from hnm.files import TEMPORARY, digest_of, key_of, read_bounded, whole, write_json
from hnm.prediction.model import Model
from hnm.prediction.picture import heat_over
from hnm.prediction.region import prediction_geojson
from hnm.prediction.slide import (
    Prediction,
    Refusal,
    Unchanged,
    check_mask,
    machine_of,
    predict_slides,
)
from hnm.redaction import readable
from hnm.rows import MOST_BYTES
from hnm.slides.cohort.slide_names import kept_name, slide_ids_of, whole_source
from hnm.slides.reading.canvas import OriginParam
from hnm.tables import SLIDES, TILE_SCORES, Table, read_frame, safe_cell

PREDICTIONS = Table(
    "predictions",
    ("slide_id",),
    {
        "slide_id": SLIDES.columns["slide_id"],
        # absolute path, or URL without its query; what cannot be printed stands as escapes
        "source": pa.Column(str),
        # score and called are empty where the slide has no prediction
        "score": pa.Column(
            "float64", pa.Check.in_range(0, 1, error="must lie in [0, 1]"), nullable=True
        ),
        "called": pa.Column(str, nullable=True),  # the class at the threshold
        "threshold": pa.Column("float64"),
        "tiles": pa.Column("int64"),
        "mpp": pa.Column("float64", nullable=True),  # µm per level-0 pixel along x
        # of the file: size, header, OpenSlide's quickhash
        "fingerprint": pa.Column(str, nullable=True),
        "model": pa.Column(str),
        "model_digest": pa.Column(str),
        # digest of --mpp, the mask, the device, the code, the libraries and the machine
        "settings": pa.Column(str),
        "step": pa.Column(str, nullable=True),  # the step that the slide failed at
        "reason": pa.Column(str, nullable=True),
    },
)
TABLE = "predictions.csv"
STORY = "predictions.json"
KINDS = {name: str(column.dtype) for name, column in PREDICTIONS.columns.items()}
"""Column -> dtype."""
NUMBERS = ("score", "threshold", "tiles", "mpp")
NOTHING: Mapping[str, Any] = {name: None if name in NUMBERS else "" for name in KINDS}
"""The value of a column where a slide has none."""
OTHER_FOLDER = "name another folder by --out, or remove this one"
Row = Mapping[str, Any]
"""The row of a slide: column of `PREDICTIONS` -> text, or a number or None."""


def write_predictions(
    model: Model,
    slides: Sequence[str],
    folder: Path,
    *,
    mpp: float | None = None,
    mask: Path | None = None,
    origin: OriginParam = "auto",
    device: str | None = None,
    say: Callable[[str], None],
) -> None:
    """Predicts slides and writes all there is to see of them into `folder`. Each slide that is done
    is told to `say` in a line.

    `mpp`, `mask`, `origin` and `device` are those of `predict_slides`. Rows of slides that are not
    named stay.

    Raises:
        PredictionError: `folder` holds other things, or predictions of another model, or another
            command writes into it.
        MachineError: the machine failed. The rows of all slides that were done are written.
    """
    check_mask(mask, set(slides))
    machine = machine_of(model.record.compute, device)
    settings = key_of(
        mpp=mpp,
        mask=None if mask is None else [digest_of(mask), origin],
        device=[machine.device.type, machine.precision],
        causes=causes_of("hnm.prediction.slide", machine.device.type),
    )[:16]
    with _locked(folder):
        rows = _rows_of(folder, model)
        write_table(rows, model, folder)
        ids = slide_ids_of(
            map(whole_source, slides), {row["source"]: slide_id for slide_id, row in rows.items()}
        )
        done = {
            slide_id: rows[slide_id]["fingerprint"]
            for slide_id in ids
            if slide_id in rows and _is_done(rows[slide_id], settings, folder)
        }
        try:
            for outcome in predict_slides(
                model, ids, mpp=mpp, mask=mask, origin=origin, device=device, done=done
            ):
                slide_id = outcome.slide_id
                if isinstance(outcome, Unchanged):
                    say(f"{slide_id}\tdone before\tscore {rows[slide_id]['score']:.4f}")
                    continue
                line = _write_slide(outcome, model, folder)
                rows[slide_id] = row_of(outcome, model, settings)
                _append(rows[slide_id], folder / TABLE)
                say(readable(f"{slide_id}\t{line}", "\t"))
        finally:
            write_table(rows, model, folder)


def _write_slide(outcome: Prediction | Refusal, model: Model, folder: Path) -> str:
    """Writes the files of a slide that is predicted and removes those of one that is not. Returns a
    line about it.
    """
    paths = files_of(outcome.slide_id, folder)
    if isinstance(outcome, Refusal):
        for path in paths:
            path.unlink(missing_ok=True)  # they show what the file was before
        return f"not predicted\t{outcome.error}"
    read = outcome.read
    picture, areas, scores = paths
    with whole(picture) as temporary:
        Image.fromarray(heat_over(read.overview, outcome.tiles, read.aspect)).save(temporary)
    corner = read.canvas.corner("bounds")
    write_json(
        prediction_geojson(outcome.tiles, read.aspect, model.record.classes[1], corner), areas
    )
    TILE_SCORES.write(outcome.tiles, scores)
    return (
        f"{outcome.called}\tscore {outcome.score:.4f} (threshold"
        f" {model.record.threshold:.4f}), {len(outcome.tiles)} tiles"
    )


def files_of(slide_id: str, folder: Path) -> tuple[Path, Path, Path]:
    """Returns the files of a slide that is predicted: the picture of its scores over the overview,
    the GeoJSON of its region and top tiles, and the scores of all its tiles.
    """
    return (
        folder / f"{slide_id}.png",
        folder / f"{slide_id}.geojson",
        folder / f"{slide_id}.tiles.parquet",
    )


def _is_done(row: Row, settings: str, folder: Path) -> bool:
    """Returns whether a slide need not be predicted again while its file is the same."""
    return (
        row["score"] is not None
        and row["settings"] == settings
        and all(path.is_file() for path in files_of(row["slide_id"], folder))
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Refuses other commands that would write into `folder` while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PredictionError(
                f"another hnm predict writes into {folder}; wait for it, or name another folder by"
                " --out"
            ) from None
        yield
    finally:
        os.close(handle)


def _rows_of(folder: Path, model: Model) -> dict[str, Row]:
    """Returns the rows of the table in `folder` by slide id. Refuses a folder that holds other
    things, or predictions of another model.
    """
    table = folder / TABLE
    if not table.exists() and not table.is_symlink():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(TEMPORARY):
                raise PredictionError(
                    f"{folder} holds other things ({readable(path.name)}) and no {TABLE}; name a"
                    " new or empty folder by --out"
                )
        return {}
    rows = _read_rows(table)
    for row in rows.values():
        if row["model_digest"] != model.digest:
            raise PredictionError(
                f"{folder} holds predictions of another model, {readable(row['model'])} of digest"
                f" {row['model_digest'][:16]}, not of {model.name} of digest {model.digest[:16]};"
                f" {OTHER_FOLDER}"
            )
    return rows


def _read_rows(path: Path) -> dict[str, Row]:
    """Returns the rows of a table of predictions by slide id. A last row that was cut off is left
    out; of two rows of a slide the later one counts.
    """
    content = read_bounded(
        path, PredictionError, what=str(path), cure=f"; {OTHER_FOLDER}", most=MOST_BYTES
    )
    # `readable` sees to it that no cell holds the end of a line
    content = content[: content.rfind(b"\n") + 1]
    try:
        frame = read_frame(
            content, KINDS, str(path), check=lambda names: _check_columns(names, path)
        ).drop_duplicates("slide_id", keep="last")
        PREDICTIONS.check(frame, str(path))
    except TableError as error:
        raise PredictionError(f"{error}; {OTHER_FOLDER}") from None
    rows = [
        {str(name): NOTHING[str(name)] if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    return {row["slide_id"]: row for row in rows}


def _check_columns(names: Sequence[str], path: Path) -> None:
    """Refuses a table with other columns."""
    if list(names) != list(KINDS):
        raise TableError(
            f"{path} is no table of predictions of this version of hnm: its columns are not"
            f" {', '.join(KINDS)}"
        )


def _append(row: Row, path: Path) -> None:
    """Adds a row at the end of the table. It is on the disk when this returns."""
    failpoint("predictions.appending", path)
    with path.open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow(
            safe_cell(value) if isinstance(value, str) else value for value in row.values()
        )
        stream.flush()
        os.fsync(stream.fileno())
    failpoint("predictions.appended", path)


def row_of(outcome: Prediction | Refusal, model: Model, settings: str) -> Row:
    """Returns the row of a slide in the table `PREDICTIONS`."""
    row = {
        **NOTHING,
        "slide_id": outcome.slide_id,
        "source": kept_name(outcome.source),
        "threshold": model.record.threshold,
        "tiles": 0,
        "model": readable(model.name),
        "model_digest": model.digest,
        "settings": settings,
    }
    if isinstance(outcome, Refusal):
        return {**row, "step": outcome.error.step, "reason": readable(str(outcome.error))}
    return {
        **row,
        "score": float(outcome.score),
        "called": outcome.called,
        "tiles": len(outcome.tiles),
        "mpp": float(outcome.read.mpp.x),
        "fingerprint": outcome.read.fingerprint,
    }


def write_table(rows: Mapping[str, Row], model: Model, folder: Path) -> None:
    """Writes `predictions.csv`, and `predictions.json` with the same rows and the record of the
    model, which names the versions of its data.
    """
    kinds = {name: kind for name, kind in KINDS.items() if name in NUMBERS or not rows}
    frame = pd.DataFrame(list(rows.values()), columns=list(KINDS)).astype(kinds)
    PREDICTIONS.write(frame, folder / TABLE)
    record = {
        "name": readable(model.name),
        "digest": model.digest,
        **model.record.model_dump(mode="json"),
    }
    slides = [rows[slide_id] for slide_id in sorted(rows)]
    write_json({"model": record, "slides": slides}, folder / STORY)
