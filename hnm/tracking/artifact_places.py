"""Where MLflow's SQLite store says that artifacts lie. These are absolute places, which a project
that was moved or copied takes along.

A place is this project's former one where it ends in `mlruns` and the experiment's name or id, as
hnm and MLflow make it, and its folder is gone (the project was moved) or lies beside a dvc.yaml or
an mlflow.db (it was copied). Such places are set to this project's present mlruns, of experiments,
runs and models alike: what was logged came along with the folder. Any other place outside is
someone's choice and stays.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hnm.errors import TrackingError
from hnm.redaction import redacted

DEFAULT = "0"
"""Id of MLflow's own first experiment, whose place is the working directory of whoever made the
store; nothing of hnm's is in it.
"""
COLUMNS = {
    "experiments": {"artifact_location"},
    "runs": {"artifact_uri"},
    "logged_models": {"artifact_location"},
    "model_versions": {"source", "storage_location"},
}
"""Columns of MLflow's tables that hold a place."""


def places_elsewhere(root: Path, database: Path) -> list[str]:
    """The former folders of artifacts that the store still names.

    Raises:
        TrackingError: the file is no store of MLflow's.
    """
    try:
        uri = f"{database.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as store:
            return _former_places(root, store)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise TrackingError(
                f"{database} is in use by another process, and cannot be read meanwhile; try again"
            ) from None
        raise TrackingError(
            f"{database} cannot be read as MLflow's store: {error}; restore it, or move it away and"
            " run hnm track sync"
        ) from None


def mend_places(root: Path, database: Path) -> list[str]:
    """Sets the former places in the store to the project's present ones, all at once or none;
    returns those that it has mended.
    """
    here = root / "mlruns"
    with closing(sqlite3.connect(database, timeout=20)) as store, store:
        if not _columns(store, "experiments"):  # a new store, which MLflow has yet to fill
            return []
        former = _former_places(root, store)
        for place in former:
            new = here.as_uri() if place.startswith("file:") else str(here)
            for table, columns in COLUMNS.items():
                for column in columns & _columns(store, table):
                    store.execute(
                        f"update {table} set {column} = :new || substr({column}, :rest)"
                        f" where substr({column}, 1, :rest) = :old",
                        {"new": new, "rest": len(place) + 1, "old": f"{place}/"},
                    )
    return [redacted(place) for place in former]


def _columns(store: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none where there is no such table."""
    return {row[1] for row in store.execute(f"pragma table_info({table})")}


def _former_places(root: Path, store: sqlite3.Connection) -> list[str]:
    """The former `…/mlruns` that experiments still name, as they spell them."""
    here = (root / "mlruns").resolve()
    former = []
    rows = store.execute("select experiment_id, name, artifact_location from experiments")
    for identity, name, place in rows.fetchall():
        if not isinstance(place, str) or str(identity) == DEFAULT:
            continue
        folder = _folder(place)
        above = place.rstrip("/").rpartition("/")[0]
        if folder is None or folder.name not in (str(identity), str(name)) or above in former:
            continue
        runs = folder.parent
        if runs.name != "mlruns" or runs.resolve() == here:
            continue
        was_copied = any((runs.parent / file).exists() for file in ("dvc.yaml", "mlflow.db"))
        if was_copied or not runs.exists():
            former.append(above)
    return former


def _folder(place: str) -> Path | None:
    """A place as a folder of this machine; None where it is on another."""
    if place.startswith("/"):
        return Path(place)
    if not place.startswith("file:"):
        return None
    try:
        parts = urlsplit(place)
        path = url2pathname(parts.path)
    except ValueError:
        return None
    is_here = parts.netloc in ("", "localhost") and path.startswith("/") and "\0" not in path
    return Path(path) if is_here else None
