"""How far a long step is: a bar with speed and time left in a terminal, a plain line for each slide
in a log.
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
    """What a process has done."""

    tiles: int = 0
    """Tiles that were cut or embedded; those that were kept from an earlier run are none of
    them.
    """


WORK = Work()
"""Of this process, so far."""


def followed(
    items: Iterable[Item],
    *,
    slides: int,
    doing: str,
    line: Callable[[Item], tuple[str, int]],
    unit: str = "tiles",
) -> Iterator[Item]:
    """`items` as they come, one for each of `slides`, while a person is told how far they are.

    Args:
        line: of an item, its slide with what to say of it, and how many units are done by it; 0 is
        a slide that failed, which is named in a terminal too. unit: what the speed is counted in;
        tiles are counted as `WORK`.
    """
    done, units, begin = 0, 0, time.monotonic()
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
        for item in items:
            text, count = line(item)
            done, units = done + 1, units + count
            if unit == "tiles":
                WORK.tiles += count
            if not console.is_terminal:
                print(f"{done}/{slides} {text}", flush=True)
            elif not count:
                bar.console.print(f"{done}/{slides} {text}", markup=False, highlight=False)
            bar.update(
                task,
                advance=1,
                speed=f"{units / max(time.monotonic() - begin, 1e-9):,.0f} {unit}/s",
            )
            yield item
