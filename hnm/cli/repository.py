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

    root = project_root()
    synced = sync(root, retry=retry)
    typer.echo(
        f"runs: {len(synced.brought)} brought, {len(synced.replayed)} made from files; summary:"
        f" {synced.summary or 'none'}"
    )
    for reason in synced.missing:
        typer.echo(f"not made: {reason}", err=True)
    if refused := refusals(root):
        typer.echo(f"not brought: {refused}", err=True)
    if trouble := spool_trouble(root):
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
    verified = verification.verify(root, whole_cache=whole_cache)
    for path, md5 in verified.damaged.items():
        typer.echo(f"damaged\t{path}\tits bytes have md5 {md5}")
    for name, (locked_md5, md5) in verified.changed.items():
        typer.echo(f"changed\t{name}\tmd5 {md5}, but {locked_md5} in dvc.lock")
    typer.echo(
        f"{verified.objects} cache objects and {verified.paths} paths hashed;"
        f" {len(verified.missing)} paths are not here (hnm doctor)"
    )
    if remove:
        gone = verification.remove_damaged(root, verified.damaged)
        gone += damaged_results(remove=True)
        typer.echo(
            f"{len(gone)} damaged files are removed; dvc repro makes them anew, or dvc pull brings"
            " them"
        )
        return
    if verified.damaged:
        raise TrackingError(
            f"{len(verified.damaged)} cache objects are damaged; {REMAKE}, unless dvc pull brings"
            " it from a remote"
        )
    if verified.changed:
        raise TrackingError(
            f"{len(verified.changed)} paths differ from dvc.lock; dvc repro makes them anew, dvc"
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

    lineage = lineage_of(project_root(), target)
    typer.echo(as_mermaid(lineage) if mermaid else as_text(lineage))


def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from hnm.tracking.pages import serve_pages

    serve_pages(port)
