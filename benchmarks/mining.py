"""Does mining help? Every policy at every budget, over seeds, on the same slides, with the encoder
really fine-tuned.

    python benchmarks/mining.py --cohort small=cohorts/small/slides.csv --policies random hard mixed
    all --budgets 0.1 --seeds 5

Each *arm* is a pipeline: the stages' own steps with other params, run as a trial of a study is, so
that arms share what they have in common. A seed is added to `head.seed`, `mining.seed` and
`finetune.seed`: arms of one seed differ in what the arm names and in nothing else. An arm that is
not of the grid of policies and budgets is named by `--arm`:

    --arm "mixed, cross-fitted: mining.policy=mixed mining.scores=cross_fitted"

Each finished arm appends a row a round to `--table`, and its test slides' scores to the parquet
file of the same name. What the table has is not run again, unless by other settings, which is
refused; what a killed run had made of an arm is used. An arm that fails (nothing is left to mine,
say) stands in it with the reason, and is named at the end. `benchmarks/mining_evidence.py` makes
intervals and the figure.

Columns: `validation_*` and `test_*` are slide metrics, `*_tile_auc` those of tiles; `false_tiles`
are the tiles of a negative test slide, on average, that outscore the best tile of the median
positive one; `purity` is the share of lesion tiles among the mined positives; `tile_views` how many
views of tiles fine-tuning has shown to the encoder, and `finetune_seconds` its processor time,
empty where a killed run had fine-tuned already; `spread` how far apart its last epoch had the
views, where a tenth of the temperature is collapse (older rows do not say); `settings` digests the
params that made the row; `failed` says why an arm did not get through a round, which has no
figures.
"""

import argparse
import itertools
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from sklearn.metrics import roc_auc_score

from hnm.errors import FinetuneError, HeadError, HnmError, MiningError
from hnm.evidence.evaluation import lesion_share
from hnm.evidence.truth import LESION, NORMAL, tile_truth
from hnm.files import key_of, whole
from hnm.learning.training.trainer import SAMPLE
from hnm.loop.rounds import Loop, RoundResult, Upstream
from hnm.params import Params, load_params
from hnm.processes import keep_freed_memory
from hnm.slides.annotations import read_annotation
from hnm.store import Store
from hnm.store_keeping import Limits, expired, stored_results
from hnm.studies.space import with_seed, with_values
from hnm.tables import LABELS, MINED, SLIDE_SCORES, SLIDES, TILE_SCORES, TILES, read_numbers

SPLITS = ("train", "validation", "test")
SECTIONS = (
    "tissue",
    "tiles",
    "encoder",
    "simclr",
    "embed",
    "head",
    "ranking",
    "mining",
    "finetune",
)

ARM_ERRORS = (FinetuneError, HeadError, MiningError)
"""What an arm's settings may bring about: such a failure is a finding, and stands in the table."""

TEXTS = ("cohort", "arm", "settings", "failed")
"""Columns of the table that are text; the others are numbers."""
LEAST_SECONDS = 0.5
"""No fine-tuning takes less; reading one from the store does."""


@dataclass(frozen=True)
class Arm:
    """One way to mine: params that differ from params.yaml."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Cohort:
    """A cohort as the stages before round 0's head leave it, and the truth to judge by."""

    name: str
    params: Params
    upstream: Upstream
    truth: pd.DataFrame
    """slide_id, tile, truth of all tiles of labelled slides."""
    slides: Mapping[str, pd.DataFrame]
    """Split -> slide_id, label, patient_id."""


def prepare(name: str, manifest: Path, values: Mapping[str, Any], work: Path) -> Cohort:
    """Runs the stages up to round 0's encoder in a clone of this repository, with `values` in its
    params.yaml.
    """
    clone = work / name
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
    # the clone of an earlier run has today's code, and its params.yaml is written anew
    subprocess.run(["git", "fetch", "--quiet", str(Path.cwd()), "HEAD"], cwd=clone, check=True)
    subprocess.run(
        ["git", "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"], cwd=clone, check=True
    )
    yaml = YAML()
    raw = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
    for key, value in {
        **values,
        "cohort.name": name,
        "cohort.manifest": str(manifest.resolve()),
    }.items():
        *path, leaf = key.split(".")
        section = raw
        for part in path:
            section = section[part]
        section[leaf] = value
    yaml.dump(raw, clone / "params.yaml")
    subprocess.run(["dvc", "repro", "encoder"], cwd=clone, check=True)
    params, upstream = load_params(clone / "params.yaml"), Upstream(clone)
    paths = upstream.paths
    table = SLIDES.read(paths.cohort.slides)
    slides = {
        split: LABELS.read(paths.cohort.labels(split)).merge(table[["slide_id", "patient_id"]])
        for split in SPLITS
    }
    annotations = {
        path.stem: read_annotation(path) for path in paths.cohort.annotations.glob("*.geojson")
    }
    every = pd.concat(slides.values())
    labels = dict(zip(every["slide_id"], every["label"], strict=True))
    aspects = dict(zip(table["slide_id"], table["mpp_x"] / table["mpp_y"], strict=True))
    return Cohort(
        name,
        params,
        upstream,
        tile_truth(TILES.read(paths.tiles.index), labels, annotations, aspects, params.evaluate),
        slides,
    )


def params_of(cohort: Cohort, arm: Arm, seed: int) -> Params:
    """The params of an arm with a seed."""
    return with_seed(with_values(cohort.params, arm.values), seed)


def settings_key(params: Params) -> str:
    """Digest of all params that can change a row, defaults too: rows of a default that has changed
    since must not pass for rows of today's.
    """
    told = {name: getattr(params, name).model_dump(mode="json") for name in SECTIONS}
    return key_of(precision=params.compute.precision, **told)[:12]


def is_done(table: Path, cohort: Cohort, arm: Arm, seed: int) -> bool:
    """Whether the table has the arm with this seed.

    Raises:
        SystemExit: it has it by other settings, with other rounds or of other slides.
    """
    if not table.exists():
        return False
    done, scores = (
        read_numbers(table, texts=TEXTS),
        pd.read_parquet(table.with_suffix(".parquet"), columns=["cohort", "slide_id"]),
    )
    if strange := sorted(
        set(scores.loc[scores["cohort"] == cohort.name, "slide_id"])
        - set(cohort.slides["test"]["slide_id"])
    ):
        raise SystemExit(
            f"{table} has cohort {cohort.name!r} with other test slides ({strange[0]} among them):"
            " name this one otherwise, or give another --table"
        )
    own = done[(done["cohort"] == cohort.name) & (done["arm"] == arm.name) & (done["seed"] == seed)]
    now = settings_key(params_of(cohort, arm, seed))
    if others := set(own["settings"]) - {now}:
        raise SystemExit(
            f"{table} has arm {arm.name!r} of cohort {cohort.name!r}, seed {seed}, by other"
            f" settings ({', '.join(sorted(others))}, now {now}): give the --set that it was made"
            " with, or another --table, or name the cohort or the arm otherwise"
        )
    has_failed = "failed" in own and own["failed"].notna().any()
    if (
        not own.empty
        and not has_failed
        and set(own["round"]) != set(range(len(cohort.params.rounds)))
    ):
        raise SystemExit(
            f"{table} has arm {arm.name!r} of cohort {cohort.name!r}, seed {seed}, with rounds"
            f" 0..{own['round'].max()}: give another --table"
        )
    return not own.empty


def run(
    cohort: Cohort, arm: Arm, seed: int, store: Store
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """The rows of the table, one a round, and the scores of the test slides; where the arm fails
    after round 0, the last row says why.
    """
    params = params_of(cohort, arm, seed)
    rows: list[dict[str, Any]] = []
    scores, settings = [], settings_key(params)
    try:
        for result in Loop(cohort.upstream, store).rounds(params):
            identity: dict[str, Any] = {
                "cohort": cohort.name,
                "arm": arm.name,
                "seed": seed,
                "round": result.round,
            }
            slides = SLIDE_SCORES.read(result.slide_scores)
            rows.append(
                {**identity, **judge(cohort, result, slides), "settings": settings, "failed": None}
            )
            scores.append(
                cohort.slides["test"]
                .merge(slides[["slide_id", "score"]], validate="one_to_one")
                .assign(**identity)
            )
            print(rows[-1], flush=True)
    except ARM_ERRORS as error:
        if not rows:
            raise
        rows.append(
            {
                **rows[0],
                **dict.fromkeys(set(rows[0]) - {"cohort", "arm", "seed", "settings"}),
                "round": len(rows),
                "failed": str(error),
            }
        )
        print(rows[-1], flush=True)
    return rows, scores


def judge(cohort: Cohort, result: RoundResult, slides: pd.DataFrame) -> dict[str, float | None]:
    """What one round is worth, and what it cost."""
    tiles, found = (
        TILE_SCORES.read(result.tile_scores).merge(cohort.truth, on=["slide_id", "tile"]),
        {},
    )
    for split in ("validation", "test"):
        scored = cohort.slides[split].merge(slides, on="slide_id", validate="one_to_one")
        known = tiles[
            tiles["slide_id"].isin(scored["slide_id"]) & tiles["truth"].isin([LESION, NORMAL])
        ]
        found[f"{split}_auc"] = float(roc_auc_score(scored["label"], scored["logit"]))
        found[f"{split}_tile_auc"] = float(roc_auc_score(known["truth"] == LESION, known["logit"]))
    mined = MINED.read(result.mined).merge(
        cohort.truth, on=["slide_id", "tile"], validate="one_to_one"
    )
    trained = (
        result.cost - cohort.upstream.tile_count - min(len(mined), SAMPLE) if result.cost else 0
    )
    views, seconds = trained // 3, result.finetune_seconds
    found |= {
        "false_tiles": _false_tiles(tiles.merge(cohort.slides["test"], on="slide_id")),
        "purity": (
            share
            if (share := lesion_share(mined[mined["role"] == "positive"])) is not None
            else math.nan
        ),
        "validation_log_loss": result.log_loss,
        "tile_views": views,
        "finetune_seconds": math.nan if views and seconds < LEAST_SECONDS else round(seconds, 1),
        "spread": result.spread,
    }
    return {name: round(value, 6) for name, value in found.items()}


def _false_tiles(tiles: pd.DataFrame) -> float:
    positive, negative = (tiles[tiles["label"] == label] for label in (1, 0))
    return float(
        (negative["logit"] > positive.groupby("slide_id")["logit"].max().median()).sum()
        / negative["slide_id"].nunique()
    )


def append(rows: Sequence[Mapping[str, Any]], scores: Sequence[pd.DataFrame], table: Path) -> None:
    """Adds the rounds of an arm to the table, and to the scores beside it."""
    held, new = table.with_suffix(".parquet"), pd.concat(scores, ignore_index=True)
    if held.exists():
        kept, identity = pd.read_parquet(held), ["cohort", "arm", "seed", "round"]
        # a run that was killed between the two files has left scores whose rows the table lacks
        stale = pd.MultiIndex.from_frame(kept[identity]).isin(
            pd.MultiIndex.from_frame(new[identity])
        )
        new = pd.concat([kept[~stale], new], ignore_index=True)
    with whole(held) as temporary:
        new.to_parquet(temporary, index=False)
    before = [read_numbers(table, texts=TEXTS)] if table.exists() else []
    with whole(table) as temporary:
        pd.concat([*before, pd.DataFrame(rows)]).to_csv(temporary, index=False, lineterminator="\n")


def fill(table: Path, cohort: Cohort, arm: Arm, seed: int, store: Store) -> str | None:
    """Runs an arm and appends it to the table; what is wrong where it cannot be run to its end,
    which costs no other arm.
    """
    name = f"arm {arm.name!r} of cohort {cohort.name!r}, seed {seed}"
    try:
        rows, scores = run(cohort, arm, seed, store)
    except HnmError as error:
        return f"not in the table: {name}: {error}"
    append(rows, scores, table)
    return (
        f"failed in round {rows[-1]['round']}: {name}: {rows[-1]['failed']}"
        if rows[-1]["failed"]
        else None
    )


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """The grid of policies and budgets, and the arms by name."""
    arms = []
    for policy in options.policies:
        for budget in [None] if policy in {"all", "none"} else options.budgets:
            values = {"mining.policy": policy} | (
                {} if budget is None else {"mining.negative_fraction": budget}
            )
            arms.append(Arm(policy if budget is None else f"{policy} {budget:g}", values))
    for text in options.arm:
        name, colon, settings = text.partition(":")
        if not colon:
            raise SystemExit(f"--arm {text!r} names no params; write NAME: param=value ...")
        arms.append(Arm(name.strip(), settings_of(settings.split())))
    return arms


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`param=value`, the value as in YAML."""
    yaml = YAML(typ="safe")
    return {name: yaml.load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def next_time(clock: str) -> datetime:
    """The next moment at which the clock shows HH:MM."""
    moment = datetime.combine(date.today(), datetime.strptime(clock, "%H:%M").time())
    return moment if moment > datetime.now() else moment + timedelta(days=1)


def main() -> None:
    """Runs what the table lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cohort", action="append", required=True, help="NAME=MANIFEST, again for more"
    )
    parser.add_argument("--policies", nargs="*", default=["random", "hard", "mixed", "all"])
    parser.add_argument(
        "--budgets", nargs="*", type=float, default=[0.1], help="shares of the negatives"
    )
    parser.add_argument(
        "--arm", action="append", default=[], help="NAME: param=value ..., again for more"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--set", nargs="*", default=[], help="param=value of params.yaml, for all arms"
    )
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/mining.csv"))
    parser.add_argument("--work", type=Path, default=Path(".bench/mining"))
    parser.add_argument(
        "--keep-gigabytes", type=float, default=20, help="of features and encoders of finished arms"
    )
    parser.add_argument(
        "--until",
        help=(
            "HH:MM, the next time the clock shows it; no arm is begun after it, and the same"
            " command goes on later"
        ),
    )
    options = parser.parse_args()
    keep_freed_memory()
    cohorts = [
        prepare(name, Path(manifest), settings_of(options.set), options.work)
        for name, _, manifest in (text.partition("=") for text in options.cohort)
    ]
    store = Store(options.work / "store")
    end = next_time(options.until) if options.until else None
    failed = []
    for seed, cohort, arm in itertools.product(range(options.seeds), cohorts, arms_of(options)):
        if is_done(options.table, cohort, arm, seed):
            continue
        if end and datetime.now() >= end:
            print(f"it is {options.until}: the rest waits for the same command", flush=True)
            break
        if error := fill(options.table, cohort, arm, seed, store):
            failed.append(error)
        limits = Limits(bytes=options.keep_gigabytes * 1e9)
        for result in expired(stored_results(store), limits, now=time.time()):
            store.remove(result.path)
    for error in failed:
        print(error, flush=True)


if __name__ == "__main__":
    main()
