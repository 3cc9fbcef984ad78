"""The environment of the templates beside this file."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hnm.evidence.numbers.intervals import Number


def environment(filters: Mapping[str, Callable[..., Any]], *, autoescape: bool) -> Environment:
    """Returns an environment that knows these filters, and `number`, which shows a bare value."""
    templates = Environment(
        loader=PackageLoader("hnm.evidence.pages", "."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, **filters}
    return templates


def number(value: float | None, digits: int = 2) -> str:
    """Returns the value with so many decimals, or a dash where there is none."""
    return Number(value).text(f".{digits}f")
