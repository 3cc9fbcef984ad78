"""The loop of rounds in one process, for trials of a study and for folds.

It calls the same steps as the stages, from round 0's encoder on, so that both yield the same
numbers. The store keeps the result of each step by its causes.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from hnm.causes import keys_of
from hnm.errors import ParamsError, StudyError
from hnm.files import digest_of
from hnm.learning.encoder import encoder_digest, load_encoder
from hnm.learning.heads import load_head
from hnm.learning.history import epochs_of, read_history
from hnm.learning.training.fit_encoder import epoch_steps
from hnm.learning.training.trainer import SAMPLE
from hnm.loop.embed import embed_slides
from hnm.loop.finetune import finetune_encoder, with_extra
from hnm.loop.head import slide_features, train_head
from hnm.loop.mine import mine_tiles
from hnm.loop.paths import HeadFiles, Paths
from hnm.loop.seal import sealed
from hnm.params import Params
from hnm.selection import best_epoch
from hnm.store import Store
from hnm.tables import LABELS, MINED, PATIENTS, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES

_CURE = "; remove it with `hnm store verify --remove`, and give the same command again"


@dataclass(frozen=True)
class Upstream:
    """What all trials share: the outputs of the stages before round 0's head."""

    root: Path
    """The folder of the project."""

    @property
    def paths(self) -> Paths:
        """The paths of the project."""
        return Paths(self.root)

    @property
    def split(self) -> "Fold":
        """The project's split, by which the stages train."""
        cohort = self.paths.cohort
        return Fold(cohort.train_labels, cohort.validation_labels)

    @property
    def test_truth(self) -> list[Path]:
        """What no trial may open."""
        cohort = self.paths.cohort
        return [cohort.test_labels, cohort.annotations]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each part by name; `StudyError` where one is missing."""
        paths = self.paths
        parts = {
            "tiles": paths.tiles.index,
            "packs": paths.tiles.pack_digests,
            "slides": paths.cohort.slides,
            "vetoes": paths.mine(1).vetoes,
            "extra": paths.mine(1).extra,
            "mined": paths.encoder.mined,
            "train labels": paths.cohort.train_labels,
            "validation labels": paths.cohort.validation_labels,
            "encoder": paths.encoder.folder,
        }
        for path in parts.values():
            if not path.exists():
                raise StudyError(
                    f"{path} does not exist, but a study starts from it; run dvc repro first"
                )
        return {
            name: encoder_digest(path) if name == "encoder" else digest_of(path)
            for name, path in parts.items()
        }

    @cached_property
    def tile_count(self) -> int:
        """How many tiles an encoder embeds."""
        return len(TILES.read(self.paths.tiles.index))


@dataclass(frozen=True)
class Fold:
    """One way to split labelled slides: what a trial trains on, and what judges it."""

    train: Path
    """Table `LABELS`."""
    validation: Path
    """Table `LABELS`."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each part by its name in `Upstream.digests`."""
        return {
            "train labels": digest_of(self.train),
            "validation labels": digest_of(self.validation),
        }

    @cached_property
    def smallest_auc_step(self) -> float:
        """The smallest difference of two AUCs on `validation`: half a pair of a positive and a
        negative slide.
        """
        labels = LABELS.read(self.validation)["label"]
        return 0.5 / max(int((labels == 1).sum()) * int((labels == 0).sum()), 1)


@dataclass(frozen=True)
class RoundResult:
    """What validation says of one round."""

    round: int
    auc: float
    """Slide AUC of the head's best epoch, as the stage `head` logs it."""
    log_loss: float
    slide_scores: Path
    """The table `SLIDE_SCORES`."""
    tile_scores: Path
    """The table `TILE_SCORES`."""
    mined: Path
    """The table `MINED`, empty in round 0."""
    finetune_seconds: float = field(compare=False)
    """Processor time of fine-tuning; next to none where the encoder came from the store."""
    cost: int = 0
    """How often fine-tuning and embedding pass a tile through the encoder, whether or not the
    results came from the store. It is 0 for round 0, which all trials share.
    """
    spread: float = field(default=math.nan, compare=False)
    """`hnm.learning.training.losses.spread` in the last epoch of fine-tuning. An encoder whose
    spread is far below the temperature has collapsed. NaN where nothing was trained.
    """

    def value(self, smallest_auc_step: float) -> float:
        """Returns one number that orders rounds by AUC, then by log loss.

        Optuna takes one float a trial, so that the selection rule has to fit into one: it is AUC -
        (step / 2) * loss / (1 + loss), in which no loss outweighs a step of AUC.
        """
        return self.auc - smallest_auc_step / 2 * self.log_loss / (1 + self.log_loss)


@dataclass(frozen=True)
class _Trial:
    """One setting of the params, and the fold that judges it."""

    params: Params
    fold: Fold

    def dumped(self, *sections: str) -> dict[str, Any]:
        """Returns sections of the params, ready for JSON."""
        return {name: getattr(self.params, name).model_dump(mode="json") for name in sections}


class Loop:
    """Runs rounds for trials. What trials have in common is computed once."""

    def __init__(self, upstream: Upstream, store: Store) -> None:
        """Raises `StudyError` where a part of `upstream` is missing."""
        self._upstream = upstream
        self._digests = upstream.digests
        self._store = store
        self._features_read: tuple[str, dict[str, Tensor]] | None = None
        # a library that is upgraded meanwhile is no cause of what this process computes
        self._keys_of = cache(keys_of)

    def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
        """Yields the rounds of one trial, one after the other.

        Args:
            params: the trial's params.
            fold: what it trains on and what judges it; None is the project's split.

        Raises:
            HnmError: a step cannot go on with these params.
        """
        upstream = self._upstream
        trial = _Trial(params, fold or upstream.split)
        encoder = upstream.paths.encoder.folder
        mined = upstream.paths.encoder.mined
        head: HeadFiles | None = None
        for number in range(len(params.rounds)):
            cost = 0
            seconds = 0.0
            spread = math.nan
            with sealed(upstream.test_truth):
                if head is not None:
                    mined = self._mine(trial, number, head, encoder)
                    start = time.process_time()
                    encoder = self._finetune(trial, mined, encoder)
                    seconds = time.process_time() - start
                    cost = self._cost(mined, params)
                    spread = _last_spread(encoder, params)
                head = self._head(trial, encoder, mined)
                best = best_epoch(_epochs(head.folder))
            yield RoundResult(
                number,
                best["validation_auc"],
                best["validation_loss"],
                head.slide_scores,
                head.tile_scores,
                mined,
                seconds,
                cost,
                spread,
            )

    def _head(self, trial: _Trial, encoder: Path, mined: Path) -> HeadFiles:
        """Trains a head on the features of `encoder`, unless the store has it, and returns its
        files.
        """
        paths = self._upstream.paths
        params = trial.params

        def files_in(folder: Path) -> HeadFiles:
            return HeadFiles(
                features=folder / "features",  # never written, as they are in memory
                index=paths.tiles.index,
                patients=folder / "patients.csv",
                mined=mined,
                train_labels=trial.fold.train,
                validation_labels=trial.fold.validation,
                folder=folder / "head",
                tile_scores=folder / "tiles.parquet",
                slide_scores=folder / "slides.parquet",
                cross_fitted=folder / "cross_fitted.parquet",
            )

        def make(folder: Path) -> None:
            files = files_in(folder)
            slides = SLIDES.read(paths.cohort.slides)
            PATIENTS.write(slides[list(PATIENTS.columns)], files.patients)
            train_head(
                files,
                head=params.head,
                ranking=params.ranking,
                compute=params.compute,
                on_epoch=_ignore_epoch,
                features=self._features_in_memory(trial, encoder, folder.parent),
            )

        # no other kind looks at the mined tiles
        learnt = digest_of(mined) if params.head.kind == "mined" else None
        key = self._key(
            "head",
            trial,
            features=self._features_key(trial, encoder),
            mined=learnt,
            **trial.dumped("head", "ranking", "compute"),
        )
        return files_in(self._store.folder("trials/heads", key, make, _check_head))

    def _mine(self, trial: _Trial, number: int, before: HeadFiles, encoder: Path) -> Path:
        """Mines the tiles of a round, unless the store has them. Returns their table.

        `before` are the files of the head of the round before, `encoder` is the one whose features
        that head scored.
        """
        mining = trial.params.mining

        def make(folder: Path) -> None:
            with self._features(trial, encoder, folder.parent) as features:
                files = replace(
                    self._upstream.paths.mine(number),
                    tile_scores=before.tile_scores,
                    cross_fitted=before.cross_fitted,
                    train_labels=trial.fold.train,
                    features=features,
                    mined_before=before.mined,
                    mined=folder / "mined.parquet",
                    mined_slides=folder / "slides.csv",
                    passed_over=folder / "passed_over.csv",
                    summary=folder / "summary.json",
                )
                mine_tiles(files, number, mining)

        tables = (before.tile_scores, before.cross_fitted, before.mined)
        key = self._key(
            "mine",
            trial,
            features=self._features_key(trial, encoder),
            tables=[digest_of(table) for table in tables],
            round=number,
            **trial.dumped("mining"),
        )
        return self._store.folder("trials/mined", key, make, _check_mined) / "mined.parquet"

    def _finetune(self, trial: _Trial, mined: Path, previous: Path) -> Path:
        """Trains the round's encoder, unless the store has it. Returns its folder."""
        params = trial.params

        def make(folder: Path) -> None:
            finetune_encoder(
                replace(
                    self._upstream.paths.finetune(1), mined=mined, previous=previous, folder=folder
                ),
                finetune=params.finetune,
                mining=params.mining,
                compute=params.compute,
                on_epoch=_ignore_epoch,
            )

        key = self._key(
            "finetune",
            trial,
            mined=digest_of(mined),
            extra=params.mining.extra,
            previous=encoder_digest(previous),
            trains=params.mining.policy != "none",  # all else of the section shows in the tables
            **trial.dumped("finetune", "compute"),
        )
        return self._store.folder("trials/encoders", key, make, load_encoder)

    def _cost(self, mined: Path, params: Params) -> int:
        """Returns how often a round that fine-tunes passes a tile through the encoder.

        Each embedded tile counts one. Each of a mined tile's two views counts three in every epoch,
        as the pass backward takes twice the pass forward. One more pass of the mined tiles sets the
        projection before the training.
        """
        if params.mining.policy == "none":
            return 0
        files = self._upstream.paths.finetune(1)
        learnt = with_extra(MINED.read(mined), files.extra, files.packs, params.mining)
        positives = int((learnt["role"] == "positive").sum())
        steps = epoch_steps(params.finetune, len(learnt) - positives, positives)
        views = 2 * params.finetune.batch_tiles * steps * params.finetune.epochs
        return self._upstream.tile_count + min(len(learnt), SAMPLE) + 3 * views

    def _features_key(self, trial: _Trial, encoder: Path) -> str:
        """Returns a key of the features of all packs by `encoder`."""
        key = self._keys_of("hnm.loop.embed", trial.params.compute.device)
        return key(encoder=encoder_digest(encoder), **trial.dumped("embed", "compute"))

    def _features_in_memory(self, trial: _Trial, encoder: Path, beside: Path) -> dict[str, Tensor]:
        """Returns the features of all slides. Those of the last encoder stay in memory, as many a
        trial trains another head on them.
        """
        key = self._features_key(trial, encoder)
        if self._features_read is None or self._features_read[0] != key:
            self._features_read = None  # two at once might not fit
            slide_ids = TILES.read(self._upstream.paths.tiles.index)["slide_id"].unique()
            with self._features(trial, encoder, beside) as folder:
                self._features_read = (key, slide_features(folder, slide_ids))
        return self._features_read[1]

    @contextlib.contextmanager
    def _features(self, trial: _Trial, encoder: Path, beside: Path) -> Iterator[Path]:
        """Yields a folder of all slides' features: links into the store, in a folder that lies
        `beside` the results and goes at the end of the block.
        """
        with tempfile.TemporaryDirectory(dir=beside, prefix=".features-") as name:
            features = Path(name)
            embed_slides(
                replace(self._upstream.paths.embed(0), encoder=encoder, features=features),
                self._store,
                embed=trial.params.embed,
                compute=trial.params.compute,
            )
            yield features

    def _key(self, step: str, trial: _Trial, **inputs: Any) -> str:
        """Returns the key of what a step makes of `inputs` in a trial."""
        key = self._keys_of(f"hnm.loop.{step}", trial.params.compute.device)
        return key(upstream={**self._digests, **trial.fold.digests}, **inputs)


def check_one_process(params: Params) -> None:
    """Trials and folds train in the process that runs them.

    Raises:
        ParamsError: `compute.processes` asks for more.
    """
    if params.compute.processes > 1:
        raise ParamsError(
            f"compute.processes={params.compute.processes}: each trial of a study and each fold"
            " trains in one process; set it to 1"
        )


def _check_head(folder: Path) -> None:
    """Reads what `Loop._head` has written into `folder`."""
    load_head(folder / "head")
    _epochs(folder / "head")
    SLIDE_SCORES.read(folder / "slides.parquet")
    for name in ("tiles", "cross_fitted"):
        TILE_SCORES.read(folder / f"{name}.parquet")


def _check_mined(folder: Path) -> None:
    """Reads what `Loop._mine` has written into `folder`."""
    MINED.read(folder / "mined.parquet")


def _history(folder: Path) -> pd.DataFrame:
    """Returns the history of a head or an encoder; `StudyError` where it is torn."""
    return read_history(folder / "history.csv", StudyError, _CURE)


def _epochs(head: Path) -> list[dict[str, float]]:
    """Returns the history of a head, one dictionary an epoch; `StudyError` where it is torn."""
    return epochs_of(_history(head))


def _last_spread(encoder: Path, params: Params) -> float:
    """Returns the spread in the last epoch of fine-tuning; NaN where nothing was trained."""
    if params.mining.policy == "none":
        return math.nan
    return float(_history(encoder)["spread"].iloc[-1])


def _ignore_epoch(epoch: int, metrics: Any) -> None:
    """Does nothing with an epoch of a trial."""
