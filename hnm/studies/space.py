"""The space of a study: which params it may set, and to what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hnm.errors import ParamsError
from hnm.params import Dimension, Params, check_params

TUNABLE = ("head", "ranking", "mining", "finetune")
"""Sections that a study may set: those whose stages a trial runs. The others make what all trials
share.
"""
SEEDED = ("head", "mining", "finetune")
"""Sections of a trial that draw."""

Value = bool | int | float | str
Values = dict[str, Value]
"""Param -> value."""


@dataclass(frozen=True)
class Space:
    """A checked space, with the values of params.yaml, which the first trial takes."""

    dimensions: dict[str, Dimension]
    """By entry: sorted, but those that others wait for stand first. An entry is a param, or
    `param@label`.
    """
    defaults: Values
    """By param, sorted."""

    def is_whole(self, entry: str) -> bool:
        """Whether the param of `entry` takes whole numbers."""
        default = self.defaults[param_of(entry)]
        return isinstance(default, int) and not isinstance(default, bool)

    def values(self, suggest: Callable[[str, Dimension], Value]) -> Values:
        """All params of the space: those of entries that count as `suggest` says, the others as
        params.yaml does.
        """
        values = dict(self.defaults)
        for entry, dimension in self.dimensions.items():
            if counts(dimension, values):
                values[param_of(entry)] = suggest(entry, dimension)
        return values

    def complete(self, values: Mapping[str, Value]) -> Values:
        """All params of the space: `values` where an entry counts, the others as params.yaml has
        them; `ParamsError` as `entries`.
        """
        given = self.entries(values)
        return self.values(lambda entry, _: given[entry])

    def entries(self, values: Mapping[str, Value]) -> Values:
        """Value of each entry that counts, so that the params become `values`.

        Raises:
            ParamsError: a param is not in the space, or its value lies outside.
        """
        if unknown := sorted(values.keys() - self.defaults.keys()):
            raise ParamsError(
                f"{unknown[0]} is not in tune.space; it holds {', '.join(self.defaults)}"
            )
        wanted = {**self.defaults, **values}
        given = {
            entry: wanted[param_of(entry)]
            for entry, dimension in self.dimensions.items()
            if counts(dimension, wanted)
        }
        for entry, value in given.items():
            if not _contains(self.dimensions[entry], value):
                raise ParamsError(
                    f"{param_of(entry)}={value!r} lies outside of tune.space.{entry}; widen the"
                    " space"
                )
        return given


def param_of(entry: str) -> str:
    """The param that an entry sets."""
    return entry.partition("@")[0]


def counts(dimension: Dimension, values: Mapping[str, Value]) -> bool:
    """Whether an entry's condition is met by the params `values`."""
    return all(values[name] == value for name, value in dimension.when.items())


def space_of(params: Params) -> Space:
    """The space of `params.tune`, each entry checked against the schema of the param that it names.

    Raises:
        ParamsError: the space is empty; a param is unknown, upstream of a study or refuses a value;
        an interval is given
            for names, whole numbers need whole ends, or the value of params.yaml lies outside; a
            condition can never be met.
    """
    if not params.tune.space:
        raise ParamsError(
            "tune.space is empty; name a param and its interval there, for example ranking.margin:"
            " {low: 0.0, high: 1.0}"
        )
    dimensions = in_order(params.tune.space)
    space = Space(
        dimensions,
        {
            name: _value_of(params, name)
            for name in sorted({param_of(entry) for entry in dimensions})
        },
    )
    for entry, dimension in dimensions.items():
        _check_kind(entry, dimension, space)
        for value in dimension.choices or (dimension.low, dimension.high):
            assert value is not None
            with_values(
                params, {**dimension.when, param_of(entry): value}, where=f"tune.space.{entry}"
            )
        default = space.defaults[param_of(entry)]
        if counts(dimension, space.defaults) and not _contains(dimension, default):
            raise ParamsError(
                f"tune.space.{entry}: the value of params.yaml, {default!r}, lies outside, but it"
                " is the first trial; widen the space"
            )
    return space


def with_values(params: Params, values: Mapping[str, Value], *, where: str = "params") -> Params:
    """`params` with other values of dotted params, checked whole; `where` opens the message of a
    `ParamsError`.
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
    """`params` with `seed` added to each seed of a trial; 0 leaves them, as the stages run."""
    return params.model_copy(
        update={
            name: section.model_copy(update={"seed": section.seed + seed})
            for name in SEEDED
            for section in [getattr(params, name)]
        }
    )


def in_order(dimensions: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """Sorted entries, each after those that its condition names."""
    params = {param_of(entry) for entry in dimensions}
    for entry, dimension in dimensions.items():
        for name, value in dimension.when.items():
            choices = [
                choice
                for other, own in dimensions.items()
                if param_of(other) == name
                for choice in own.choices or ()
            ]
            if value not in choices:
                known = (
                    f"has no choice {value!r} there" if name in params else "is not in the space"
                )
                raise ParamsError(
                    f"tune.space.{entry}.when: {name} {known}, so the condition is never met or"
                    " says nothing; mend it or remove it"
                )
    for one, other in combinations(sorted(dimensions), 2):
        first, second = dimensions[one].when, dimensions[other].when
        if param_of(one) == param_of(other) and not any(
            first[name] != second[name] for name in first.keys() & second.keys()
        ):
            raise ParamsError(
                f"tune.space.{one} and {other} can count at once; give both a `when` of the same"
                " param with other values"
            )
    ordered: dict[str, Dimension] = {}
    while waiting := sorted(dimensions.keys() - ordered.keys()):
        left = {param_of(entry) for entry in waiting}
        ready = [entry for entry in waiting if not left & dimensions[entry].when.keys()]
        if not ready:
            raise ParamsError(
                f"tune.space.{waiting[0]}.when: the conditions of {', '.join(waiting)} wait for"
                " each other; remove one"
            )
        ordered |= {entry: dimensions[entry] for entry in ready}
    return ordered


def _value_of(params: Params, name: str) -> Value:
    """The value of the dotted param `name` in `params`."""
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
                f"tune.space.{name} is not a known param; {name.rpartition('.')[0]} has none of"
                " its own"
            )
        if part not in value:
            with_values(
                params, {name: 0}, where="tune.space"
            )  # the schema's own sentence suggests what was meant
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


def _check_kind(entry: str, dimension: Dimension, space: Space) -> None:
    if dimension.choices is not None:
        return
    default = space.defaults[param_of(entry)]
    if isinstance(default, bool | str):
        raise ParamsError(
            f"tune.space.{entry}: {default!r} and its alternatives have no order; give choices"
            " instead of low and high"
        )
    for end in ("low", "high", "step"):
        value = getattr(dimension, end)
        if space.is_whole(entry) and value is not None and not isinstance(value, int):
            raise ParamsError(
                f"tune.space.{entry}.{end}={value!r} must be a whole number, as"
                f" {param_of(entry)} is"
            )


def _contains(dimension: Dimension, value: Value) -> bool:
    if dimension.choices is not None:
        return value in dimension.choices
    assert dimension.low is not None and dimension.high is not None and not isinstance(value, str)
    steps = 0.0 if dimension.step is None else (value - dimension.low) / dimension.step
    return dimension.low <= value <= dimension.high and abs(steps - round(steps)) < 1e-9
