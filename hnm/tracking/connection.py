"""The tracking store that runs go to, and a client of it whose calls all end in time.

MLflow takes seconds to import, so that only the functions that need it import it.
"""

import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hnm.errors import TrackingError
from hnm.files import whole
from hnm.output import say
from hnm.tracking.artifact_places import mend_places
from hnm.tracking.record import first_line
from hnm.tracking.time_limits import LOCK_SECONDS, SETTINGS, PatientClient, within

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment variables that keep MLflow from talking, where the user has set none."""
NOT_OURS = (
    "out-of-date database schema",
    "locate revision",
    "not a database",
    "malformed",
    "no such column",
)
"""Words of errors of an SQLite file that is damaged, or of another version of MLflow; a locked or
full one is neither.
"""


def tracking_uri(root: Path) -> str:
    """The store that runs go to: MLFLOW_TRACKING_URI, or the SQLite file at the repository's
    root.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def store_file(root: Path) -> Path | None:
    """The SQLite file that runs go to; None where they go to a server."""
    uri = tracking_uri(root)
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def has_store(root: Path) -> bool:
    """Whether there is anything to ask for runs: a server, or an SQLite file that exists."""
    database = store_file(root)
    return database is None or database.exists()


def store_errors() -> tuple[type[Exception], ...]:
    """The errors of a store that is away, locked or full."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def connect(root: Path) -> "MlflowClient":
    """A client of the tracking store, each call of which ends in time.

    The SQLite store is made first, whole and by one process, where it is missing. One that came
    here with a moved or copied project is mended, so that artifacts go where it is.

    Raises:
        TrackingError: the SQLite file is no store that this version of MLflow can use.
    """
    for name, value in (QUIET | SETTINGS).items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # it logs each of its tries, and the last one's error says it all
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    database = store_file(root)
    if database is None:
        with within(LOCK_SECONDS):
            client = MlflowClient(tracking_uri(root))
    else:
        with FileLock(root / ".hnm" / "tracking.lock", timeout=LOCK_SECONDS):
            client = _client_of_file(root.resolve(), database)
    return PatientClient(client)  # type: ignore[return-value]


def _client_of_file(root: Path, database: Path) -> "MlflowClient":
    from alembic.util import CommandError
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DatabaseError

    if not database.exists():
        with whole(database) as temporary:
            MlflowClient(f"sqlite:///{temporary}")
    try:
        if database.resolve().parent == root:
            for place in mend_places(root, database):
                say(
                    "tracking: this project was moved or copied; its runs kept their files in"
                    f" {place}, and keep them here from now on"
                )
        return MlflowClient(tracking_uri(root))
    except (MlflowException, CommandError, DatabaseError, sqlite3.Error) as error:
        if not any(words in str(error) for words in NOT_OURS):
            raise
        raise TrackingError(
            f"{database} is no store that this version of MLflow can use ({first_line(error)});"
            " if a newer MLflow made it, install that one, else restore the file, or move it"
            " away and run hnm track sync"
        ) from None


def experiment_id_of(client: "MlflowClient", root: Path, name: str) -> str:
    """Id of the experiment `name`, which is made where it is missing; two processes may try at
    once.
    """
    with FileLock(root / ".hnm" / "tracking.lock", timeout=LOCK_SECONDS):
        if experiment := client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        location = None
        if store_file(root) is not None:
            location = (root.resolve() / "mlruns" / name).as_uri()
        # MLflow's pages then open on runs and models instead of on traces of language models
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
