"""The team's set-up with real services on loopback: MLflow's server on PostgreSQL, its artifacts on
S3.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hnm.tracking.connection import connect
from hnm.tracking.replay import sync
from tests.support import sharing as tiny
from tests.support.postgres import free_port, postgres

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'hnm[services]'"
)
pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hnm[services]'")


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty database of a PostgreSQL server of this test."""
    with postgres() as url:
        yield url


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of S3 with the bucket `hnm`."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="hnm")
    yield client
    server.stop()


@pytest.fixture
def server(database: str, bucket: object, tmp_path: Path) -> Iterator[str]:
    """Address of MLflow's server; its process group is ended."""
    port = free_port()
    stores = ["--backend-store-uri", database, "--artifacts-destination", "s3://hnm/mlflow"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        *stores,
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_runs_are_in_postgresql_and_models_on_s3(
    server: str, bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tiny.make_shared(tmp_path / "project", str(tmp_path / "remote"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    done = sync(project)
    assert (
        done.replayed == ["head-r0-dsmil-s0", "head-r1-dsmil-s0", "evaluate"]
        and done.summary == "baseline"
    )
    assert sync(project).replayed == []
    client = connect(project)
    names = {
        run.info.run_name
        for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    }
    assert names == {"head-r0-dsmil-s0", "head-r1-dsmil-s0", "evaluate", "baseline"}
    kept = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="hnm")["Contents"]]
    assert (
        len(
            [
                key
                for key in kept
                if key.startswith("mlflow/") and key.endswith("weights.safetensors")
            ]
        )
        == 2
    )
    assert not (project / "mlflow.db").exists() and not (project / "mlruns").exists()
