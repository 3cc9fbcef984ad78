"""The space of a study: which params it may set, and to what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hnm.errors import ParamsError
from hnm.params import Dimension, Params, check_params

TUNABLE = ("head", "ranking", "mining", "finetune")
"""Sections that a study may set: those whose stages a trial runs. The others make what all trials
share.
"""
SEEDED = ("head", "mining", "finetune")
"""Sections of a trial that draw random numbers."""

Value = bool | int | float | str
Values = dict[str, Value]
"""Dotted param -> value."""


@dataclass(frozen=True)
class Space:
    """A checked space, with the values of params.yaml, which the first trial takes."""

    dimensions: dict[str, Dimension]
    """By param, sorted."""
    defaults: Values
    """By param, sorted."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each param."""
        return {name: self._distribution(name) for name in self.dimensions}

    def is_whole(self, name: str) -> bool:
        """Returns whether the param takes whole numbers."""
        default = self.defaults[name]
        return isinstance(default, int) and not isinstance(default, bool)

    def complete(self, values: Mapping[str, Value]) -> Values:
        """Returns a value for each param of the space: that of `values`, or else of params.yaml.

        Raises:
            ParamsError: a param is not in the space, or its value lies outside.
        """
        if unknown := sorted(values.keys() - self.defaults.keys()):
            raise ParamsError(
                f"{unknown[0]} is not in tune.space; it holds {', '.join(self.defaults)}"
            )
        for name, value in values.items():
            if not _contains(self.dimensions[name], value):
                raise ParamsError(f"{name}={value!r} lies outside of tune.space; widen the space")
        return {**self.defaults, **values}

    def _distribution(self, name: str) -> BaseDistribution:
        dimension = self.dimensions[name]
        if dimension.choices is not None:
            return CategoricalDistribution(dimension.choices)
        assert dimension.low is not None and dimension.high is not None
        if self.is_whole(name):
            step = int(dimension.step or 1)
            return IntDistribution(
                int(dimension.low), int(dimension.high), log=dimension.log, step=step
            )
        return FloatDistribution(
            float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step
        )


def space_of(params: Params) -> Space:
    """Returns the space of `params.tune`, each entry checked against the schema of its param.

    Raises:
        ParamsError: the space is empty; a param is unknown, upstream of a study or refuses a
            value; names are given an interval, or whole numbers broken ends; the value of
            params.yaml lies outside.
    """
    if not params.tune.space:
        raise ParamsError(
            "tune.space is empty; name a param and its interval there, for example ranking.margin:"
            " {low: 0.0, high: 1.0}"
        )
    dimensions = dict(sorted(params.tune.space.items()))
    space = Space(dimensions, {name: _value_of(params, name) for name in dimensions})
    for name, dimension in dimensions.items():
        _check_kind(name, dimension, space)
        for value in dimension.choices or (dimension.low, dimension.high):
            assert value is not None
            with_values(params, {name: value}, where=f"tune.space.{name}")
        if not _contains(dimension, space.defaults[name]):
            raise ParamsError(
                f"tune.space.{name}: the value of params.yaml, {space.defaults[name]!r}, lies"
                " outside, but it is the first trial; widen the space"
            )
    return space


def plain(value: Any) -> Any:
    """Returns a number of NumPy as Python's, and any other value as it is."""
    return value.item() if isinstance(value, np.generic) else value


def with_values(params: Params, values: Mapping[str, Value], *, where: str = "params") -> Params:
    """Returns `params` with other values of dotted params, checked whole; `where` opens the
    message of a `ParamsError`.
    """
    raw = params.model_dump(mode="json")
    for name, value in values.items():
        *path, leaf = name.split(".")
        section = raw
        for part in path:
            section = section[part]
        section[leaf] = value
    return check_params(raw, where=where)


def with_seed(params: Params, seed: int) -> Params:
    """Returns `params` with `seed` added to each seed of a trial; 0 leaves them, as the stages
    run.
    """
    return params.model_copy(
        update={
            name: section.model_copy(update={"seed": section.seed + seed})
            for name in SEEDED
            for section in [getattr(params, name)]
        }
    )


def _value_of(params: Params, name: str) -> Value:
    """Returns the value of the dotted param `name`; `ParamsError` where a study cannot set it."""
    section, *path = name.split(".")
    if section not in TUNABLE:
        where = (
            "is upstream of a study, whose trials share it"
            if section in Params.model_fields
            else "is no section of params.yaml"
        )
        raise ParamsError(
            f"tune.space.{name}: {section} {where}; a study can set params of {', '.join(TUNABLE)}"
        )
    value: Any = params.model_dump(mode="json")[section]
    for part in path:
        if not isinstance(value, dict):
            raise ParamsError(
                f"tune.space.{name} is not a known param; {name.rpartition('.')[0]} has no params"
                " below it"
            )
        if part not in value:  # the schema's own message suggests what was meant
            with_values(params, {name: 0}, where="tune.space")
        value = value[part]
    if isinstance(value, dict):
        raise ParamsError(
            f"tune.space.{name} is a section; name one of its params:"
            f" {', '.join(f'{name}.{key}' for key in value)}"
        )
    if path[-1] == "seed":
        raise ParamsError(
            f"tune.space.{name}: a study that picks a seed picks luck; set tune.seeds to average"
            " over several"
        )
    if not isinstance(value, bool | int | float | str):
        raise ParamsError(
            f"tune.space.{name}: {value!r} is no single value; a study sets numbers, names and"
            " switches"
        )
    return value


def _check_kind(name: str, dimension: Dimension, space: Space) -> None:
    """Raises `ParamsError` where an interval does not fit the kind of the param's value."""
    if dimension.choices is not None:
        return
    default = space.defaults[name]
    if isinstance(default, bool | str):
        raise ParamsError(
            f"tune.space.{name}: {default!r} and its alternatives have no order; give choices"
            " instead of low and high"
        )
    for end in ("low", "high", "step"):
        value = getattr(dimension, end)
        if space.is_whole(name) and value is not None and not isinstance(value, int):
            raise ParamsError(
                f"tune.space.{name}.{end}={value!r} must be a whole number, as {name} is"
            )


def _contains(dimension: Dimension, value: Value) -> bool:
    if dimension.choices is not None:
        return value in dimension.choices
    assert dimension.low is not None and dimension.high is not None and not isinstance(value, str)
    steps = 0.0 if dimension.step is None else (value - dimension.low) / dimension.step
    return dimension.low <= value <= dimension.high and abs(steps - round(steps)) < 1e-9
