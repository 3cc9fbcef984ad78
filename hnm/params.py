"""Every param of the pipeline: its meaning, unit, range and default. params.yaml is checked against
this, whole, by every stage.

A default is the value that params.yaml ships with, and tests/test_params.py holds the two together:
a line that is deleted there changes nothing. What belongs to a project and has no good value for
all (its slides, the size of its tiles, what a study may set) has no default, and a missing line of
it is refused by name.

A section is frozen, knows no other keys than these, and is handed to the stages that name it in
their signature. What is a property of the machine and cannot change a result (the number of worker
processes, the cluster that reads slides) is no param: it is an environment variable, HNM_WORKERS or
HNM_EXECUTOR.
"""

import difflib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from hnm.errors import ParamsError
from hnm.files import read_bounded
from hnm.names import ID_WORDS, is_id, is_printable, quoted

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""0 is for none."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Field(ge=1, le=604_800)]
"""A week at most."""
Area = Annotated[float, Field(ge=0, le=1e12)]
"""µm², of a square metre at most."""
Workers = Annotated[int, Field(ge=1, le=256)]
"""Threads or processes."""
BatchTiles = Annotated[int, Field(ge=4, le=2**31 - 1)]
Schedule = Literal["cosine", "constant"]
MOST_BATCH_PX = 1 << 28
"""Pixels of the tiles that are embedded at once."""
MOST_BYTES = 1 << 20
"""Of params.yaml."""
MOST_NODES = 10_000
"""Values of params.yaml, those that aliases repeat counted each time."""
DEEPEST = 20
"""Levels of params.yaml."""
LONGEST_VALUE = 200
"""Characters of a value that a message shows."""
LONGEST_TEXT = 1024
"""Characters of a param."""
REMOVED = {
    "tissue.max_hole_um2": (
        "no hole in tissue is filled, as a tile is judged by the tissue that it shows"
    ),
    "tune.space.*.when": "an entry of a study's space always counts; begin a study for each case",
    "tune.pruner=hyperband": "studies prune by the median alone",
    "tune.pruner=wilcoxon": "studies prune by the median alone",
}
"""Params and values of earlier versions as patterns, and why they went."""


def _checked_id(text: str) -> str:
    if not is_id(text):
        raise ValueError(f"{quoted(text)} must be {ID_WORDS}")
    return text


def _checked_text(text: str) -> str:
    if len(text) > LONGEST_TEXT or not is_printable(text):
        raise ValueError(
            f"{quoted(text)} must be text of one line, of at most {LONGEST_TEXT} characters"
        )
    return text


Id = Annotated[str, AfterValidator(_checked_id)]
Text = Annotated[str, AfterValidator(_checked_text)]


class Section(BaseModel):
    """One section of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionT = TypeVar("SectionT", bound=Section)


class Cohort(Section):
    """Which slides, and how many of them may be lost."""

    name: Id
    """Name of the cohort; MLflow's experiment has this name."""
    manifest: Text
    """CSV of the slides, from the repository's root; its relative paths count from its own
    folder.
    """
    positive: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Labels of the manifest that count as 1; every other label counts as 0. Where it is empty, the
    manifest's labels are 0 and 1.
    """
    max_quarantined_share: Share = 0.1
    """Largest share of the manifest's slides that may be quarantined before a stage stops."""
    mpp_from_objective: bool = False
    """Whether a slide whose file states no µm per pixel takes them from its objective power: 0.25
    of 40, 0.5 of 20, 1 of 10.
    """
    origin: Literal["auto", "level_0", "bounds"] = "auto"
    """What annotations, masks and vetoes count from that do not say so themselves: the corner of
    level 0, as OpenSlide and ASAP do, or of the scan's bounds, as QuPath does. `auto` takes files
    that look as QuPath's for that, and others for level 0, with a warning where it matters."""


class Split(Section):
    """How a manifest without a `split` column is split by patient, stratified by label."""

    validation_share: PositiveShare = 0.2
    """Share of the patients, rounded."""
    test_share: PositiveShare = 0.2
    """Share of the patients, rounded."""
    folds: CountOrNone = 0
    """Folds of `hnm cv`, which deals all patients anew; no stage reads it, and 0 is for none."""
    seed: Seed = 0
    """Another seed deals the patients otherwise."""

    @model_validator(mode="after")
    def _leaves_train(self) -> "Split":
        if self.folds in (1, 2):
            raise ValueError(
                f"folds={self.folds} leaves no train slides beside validation and test; take 3 or"
                " more, or 0 for none"
            )
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share={self.validation_share} and test_share={self.test_share} leave"
                " no train slides"
            )
        return self


class Tissue(Section):
    """What counts as tissue on the mask level."""

    mpp: Annotated[float, Field(ge=0.5, le=1000)] = 8.0
    """µm per pixel at which the mask is computed."""
    min_area_um2: Area = 10_000.0
    """Smaller specks of tissue are dropped."""


class Tiles(Section):
    """The grid of tiles, and how their pixels are kept."""

    mpp: Annotated[float, Field(ge=0.05, le=100)]
    """µm per pixel of a tile; it has no default, as it belongs to the cohort. 0.5 is usual for
    slides scanned at 20x or 40x.
    """
    tile_px: Annotated[int, Field(ge=16, le=4096)]
    """Side of a tile in pixels at `mpp`; it has no default. 224 is usual, and what most encoders
    were trained on.
    """
    min_tissue: Share = 0.5
    """Smallest share of a tile's area that shows tissue; the rest may be glass, holes in tissue
    included.
    """
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 90
    """Quality of the JPEG bytes in a pack."""
    max_lost_share: Share = 0.01
    """Largest share of a slide's tiles that may be unreadable before the slide is quarantined."""
    slide_seconds: Seconds = 3600.0
    """Time limit of one slide; where one takes longer, twice, the stage fails and names it."""
    read_seconds: Seconds = 120.0
    """Time limit of one read of a slide's file; where one hangs longer, twice, the stage fails and
    names it.
    """


class Encoder(Section):
    """Round 0's encoder, which saw no labels."""

    name: Text = "tf_efficientnet_lite0"
    """Any timm model, or `resnet18_instance_norm`, `uni`, `uni2-h`, `virchow2`, `conch`,
    `h-optimus-0`, `phikon` (hnm/learning/catalogue.py).
    """
    source: Literal["pretrained", "simclr"] = "pretrained"
    """`simclr` goes on from the weights below, on the cohort's own train tiles (section
    `simclr`).
    """
    weights: Text = "package"
    """`package` (ImageNet weights of tf_efficientnet_lite0, from a Python package), `hub` (the
    model's own), `random`, or the path of a checkpoint or of the folder of another project's
    encoder, in `weights/`."""
    seed: Seed = 0
    """Draws the weights where they are `random`."""


class Embed(Section):
    """Tiles to features."""

    batch_tiles: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Tiles that the encoder takes at once; fewer need less memory."""
    dtype: Literal["float16", "float32"] = "float16"
    """Kind of number of the stored features."""
    compile: bool = False
    """Whether `torch.compile` makes the encoder anew for the machine: a minute or so at first, then
    faster; it needs a C++ compiler.
    """


class Head(Section):
    """The multiple-instance head, trained from scratch in each round."""

    kind: Literal["dsmil", "abmil", "transmil", "clam_sb", "mean", "max", "inherit", "mined"] = (
        "dsmil"
    )
    """`mined` is solved on the mined tiles: of what follows it heeds `patience`, `top_k` and
    `score_folds` alone.
    """
    epochs: Count = 40
    """Most passes over the train slides."""
    patience: Count = 10
    """Epochs without a better validation AUC (ties: log loss) before training stops."""
    learning_rate: Positive = 2e-4
    """Step size of the optimiser."""
    weight_decay: NotNegative = 5e-3
    """How strongly the optimiser pulls weights to 0."""
    schedule: Schedule = "cosine"
    """Course of the learning rate over the epochs; `cosine` ends at 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of a tile's features dropped in training."""
    attention_features: Count = 128
    """Width of what is attended by: of the queries (dsmil), the gate (abmil, clam_sb) or the tokens
    (transmil, a multiple of 8).
    """
    top_k: Count = 10
    """Kinds `inherit` and `mined`: tiles whose mean logit is the slide logit; a slide with fewer
    uses those it has.
    """
    instance_tiles: Count = 8
    """Kind `clam_sb`: how many of the most and of the least attended tiles the tile loss sees."""
    slide_weight: NotNegative = 0.5
    """Weight of the cross-entropy of the slide logit."""
    tile_weight: NotNegative = 0.5
    """Weight of the tile loss: the cross-entropy of the highest tile logit, but for `clam_sb` and
    `inherit`, which have their own.
    """
    score_folds: CountOrNone = 0
    """Folds of the train slides for `mining.scores: cross_fitted`, each one more head to train; 0
    trains none.
    """
    seed: Seed = 0
    """Draws the first weights, the order of the slides, the dropout and the folds."""

    @model_validator(mode="after")
    def _folds_leave_slides(self) -> "Head":
        if self.score_folds == 1:
            raise ValueError(
                "score_folds=1 leaves no slides to train on; take 2 or more, or 0 for none"
            )
        return self

    @model_validator(mode="after")
    def _tokens_can_be_shared(self) -> "Head":
        if self.kind == "transmil" and self.attention_features % 8:
            raise ValueError(
                f"attention_features={self.attention_features} must be a multiple of 8 for kind"
                " transmil, whose 8 attention heads share it"
            )
        return self


class Ranking(Section):
    """The patch ranking loss: max(0, margin - mean(top K of the positive slide) + mean(top K of the
    negative slide)).
    """

    on: Literal["score", "logit"] = "score"
    """What is ranked: scores in [0, 1], or logits."""
    margin: NotNegative = 0.5
    """How far the positive slide's mean must lie above the negative slide's."""
    top_k: Count = 10
    """A slide with fewer tiles uses those it has."""
    weight: NotNegative = 2.0
    """Weight of this loss beside those of the head; 0 leaves it out."""

    @model_validator(mode="after")
    def _margin_can_be_met(self) -> "Ranking":
        if self.on == "score" and self.margin > 1:
            raise ValueError(
                f"margin={self.margin} can never be met by scores, which lie in [0, 1]; lower it or"
                " rank on: logit"
            )
        return self


class Screen(Section):
    """What is not mined for its pixels; each measure is a number in [0, 1], and a limit of 1 lets
    every tile in.
    """

    max_pen_share: PositiveShare = 1.0
    """Largest share of a tile in a pen's colour."""
    max_blur: PositiveShare = 1.0
    """Largest blur: 0 is sharp, 1 has no edges; tissue in focus depends on `tiles.mpp`."""
    max_fold_share: PositiveShare = 1.0
    """Largest share of a tile that is much denser than the rest of its tissue."""


class Mining(Section):
    """Which tiles of the train slides are mined."""

    policy: Literal["hard", "semi_hard", "mixed", "random", "all", "none"] = "mixed"
    """How negatives are chosen: `hard` is the paper's; `random` and `all` are the controls, `none`
    leaves the encoder as it is.
    """
    scores: Literal["in_sample", "cross_fitted"] = "in_sample"
    """By which head a tile is scored: the round's, which was trained on its slide, or one that was
    not (`head.score_folds`); a later round's encoder was.
    """
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A positive is a tile of a positive slide whose score exceeds this."""
    positive_fraction: PositiveShare = 0.2
    """Share of those tiles that is mined, the best first."""
    negative_fraction: PositiveShare = 0.2
    """Share of the negative slides' tiles that is mined."""
    growth: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor on both fractions from one round to the next, up to 1 (self-paced)."""
    max_slide_share: PositiveShare = 0.25
    """Largest share of one role's budget that one slide may supply."""
    max_patient_share: PositiveShare = 0.5
    """Largest share of one role's budget that the slides of one patient may supply."""
    hard_share: Share = 0.5
    """Policy `mixed`: share of the negatives that is the best-scoring; the rest is random."""
    skip_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Policy `semi_hard`: share of the negative slides' tiles that is passed over as too hard, the
    best-scoring first.
    """
    max_similarity: PositiveShare = 1.0
    """A hard negative whose feature has a higher cosine than this to one already mined is passed
    over as its near-duplicate; 1 passes over none.
    """
    max_positive_similarity: PositiveShare = 1.0
    """A positive whose feature has a higher cosine than this to a hard negative is struck out; 1
    strikes out none.
    """
    screen: Screen = Screen()
    """Tiles that are not mined for their pixels."""
    extra: Annotated[tuple[Id, ...], Field(strict=False)] = ()
    """Folders in `extra/`, each of another project, whose mined hard negatives are learnt from as
    well; they count towards no budget.
    """
    seed: Seed = 0
    """Draws what is random in the policies `mixed` and `random`."""


class Views(Section):
    """Augmentation of the mined tiles; parameters are drawn for each tile."""

    min_crop: PositiveShare = 0.5
    """Smallest share of a tile's area that a view shows."""
    stain: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Jitter of the haematoxylin, eosin and residual densities: factor in 1 ± stain, shift in ±
    stain / 10.
    """
    brightness: Share = 0.1
    """Factor in 1 ± brightness."""
    blur: Share = 0.2
    """Share of the views that are blurred."""


class SimclrViews(Views):
    """Augmentation of the tiles of SimCLR, which crops more than that of the mined tiles."""

    min_crop: PositiveShare = 0.25


class Contrast(Section):
    """What the two trainings of an encoder by contrast share."""

    epochs: Count
    """Passes over the tiles."""
    batch_tiles: BatchTiles
    """Tiles of a step; each gives two views."""
    learning_rate: Positive = 3e-4
    """Step size of the optimiser."""
    schedule: Schedule
    """Of the learning rate; `cosine` ends at 0."""
    weight_decay: NotNegative = 1e-4
    """How strongly the optimiser pulls weights to 0."""
    temperature: Positive
    """Divides the cosines of the contrast: the lower, the more the nearest tiles count."""
    projection_features: Count = 128
    """Output width of the projection that the loss sees; it is dropped afterwards."""
    views: Views
    """How the views of a tile differ from it."""
    seed: Seed = 0
    """Draws the order of the tiles, their views and the projection's first weights."""


class Simclr(Contrast):
    """SimCLR pre-training of round 0's encoder, where `encoder.source` is `simclr`."""

    epochs: Count = 20
    max_tiles: Count = 100_000
    """Most tiles that are trained on, drawn from those of all train slides."""
    batch_tiles: BatchTiles = 128
    """Tiles of a step; each gives two views."""
    schedule: Schedule = "cosine"
    temperature: Positive = 0.5
    views: SimclrViews = SimclrViews()


class Finetune(Contrast):
    """Supervised contrastive fine-tuning of the encoder on the mined tiles."""

    epochs: Count = 8
    """Each epoch shows every mined tile at least once, and some again, so that all steps have as
    many tiles of each role.
    """
    warmup_epochs: CountOrNone = 1
    """First epochs, in which negatives alone are anchors."""
    anchors: Literal["negatives", "positives", "both"] = "both"
    """Whose tiles are anchors after the warm-up."""
    batch_tiles: BatchTiles = 32
    """Tiles of a step, of both roles; each gives two views."""
    positive_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a step's tiles that are positives, one at least; the others are hard negatives."""
    schedule: Schedule = "constant"
    temperature: Positive = 0.07
    freeze_layers: CountOrNone = 4
    """First layers of the encoder that keep their weights, as timm groups them: the stem is one,
    each block or stage after it another. About half of an encoder's; with all layers trained, hard
    negatives tend to collapse it."""
    adapter_rank: CountOrNone = 0
    """Rank of low-rank adapters (LoRA) that are trained in place of the linear layers' weights, for
    large vision transformers; 0 trains all weights.
    """
    views: Views = Views()


LESION_NAMES = (
    "tumour",
    "tumor",
    "lesion",
    "metastasis",
    "metastases",
    "carcinoma",
    "cancer",
    "_0",
    "_1",
)
"""Classes that are lesions unless a project says otherwise; `_0` and `_1` are CAMELYON16's.
Converters go by this list too.
"""


class Evaluate(Section):
    """How the numbers are made."""

    resamples: Annotated[int, Field(ge=100, le=10**6)] = 1000
    """Bootstrap resamples of the patients behind each interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the resamples that an interval holds."""
    lesion_names: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = LESION_NAMES
    """Classes of an annotation that are lesions, whatever their case, and with them the classes
    that QuPath derives from one (`Tumor: Positive`).
    """
    lesion_share: PositiveShare = 0.25
    """Smallest share of a tile that lesion polygons cover for the tile to be a lesion tile; less,
    but not 0, is left out of the tile AUC.
    """
    seed: Seed = 0
    """Draws the resamples."""


class Compute(Section):
    """Settings of the machine that can change the last bits of a result."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where torch computes; `auto` takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's passes; heads are always trained in float32. `auto` is bfloat16 on a GPU
    that has it, and float32 on a CPU.
    """
    threads: Workers = 2
    """Torch's threads: its CPU results differ by their number."""
    processes: Workers = 1
    """Processes that share fine-tuning and SimCLR, with a GPU each where there are GPUs; they draw
    other views than one alone.
    """


class Dimension(Section):
    """The values that a study may give one param: an interval, or choices."""

    low: float | int | None = None
    """Lower end of the interval, which holds both ends."""
    high: float | int | None = None
    """Upper end of the interval."""
    log: bool = False
    """Draw evenly by the logarithm."""
    step: float | int | None = None
    """Draw `low`, `low + step`, … only."""
    choices: Annotated[tuple[bool | int | float | Text, ...], Field(strict=False)] | None = None
    """Values to choose from, in place of an interval."""

    @model_validator(mode="after")
    def _is_an_interval_or_choices(self) -> "Dimension":
        if self.choices is not None:
            if self.log or any(value is not None for value in (self.low, self.high, self.step)):
                raise ValueError("choices stand alone, without low, high, log and step")
            if len(set(self.choices)) < max(2, len(self.choices)):
                raise ValueError(
                    f"choices={list(self.choices)} must be two or more that differ; a param with"
                    " one value needs no study"
                )
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise ValueError(
                f"the interval from low={self.low:g} to high={self.high:g} is empty or one point;"
                " raise high, or remove the entry"
            )
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError(f"log: true wants low={self.low:g} above 0 and no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(
                f"step={self.step:g} must be above 0 and leave two values between low={self.low:g}"
                f" and high={self.high:g}"
            )
        return self


class Tune(Section):
    """How studies search; no stage depends on it."""

    seeds: Count = 1
    """A trial's value is the mean over so many seeds: 0, 1, … are added to `head.seed`,
    `mining.seed` and `finetune.seed`.
    """
    folds: CountOrNone = 0
    """0: trials are judged on validation. 2 or more: on each of so many parts of the train and
    validation patients, trained on the others; the mean counts.
    """
    pruner: Literal["median", "none"] = "median"
    """`median` stops a trial whose best round so far is below the median of the earlier trials at
    the same round.
    """
    cost: Literal["ignored", "objective"] = "ignored"
    """`objective`: a study searches the front between value and cost. Cost is counted in encoder
    passes of a tile; a trained view counts as three.
    """
    max_cost: Positive | None = None
    """A trial stops, and cannot be the best, where a seed and fold of it costs more."""
    startup_trials: Count = 8
    """Trials before suggestions learn from values, and before a trial may be pruned."""
    seed: Seed = 0
    """Draws the suggestions."""
    space: dict[Text, Dimension]
    """Dotted param of `head`, `ranking`, `mining` or `finetune` -> its interval or choices. It has
    no default; {} where nothing is searched.
    """

    @model_validator(mode="after")
    def _has_an_entry_a_param(self) -> "Tune":
        if labelled := [name for name in self.space if "@" in name]:
            raise ValueError(
                f"space.{labelled[0]} is gone: a study's space has one entry for each param; remove"
                " what follows the @, and begin a study for each case"
            )
        return self

    @model_validator(mode="after")
    def _can_be_pruned(self) -> "Tune":
        if self.folds == 1:
            raise ValueError(
                "folds=1 leaves no fold to train on; give 0 for the validation split, or 2 or more"
            )
        if self.cost == "objective" and self.pruner != "none":
            raise ValueError(
                f"pruner={self.pruner} orders trials by one value, but cost=objective asks for two;"
                " set pruner to none, or max_cost in place of cost"
            )
        return self


class Round(Section):
    """One round of the loop; round 0 has no predecessor."""

    previous: str | None = None
    """The round before, whose scores are mined."""


class Params(Section):
    """The whole of params.yaml."""

    rounds: dict[str, Round]
    """All rounds by name, `"0"`, `"1"` and so on."""
    later_rounds: dict[str, Round]
    """The rounds that mine and fine-tune: all but round 0."""
    cohort: Cohort
    split: Split = Split()
    tissue: Tissue = Tissue()
    tiles: Tiles
    encoder: Encoder = Encoder()
    simclr: Simclr = Simclr()
    embed: Embed = Embed()
    head: Head = Head()
    ranking: Ranking = Ranking()
    mining: Mining = Mining()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()
    compute: Compute = Compute()
    tune: Tune

    @model_validator(mode="after")
    def _rounds_follow_each_other(self) -> "Params":
        expected = {
            str(r): Round(previous=str(r - 1) if r else None) for r in range(len(self.rounds))
        }
        if self.rounds != expected:
            raise ValueError(
                'rounds must count from "0" without a gap, each naming its predecessor, but are'
                f" {sorted(self.rounds)}"
            )
        if self.later_rounds != {r: round_ for r, round_ in self.rounds.items() if r != "0"}:
            raise ValueError(
                f'later_rounds must be the rounds after "0", but are {sorted(self.later_rounds)};'
                " write them once and merge them into rounds"
            )
        return self

    @model_validator(mode="after")
    def _scores_are_made(self) -> "Params":
        if self.mining.scores == "cross_fitted" and not self.head.score_folds:
            raise ValueError(
                "mining.scores=cross_fitted needs head.score_folds of 2 or more, but it is 0; set"
                " it to 5"
            )
        return self

    @model_validator(mode="after")
    def _a_batch_fits_in_memory(self) -> "Params":
        if fault := batch_fault(self.embed, self.tiles):
            raise ValueError(f"{fault}; lower embed.batch_tiles")
        return self


def batch_fault(embed: Embed, tiles: Tiles) -> str | None:
    """What is wrong where the tiles that are embedded at once have more pixels than any machine
    holds; None where nothing is.
    """
    pixels = embed.batch_tiles * tiles.tile_px**2
    if pixels <= MOST_BATCH_PX:
        return None
    return (
        f"embed.batch_tiles={embed.batch_tiles} tiles of {tiles.tile_px} px are {pixels} px at"
        f" once, more than {MOST_BATCH_PX}"
    )


def load_params(path: Path) -> Params:
    """Returns the checked params of `path`; `ParamsError` names each wrong key with its value and
    the cure.
    """
    if not path.exists():
        raise ParamsError(
            f"{path} does not exist; run from the repository's root, where params.yaml lies"
        )
    content = read_bounded(
        path,
        ParamsError,
        what=str(path),
        cure="; restore it by git checkout, or write it anew",
        most=MOST_BYTES,
    )
    try:
        text = content.decode("utf-8-sig")
        _check_size(text, path)
        raw = YAML(typ="safe").load(text)
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}; save it as UTF-8") from None
    # of dates and numbers that there are not, and keys that are lists
    except (YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ParamsError(f"{path} is not valid YAML: {error}; correct it there") from None
    return check_params(raw, where=str(path))


def _check_size(text: str, path: Path) -> None:
    """Raises `ParamsError` where YAML is nested too deep, or large once its aliases are put in:
    both exhaust the memory when it is loaded.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    for event in YAML(typ="safe").parse(text):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, AliasEvent):
            if anchor not in sizes:
                raise ParamsError(
                    f"{path}: *{anchor} stands within &{anchor} or before it; write the value out"
                )
            count += sizes[anchor]
        elif isinstance(event, ScalarEvent):
            count += 1
            sizes |= {anchor: 1} if anchor else {}
        elif isinstance(event, CollectionStartEvent):
            opened.append((anchor, count))
            count += 1
        elif isinstance(event, CollectionEndEvent):
            name, before = opened.pop()
            sizes |= {name: count - before} if name else {}
        if len(opened) > DEEPEST or count > MOST_NODES:
            raise ParamsError(
                f"{path} has more than {DEEPEST} levels or {MOST_NODES} values, those that aliases"
                " repeat counted each time; shorten it"
            )


def check_params(raw: Any, *, where: str = "params") -> Params:
    """Returns `raw` as Params; `where` opens the message of a `ParamsError`."""
    if not isinstance(raw, dict):
        raise ParamsError(f"{where} must be a mapping of sections, but holds {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(
            "\n".join(f"{where}: {_sentence(item)}" for item in error.errors())
        ) from None


def check_section(kind: type[SectionT], name: str, raw: Any, *, where: str) -> SectionT:
    """Returns `raw` as the section `name`, which is no part of a whole params.yaml; `where` opens
    the message of a `ParamsError`.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        located = [{**item, "loc": (name, *item["loc"])} for item in error.errors()]
        raise ParamsError("\n".join(f"{where}: {_sentence(item)}" for item in located)) from None


def _sentence(item: Any) -> str:
    """Returns one pydantic error as a sentence: the dotted name, the value, what is wanted."""
    name = ".".join(str(part) for part in item["loc"])
    for removed in (name, f"{name}={item['input']}"):
        for pattern, reason in REMOVED.items():
            if fnmatchcase(removed, pattern):
                return f"{removed} is gone: {reason}; remove the line"
    if item["type"] == "extra_forbidden":
        return f"{name}={_shown(item['input'])} is not a known param{_suggestion(item['loc'])}"
    if item["type"] == "missing":
        return f"{name} is missing; add it"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}"
    return f"{name}={_shown(item['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    """Returns a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _suggestion(location: tuple[str | int, ...]) -> str:
    """Returns `; did you mean X?`, from the keys of the section at `location`."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        annotation = field and field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return "; remove it"
        section = annotation
    keys = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), keys, n=1)
    prefix = ".".join(map(str, location[:-1]))
    names = [f"{prefix}.{key}" if prefix else key for key in close or keys]
    return f"; did you mean {names[0]}?" if close else f"; known are {', '.join(names)}"


def flat(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested names as dotted ones: {"head": {"seed": 0}} is {"head.seed": 0}."""
    flattened: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened
