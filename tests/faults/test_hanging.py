"""Services that hang: whatever speaks to MLflow's server, or to the database of runs or studies,
ends or goes on in time, in a line.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from hnm.tracking.record import Record, waiting_records
from tests.support.hanging import black_hole, silent, silent_after_login
from tests.support.stages import Project

POSTGRESQL = (
    "postgresql+psycopg://someone:geheim1@127.0.0.1:{}/runs?sslmode=disable&gssencmode=disable"
)
HTTP = "http://someone:geheim1@127.0.0.1:{}"
Double = Callable[[], AbstractContextManager[int]]
SLOW = pytest.mark.soak
CASES = {
    "http": (silent, HTTP),
    "http-black-hole": (black_hole, HTTP),
    "postgresql": (silent, POSTGRESQL),
    "postgresql-black-hole": (black_hole, POSTGRESQL),
    "postgresql-after-login": (silent_after_login, POSTGRESQL),
}
QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "PGCONNECT_TIMEOUT": "2",
    "HNM_TRACKING": "on",
}
SECONDS = 40.0
"""Within which each ends; its limits are two seconds a call, on a machine that may be loaded."""


@pytest.mark.parametrize(("double", "url"), CASES.values(), ids=CASES)
def test_commands(project: Project, double: Double, url: str) -> None:
    """The store of runs, and a study's storage."""
    commands = {"impatient track sync": "error: MLflow at "}
    if url == POSTGRESQL:
        commands |= {
            "impatient ui --port 1": "error: the runs in ",
            "impatient tune --trials 1": "error: the storage ",
            "impatient tune report": "error: the storage ",
            "impatient tune export": "error: the storage ",
        }
    record = Record.create(project.folder, "later")
    record.append("start", experiment="demo", name="later", tags={}, params={}, inputs=[])
    record.append("finish", status="FINISHED")
    project.set(tune={"space": {"ranking.margin": {"low": 0.0, "high": 1.0}}})
    with double() as port:
        place = url.format(port)
        environment = QUICK | {"MLFLOW_TRACKING_URI": place, "HNM_STUDY_STORAGE": place}
        began = time.monotonic()
        processes = {command: project.start(command, **environment) for command in commands}
        for command, process in processes.items():
            done = project.wait(process)
            assert time.monotonic() - began < SECONDS, command
            assert len(done.err.splitlines()) == 1, (command, done.err)
            assert (
                done.code == 1
                and done.err.startswith(commands[command])
                and f"://***@127.0.0.1:{port}" in done.err
            ), (command, done.err)
            assert "geheim1" not in done.err + done.out
    assert len(waiting_records(project.folder)) == 1


@pytest.mark.parametrize(
    ("double", "url"),
    [
        pytest.param(
            *case, id=name, marks=[] if name in ("http-black-hole", "postgresql") else SLOW
        )
        for name, case in CASES.items()
    ],
)
def test_a_stage_goes_on(project: Project, undisturbed: Project, double: Double, url: str) -> None:
    """Its outputs are what they always are; its run waits, and is brought later."""
    project.clear("mine@1")
    with double() as port:
        began = time.monotonic()
        done = project.run("mine@1", **(QUICK | {"MLFLOW_TRACKING_URI": url.format(port)}))
        assert time.monotonic() - began < SECONDS
    assert (
        done.code == 0 and "Traceback" not in done.err and "geheim1" not in done.err + done.out
    ), done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("tracking: ")]
    assert "waits in .hnm/spool" in line and line.endswith(
        "the next stage or `hnm track sync` brings it to MLflow"
    )
    assert len(waiting_records(project.folder)) == 1
    assert project.bytes_of("data/mined") == undisturbed.bytes_of("data/mined")
