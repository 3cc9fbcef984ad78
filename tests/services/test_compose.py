"""docker-compose.yml as compose reads it; no engine is needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(
        shutil.which("docker-compose") is None, reason="docker-compose is not installed"
    ),
]
FILE = Path(__file__).parents[2] / "docker-compose.yml"


def config(**environment: str) -> subprocess.CompletedProcess[str]:
    command = ["docker-compose", "-f", str(FILE), "config"]
    inherited = {name: value for name, value in os.environ.items() if name != "HNM_PASSWORD"}
    return subprocess.run(command, capture_output=True, text=True, env={**inherited, **environment})


def test_the_file_is_valid_and_every_port_is_open_on_this_machine_alone() -> None:
    """Compose tells ports as text before version 2, as mappings since."""
    done = config(HNM_PASSWORD="s3cret")
    assert done.returncode == 0, done.stderr
    services = YAML(typ="safe").load(done.stdout)["services"]
    ports = {
        name: [
            (port.split(":")[0] if isinstance(port, str) else port["host_ip"])
            for port in service.get("ports", [])
        ]
        for name, service in services.items()
    }
    assert ports == {
        "bucket": [],
        "minio": ["127.0.0.1"],
        "mlflow": ["127.0.0.1"],
        "postgres": ["127.0.0.1"],
    }
    assert {
        name for name, service in services.items() if "s3cret" in service["environment"].values()
    } == set(services)


def test_without_a_password_it_says_where_to_set_one() -> None:
    done = config()
    assert done.returncode != 0 and "set it in .env" in done.stderr
