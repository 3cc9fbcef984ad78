"""What `hnm predict` leaves in its folder: the table, the whole story as JSON, and a picture and
GeoJSON of each slide.

A slide's row is written when the slide is done, so that whatever ends the command costs the slides
that were not. The same command goes on where it ended: a slide whose file, model and settings are
those of its row is not predicted again.
"""

import csv
import fcntl
import io
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
        "source": pa.Column(
            str
        ),  # absolute path, or URL without its query; what cannot be printed as escapes
        "score": pa.Column(
            "float64", pa.Check.in_range(0, 1, error="must lie in [0, 1]"), nullable=True
        ),  # empty, as the next one, where the slide has no prediction
        "called": pa.Column(str, nullable=True),  # the class at the threshold
        "threshold": pa.Column("float64"),
        "tiles": pa.Column("int64"),
        "mpp": pa.Column("float64", nullable=True),  # µm per level-0 pixel along x
        "fingerprint": pa.Column(
            str, nullable=True
        ),  # of the file: size, header, OpenSlide's quickhash
        "model": pa.Column(str),
        "model_digest": pa.Column(str),
        "settings": pa.Column(
            str
        ),  # digest of --mpp, the mask, the device, the code, the libraries and the machine
        "step": pa.Column(str, nullable=True),  # that the slide failed
        "reason": pa.Column(str, nullable=True),
    },
)
TABLE, STORY = "predictions.csv", "predictions.json"
NUMBERS = ("score", "threshold", "tiles", "mpp")
OTHER_FOLDER = "name another folder by --out, or remove this one"


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
    """Predicts slides and writes all there is to see of them into `folder`; a line for each slide
    goes to `say` when it is done.

    `mpp`, `mask`, `origin` and `device` are those of `predict_slides`. Rows of slides that are not
    named stay.

    Raises:
        PredictionError: `folder` holds other things, or predictions of another model, or another
        command writes into it. MachineError: the machine failed; the rows of all slides that were
        done are written.
    """
    check_mask(mask, set(slides))
    machine = machine_of(model.record.compute, device)
    settings = key_of(
        mpp=mpp,
        mask=None if mask is None else [digest_of(mask), origin],
        device=[machine.device.type, machine.precision],
        causes=causes_of("hnm.prediction.slide", machine.device.type),
    )[:16]
    with _rows_of(folder, model) as rows:
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
                if isinstance(outcome, Unchanged):
                    say(
                        f"{outcome.slide_id}\tdone before\tscore"
                        f" {rows[outcome.slide_id]['score']:.4f}"
                    )
                    continue
                rows[outcome.slide_id], line = _written(outcome, model, folder, settings)
                _append(rows[outcome.slide_id], folder / TABLE)
                say(readable(line, "\t"))
        finally:
            write_table(list(rows.values()), model, folder)


def _written(
    outcome: Prediction | Refusal, model: Model, folder: Path, settings: str
) -> tuple[dict[str, Any], str]:
    """Writes the files of a slide; its row, and a line that tells of it."""
    if isinstance(outcome, Prediction):
        write_slide(outcome, model, folder)
        row = row_of(outcome, model, settings)
        return (
            row,
            (
                f"{outcome.slide_id}\t{outcome.called}\tscore {outcome.score:.4f} (threshold"
                f" {model.record.threshold:.4f}), {len(outcome.tiles)} tiles"
            ),
        )
    for path in files_of(outcome.slide_id, folder):
        path.unlink(missing_ok=True)  # of what the file was before
    return row_of(outcome, model, settings), f"{outcome.slide_id}\tnot predicted\t{outcome.error}"


def files_of(slide_id: str, folder: Path) -> tuple[Path, Path, Path]:
    """The files of a slide that is predicted: picture, areas, and the scores of its tiles."""
    return (
        folder / f"{slide_id}.png",
        folder / f"{slide_id}.geojson",
        folder / f"{slide_id}.tiles.parquet",
    )


def _is_done(row: Mapping[str, Any], settings: str, folder: Path) -> bool:
    return (
        bool(row["fingerprint"])
        and row["score"] is not None
        and row["settings"] == settings
        and all(path.is_file() for path in files_of(row["slide_id"], folder))
    )


@contextmanager
def _rows_of(folder: Path, model: Model) -> Iterator[dict[str, dict[str, Any]]]:
    """The rows that `folder` has, by slide id, while no other command may write into it; a last row
    that was cut off is taken out of its table.
    """
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
        if (folder / TABLE).exists() or (folder / TABLE).is_symlink():
            rows = _read_rows(folder / TABLE)
        elif others := sorted(
            path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)
        ):
            raise PredictionError(
                f"{folder} holds other things ({readable(others[0])}) and no {TABLE}; name a new or"
                " empty folder by --out"
            )
        else:
            rows = {}
        if wrong := next(
            (row for row in rows.values() if row["model_digest"] != model.digest), None
        ):
            raise PredictionError(
                f"{folder} holds predictions of another model, {readable(wrong['model'])} of digest"
                f" {wrong['model_digest'][:16]}, not of {model.name} of digest {model.digest[:16]};"
                f" {OTHER_FOLDER}"
            )
        write_table(list(rows.values()), model, folder)
        yield rows
    finally:
        os.close(handle)


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a table of predictions, as `row_of` gives them, without a last one that has no
    end; `PredictionError` where it is none.
    """
    content = read_bounded(
        path, PredictionError, what=str(path), cure=f"; {OTHER_FOLDER}", most=MOST_BYTES
    )
    content = content[
        : content.rfind(b"\n") + 1
    ]  # no cell holds the end of a line: `readable` sees to it
    kinds = {name: str(column.dtype) for name, column in PREDICTIONS.columns.items()}
    try:
        frame = read_frame(
            content, kinds, str(path), check=lambda names: _check_columns(names, path)
        )
        frame = frame.drop_duplicates("slide_id", keep="last")
        PREDICTIONS.check(frame, str(path))
    except TableError as error:
        raise PredictionError(f"{error}; {OTHER_FOLDER}") from None
    missing: dict[str, Any] = {name: None if name in NUMBERS else "" for name in kinds}
    rows = [
        {str(name): missing[str(name)] if pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    return {str(row["slide_id"]): row for row in rows}


def _check_columns(names: Sequence[str], path: Path) -> None:
    if list(names) != list(PREDICTIONS.columns):
        raise TableError(
            f"{path} is no table of predictions of this version of hnm: its columns are not"
            f" {', '.join(PREDICTIONS.columns)}"
        )


def _append(row: Mapping[str, Any], path: Path) -> None:
    """Adds a row at the end of the table, on the disk when this returns; where a slide has two
    rows, the later one counts.
    """
    line = io.StringIO()
    cells = [
        (
            ""
            if row[name] is None
            else safe_cell(row[name])
            if isinstance(row[name], str)
            else repr(row[name])
        )
        for name in PREDICTIONS.columns
    ]
    csv.writer(line, lineterminator="\n").writerow(cells)
    failpoint("predictions.appending", path)
    with path.open("ab", buffering=0) as stream:
        content = line.getvalue().encode()
        while content:
            content = content[stream.write(content) :]
        os.fsync(stream.fileno())
    failpoint("predictions.appended", path)


def write_slide(prediction: Prediction, model: Model, folder: Path) -> None:
    """`<slide_id>.png` (scores over the overview), `<slide_id>.geojson` (region and top tiles) and
    `<slide_id>.tiles.parquet` (all scores).
    """
    read, tiles = prediction.read, prediction.tiles
    picture, areas, scores = files_of(prediction.slide_id, folder)
    with whole(picture) as temporary:
        Image.fromarray(heat_over(read.overview, tiles, read.aspect)).save(temporary)
    write_json(
        prediction_geojson(
            tiles, read.aspect, model.record.classes[1], read.canvas.corner("bounds")
        ),
        areas,
    )
    TILE_SCORES.write(tiles, scores)


def row_of(outcome: Prediction | Refusal, model: Model, settings: str) -> dict[str, Any]:
    """The row of a slide in the table `PREDICTIONS`: texts, and numbers or None."""
    row = {
        "slide_id": outcome.slide_id,
        "source": kept_name(outcome.source),
        "score": None,
        "called": "",
        "threshold": model.record.threshold,
        "tiles": 0,
        "mpp": None,
        "fingerprint": "",
        "model": readable(model.name),
        "model_digest": model.digest,
        "settings": settings,
        "step": "",
        "reason": "",
    }
    if isinstance(outcome, Refusal):
        return {**row, "step": outcome.error.step, "reason": readable(str(outcome.error))}
    read = outcome.read
    numbers = {
        "score": float(outcome.score),
        "tiles": len(outcome.tiles),
        "mpp": float(read.mpp[0]),
    }
    return {**row, **numbers, "called": outcome.called, "fingerprint": read.fingerprint}


def write_table(rows: Sequence[Mapping[str, Any]], model: Model, folder: Path) -> None:
    """`predictions.csv`, and `predictions.json`, which also holds the model's record with its data
    versions.
    """
    frame = _frame(rows)
    PREDICTIONS.write(frame, folder / TABLE)
    record = {
        "name": readable(model.name),
        "digest": model.digest,
        **model.record.model_dump(mode="json"),
    }
    slides = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.sort_values("slide_id").to_dict("records")
    ]
    write_json({"model": record, "slides": slides}, folder / STORY)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    kinds = {name: str(column.dtype) for name, column in PREDICTIONS.columns.items()}
    return pd.DataFrame(rows, columns=list(PREDICTIONS.columns)).astype(
        {name: kind for name, kind in kinds.items() if name in NUMBERS or not rows}
    )
