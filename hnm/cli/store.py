"""`hnm store`: what is kept, so that nothing is computed twice."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from hnm.store import Kept

app = typer.Typer(help="Results that are kept, so that nothing is computed twice.", no_args_is_help=True)


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
        typer.echo(f"{kind:<20} {len(results):>7} results {_megabytes(results)}, of which {_megabytes(alone)} lie in the store alone")
    typer.echo(f"in {project_store().root}")


@app.command("gc")
def gc(
    max_days: Annotated[float | None, typer.Option(min=0, help="Remove results that were not used for longer.")] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="Remove the least recently used until so much is left.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove old results and what killed writes left; outputs that were linked from them stay."""
    import time

    from hnm.store import expired, project_store

    results, now, day = project_store(), time.time(), 24 * 3600
    kept = results.kept()
    gone = expired(kept, now=now, max_seconds=max_days and max_days * day, max_bytes=max_gb and max_gb * 1e9)
    leftovers = results.leftovers(before=now - day)
    for path in [*(result.path for result in gone), *leftovers]:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            results.remove(path)
    going = set(gone)
    left = [result for result in kept if result not in going]
    typer.echo(f"{len(gone)} results ({_megabytes(gone)}) and {len(leftovers)} leftovers go, {len(left)} results ({_megabytes(left)}) stay")


@app.command("verify")
def verify(remove: Annotated[bool, typer.Option("--remove", help="Remove what is damaged; the stage makes it again.")] = False) -> None:
    """Open each kept pack and feature file, and name those that are cut short or of another form."""
    from hnm.errors import TableError
    from hnm.learning import features
    from hnm.slides.pack import Pack
    from hnm.store import damaged, project_store

    results = project_store()
    checks: dict[str, Callable[[Path], object]] = {"tiles": Pack, "features": features.read}
    looked_at = [result for result in results.kept() if result.kind in checks]
    refused = damaged(looked_at, checks)
    for path, error in refused.items():
        typer.echo(error)
        if remove:
            results.remove(path)
    typer.echo(f"{len(looked_at)} results opened, {len(refused)} damaged{' and removed' if remove and refused else ''}")
    if refused and not remove:
        raise TableError(
            "the store holds damaged results; remove them with `hnm store verify --remove`, and `dvc repro` makes them again where they are needed"
        )


def _megabytes(results: Iterable[Kept]) -> str:
    return f"{sum(result.bytes for result in results) / 1e6:,.1f} MB"
