"""What the table of `benchmarks/mining.py` says: paired differences with intervals, and quality
against cost.

    python benchmarks/mining_evidence.py --out docs/mining_evidence.md --figure
    docs/images/mining_cost.png

Two arms are compared in the same round, on the same slides, over the seeds that both have. The
interval of a difference of test slide AUCs is for other seeds and other patients: Student's
half-width over the seeds, with the slides as they are, and the normal one of a bootstrap over the
patients of each label, as the root of the sum of their squares. (Drawing a handful of seeds with
replacement instead would leave out a share 1/n of their variance.) With one seed it is for other
patients alone. That of a tile AUC, of false tiles and of purity is Student's over the seeds.

The policy `none` mines nothing, so that its every round is round 0. An arm stands against its
control, the arm that says `random` in the place of its policy and the same after it, or the same
budget alone: `hard 0.2` against `random 0.2`, `random 0.2, 8 epochs` too. One that has none stands
against `--against`, or, in a cohort without that, against its random arm of the largest budget;
with `--no-controls` all stand against `--against`.
"""

import argparse
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

from hnm.evidence.numbers.intervals import Number
from hnm.files import whole
from hnm.selection import best_row
from hnm.tables import read_numbers

Floats = NDArray[np.float64]
RESAMPLES = 2000
ARM = ["cohort", "arm", "seed"]
TEXTS = ("cohort", "arm", "settings", "failed")
"""Columns of the table that are text; the others are numbers."""


def wins(scores: pd.DataFrame, seeds: Sequence[int]) -> tuple[Floats, pd.DataFrame, pd.DataFrame]:
    """`(seeds, positives, negatives)`: 1 where the positive slide outscores the negative one, 1/2
    where they tie; and the two tables of slides.
    """
    wide = scores.pivot(index=["slide_id", "label", "patient_id"], columns="seed", values="score")[
        list(seeds)
    ].sort_index()
    positive, negative = (wide[wide.index.get_level_values("label") == label] for label in (1, 0))
    difference = positive.to_numpy().T[:, :, None] - negative.to_numpy().T[:, None, :]
    return (np.sign(difference) + 1) / 2, positive.index.to_frame(), negative.index.to_frame()


def auc_difference(scores: pd.DataFrame, arm: str, against: str) -> tuple[Number, int]:
    """Mean difference of test slide AUCs, its 95 % bounds, and how many seeds both arms have;
    `scores` are of one cohort and round.
    """
    of_arm = scores[scores["arm"] == arm]
    of_other = scores[scores["arm"] == against]
    seeds = sorted(set(of_arm["seed"]) & set(of_other["seed"]))
    wins_of_arm, positives, negatives = wins(of_arm, seeds)
    gain = wins_of_arm - wins(of_other, seeds)[0]
    generator = np.random.default_rng(0)
    rows, columns = (_patient_weights(table, generator) for table in (positives, negatives))
    drawn = np.einsum("rp,pn,rn->r", rows, gain.mean(axis=0), columns, optimize=True)
    of_patients = stats.norm.ppf(0.975) * drawn.std()
    of_seeds = _student(gain.mean(axis=(1, 2))) if len(seeds) > 1 else 0.0
    mean = float(gain.mean())
    half = float(np.hypot(of_seeds, of_patients))
    return Number(mean, mean - half, mean + half), len(seeds)


def _patient_weights(slides: pd.DataFrame, generator: np.random.Generator) -> Floats:
    """`(RESAMPLES, slides)`: weights of slides that sum to 1, each time after patients were drawn
    with replacement.
    """
    patients, of_slide = np.unique(slides["patient_id"], return_inverse=True)
    weights: Floats = generator.multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), RESAMPLES
    )[:, of_slide].astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _student(gains: Floats) -> float:
    """Half-width of Student's 95 % interval of the mean of two gains or more."""
    return float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains))


def difference(table: pd.DataFrame, column: str, arm: str, against: str) -> Number:
    """Mean difference of a column over the seeds that both arms have, and Student's bounds; `table`
    is of one cohort and round. One seed, or seeds that all agree, give no bounds.
    """
    wide = table.pivot(index="seed", columns="arm", values=column)[[arm, against]].dropna()
    gains = (wide[arm] - wide[against]).to_numpy(np.float64)
    if not len(gains):
        return Number(None)
    mean = float(gains.mean())
    if len(gains) < 2 or not gains.std():
        return Number(mean)
    half = _student(gains)
    return Number(mean, mean - half, mean + half)


def control(arm: str, arms: Collection[str], against: str) -> str:
    """The arm among `arms` that `arm` is compared with: random tiles in the place of its policy,
    else of its budget, else `against` or the like.
    """
    policy_and_budget, _, note = arm.partition(", ")
    random = " ".join(["random", *policy_and_budget.split(" ")[1:]])
    for name in (f"{random}, {note}", random):
        if name in arms and name not in (arm, "random"):
            return name
    if against in arms:
        return against
    plain = [name for name in arms if re.fullmatch(r"random [\d.]+", name) and name != arm]
    return max(plain, key=lambda name: float(name.split(" ")[1]), default=against)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The row of each arm and seed whose round validation picks."""
    best = [
        rounds.iloc[
            [best_row(rounds["validation_auc"].tolist(), rounds["validation_log_loss"].tolist())]
        ]
        for _, rounds in table.sort_values("round").groupby(ARM)
    ]
    return pd.concat(best)


def first_rounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Round 0 of each cohort and seed, of an arm without a note where there is one: arms share it,
    but not those that have another head.
    """
    first = rows[rows["round"] == 0]
    plain = first["arm"].map(_note) == ""
    return pd.concat([first[plain], first[~plain]]).drop_duplicates(
        ["cohort", "seed", *rows.columns.intersection(["slide_id"])]
    )


def with_none(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows`, of a table of rounds or of its slides, and those of the arm `none`: round 0 again in
    each later round.
    """
    rows = rows[rows["arm"] != "none"]  # where it was run, it is the same
    first = first_rounds(rows)
    return pd.concat(
        [
            rows,
            *(first.assign(arm="none", round=number) for number in sorted(rows["round"].unique())),
        ],
        ignore_index=True,
    )


def finished(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rounds that have figures, and the rounds in which an arm failed."""
    failed = table["failed"].notna() if "failed" in table else pd.Series(False, table.index)
    return table[~failed], table[failed]


def failures(failed: pd.DataFrame) -> list[str]:
    """What did not run to its end, and why, as Markdown; none of it is in any mean after the round
    before.
    """
    rows = failed.sort_values([*ARM, "round"]).itertuples()
    return [
        "| cohort | arm | seed | round | what it said |",
        "|" + "---|" * 5,
        *(
            f"| {row.cohort} | {row.arm} | {row.seed} | {row.round} | {row.failed} |"
            for row in rows
        ),
    ]


def means(table: pd.DataFrame) -> list[str]:
    """Each arm's figures, round by round, as Markdown."""
    lines = [
        (
            "| cohort | round | arm | seeds | validation AUC | test AUC | test tile AUC | false"
            " tiles | purity | tile views | fine-tuning, s | least spread |"
        ),
        "|" + "---|" * 12,
    ]
    shared = first_rounds(table).assign(arm="before any mining")
    rows = pd.concat([shared, table[table["round"] > 0]])
    for (cohort, number, arm), seeds in rows.groupby(["cohort", "round", "arm"]):
        spread = Number(seeds["spread"].min()).text(".4f")
        cells = [
            *(
                _with_deviation(seeds[column])
                for column in ("validation_auc", "test_auc", "test_tile_auc")
            ),
            *(
                Number(seeds[column].mean()).text(form)
                for column, form in (
                    ("false_tiles", ".2f"),
                    ("purity", ".2f"),
                    ("tile_views", ",.0f"),
                    ("finetune_seconds", ".0f"),
                )
            ),
            spread,
        ]
        lines.append(f"| {cohort} | {number} | {arm} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def _with_deviation(values: pd.Series) -> str:
    mean = f"{values.mean():.3f}"
    return f"{mean} ± {values.std(ddof=1):.3f}" if len(values) > 1 else mean


def differences(
    table: pd.DataFrame, scores: pd.DataFrame, against: str, *, controls: bool = True
) -> list[str]:
    """Each arm less its control, or without `controls` less `against`, over the seeds that both
    have: a line a round, and the one that validation picks.
    """
    lines = [
        (
            "| cohort | round | arm | less | seeds | test slide AUC | test tile AUC | false tiles |"
            " purity |"
        ),
        "|" + "---|" * 9,
    ]
    rounds = {
        str(number): table[table["round"] == number]
        for number in sorted(table["round"].unique())
        if number
    }
    rounds["validation's"] = chosen(table)
    for cohort in sorted(table["cohort"].unique()):
        for name, of_round in rounds.items():
            of_cohort = of_round[of_round["cohort"] == cohort]
            of_slides = scores.merge(of_cohort[[*ARM, "round"]])
            seeds_of = of_cohort.groupby("arm")["seed"].agg(set).to_dict()
            for arm in sorted(seeds_of):
                other = control(arm, seeds_of, against) if controls else against
                if arm == other or not seeds_of[arm] & seeds_of.get(other, set()):
                    continue
                auc, seeds = auc_difference(of_slides, arm, other)
                numbers = [
                    auc,
                    *(
                        difference(of_cohort, column, arm, other)
                        for column in ("test_tile_auc", "false_tiles", "purity")
                    ),
                ]
                cells = " | ".join(number.with_interval("+.3f") for number in numbers)
                lines.append(f"| {cohort} | {name} | {arm} | {other} | {seeds} | {cells} |")
    return lines


COLOURS = {
    "random": "tab:blue",
    "hard": "tab:red",
    "mixed": "tab:purple",
    "semi_hard": "tab:orange",
    "all": "black",
}
MARKERS = "sD^vPX*"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Test slide AUC after the last round against the views of tiles that fine-tuning cost up to
    then; bars are standard errors over the seeds.

    A line joins one policy's budgets, told in per cent beside those of `random`. An arm that
    differs in more than its budget stands alone, with a marker of its own, and only where it costs
    twice as much as the budget alone, or half.
    """
    cohorts = sorted(table["cohort"].unique())
    columns = min(2, len(cohorts))
    rows = -(-len(cohorts) // columns)
    drawn = {cohort: _costs(table[table["cohort"] == cohort]) for cohort in cohorts}
    notes = sorted({note for arms in drawn.values() for note in arms["note"]} - {""})
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(5.5 * columns, 3.8 * rows + 0.6),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    axes = grid.flatten()[: len(cohorts)]
    for axis in grid.flatten()[len(cohorts) :]:
        axis.remove()
    for axis, cohort in zip(axes, cohorts, strict=True):
        for (policy, note), arms in drawn[cohort].groupby(["policy", "note"]):
            marker = MARKERS[notes.index(note) % len(MARKERS)] if note else "o"
            _draw_policy(axis, str(policy), str(note), arms, marker)
        before = first_rounds(table[table["cohort"] == cohort])["test_auc"].mean()
        axis.axhline(before, color="grey", linestyle=":", label="before any mining")
        axis.margins(x=0.1)
        axis.set(xscale="log", title=f"cohort {cohort}")
    for axis in axes[-columns:]:
        axis.set_xlabel("views of tiles in fine-tuning, over all rounds")
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("test slide AUC after the last round")
    named = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def _draw_policy(axis: Axes, policy: str, note: str, arms: pd.DataFrame, marker: str) -> None:
    # equal costs would hide each other
    beside = 1.03 ** list(COLOURS).index(policy) if policy in COLOURS else 1.0
    axis.errorbar(
        arms["cost"] * beside,
        arms["auc"],
        arms["error"],
        marker=marker,
        capsize=3,
        color=COLOURS.get(policy, "tab:green"),
        label=f"{policy}, {note}" if note else policy,
    )
    if (policy, note) == ("random", ""):
        for arm in arms.itertuples():
            axis.annotate(
                _budget(str(arm.arm)),
                (arm.cost, arm.auc),
                xytext=(-4, 8),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )


def _costs(rounds: pd.DataFrame) -> pd.DataFrame:
    """arm, policy, note, cost, auc and error after the last round of the arms of one cohort that
    are drawn, the cheapest first.
    """
    rounds = rounds.sort_values("round")
    rounds = rounds.assign(cost=rounds.groupby(["arm", "seed"])["tile_views"].cumsum())
    last = rounds[rounds["round"] == rounds["round"].max()]
    arms = (
        last.groupby("arm")
        .agg(cost=("cost", "mean"), auc=("test_auc", "mean"), error=("test_auc", "sem"))
        .reset_index()
    )
    arms = arms.assign(
        policy=arms["arm"].str.split(" ").str[0], note=arms["arm"].map(_note)
    ).sort_values("cost")
    plain = arms["arm"].str.partition(", ")[0].map(arms.set_index("arm")["cost"])
    drawn: pd.DataFrame = arms[
        (arms["note"] == "") | ~(arms["cost"] / plain).between(0.5, 2, inclusive="neither")
    ]
    return drawn


def _note(arm: str) -> str:
    """What an arm's name says beside policy and budget, `30 epochs` of `random 0.1, 30 epochs`."""
    return arm.partition(", ")[2]


def _budget(arm: str) -> str:
    """The budget in an arm's name, in per cent; empty where it has none."""
    budget = arm.partition(", ")[0].partition(" ")[2]
    return f"{float(budget):.0%}" if budget else ""


def main() -> None:
    """Writes the tables and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/mining.csv"))
    parser.add_argument(
        "--against",
        default="random 0.1",
        help="the arm that those without a control are compared with",
    )
    parser.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether an arm stands against its own control",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    options = parser.parse_args()
    table, failed = finished(read_numbers(options.table, texts=TEXTS))
    scores = pd.read_parquet(options.table.with_suffix(".parquet"))
    with whole(options.out) as temporary:
        temporary.write_text(
            "\n".join(
                [
                    "## Means ± standard deviation over the seeds",
                    "",
                    *means(table),
                    "",
                    "## Differences, with 95 % intervals",
                    "",
                    *differences(
                        with_none(table),
                        with_none(scores),
                        options.against,
                        controls=options.controls,
                    ),
                    "",
                    *(["## Arms that failed", "", *failures(failed), ""] if len(failed) else []),
                ]
            ),
            encoding="utf-8",
        )
    draw(table, options.figure)


if __name__ == "__main__":
    main()
