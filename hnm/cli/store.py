"""`hnm store`: what is kept, so that nothing is computed twice."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from hnm.store import Kept

app = typer.Typer(
    help="Results that are kept, so that nothing is computed twice.", no_args_is_help=True
)


@app.command("ls")
def ls() -> None:
    """Show how many results of each kind are kept, and how much of the disk they hold."""
    from collections import defaultdict

    from hnm.store import project_store

    by_kind: defaultdict[str, list[Kept]] = defaultdict(list)
    for result in project_store().kept():
        by_kind[result.kind].append(result)
    for kind, results in sorted(by_kind.items()):
        alone = [result for result in results if not result.shared]
        typer.echo(
            f"{kind:<20} {len(results):>7} results {_megabytes(results)}, of which"
            f" {_megabytes(alone)} lie in the store alone"
        )
    typer.echo(f"in {project_store().root}")


@app.command("gc")
def gc(
    max_days: Annotated[
        float | None, typer.Option(min=0, help="Remove results that were not used for longer.")
    ] = None,
    max_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Remove the least recently used until so much is left."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove old results and what killed writes left; outputs that were linked from them stay, and
    so does what a process uses.
    """
    import time
    from functools import partial

    from hnm.store import expired, project_store

    results, now, day = project_store(), time.time(), 24 * 3600
    kept = results.kept()
    wanted = expired(
        kept, now=now, max_seconds=max_days and max_days * day, max_bytes=max_gb and max_gb * 1e9
    )
    in_use = results.in_use(wanted)
    gone = [result for result in wanted if result.path not in in_use]
    leftovers = results.leftovers(before=now - day)
    removals = [(result.path, partial(results.remove_unused, result)) for result in gone] + [
        (path, partial(results.remove, path)) for path in leftovers
    ]
    went = {path for path, remove in removals if _went(path, None if dry_run else remove)}
    gone, leftovers = (
        [result for result in gone if result.path in went],
        [path for path in leftovers if path in went],
    )
    left = [result for result in kept if result.path not in went]
    stay = f"; {len(in_use)} of these would go too, but are in use" if in_use else ""
    typer.echo(
        f"{len(gone)} results ({_megabytes(gone)}) and {len(leftovers)} leftovers go, {len(left)}"
        f" results ({_megabytes(left)}) stay{stay}"
    )


@app.command("verify")
def verify(
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what is damaged; the stage makes it again.")
    ] = False,
) -> None:
    """Read each kept result, and name those that are not what was written, are cut short or of
    another form.
    """
    from hnm.errors import StoreError
    from hnm.store import project_store

    count = len(project_store().kept())
    damaged = damaged_results(remove=remove)
    typer.echo(
        f"{count} results read, {len(damaged)}"
        f" damaged{' and removed' if remove and damaged else ''}"
    )
    if damaged and not remove:
        raise StoreError(
            "the store holds damaged results; remove them with `hnm store verify --remove`, and"
            " `dvc repro` makes them again where they are needed"
        )


def damaged_results(*, remove: bool) -> list[Path]:
    """The kept results that are damaged, each named and, where `remove` says so, removed."""
    from hnm.learning import features
    from hnm.slides.cutting.pack import Pack
    from hnm.store import project_store

    results = project_store()
    checks: dict[str, Callable[[Path], object]] = {"tiles": Pack, "features": features.read}
    damaged = []
    for result in results.kept():
        if error := results.damage(result, checks.get(result.kind)):
            typer.echo(error)
            damaged.append(result.path)
            if remove:
                results.remove(result.path)
    return damaged


def _went(path: Path, remove: Callable[[], bool | None] | None) -> bool:
    """Whether `remove` could remove what lies at `path`, or would have to, where it is None; says
    so.
    """
    try:
        if remove is not None and remove() is False:
            return False  # a process has begun to use it
    except OSError as error:
        typer.echo(f"cannot remove {path}: {error.strerror}", err=True)
        return False
    typer.echo(f"{'would remove' if remove is None else 'removed'} {path}")
    return True


def _megabytes(results: Iterable[Kept]) -> str:
    return f"{sum(result.bytes for result in results) / 1e6:,.1f} MB"
