"""Pictures of a study: its history, the importance of its params, parallel coordinates, slices, and
value against cost.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial
from optuna.visualization import matplotlib as draw

from hnm.files import whole
from hnm.studies.files import front_of

matplotlib.use("Agg")
PNG: dict[str, Any] = {"dpi": 120, "format": "png", "metadata": {"Software": None}}
"""The same picture is the same bytes."""
NEEDED = 2
"""Complete trials without which importance and the like say nothing."""


def draw_plots(study: optuna.Study, trials: pd.DataFrame, folder: Path) -> None:
    """Writes `history.png`, `importance.png`, `parallel_coordinate.png`, `slice.png` and
    `pareto.png` into `folder`; nothing before two trials are complete.

    Args:
        study: the study.
        trials: its table.
        folder: is made, even where it stays empty, as DVC wants the output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = trials.loc[trials["state"] == "complete", "value"]
    if len(values) < NEEDED:
        return
    drawings: dict[str, Callable[..., Any]] = {
        "history": draw.plot_optimization_history,
        "parallel_coordinate": draw.plot_parallel_coordinate,
        "slice": draw.plot_slice,
    }
    if values.nunique() > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        drawings["importance"] = partial(draw.plot_param_importances, evaluator=evaluator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, drawing in drawings.items():
            _save(drawing(study, target=_value, target_name="value"), folder / f"{name}.png")
    with whole(folder / "pareto.png") as temporary:
        draw_front(trials).savefig(temporary, **PNG)


def draw_front(trials: pd.DataFrame) -> Figure:
    """Draws value against cost of the complete trials, and joins those that none surpasses in
    both.
    """
    complete = trials[trials["state"] == "complete"]
    front = front_of(complete)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(complete["cost"], complete["value"], s=18, color="0.6", label="complete trials")
    axes.plot(front["cost"], front["value"], "o-", color="tab:blue", label="surpassed by none")
    default = complete[complete["trial"] == 0]
    axes.scatter(
        default["cost"],
        default["value"],
        marker="*",
        s=120,
        color="tab:orange",
        label="params.yaml",
        zorder=3,
    )
    axes.set(xlabel="cost: encoder passes of a tile", ylabel="value")
    axes.legend()
    return figure


def _value(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["value"])


def _save(drawn: Any, path: Path) -> None:
    first = drawn.flat[0] if hasattr(drawn, "flat") else drawn
    figure = first.get_figure()
    figure.set_size_inches(*(max(size, 5) for size in figure.get_size_inches()))
    with whole(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight", **PNG)
    plt.close(figure)
