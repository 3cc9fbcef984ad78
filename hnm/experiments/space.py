"""The space of a study: which params it may set, and to what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hnm.errors import ParamsError
from hnm.params import Dimension, Params, check_params

TUNABLE = ("head", "ranking", "mining", "finetune")
"""Sections that a study may set: those whose stages a trial runs. The others make what all trials share."""
SEEDED = ("head", "mining", "finetune")
"""Sections of a trial that draw."""

Value = bool | int | float | str


@dataclass(frozen=True)
class Space:
    """A checked space, with the values of params.yaml, which the first trial takes."""

    dimensions: dict[str, Dimension]
    """By dotted param, sorted."""
    defaults: dict[str, Value]

    def is_whole(self, name: str) -> bool:
        """Whether the param `name` takes whole numbers."""
        return isinstance(self.defaults[name], int) and not isinstance(self.defaults[name], bool)


def space_of(params: Params) -> Space:
    """The space of `params.tune`, each entry checked against the schema of the param that it names.

    Raises:
        ParamsError: the space is empty; a param is unknown, upstream of a study or refuses a value; an interval is given
            for names, whole numbers need whole ends, or the value of params.yaml lies outside.
    """
    if not params.tune.space:
        raise ParamsError("tune.space is empty; name a param and its interval there, for example ranking.margin: {low: 0.0, high: 1.0}")
    dimensions = dict(sorted(params.tune.space.items()))
    space = Space(dimensions, {name: _value_of(params, name) for name in dimensions})
    for name, dimension in dimensions.items():
        _check_kind(name, dimension, space)
        for value in dimension.choices or (dimension.low, dimension.high):
            assert value is not None
            with_values(params, {name: value}, where=f"tune.space.{name}")
        if not _contains(dimension, space.defaults[name]):
            raise ParamsError(
                f"tune.space.{name}: the value of params.yaml, {space.defaults[name]!r}, lies outside, but it is the first trial; widen the space"
            )
    return space


def with_values(params: Params, values: Mapping[str, Value], *, where: str = "params") -> Params:
    """`params` with other values of dotted params, checked whole; `where` opens the message of a `ParamsError`."""
    raw = params.model_dump(mode="json")
    for name, value in values.items():
        *path, leaf = name.split(".")
        section = raw
        for part in path:
            section = section[part]
        section[leaf] = value
    return check_params(raw, where=where)


def with_seed(params: Params, seed: int) -> Params:
    """`params` with `seed` added to each seed of a trial; 0 leaves them, as the stages run."""
    return params.model_copy(update={name: section.model_copy(update={"seed": section.seed + seed}) for name in SEEDED for section in [getattr(params, name)]})


def _value_of(params: Params, name: str) -> Value:
    """The value of the dotted param `name` in `params`."""
    section, *path = name.split(".")
    if section not in TUNABLE:
        where = "is upstream of a study, whose trials share it" if section in Params.model_fields else "is no section of params.yaml"
        raise ParamsError(f"tune.space.{name}: {section} {where}; a study can set params of {', '.join(TUNABLE)}")
    value: Any = params.model_dump(mode="json")[section]
    for part in path:
        if not isinstance(value, dict):
            raise ParamsError(f"tune.space.{name} is not a known param; {name.rpartition('.')[0]} has none of its own")
        if part not in value:
            with_values(params, {name: 0}, where="tune.space")  # the schema's own sentence suggests what was meant
        value = value[part]
    if isinstance(value, dict):
        raise ParamsError(f"tune.space.{name} is a section; name one of its params: {', '.join(f'{name}.{key}' for key in value)}")
    if path[-1] == "seed":
        raise ParamsError(f"tune.space.{name}: a study that picks a seed picks luck; set tune.seeds to average over several")
    assert isinstance(value, bool | int | float | str)
    return value


def _check_kind(name: str, dimension: Dimension, space: Space) -> None:
    if dimension.choices is not None:
        return
    default = space.defaults[name]
    if isinstance(default, bool | str):
        raise ParamsError(f"tune.space.{name}: {default!r} and its alternatives have no order; give choices instead of low and high")
    for end in ("low", "high", "step"):
        value = getattr(dimension, end)
        if space.is_whole(name) and value is not None and not isinstance(value, int):
            raise ParamsError(f"tune.space.{name}.{end}={value!r} must be a whole number, as {name} is")


def _contains(dimension: Dimension, value: Value) -> bool:
    if dimension.choices is not None:
        return value in dimension.choices
    assert dimension.low is not None and dimension.high is not None and not isinstance(value, str)
    steps = 0.0 if dimension.step is None else (value - dimension.low) / dimension.step
    return dimension.low <= value <= dimension.high and abs(steps - round(steps)) < 1e-9
