"""Commands about the repository: its runs, its files, where they come from and what is missing."""

from typing import Annotated

import typer

track = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)


@track.command("sync")
def track_sync(
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what MLflow has refused for good, too.")
    ] = False,
) -> None:
    """Bring waiting runs to MLflow, make those of stages that DVC restored, and the summary of this
    state.
    """
    from hnm.project import project_root
    from hnm.tracking.record import refusals, spool_trouble
    from hnm.tracking.replay import sync

    done = sync(project_root(), retry=retry)
    typer.echo(
        f"runs: {len(done.brought)} brought, {len(done.replayed)} made from files; summary:"
        f" {done.summary or 'none'}"
    )
    for reason in done.missing:
        typer.echo(f"not made: {reason}", err=True)
    if refused := refusals(project_root()):
        typer.echo(f"not brought: {refused}", err=True)
    if trouble := spool_trouble(project_root()):
        typer.echo(trouble, err=True)


def verify(
    whole_cache: Annotated[
        bool,
        typer.Option(
            "--whole-cache", help="Hash every object of DVC's cache, not those of dvc.lock alone."
        ),
    ] = False,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help=(
                "Remove what is damaged, from cache, workspace and store; dvc repro makes it anew."
            ),
        ),
    ] = False,
) -> None:
    """Hash workspace and DVC cache against dvc.lock: what was tampered with or cut short is
    named.
    """
    from hnm.cli.store import damaged_results
    from hnm.errors import REMAKE, TrackingError
    from hnm.project import project_root
    from hnm.repository import verification

    root = project_root()
    found = verification.verify(root, whole_cache=whole_cache)
    for path, md5 in found.damaged.items():
        typer.echo(f"damaged\t{path}\tits bytes have md5 {md5}")
    for name, (wanted, md5) in found.changed.items():
        typer.echo(f"changed\t{name}\tmd5 {md5}, but {wanted} in dvc.lock")
    typer.echo(
        f"{found.objects} cache objects and {found.paths} paths hashed; {len(found.missing)} paths"
        " are not here (hnm doctor)"
    )
    if remove:
        gone = [*verification.remove_damaged(root, found.damaged), *damaged_results(remove=True)]
        typer.echo(
            f"{len(gone)} damaged files are removed; dvc repro makes them anew, or dvc pull brings"
            " them"
        )
        return
    if found.damaged:
        raise TrackingError(
            f"{len(found.damaged)} cache objects are damaged; {REMAKE}, unless dvc pull brings it"
            " from a remote"
        )
    if found.changed:
        raise TrackingError(
            f"{len(found.changed)} paths differ from dvc.lock; dvc repro makes them anew, dvc"
            " checkout --force puts them back"
        )


def doctor() -> None:
    """Say what this project lacks: files, cache objects, remote, slides, tools; and what to do."""
    from hnm.doctor import examine
    from hnm.project import project_root

    findings = list(examine(project_root()))
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.fine else 'MISS'} {finding.thing:<8} {finding.says}")
    raise typer.Exit(0 if all(finding.fine for finding in findings) else 1)


def lineage(
    target: Annotated[
        str,
        typer.Argument(
            help=(
                "An output, a stage (head@1), the id of a stage's run, or"
                " models:/hnm-demo@champion."
            )
        ),
    ],
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart.")] = False,
) -> None:
    """Trace an output back to slides, params, code and runs, and forward to what was made of it."""
    from hnm.history.lineage import as_mermaid, as_text
    from hnm.history.lineage import lineage as lineage_of
    from hnm.project import project_root

    found = lineage_of(project_root(), target)
    typer.echo(as_mermaid(found) if mermaid else as_text(found))


def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from hnm.tracking.runs import serve_ui

    serve_ui(port)
