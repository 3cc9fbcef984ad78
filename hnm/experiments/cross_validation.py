"""Cross-validation: the loop once for each fold and seed, in a folder that holds the fold's own labels and splits.

What sees no label is shared: tiles are linked, and features lie in the store by their pack and encoder, so that round 0
is embedded once for all folds, with those of the pipeline itself. What sees labels, or chooses by them, happens inside
the fold: heads, mining, fine-tuning, the epoch, the round and the threshold. An encoder that is pre-trained on the
cohort (SimCLR) sees no labels but train tiles, and is trained anew on those of each fold.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hnm.errors import StudyError
from hnm.experiments.space import with_seed
from hnm.experiments.trial import Loop, RoundResult, Upstream
from hnm.loop.encoder import check_place, first_encoder, weights_path
from hnm.params import Params
from hnm.slides.cohort import SPLITS
from hnm.slides.folds import folds_of, split_of_fold
from hnm.store import Store, code_version, digest_of, key_of
from hnm.tables import LABELS, SLIDE_SCORES, SLIDES, TILES

SHARED = ("tiles", "encoders", "mined")
"""Folders of the pipeline's data that every fold sees as they are; of the encoders and mined tiles it reads those of round 0."""


@dataclass(frozen=True)
class FoldScores:
    """What one fold's loop, with one seed, said of the slides that trained nothing."""

    seed: int
    fold: int
    rounds: tuple[RoundResult, ...]
    slides: pd.DataFrame
    """slide_id, patient_id, split (validation, test), label, round, score."""


def cross_validate(data: Path, params: Params, store: Store, seeds: int, say: Callable[[str], None]) -> Iterator[FoldScores]:
    """The folds of each seed, one after the other.

    Args:
        data: the pipeline's folder of data, with a cohort, tiles and round 0's encoder.
        params: `split.folds` says how many folds; seeds 0, 1, … are added to those of head, mining and fine-tuning.
        store: where results are kept; folds that were run before come from it.
        seeds: how often each fold is run.
        say: told of each fold.

    Raises:
        StudyError: `split.folds` is 0, or a stage before round 0's head has not run.
        CohortError: too few patients for so many folds.
    """
    folds = params.split.folds
    if not folds:
        raise StudyError("split.folds=0 asks for no cross-validation; set it to 3 or more in params.yaml")
    slides, labels = SLIDES.read(Upstream(data).slides), _all_labels(data)
    slides = slides[slides["slide_id"].isin(labels["slide_id"]) & slides["slide_id"].isin(TILES.read(Upstream(data).index)["slide_id"])]
    positive = slides.merge(labels, on="slide_id").groupby("patient_id")["label"].max() == 1
    own_fold = folds_of({str(patient): bool(value) for patient, value in positive.items()}, folds, params.split.seed)
    with TemporaryDirectory(prefix="hnm-cv-") as temporary:
        upstreams = [_fold_folder(data, Path(temporary) / str(fold), slides, labels, own_fold, fold, params, store) for fold in range(folds)]
        for seed in range(seeds):
            for fold, upstream in enumerate(upstreams):
                results = tuple(Loop(upstream, store).rounds(with_seed(params, seed)))
                say(f"seed {seed}, fold {fold}: validation AUC by round {', '.join(f'{result.auc:.3f}' for result in results)}")
                yield FoldScores(seed, fold, results, _held_out(upstream, results))


def _all_labels(data: Path) -> pd.DataFrame:
    return pd.concat([LABELS.read(data / "cohort" / "labels" / f"{split}.csv") for split in SPLITS], ignore_index=True)


def _fold_folder(
    data: Path, folder: Path, slides: pd.DataFrame, labels: pd.DataFrame, own_fold: Mapping[str, int], fold: int, params: Params, store: Store
) -> Upstream:
    """The pipeline's data as the fold sees it."""
    upstream = Upstream(folder / "data")
    own = slides.assign(split=[split_of_fold(own_fold[patient], fold, params.split.folds) for patient in slides["patient_id"]])
    SLIDES.write(own, upstream.slides)
    for split in SPLITS:
        LABELS.write(labels[labels["slide_id"].isin(own.loc[own["split"] == split, "slide_id"])], upstream.labels(split))
    for name in SHARED:
        if (data / name).exists() and not (name == "encoders" and params.encoder.source == "simclr"):
            (upstream.data / name).symlink_to((data / name).resolve())
    for name in (upstream.vetoes.name, upstream.extra.name):
        (folder / name).symlink_to((data.parent / name).resolve())
    if params.encoder.source == "simclr":
        upstream.encoder.parent.mkdir(parents=True)
        upstream.encoder.symlink_to(_pretrained(upstream, data.parent / "weights", params, store).resolve())
    return upstream


def _pretrained(upstream: Upstream, weights: Path, params: Params, store: Store) -> Path:
    """Round 0's encoder, pre-trained on the tiles of the fold's own train slides; weights from files lie in the folder `weights`."""
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("encoder", "simclr", "compute")}
    causes = {"packs": digest_of(upstream.packs), "train": digest_of(upstream.labels("train")), "code": code_version("hnm.loop.encoder")}
    if (path := weights_path(params.encoder)) is not None:
        check_place(params.encoder, weights)
        causes["weights"] = digest_of(path)
    kept = store.path("cv/encoders", key_of(**causes, **sections), "")
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent, prefix=".making-") as folder:
            made = Path(folder) / "made"
            first_encoder(
                upstream.packs,
                upstream.labels("train"),
                weights,
                made,
                encoder=params.encoder,
                simclr=params.simclr,
                compute=params.compute,
                on_epoch=lambda epoch, metrics: None,
            )
            made.rename(kept)
    return kept


def _held_out(upstream: Upstream, results: tuple[RoundResult, ...]) -> pd.DataFrame:
    slides = SLIDES.read(upstream.slides)[["slide_id", "patient_id", "split"]]
    labels = pd.concat([LABELS.read(upstream.labels(split)) for split in ("validation", "test")])
    known = slides.merge(labels, on="slide_id")
    parts = [known.merge(SLIDE_SCORES.read(result.slide_scores)[["slide_id", "score"]], on="slide_id").assign(round=result.round) for result in results]
    return pd.concat(parts, ignore_index=True)[["slide_id", "patient_id", "split", "label", "round", "score"]]
