"""MLflow's pages of this repository's runs."""

import os
import sys
from typing import NoReturn

from hnm.errors import TrackingError
from hnm.output import say
from hnm.project import project_home
from hnm.redaction import redacted
from hnm.tracking.connection import connect, store_errors, tracking_uri
from hnm.tracking.delivery import bring_waiting
from hnm.tracking.record import first_line


def serve_pages(port: int) -> NoReturn:
    """Becomes MLflow's server of this repository's runs on 127.0.0.1, with job execution and
    telemetry off; brings waiting records first.

    Raises:
        TrackingError: the runs are with a server already, or cannot be opened.
    """
    root = project_home().resolve()
    uri = tracking_uri(root)
    if uri.startswith("http"):
        raise TrackingError(
            f"the runs are at MLFLOW_TRACKING_URI={uri}; open that page, or unset the variable to"
            " see the runs of this repository"
        )
    try:
        for line in bring_waiting(root, connect(root)).left:
            say(redacted(line))
    except store_errors() as error:
        raise TrackingError(f"the runs in {uri} cannot be opened: {first_line(error)}") from None
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    command += ["--default-artifact-root", (root / "mlruns").as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, command, environment)
