"""Sharing through S3: moto's server on loopback is the DVC remote."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hnm.repository.outputs import md5_of
from hnm.repository.stages import locked_stages
from tests.support.sharing import clone, make_shared, run

pytestmark = pytest.mark.services
moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'hnm[services]'"
)
pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: pip install 'hnm[s3]'")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with the bucket `hnm`."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="hnm")
    yield f"http://{host}:{port}"
    server.stop()


def test_push_clone_pull_by_s3(endpoint: str, tmp_path: Path) -> None:
    first = make_shared(tmp_path / "first", "s3://hnm/data", f"endpointurl = {endpoint}")
    colleague = clone(first, tmp_path / "colleague")
    outs = {
        path: md5 for state in locked_stages(first).values() for path, md5 in state.outs.items()
    }
    assert {path: md5_of(colleague / path) for path in outs} == outs
    assert "Running stage" not in run(colleague, "dvc", "repro", "--downstream", "head@0", "head@1")
