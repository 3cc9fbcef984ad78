"""Where MLflow's SQLite store says that artifacts lie: absolute places, which a project that was
moved or copied takes along.

A place is this project's former one where it ends in `mlruns` and the experiment's name or id, as
hnm and MLflow make it, and its folder is gone (the project was moved) or lies beside a dvc.yaml or
an mlflow.db (it was copied). Such places are set to this project's own mlruns, of experiments, runs
and models alike: what was logged came along with the folder. Any other place outside is someone's
choice and stays.
"""

import sqlite3
from collections.abc import Iterable
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
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's tables that hold a place."""


def places_elsewhere(root: Path, database: Path) -> list[str]:
    """The former folders of artifacts that the store still names.

    Raises:
        TrackingError: the file is no store of MLflow's.
    """
    try:
        store = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            rows = store.execute(
                "select experiment_id, name, artifact_location from experiments"
            ).fetchall()
        finally:
            store.close()
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise TrackingError(
                f"{database} is in use by another process, and cannot be read meanwhile; try again"
            ) from None
        raise TrackingError(
            f"{database} cannot be read as MLflow's store: {error}; restore it, or move it away and"
            " run hnm track sync"
        ) from None
    return former_places(root, rows)


def former_places(root: Path, experiments: Iterable[tuple[object, object, object]]) -> list[str]:
    """The former `…/mlruns` that experiments (id, name, place) still name, as they spell them."""
    here = (root / "mlruns").resolve()
    former = []
    for identity, name, place in experiments:
        if not isinstance(place, str) or str(identity) == DEFAULT:
            continue
        above = place.rstrip("/").rpartition("/")[0]
        folder = _folder(above)
        leaf = _folder(place)
        if (
            folder is None
            or leaf is None
            or folder.name != "mlruns"
            or leaf.name not in (str(identity), str(name))
            or above in former
        ):
            continue
        if folder.resolve() != here and (
            not folder.exists()
            or any((folder.parent / file).exists() for file in ("dvc.yaml", "mlflow.db"))
        ):
            former.append(above)
    return former


def mend_places(root: Path, uri: str) -> list[str]:
    """Sets the former places in the store to this project's own, all at once or none; those that it
    has mended.
    """
    from sqlalchemy import create_engine, inspect, text

    engine = create_engine(uri, connect_args={"timeout": 20})
    try:
        with engine.begin() as store:
            tables = inspect(store)
            if not tables.has_table("experiments"):
                return []
            rows = store.execute(
                text("select experiment_id, name, artifact_location from experiments")
            ).fetchall()
            former = former_places(root, [(row[0], row[1], row[2]) for row in rows])
            for place in former:
                here = root / "mlruns"
                new = here.as_uri() if place.startswith("file:") else str(here)
                for table, columns in COLUMNS.items():
                    there = (
                        {column["name"] for column in tables.get_columns(table)}
                        if tables.has_table(table)
                        else set()
                    )
                    for column in columns:
                        if column in there:
                            change = (
                                f"update {table} set {column} = :new || substr({column}, :rest)"
                                f" where substr({column}, 1, :length) = :old"
                            )
                            old = f"{place}/"
                            store.execute(
                                text(change),
                                {
                                    "new": new,
                                    "rest": len(place) + 1,
                                    "length": len(old),
                                    "old": old,
                                },
                            )
            return [redacted(place) for place in former]
    finally:
        engine.dispose()


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
    return (
        Path(path)
        if parts.netloc in ("", "localhost") and path.startswith("/") and "\0" not in path
        else None
    )
