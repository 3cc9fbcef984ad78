"""A trial: the pipeline's own steps from round 0's encoder on, in this process, with every result
kept by its causes.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from hnm.loop.seal import sealed
from hnm.params import Params
from hnm.selection import best_epoch
from hnm.store import Store
from hnm.tables import LABELS, MINED, PATIENTS, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES

_CURE = "; remove it with `hnm store verify --remove`, and give the same command again"


@dataclass(frozen=True)
class Upstream:
    """What all trials share: the outputs of the stages before round 0's head, in the folder
    `data`.
    """

    data: Path

    @property
    def packs(self) -> Path:
        """One pack a slide."""
        return self.data / "tiles" / "packs"

    @property
    def pack_digests(self) -> Path:
        """The table `PACKS`."""
        return self.data / "tiles" / "packs.csv"

    @property
    def index(self) -> Path:
        """The table of all tiles."""
        return self.data / "tiles" / "index.parquet"

    @property
    def slides(self) -> Path:
        """The cohort, which holds no labels."""
        return self.data / "cohort" / "slides.parquet"

    @property
    def vetoes(self) -> Path:
        """The tiles that people do not want mined; beside the folder `data`, because git keeps
        them.
        """
        return self.data.parent / "vetoes"

    @property
    def extra(self) -> Path:
        """What other projects have mined, a folder each; beside the folder `data`, as the
        vetoes.
        """
        return self.data.parent / "extra"

    @property
    def encoder(self) -> Path:
        """Round 0's encoder."""
        return self.data / "encoders" / "0"

    @property
    def mined(self) -> Path:
        """Round 0's mined tiles, a table without rows."""
        return self.data / "mined" / "0" / "mined.parquet"

    @property
    def split(self) -> "Fold":
        """The project's own split, by which the stages train."""
        return Fold(self.labels("train"), self.labels("validation"))

    def labels(self, split: str) -> Path:
        """The labels of `train` or `validation`."""
        return self.data / "cohort" / "labels" / f"{split}.csv"

    @property
    def test_truth(self) -> list[Path]:
        """What no trial may open."""
        return [self.labels("test"), self.data / "cohort" / "annotations"]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each part by name; `StudyError` where one is missing."""
        parts = {
            "tiles": self.index,
            "packs": self.pack_digests,
            "slides": self.slides,
            "vetoes": self.vetoes,
            "extra": self.extra,
            "mined": self.mined,
            "train labels": self.labels("train"),
        }
        parts |= {"validation labels": self.labels("validation"), "encoder": self.encoder}
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
        return len(TILES.read(self.index))


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
    """Slide AUC of the head's kept epoch, as the stage `head` logs it."""
    log_loss: float
    slide_scores: Path
    """The table `SLIDE_SCORES`."""
    tile_scores: Path
    """The table `TILE_SCORES`."""
    mined: Path
    """The table `MINED`, empty in round 0."""
    finetune_seconds: float = field(compare=False)
    """Processor time of fine-tuning; next to none where the encoder was kept from before."""
    cost: int = 0
    """Encoder passes of a tile in fine-tuning and embedding, whether or not the results were kept
    from before. Round 0's, which all trials share, are none.
    """
    spread: float = field(default=math.nan, compare=False)
    """The last epoch's `hnm.learning.training.losses.spread` of fine-tuning: far below the
    temperature it has collapsed. NaN where nothing was trained.
    """

    def value(self, smallest_auc_step: float) -> float:
        """One number that orders rounds by AUC, ties by log loss: AUC - (step / 2) * loss / (1 +
        loss), so that no loss outweighs a step of AUC.
        """
        return self.auc - smallest_auc_step / 2 * self.log_loss / (1 + self.log_loss)


class Loop:
    """Runs the rounds of trials; what trials have in common is made once."""

    def __init__(self, upstream: Upstream, store: Store) -> None:
        """`StudyError` where a part of `upstream` is missing."""
        self._upstream = upstream
        self._digests = upstream.digests
        self._store = store
        self._in_memory: tuple[str, dict[str, Tensor]] | None = None
        self._keys_of = cache(
            keys_of
            # what was imported stays, so that a library that is upgraded meanwhile is no cause of
            # this
            # process's results
        )

    def rounds(self, params: Params, fold: Fold | None = None) -> Iterator[RoundResult]:
        """The rounds of one trial, one after the other; `HnmError` where a step cannot go on with
        these params.

        Args:
            params: the trial's params.
            fold: what it trains on and what judges it; None is the project's own split.
        """
        upstream, fold = self._upstream, fold or self._upstream.split
        encoder, mined, head = upstream.encoder, upstream.mined, None
        for number in range(len(params.rounds)):
            cost, seconds, spread = 0, 0.0, math.nan
            with sealed(upstream.test_truth):
                if head is not None:
                    mined = (
                        self._mined(head, encoder, mined, number, params, fold) / "mined.parquet"
                    )
                    start = time.process_time()
                    encoder = self._encoder(mined, encoder, params, fold)
                    seconds = time.process_time() - start
                    cost = _cost_of(
                        with_extra(
                            MINED.read(mined), upstream.extra, upstream.packs, params.mining
                        ),
                        params,
                        upstream.tile_count,
                    )
                    if params.mining.policy != "none":
                        spread = float(
                            read_history(encoder / "history.csv", StudyError, _CURE)["spread"].iloc[
                                -1
                            ]
                        )
                head = self._head(encoder, mined, params, fold)
                best = best_epoch(_epochs(head / "head"))
            scores = (head / "slides.parquet", head / "tiles.parquet")
            yield RoundResult(
                number,
                best["validation_auc"],
                best["validation_loss"],
                *scores,
                mined,
                seconds,
                cost,
                spread,
            )

    def _head(self, encoder: Path, mined: Path, params: Params, fold: Fold) -> Path:
        """Folder of `head/`, `tiles.parquet`, `slides.parquet` and `cross_fitted.parquet`."""
        upstream, head, ranking, compute = (
            self._upstream,
            params.head,
            params.ranking,
            params.compute,
        )

        def make(folder: Path) -> None:
            patients = folder / "patients.csv"
            PATIENTS.write(SLIDES.read(upstream.slides)[list(PATIENTS.columns)], patients)
            inputs = (
                self._features_in_memory(encoder, folder.parent, params),
                upstream.index,
                patients,
                mined,
                fold.train,
                fold.validation,
            )
            written = (
                folder / "head",
                folder / "tiles.parquet",
                folder / "slides.parquet",
                folder / "cross_fitted.parquet",
            )
            train_head(
                *inputs, *written, head=head, ranking=ranking, compute=compute, on_epoch=_untold
            )

        learns = (
            digest_of(mined) if head.kind == "mined" else None
        )  # no other kind looks at the mined tiles
        inputs = {"features": self._features_key(encoder, params), "mined": learns}
        return self._kept(
            "heads",
            "head",
            make,
            _read_head,
            fold,
            params,
            **inputs,
            **_dumped(params, "head", "ranking", "compute"),
        )

    def _mined(
        self, head: Path, encoder: Path, before: Path, number: int, params: Params, fold: Fold
    ) -> Path:
        """Folder of `mined.parquet` and what is told of it; `encoder` is the one whose features
        `head` scored, `before` what the round before mined.
        """
        upstream = self._upstream
        scores = (head / "tiles.parquet", head / "cross_fitted.parquet")

        def make(folder: Path) -> None:
            with self._features(encoder, folder.parent, params) as features:
                mine_tiles(
                    tile_scores=scores[0],
                    cross_fitted=scores[1],
                    train_labels=fold.train,
                    slides=upstream.slides,
                    vetoes=upstream.vetoes,
                    features=features,
                    packs=upstream.packs,
                    extra=upstream.extra,
                    mined_before=before,
                    mined=folder / "mined.parquet",
                    mined_slides=folder / "slides.csv",
                    passed_over=folder / "passed_over.csv",
                    summary=folder / "summary.json",
                    round_=number,
                    mining=params.mining,
                )

        tables = [digest_of(table) for table in (*scores, before)]
        inputs = {"features": self._features_key(encoder, params), "tables": tables}
        return self._kept(
            "mined",
            "mine",
            make,
            _read_mined,
            fold,
            params,
            **inputs,
            round=number,
            **_dumped(params, "mining"),
        )

    def _encoder(self, mined: Path, previous: Path, params: Params, fold: Fold) -> Path:
        """Folder of the round's encoder."""
        finetune, mining, compute = params.finetune, params.mining, params.compute

        def make(folder: Path) -> None:
            upstream = self._upstream
            finetune_encoder(
                mined,
                upstream.packs,
                upstream.extra,
                previous,
                folder,
                finetune=finetune,
                mining=mining,
                compute=compute,
                on_epoch=_untold,
            )

        trains = mining.policy != "none"  # all else of the section shows in the tables
        inputs = {
            "mined": digest_of(mined),
            "extra": mining.extra,
            "previous": encoder_digest(previous),
            "trains": trains,
        }
        return self._kept(
            "encoders",
            "finetune",
            make,
            load_encoder,
            fold,
            params,
            **inputs,
            **_dumped(params, "finetune", "compute"),
        )

    def _features_key(self, encoder: Path, params: Params) -> str:
        """What tells the features of one encoder, of all packs, from those of another."""
        key = self._keys_of("hnm.loop.embed", params.compute.device)
        return key(encoder=encoder_digest(encoder), **_dumped(params, "embed", "compute"))

    def _features_in_memory(self, encoder: Path, beside: Path, params: Params) -> dict[str, Tensor]:
        """Features of all slides; those of the last encoder stay, as many a trial trains another
        head on them.
        """
        key = self._features_key(encoder, params)
        if self._in_memory is None or self._in_memory[0] != key:
            self._in_memory = None  # two at once might not fit
            with self._features(encoder, beside, params) as features:
                self._in_memory = (
                    key,
                    slide_features(features, TILES.read(self._upstream.index)["slide_id"].unique()),
                )
        return self._in_memory[1]

    @contextlib.contextmanager
    def _features(self, encoder: Path, beside: Path, params: Params) -> Iterator[Path]:
        """A folder of all slides' features, for as long as the block lasts: links to those that the
        store keeps.
        """
        upstream = self._upstream
        with tempfile.TemporaryDirectory(dir=beside, prefix=".features-") as features:
            packs = (upstream.packs, upstream.pack_digests, upstream.index)
            embed_slides(
                *packs,
                encoder,
                Path(features),
                self._store,
                embed=params.embed,
                compute=params.compute,
            )
            yield Path(features)

    def _kept(
        self,
        kind: str,
        step: str,
        make: Callable[[Path], None],
        check: Callable[[Path], object],
        fold: Fold,
        params: Params,
        **inputs: Any,
    ) -> Path:
        """The folder that `make` fills, made anew only where these inputs have not made it before,
        or `check` refuses what they made.
        """
        key = self._keys_of(f"hnm.loop.{step}", params.compute.device)
        return self._store.folder(
            f"trials/{kind}", key(upstream={**self._digests, **fold.digests}, **inputs), make, check
        )


def _read_head(folder: Path) -> None:
    load_head(folder / "head")
    _epochs(folder / "head")
    SLIDE_SCORES.read(folder / "slides.parquet")
    for name in ("tiles", "cross_fitted"):
        TILE_SCORES.read(folder / f"{name}.parquet")


def _read_mined(folder: Path) -> None:
    MINED.read(folder / "mined.parquet")


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


def _cost_of(mined: pd.DataFrame, params: Params, tiles: int) -> int:
    """Encoder passes of a tile in a round that fine-tunes.

    Each embedded tile counts one. Each of a mined tile's two views counts three in every epoch, as
    the pass backward takes twice the pass forward. One more pass of the mined tiles sets the
    projection before the training.
    """
    if params.mining.policy == "none":
        return 0
    positives = int((mined["role"] == "positive").sum())
    steps = epoch_steps(params.finetune, len(mined) - positives, positives) * params.finetune.epochs
    return tiles + min(len(mined), SAMPLE) + 3 * 2 * params.finetune.batch_tiles * steps


def _epochs(head: Path) -> list[dict[str, float]]:
    """The history of a head, one dictionary an epoch; `StudyError` where it is torn."""
    return epochs_of(read_history(head / "history.csv", StudyError, _CURE))


def _untold(epoch: int, metrics: Any) -> None:
    """A trial's epochs are told to nobody."""


def _dumped(params: Params, *sections: str) -> dict[str, Any]:
    return {name: getattr(params, name).model_dump(mode="json") for name in sections}
