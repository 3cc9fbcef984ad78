"""`hnm store`: the results that are stored, so that nothing is computed twice."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hnm.store_keeping import StoredResult

app = typer.Typer(
    help="Results that are kept, so that nothing is computed twice.", no_args_is_help=True
)


@app.command("ls")
def ls() -> None:
    """Show how many results of each kind are kept, and how much of the disk they hold."""
    from collections import defaultdict

    from hnm.store import project_store
    from hnm.store_keeping import stored_results

    store = project_store()
    by_kind: defaultdict[str, list[StoredResult]] = defaultdict(list)
    for result in stored_results(store):
        by_kind[result.kind].append(result)
    for kind, results in sorted(by_kind.items()):
        alone = [result for result in results if not result.shared]
        typer.echo(
            f"{kind:<20} {len(results):>7} results {_megabytes(results)}, of which"
            f" {_megabytes(alone)} lie in the store alone"
        )
    typer.echo(f"in {store.root}")


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
    from hnm.store import project_store
    from hnm.store_keeping import DAY, Limits, collect

    limits = Limits(
        seconds=None if max_days is None else max_days * DAY,
        bytes=None if max_gb is None else max_gb * 1e9,
    )
    done = collect(project_store(), limits, dry_run=dry_run, say=typer.echo)
    in_use = f"; {done.in_use} of these would go too, but are in use" if done.in_use else ""
    typer.echo(
        f"{len(done.gone)} results ({_megabytes(done.gone)}) and {len(done.leftovers)} leftovers"
        f" go, {len(done.stay)} results ({_megabytes(done.stay)}) stay{in_use}"
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
    from hnm.store_keeping import stored_results

    count = len(stored_results(project_store()))
    damaged = damaged_results(remove=remove)
    removed = " and removed" if remove and damaged else ""
    typer.echo(f"{count} results read, {len(damaged)} damaged{removed}")
    if damaged and not remove:
        raise StoreError(
            "the store holds damaged results; remove them with `hnm store verify --remove`, and"
            " `dvc repro` makes them again where they are needed"
        )


def damaged_results(*, remove: bool) -> list[Path]:
    """Returns the results of the project's store that are damaged, each named and, where `remove`
    says so, removed.
    """
    from hnm import store_keeping
    from hnm.learning import features
    from hnm.slides.cutting.pack import Pack
    from hnm.store import Check, project_store

    checks: dict[str, Check] = {"tiles": Pack, "features": features.read}
    return store_keeping.damaged_results(project_store(), checks, remove=remove, say=typer.echo)


def _megabytes(results: "Iterable[StoredResult]") -> str:
    return f"{sum(result.bytes for result in results) / 1e6:,.1f} MB"
