"""The paths that the steps read and write.

Each step takes one dataclass of paths. Its fields are the flags of the stage in dvc.yaml, and the
docstring of a field is what `--help` says of the flag. `Paths` gives these dataclasses for a whole
project; tests/test_contract.py holds it to dvc.yaml.
"""

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class CausesFiles:
    """The files that the stage `causes` writes, one a stage."""

    cohort: Path
    """The causes of the stage cohort."""
    tiles: Path
    """The causes of the stage tiles."""
    encoder: Path
    """The causes of the stage encoder."""
    embed: Path
    """The causes of the stage embed, whatever the round."""
    head: Path
    """The causes of the stage head, whatever the round."""
    mine: Path
    """The causes of the stage mine, whatever the round."""
    finetune: Path
    """The causes of the stage finetune, whatever the round."""
    evaluate: Path
    """The causes of the stage evaluate."""


@dataclass(frozen=True)
class CohortFiles:
    """What the step `cohort` writes; the manifest that it reads stands in params.yaml."""

    slides: Path
    """Written: the table of all slides that could be opened, without labels."""
    patients: Path
    """Written: the patient of each slide."""
    train_labels: Path
    """Written: the labels of the train slides."""
    validation_labels: Path
    """Written: the labels of the validation slides."""
    test_labels: Path
    """Written: the labels of the test slides, which only the stage evaluate reads."""
    annotations: Path
    """Written: the folder of the annotations, one GeoJSON file a slide. Only evaluate reads it."""
    quarantine: Path
    """Written: the table of the slides that could not be opened, with reasons."""

    def labels(self, split: str) -> Path:
        """Returns the table of the labels of `split`."""
        labels = {
            "train": self.train_labels,
            "validation": self.validation_labels,
            "test": self.test_labels,
        }
        return labels[split]


@dataclass(frozen=True)
class TilesFiles:
    """The paths of the step `tiles`."""

    slides: Path
    """The table of the slides."""
    unopened: Path
    """The quarantine of the stage cohort."""
    packs: Path
    """Written: the folder of the packs, one a slide."""
    pack_digests: Path
    """Written: the table of the packs' sizes and digests."""
    index: Path
    """Written: the table of all tiles."""
    quarantine: Path
    """Written: `unopened` and the slides that could not be cut, with reasons."""


@dataclass(frozen=True)
class EncoderFiles:
    """The paths of the step `encoder`."""

    packs: Path
    """The folder of the packs, which only SimCLR reads."""
    train_labels: Path
    """The labels of the train slides, of which only the ids are used."""
    weights: Path
    """The folder that holds the weights which come from a file."""
    folder: Path
    """Written: the folder of round 0's encoder."""
    mined: Path
    """Written: round 0's table of mined tiles, which has no rows."""


@dataclass(frozen=True)
class EmbedFiles:
    """The paths of the step `embed` of one round."""

    packs: Path
    """The folder of the packs."""
    pack_digests: Path
    """The table of the packs' sizes and digests."""
    index: Path
    """The table of all tiles."""
    encoder: Path
    """The folder of the round's encoder."""
    features: Path
    """Written: the folder of the features, one file a slide."""


@dataclass(frozen=True)
class HeadFiles:
    """The paths of the step `head` of one round."""

    features: Path
    """The folder of the round's features."""
    index: Path
    """The table of all tiles."""
    patients: Path
    """The patient of each slide."""
    mined: Path
    """The table of the tiles that were mined for the round."""
    train_labels: Path
    """The labels of the train slides."""
    validation_labels: Path
    """The labels of the validation slides."""
    folder: Path
    """Written: the folder of the head and its history."""
    tile_scores: Path
    """Written: the scores of all tiles."""
    slide_scores: Path
    """Written: the scores of all slides."""
    cross_fitted: Path
    """Written: the scores of the train slides' tiles by heads that did not learn from them. It has
    rows only where head.score_folds asks for them."""


@dataclass(frozen=True)
class MineFiles:
    """The paths of the step `mine` of one round."""

    tile_scores: Path
    """The tile scores of the round before."""
    cross_fitted: Path
    """The cross-fitted tile scores of the round before."""
    train_labels: Path
    """The labels of the train slides."""
    slides: Path
    """The table of the slides."""
    vetoes: Path
    """The folder of the vetoes: tiles that people do not want mined."""
    features: Path
    """The folder of the features of the round before."""
    packs: Path
    """The folder of the packs."""
    extra: Path
    """The folder of what other projects have mined."""
    mined_before: Path
    """The table of the tiles that were mined for the round before."""
    mined: Path
    """Written: the table of the mined tiles."""
    mined_slides: Path
    """Written: how many tiles each train slide supplies."""
    passed_over: Path
    """Written: the tiles that a guard refused, with reasons."""
    summary: Path
    """Written: the numbers of the round's mining, as JSON."""


@dataclass(frozen=True)
class FinetuneFiles:
    """The paths of the step `finetune` of one round."""

    mined: Path
    """The table of the tiles that were mined for the round."""
    packs: Path
    """The folder of the packs."""
    extra: Path
    """The folder of what other projects have mined."""
    previous: Path
    """The folder of the encoder of the round before."""
    folder: Path
    """Written: the folder of the round's encoder and its history."""


@dataclass(frozen=True)
class EvaluateFiles:
    """The paths of the step `evaluate`, which alone opens test labels and annotations."""

    slides: Path
    """The table of the slides."""
    train_labels: Path
    """The labels of the train slides."""
    validation_labels: Path
    """The labels of the validation slides."""
    test_labels: Path
    """The labels of the test slides."""
    annotations: Path
    """The folder of the annotations, one GeoJSON file a slide."""
    quarantine: Path
    """The table of the slides that could not be used."""
    index: Path
    """The table of all tiles."""
    packs: Path
    """The folder of the packs."""
    scores: Path
    """The folder of the scores, with a folder a round."""
    heads: Path
    """The folder of the heads, with a folder a round."""
    encoders: Path
    """The folder of the encoders, with a folder a round."""
    mined: Path
    """The folder of the mined tiles, with a folder a round."""
    metrics: Path
    """Written: the numbers of all rounds, as JSON."""
    plots: Path
    """Written: the folder of the plots and their tables."""
    report: Path
    """Written: the report, a page of HTML."""
    model_card: Path
    """Written: the model card, in Markdown."""
    data_card: Path
    """Written: the data card, in Markdown."""


@dataclass(frozen=True)
class Paths:
    """All paths of the pipeline of one project, as dvc.yaml names them."""

    root: Path = Path()
    """The folder of the project."""

    @property
    def causes(self) -> CausesFiles:
        """The paths of the stage `causes`."""
        folder = self._data("causes")
        names = [field.name for field in fields(CausesFiles)]
        return CausesFiles(**{name: folder / f"{name}.json" for name in names})

    @property
    def cohort(self) -> CohortFiles:
        """The paths of the stage `cohort`."""
        folder = self._data("cohort")
        return CohortFiles(
            slides=folder / "slides.parquet",
            patients=folder / "patients.csv",
            train_labels=folder / "labels" / "train.csv",
            validation_labels=folder / "labels" / "validation.csv",
            test_labels=folder / "labels" / "test.csv",
            annotations=folder / "annotations",
            quarantine=folder / "quarantine.csv",
        )

    @property
    def tiles(self) -> TilesFiles:
        """The paths of the stage `tiles`."""
        folder = self._data("tiles")
        return TilesFiles(
            slides=self.cohort.slides,
            unopened=self.cohort.quarantine,
            packs=folder / "packs",
            pack_digests=folder / "packs.csv",
            index=folder / "index.parquet",
            quarantine=folder / "quarantine.csv",
        )

    @property
    def encoder(self) -> EncoderFiles:
        """The paths of the stage `encoder`, which makes round 0's."""
        return EncoderFiles(
            packs=self.tiles.packs,
            train_labels=self.cohort.train_labels,
            weights=self.root / "weights",
            folder=self._data("encoders", 0),
            mined=self._mined_tiles(0),
        )

    def embed(self, round: int) -> EmbedFiles:
        """Returns the paths of the stage `embed` of a round."""
        return EmbedFiles(
            packs=self.tiles.packs,
            pack_digests=self.tiles.pack_digests,
            index=self.tiles.index,
            encoder=self._data("encoders", round),
            features=self._data("features", round),
        )

    def head(self, round: int) -> HeadFiles:
        """Returns the paths of the stage `head` of a round."""
        scores = self._data("scores", round)
        return HeadFiles(
            features=self._data("features", round),
            index=self.tiles.index,
            patients=self.cohort.patients,
            mined=self._mined_tiles(round),
            train_labels=self.cohort.train_labels,
            validation_labels=self.cohort.validation_labels,
            folder=self._data("heads", round),
            tile_scores=scores / "tiles.parquet",
            slide_scores=scores / "slides.parquet",
            cross_fitted=scores / "cross_fitted.parquet",
        )

    def mine(self, round: int) -> MineFiles:
        """Returns the paths of the stage `mine` of a round, 1 or later."""
        before = self.head(round - 1)
        folder = self._data("mined", round)
        return MineFiles(
            tile_scores=before.tile_scores,
            cross_fitted=before.cross_fitted,
            train_labels=self.cohort.train_labels,
            slides=self.cohort.slides,
            vetoes=self.root / "vetoes",
            features=before.features,
            packs=self.tiles.packs,
            extra=self.root / "extra",
            mined_before=before.mined,
            mined=self._mined_tiles(round),
            mined_slides=folder / "slides.csv",
            passed_over=folder / "passed_over.csv",
            summary=folder / "summary.json",
        )

    def finetune(self, round: int) -> FinetuneFiles:
        """Returns the paths of the stage `finetune` of a round, 1 or later."""
        return FinetuneFiles(
            mined=self._mined_tiles(round),
            packs=self.tiles.packs,
            extra=self.root / "extra",
            previous=self._data("encoders", round - 1),
            folder=self._data("encoders", round),
        )

    @property
    def evaluate(self) -> EvaluateFiles:
        """The paths of the stage `evaluate`."""
        results = self.root / "results"
        return EvaluateFiles(
            slides=self.cohort.slides,
            train_labels=self.cohort.train_labels,
            validation_labels=self.cohort.validation_labels,
            test_labels=self.cohort.test_labels,
            annotations=self.cohort.annotations,
            quarantine=self.tiles.quarantine,
            index=self.tiles.index,
            packs=self.tiles.packs,
            scores=self._data("scores"),
            heads=self._data("heads"),
            encoders=self._data("encoders"),
            mined=self._data("mined"),
            metrics=results / "metrics.json",
            plots=results / "plots",
            report=results / "report.html",
            model_card=results / "model_card.md",
            data_card=results / "data_card.md",
        )

    def _data(self, kind: str, round: int | None = None) -> Path:
        """Returns the folder of one kind of data, or the one of a round in it."""
        folder = self.root / "data" / kind
        return folder if round is None else folder / str(round)

    def _mined_tiles(self, round: int) -> Path:
        """Returns the table of the tiles that were mined for a round."""
        return self._data("mined", round) / "mined.parquet"
