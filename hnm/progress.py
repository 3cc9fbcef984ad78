"""The progress of a long step.

A terminal has a bar with speed and time left, a log has a plain line for each slide.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


@dataclass
class Work:
    """The work of a process."""

    tiles: int = 0
    """Tiles that were cut or embedded, without those that an earlier run has stored."""


WORK = Work()
"""The work of this process, so far."""


def followed(
    items: Iterable[Item],
    *,
    slides: int,
    doing: str,
    line: Callable[[Item], tuple[str, int]],
    unit: str = "tiles",
) -> Iterator[Item]:
    """Yields `items` as they come, and shows a person how many are done.

    Args:
        items: one for each slide.
        slides: how many there are.
        doing: the words in front of the bar.
        line: returns the words about an item, and how many units it has; 0 units are a slide that
            failed, which is named in a terminal too.
        unit: what the speed is counted in; tiles are counted as `WORK`.
    """
    units = 0
    begin = time.monotonic()
    console = Console(file=sys.stdout)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=slides, speed="")
        for number, item in enumerate(items, 1):
            text, count = line(item)
            units += count
            if unit == "tiles":
                WORK.tiles += count
            if not console.is_terminal:
                print(f"{number}/{slides} {text}", flush=True)
            elif not count:
                bar.console.print(f"{number}/{slides} {text}", markup=False, highlight=False)
            speed = units / max(time.monotonic() - begin, 1e-9)
            bar.update(task, advance=1, speed=f"{speed:,.0f} {unit}/s")
            yield item
