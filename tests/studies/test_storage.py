"""A study's storage at a server that hangs: each call ends in a stated time, in one line that names
no password.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import optuna
import pytest

from hnm.errors import StudyError
from hnm.studies import storage
from hnm.studies.storage import heartbeat_of, open_storage
from tests.support.hanging import black_hole, silent, silent_after_login

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")


@pytest.mark.parametrize("double", [silent, black_hole, silent_after_login])
def test_a_postgresql_that_hangs(
    double: Callable[[], AbstractContextManager[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)  # MLflow's side sets one for its process
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.5)
    began = time.monotonic()
    with double() as port, pytest.raises(StudyError, match="cannot be used") as raised:
        open_storage(
            f"postgresql://someone:geheim1@127.0.0.1:{port}/studies?gssencmode=disable", make=True
        )
    assert time.monotonic() - began < 15
    said = str(raised.value)
    assert "\n" not in said and "geheim1" not in said
    cause = (
        "OperationalError: no answer within 0.5 s"
        if double is silent_after_login
        else "ConnectionTimeout: connection timeout expired"
    )
    assert said.startswith(
        f"the storage postgresql://***@127.0.0.1:{port}/studies?*** cannot be used ({cause}); "
    )
    assert said.endswith("the same command then goes on")


def test_what_needs_no_answer_waits_for_none() -> None:
    with silent_after_login() as port:
        connection = storage._connected(
            f"postgresql+psycopg://u@127.0.0.1:{port}/s?sslmode=disable&gssencmode=disable"
        )
        connection.rollback()  # of no transaction: psycopg's generator ends before it asks
        connection.autocommit = True
        assert connection.autocommit


def test_in_a_thread_too_a_statement_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """No alarm of the process rings in a thread, as that of a heartbeat is."""
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.3)
    said: list[str] = []

    def work() -> None:
        with silent_after_login() as port:
            try:
                storage._connected(
                    f"postgresql+psycopg://u@127.0.0.1:{port}/s?sslmode=disable&gssencmode=disable"
                ).execute("select 1")
            except Exception as error:
                said.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert said == ["no answer within 0.3 s"]


class Deaf:
    """A storage whose server hears no heartbeat but the first and the last."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def record_heartbeat(self, trial: int) -> None:
        self.told.append(trial)
        if 1 < len(self.told) < 4:
            raise optuna.exceptions.StorageInternalError("the server is away")


def test_a_heartbeat_that_is_not_heard_is_told_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(optuna.storages._heartbeat, "is_heartbeat_enabled", lambda _: True)
    study = optuna.create_study()
    trial = study.ask()
    deaf = Deaf()
    study._storage = deaf  # type: ignore[assignment]
    monkeypatch.setattr(trial, "set_user_attr", lambda *_: None)
    with heartbeat_of(study, trial):
        deadline = time.monotonic() + 5
        while len(deaf.told) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
    told = len(deaf.told)
    assert told >= 6 and set(deaf.told) == {trial._trial_id}
    time.sleep(0.05)
    assert len(deaf.told) == told
    assert "Traceback" not in capfd.readouterr().err
