"""A PostgreSQL server of a test's own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARIES = next(
    (path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database; the test is skipped where there is no PostgreSQL."""
    initdb = shutil.which("initdb") or (str(BINARIES / "initdb") if BINARIES else None)
    if initdb is None:
        pytest.skip("no PostgreSQL; `make test-services` installs it where it may")
    binaries = Path(initdb).resolve().parent
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="hnm-postgres-", dir="/var/tmp"))
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        subprocess.run(
            command,
            check=True,
            cwd="/",
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    run(
        str(binaries / "initdb"),
        "-D",
        str(folder / "data"),
        "-U",
        "hnm",
        "--auth=trust",
        "--no-sync",
    )
    options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
    )
    run(
        str(binaries / "pg_ctl"),
        "-D",
        str(folder / "data"),
        "-o",
        options,
        "-l",
        str(folder / "log"),
        "-w",
        "start",
    )
    try:
        yield f"postgresql+psycopg://hnm@127.0.0.1:{port}/postgres"
    finally:
        run(str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
