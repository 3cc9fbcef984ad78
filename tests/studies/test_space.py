"""The space of a study: what is refused before the first trial, and what a trial's params are."""

from typing import Any

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hnm.errors import ParamsError
from hnm.params import Params, check_params
from hnm.studies.space import space_of, with_seed, with_values

BASE: dict[str, Any] = {
    "rounds": {"0": {}},
    "later_rounds": {},
    "cohort": {"name": "c", "manifest": "slides.csv"},
    "tiles": {"mpp": 0.5, "tile_px": 224},
    "head": {"seed": 3},
    "ranking": {"margin": 0.5, "top_k": 5},
}


def params_with(space: dict[str, Any]) -> Params:
    return check_params({**BASE, "tune": {"space": space}})


def test_a_space_is_sorted_and_knows_the_values_of_params_yaml() -> None:
    space = space_of(
        params_with(
            {
                "ranking.top_k": {"low": 1, "high": 9, "step": 2},
                "head.schedule": {"choices": ["cosine", "constant"]},
            }
        )
    )
    assert list(space.dimensions) == ["head.schedule", "ranking.top_k"]
    assert space.defaults == {"head.schedule": "cosine", "ranking.top_k": 5}
    assert space.is_whole("ranking.top_k") and not space.is_whole("head.schedule")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"tune\.space is empty; name a param"),
        (
            {"ranking.margn": {"low": 0.0, "high": 1.0}},
            r"tune\.space: ranking\.margn=0 is not a known param; did you mean ranking\.margin\?",
        ),
        (
            {"rank.margin": {"low": 0.0, "high": 1.0}},
            (
                r"tune\.space\.rank\.margin: rank is no section of params\.yaml; a study can set"
                r" params of head, ranking"
            ),
        ),
        (
            {"tiles.tile_px": {"low": 64, "high": 128}},
            r"tune\.space\.tiles\.tile_px: tiles is upstream of a study, whose trials share it",
        ),
        (
            {"head.seed": {"low": 0, "high": 9}},
            r"tune\.space\.head\.seed: a study that picks a seed picks luck; set tune\.seeds",
        ),
        (
            {"finetune.views": {"low": 0, "high": 9}},
            (
                r"tune\.space\.finetune\.views is a section; name one of its params:"
                r" finetune\.views\.min_crop"
            ),
        ),
        (
            {"ranking.margin.low": {"low": 0, "high": 9}},
            (
                r"tune\.space\.ranking\.margin\.low is not a known param; ranking\.margin has no"
                r" params below it"
            ),
        ),
        (
            {"mining.extra": {"choices": ["a", "b"]}},
            (
                r"tune\.space\.mining\.extra: \[\] is no single value; a study sets numbers, names"
                r" and switches"
            ),
        ),
        (
            {"mining.threshold": {"low": 0.1, "high": 1.5}},
            r"tune\.space\.mining\.threshold: mining\.threshold=1\.5: input should be less than 1",
        ),
        (
            {"ranking.margin": {"low": 0.0, "high": 1.2}},
            r"tune\.space\.ranking\.margin: ranking: margin=1\.2 can never be met by scores",
        ),
        (
            {"head.schedule": {"choices": ["cosine", "step"]}},
            (
                r"tune\.space\.head\.schedule: head\.schedule='step': input should be 'cosine' or"
                r" 'constant'"
            ),
        ),
        (
            {"head.schedule": {"low": 0, "high": 1}},
            (
                r"tune\.space\.head\.schedule: 'cosine' and its alternatives have no order; give"
                r" choices"
            ),
        ),
        (
            {"ranking.top_k": {"low": 1, "high": 8.5}},
            r"tune\.space\.ranking\.top_k\.high=8\.5 must be a whole number, as ranking\.top_k is",
        ),
        (
            {"ranking.margin": {"low": 0.6, "high": 0.9}},
            r"tune\.space\.ranking\.margin: the value of params\.yaml, 0\.5, lies outside",
        ),
        (
            {"ranking.top_k": {"low": 2, "high": 8, "step": 2}},
            r"tune\.space\.ranking\.top_k: the value of params\.yaml, 5, lies outside",
        ),
    ],
)
def test_an_entry_that_the_schema_refuses_is_named(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        space_of(params_with(space))


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        (
            {"low": 0.3, "high": 0.3},
            (
                r"tune\.space\.ranking\.margin: the interval from low=0\.3 to high=0\.3 is empty or"
                r" one point"
            ),
        ),
        ({"low": 0.9, "high": 0.3}, r"the interval from low=0\.9 to high=0\.3 is empty"),
        ({"low": 0.3, "high": float("nan")}, r"the interval from low=0\.3 to high=nan is empty"),
        ({"low": 0.3}, r"needs low and high, or choices"),
        ({}, r"needs low and high, or choices"),
        ({"choices": [0.5]}, r"choices=\[0\.5\] must be two or more that differ"),
        (
            {"choices": [0.5, 0.5, 0.7]},
            r"choices=\[0\.5, 0\.5, 0\.7\] must be two or more that differ",
        ),
        ({"choices": [0.5, 0.7], "log": True}, r"choices stand alone"),
        ({"low": 0.0, "high": 1.0, "log": True}, r"log: true wants low=0 above 0 and no step"),
        ({"low": 0.0, "high": 1.0, "step": 1.5}, r"step=1\.5 must be above 0 and leave two values"),
        (
            {"low": 0.0, "hihg": 1.0},
            r"tune\.space\.ranking\.margin\.hihg=1\.0 is not a known param",
        ),
    ],
)
def test_an_entry_that_is_no_interval_and_no_choices_is_named(
    dimension: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        params_with({"ranking.margin": dimension})


def test_a_trial_s_params_are_params_yaml_but_for_its_values() -> None:
    params = params_with(
        {"ranking.margin": {"low": 0.0, "high": 1.0}, "ranking.top_k": {"choices": [5, 7]}}
    )
    changed = with_values(params, {"ranking.margin": 0.25, "finetune.views.blur": 0.125})
    assert (changed.ranking.margin, changed.finetune.views.blur) == (0.25, 0.125)
    assert (
        changed.model_copy(update={"ranking": params.ranking, "finetune": params.finetune})
        == params
    )


def test_a_seed_is_added_to_what_draws() -> None:
    params = params_with({})
    assert with_seed(params, 0) == params
    seeded = with_seed(params, 2)
    assert (seeded.head.seed, seeded.mining.seed, seeded.finetune.seed, seeded.encoder.seed) == (
        5,
        2,
        2,
        0,
    )


def test_values_complete_a_space_or_are_refused_by_name() -> None:
    space = space_of(
        params_with(
            {
                "ranking.on": {"choices": ["score", "logit"]},
                "ranking.margin": {"low": 0.25, "high": 0.75},
                "ranking.top_k": {"low": 1, "high": 9, "step": 2},
            }
        )
    )
    assert space.complete({"ranking.margin": 0.25}) == {
        "ranking.margin": 0.25,
        "ranking.on": "score",
        "ranking.top_k": 5,
    }
    for values, message in (
        ({"ranking.margin": 0.875}, r"ranking\.margin=0\.875 lies outside of tune\.space; widen"),
        ({"ranking.on": "odds"}, r"ranking\.on='odds' lies outside of tune\.space"),
        ({"ranking.top_k": 4}, r"ranking\.top_k=4 lies outside of tune\.space"),
        (
            {"head.dropout": 0.5},
            (
                r"head\.dropout is not in tune\.space; it holds ranking\.margin, ranking\.on,"
                r" ranking\.top_k"
            ),
        ),
    ):
        with pytest.raises(ParamsError, match=message):
            space.complete(values)


def test_a_space_is_optuna_s_distributions() -> None:
    space = space_of(
        params_with(
            {
                "head.schedule": {"choices": ["cosine", "constant"]},
                "head.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
                "ranking.top_k": {"low": 1, "high": 9, "step": 2},
                "ranking.margin": {"low": 0, "high": 1, "step": 0.25},
            }
        )
    )
    assert space.distributions == {
        "head.schedule": CategoricalDistribution(("cosine", "constant")),
        "head.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "ranking.top_k": IntDistribution(1, 9, step=2),
        "ranking.margin": FloatDistribution(0.0, 1.0, step=0.25),
    }


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            {"folds": 1},
            (
                r"tune: folds=1 leaves no fold to train on; give 0 for the validation split, or 2"
                r" or more"
            ),
        ),
        (
            {"cost": "objective"},
            (
                r"tune: pruner=median orders trials by one value, but cost=objective asks for two;"
                r" set pruner to none"
            ),
        ),
    ],
)
def test_ways_to_search_that_exclude_each_other_are_named(
    tune: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        check_params({**BASE, "tune": {"space": {}, **tune}})
