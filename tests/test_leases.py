"""Who removes results sees who uses them; in processes that race."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hnm import leases
from hnm.files import key_of, write_json
from hnm.store import Store
from hnm.store_keeping import in_use, remove_unused, stored_results

USES = """
import sys, time
from pathlib import Path
from hnm.store import Store
store = Store(Path(sys.argv[1]))
store.use([Path(path) for path in sys.argv[2:]])
print("ready", flush=True)
time.sleep(60)
"""


def stored(store: Store, number: int) -> Path:
    path = store.path("stated", key_of(number=number), ".json")
    write_json(number, path)
    return path


def user_of(store: Store, *paths: Path) -> "subprocess.Popen[str]":
    """A process that says that it uses these results, and lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", USES, str(store.root), *map(str, paths)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_a_living_process_uses_stays_and_its_lease_goes_with_it(store: Store) -> None:
    used, missing, other = (
        stored(store, 1),
        store.path("stated", key_of(number=3), ".json"),
        stored(store, 2),
    )
    time.sleep(0.02)
    user = user_of(store, used, missing)
    results = {result.path: result for result in stored_results(store)}
    assert in_use(store, results.values()) == {used}
    assert (remove_unused(store, results[used]), remove_unused(store, results[other])) == (
        False,
        True,
    )
    later = stored(store, 3)  # what it makes is named before it is there
    (made_later,) = [result for result in stored_results(store) if result.path == later]
    assert remove_unused(store, made_later) is False
    user.send_signal(signal.SIGKILL)
    user.wait()
    assert in_use(store, results.values()) == set()
    assert (remove_unused(store, results[used]), remove_unused(store, made_later)) == (True, True)
    assert list((store.root / leases.FOLDER).iterdir()) == []


def test_what_was_made_since_the_oldest_living_process_began_stays_though_it_did_not_name_it(
    store: Store,
) -> None:
    before = stored(store, 1)
    time.sleep(0.02)
    user = user_of(store)
    time.sleep(0.02)
    since = stored(store, 2)
    try:
        assert (
            user.poll() is None and in_use(store, stored_results(store)) == set()
        )  # who names nothing has no lease
    finally:
        user.kill()
    user = user_of(store, before)
    time.sleep(0.02)
    later = stored(store, 3)
    try:
        assert in_use(store, stored_results(store)) == {before, later} and since.exists()
    finally:
        user.kill()


def test_a_result_that_was_used_since_it_was_listed_stays(store: Store) -> None:
    path = stored(store, 1)
    (listed,) = stored_results(store)
    time.sleep(0.02)
    store.link(path, store.root.parent / "out.json")
    assert remove_unused(store, listed) is False and path.exists()


def test_users_and_removers_that_race_never_lose_what_is_used(store: Store) -> None:
    """Each round a process asks for ten results while this one removes all it may: each is there
    still, or was said to be gone.
    """
    code = """
import sys
import threading
from pathlib import Path
from hnm.files import key_of
from hnm.store import Store
store = Store(Path(sys.argv[1]))
paths = [store.path("stated", key_of(number=number), ".json") for number in range(10)]
print("ready", flush=True)
sys.stdin.readline()
held = [path for path in paths if store.holds(path)]
lost = [path for path in held if not path.exists()]
print(len(held), len(lost), flush=True)
sys.stdin.readline()
lost = [path for path in held if not path.exists()]
print(len(lost), flush=True)
"""
    for _ in range(3):
        for number in range(10):
            stored(store, number)
        time.sleep(0.02)
        user = subprocess.Popen(
            [sys.executable, "-c", code, str(store.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert user.stdin and user.stdout and user.stdout.readline() == "ready\n"
        listed = stored_results(store)
        user.stdin.write("\n")
        user.stdin.flush()
        for result in listed:
            remove_unused(store, result)
        assert user.stdout.readline().split()[1] == "0"
        for result in listed:
            remove_unused(store, result)
        user.stdin.write("\n")
        user.stdin.flush()
        assert user.stdout.readline() == "0\n"
        user.wait()


def test_the_lease_of_a_dead_process_is_swept_by_the_next(store: Store) -> None:
    user = user_of(store, stored(store, 1))
    user.kill()
    user.wait()
    assert len(list((store.root / leases.FOLDER).iterdir())) == 1
    other = user_of(store, stored(store, 2))
    (alive,) = (store.root / leases.FOLDER).iterdir()
    other.terminate()
    assert (
        str(store.path("stated", key_of(number=2), ".json").relative_to(store.root))
        in alive.read_text()
    )


@pytest.mark.parametrize("error", ["EACCES", "EROFS"])
def test_a_store_that_may_not_be_written_to_is_used_without_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    path = stored(store, 1)
    monkeypatch.setenv("HNM_FAILPOINT", f"lease.making={error},whole.creating={error}")
    assert store.holds(path)
    assert not (store.root / leases.FOLDER).exists() and not [
        file for file in (store.root / ".hnm-sums").rglob("*") if file.is_file()
    ]
    store.link(path, store.root.parent / "out.json")


def test_no_link_of_the_lock_s_name_is_followed(store: Store, tmp_path: Path) -> None:
    store.root.mkdir()
    (tmp_path / "precious").write_text("x")
    (store.root / leases.LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), leases.locked(store.root, alone=True):
        pass
    assert (tmp_path / "precious").read_text() == "x" and os.path.lexists(store.root / leases.LOCK)


def test_who_names_a_result_waits_for_who_removes(store: Store) -> None:
    path = stored(store, 1)
    leases.lease_of(store.root)
    named = threading.Event()

    def name() -> None:
        store.use([path])
        named.set()

    with leases.locked(store.root, alone=True):
        thread = threading.Thread(target=name)
        thread.start()
        assert not named.wait(0.2)
    thread.join(10.0)
    assert named.is_set()
