"""A study on a real PostgreSQL server: four machines share it, and one of them dies."""

import multiprocessing
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest

from hnm.studies.files import StudyFiles, read_trials
from hnm.studies.storage import open_storage
from tests.support.loop import FormulaLoop, run_machine
from tests.support.postgres import postgres
from tests.support.study import make_upstream

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hnm[services]'")


def run_machines(arguments: list[tuple[Any, ...]]) -> list[BaseProcess]:
    """A process for each of `arguments`, when all have ended."""
    machines = [
        multiprocessing.get_context("spawn").Process(target=run_machine, args=own)
        for own in arguments
    ]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join(timeout=500)
    return machines


def test_four_machines_share_a_study_and_one_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNM_STUDY_HEARTBEAT", "1")
    make_upstream(tmp_path / "data")
    loop, lines, trials = (
        FormulaLoop(log=tmp_path / "log", kill_at=3, seconds=0.5),
        tmp_path / "lines",
        8,
    )
    folders = [tmp_path / f"machine-{number}" / "s" for number in range(4)]
    with postgres() as server:
        machines = run_machines(
            [(folder, tmp_path / "data", server, trials, loop, lines) for folder in folders]
        )
        kept = optuna.load_study(storage=open_storage(server, make=False), study_name="s").trials
    assert sorted(machine.exitcode or 0 for machine in machines) == [
        -signal.SIGKILL,
        0,
        0,
        0,
    ], lines.read_text()
    assert all(trial.state.is_finished() for trial in kept)
    tables = [
        read_trials(StudyFiles(folder))[0]
        for folder, machine in zip(folders, machines, strict=True)
        if machine.exitcode == 0
    ]
    assert all(
        len(table) == trials and table["ranking.margin"].nunique() == trials for table in tables
    )
    assert all(table.equals(tables[0]) for table in tables)
    assert (
        len((tmp_path / "log").read_text().splitlines()) == trials + 1
    )  # the dead machine's trial, which another ran again
    assert sum(line.startswith("trial ") for line in lines.read_text().splitlines()) == trials
