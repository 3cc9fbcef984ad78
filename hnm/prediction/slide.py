"""Slides to scores: read in worker processes, encoded and scored here, with the very steps of the
pipeline.
"""

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hnm.errors import PredictionError, SlideError
from hnm.evidence.numbers.threshold import called
from hnm.learning.compute import Machine, set_up_torch
from hnm.learning.embed import embed
from hnm.learning.predict import predict
from hnm.params import Compute
from hnm.prediction.model import Model
from hnm.prediction.reading import Reading, SlideRead, read_slide
from hnm.slides.cutting.pack import Pack
from hnm.slides.drawings import warn_of_origins, warn_of_places
from hnm.slides.reading.canvas import OriginParam
from hnm.slides.reading.urls import place_of
from hnm.slides.workers import each


@dataclass(frozen=True)
class Prediction:
    """What a model says of one slide."""

    slide_id: str
    source: str
    """Path or URL of its file, as the user gave it."""
    score: float
    called: str
    """The class that the score is called at the model's threshold."""
    tiles: pd.DataFrame
    """The table `TILE_SCORES`."""
    read: SlideRead


@dataclass(frozen=True)
class Refusal:
    """Why a slide has no prediction."""

    slide_id: str
    source: str
    """Path or URL of its file, as the user gave it."""
    error: SlideError


@dataclass(frozen=True)
class Unchanged:
    """A slide that was predicted before, and whose file is still the same."""

    slide_id: str
    source: str
    """Path or URL of its file, as the user gave it."""


def predict_slides(
    model: Model,
    slides: Mapping[str, str],
    *,
    mpp: float | None = None,
    mask: Path | None = None,
    origin: OriginParam = "auto",
    device: str | None = None,
    done: Mapping[str, str] | None = None,
) -> Iterator[Prediction | Refusal | Unchanged]:
    """What `model` says of each slide, in order of completion; a slide that cannot be used is
    refused with its reason, and the others go on.

    Args:
        model: the model; a slide of its cohort gets the very scores that the pipeline gave it, on
        the same device and number of threads,
            and with the mask and the µm per pixel that the manifest gave it.
        slides: slide id -> path or URL of its file.
        mpp: µm per pixel that override those of the files.
        mask: a tissue mask of the one slide, GeoJSON or an image, in place of the classical one.
        origin: what a mask counts from that does not say so, as `cohort.origin`.
        device: as `compute.device`; None takes the model's own, or the CPU where that is not here.
        done: slide id -> fingerprint of the file that was predicted before; it is not predicted
        again while it has that fingerprint.

    Raises:
        PredictionError: the mask does not exist, or there are several slides that it could be of.
        MachineError: the machine failed, after the outcomes of all other slides.
    """
    check_mask(mask, slides)
    record = model.record
    machine = machine_of(record.compute, device)
    with tempfile.TemporaryDirectory(prefix="hnm-predict-") as packs:
        readings = [
            Reading(
                slide_id=slide_id,
                source=place_of(source, Path.cwd()),
                mpp=mpp,
                mpp_from_objective=record.mpp_from_objective,
                mask=mask and mask.absolute(),
                tissue=record.tissue,
                tiles=record.tiles,
                pack=Path(packs) / f"{slide_id}.h5",
                origin=origin,
                done=(done or {}).get(slide_id),
            )
            for slide_id, source in slides.items()
        ]
        for reading, outcome in each(
            read_slide,
            readings,
            seconds=record.tiles.slide_seconds,
            read_seconds=record.tiles.read_seconds,
            step="tiles",
            here=True,
        ):
            source = slides[reading.slide_id]
            if outcome is None:
                yield Unchanged(reading.slide_id, source)
                continue
            if isinstance(outcome, SlideError):
                yield Refusal(reading.slide_id, source, outcome)
                continue
            _warn_of_mask(reading.slide_id, outcome)
            score, tiles = _scored(model, reading.pack, machine)
            reading.pack.unlink()
            if not (
                math.isfinite(score)
                and np.isfinite(tiles[["logit", "score", "attention"]].to_numpy()).all()
            ):
                yield Refusal(
                    reading.slide_id,
                    source,
                    SlideError(
                        "the model gives numbers that are not finite; look at the model",
                        step="score",
                    ),
                )
                continue
            yield Prediction(
                reading.slide_id,
                source,
                score,
                record.classes[int(called(score, record.threshold))],
                tiles,
                outcome,
            )


def _warn_of_mask(slide_id: str, read: SlideRead) -> None:
    """Warns where the mask lies partly beside the scan, or does not say what it counts from."""
    warn_of_places(read.mask_placement.notes)
    warn_of_origins("mask", {slide_id: (read.mask_placement.by, read.canvas)})


def check_mask(mask: Path | None, slides: Collection[str]) -> None:
    """Raises `PredictionError` where `mask` is not there, or there are several slides that it could
    be of.
    """
    if mask is not None and len(slides) > 1:
        raise PredictionError(
            f"--mask {mask} is of one slide, but {len(slides)} are named; predict the slides with"
            " masks one by one"
        )
    if mask is not None and not mask.is_file():
        raise PredictionError(
            f"--mask {mask} is no file; name GeoJSON or an image of the slide's tissue"
        )


def machine_of(trained: Compute, device: str | None) -> Machine:
    """Where a model computes: on `device`, or as it was trained where that is here."""
    wanted = device or ("auto" if trained.device == "cuda" else trained.device)
    return set_up_torch(Compute.model_validate({**trained.model_dump(), "device": wanted}))


def _scored(model: Model, path: Path, machine: Machine) -> tuple[float, pd.DataFrame]:
    """Score of the slide, and the table `TILE_SCORES`."""
    section = model.record.embed
    pack = Pack(path)
    (features,) = embed(
        model.encoder,
        [len(pack)],
        lambda _, first, end: pack.tiles(range(first, end)),
        batch_tiles=section.batch_tiles,
        machine=machine,
    )
    stored = torch.from_numpy(features.astype(section.dtype).astype("float32"))
    slide, tiles = predict(model.head, {pack.slide_id: stored}, pack.index())
    return float(slide["score"].iloc[0]), tiles
