"""The seal around the truth of the test split: what it holds, what it leaves open, and when it
opens.
"""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hnm.errors import StudyError
from hnm.loop.seal import sealed

REFUSED = (
    r"holds the truth of the test split, which a study must not see; only the stage evaluate"
    r" reads it"
)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A folder `labels` with the file test.csv and the folder test, and beside them what only
    begins with their names.
    """
    folder = tmp_path / "labels"
    for name in (
        "test.csv",
        "test.csv.bak",
        "test_csv",
        "train.csv",
        "test/a.json",
        "test/deep/b.json",
        "test2/a.json",
        "test-2/a.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("slide_id\ns\n")
    return folder


def truth(labels: Path) -> list[Path]:
    return [labels / "test.csv", labels / "test"]


def is_open(path: Path) -> bool:
    """Whether the file can be read; an error other than the seal's is one of the test."""
    try:
        path.read_text()
    except StudyError:
        return False
    return True


def test_what_is_closed_is_named_and_opens_again(labels: Path) -> None:
    with sealed(truth(labels)):
        with pytest.raises(StudyError, match=rf"labels/test\.csv {REFUSED}"):
            (labels / "test.csv").read_text()
        with pytest.raises(StudyError, match=rf"labels/test/deep/b\.json {REFUSED}"):
            (labels / "test" / "deep" / "b.json").read_text()
    assert is_open(labels / "test.csv") and is_open(labels / "test" / "deep" / "b.json")


def test_siblings_that_begin_alike_stay_open(labels: Path) -> None:
    with sealed(truth(labels)):
        for name in ("test.csv.bak", "test_csv", "train.csv", "test2/a.json", "test-2/a.json"):
            assert is_open(labels / name), name
        assert is_open(labels / "test" / ".." / "train.csv")


def by_hard_link(labels: Path, elsewhere: Path) -> Path:
    os.link(labels / "test.csv", elsewhere / "7f")
    return elsewhere / "7f"


def by_hard_link_of_a_folder(labels: Path, elsewhere: Path) -> Path:
    """As DVC checks a folder out by hard links to its cache."""
    shutil.copytree(labels / "test", elsewhere / "cache", copy_function=os.link)
    return elsewhere / "cache" / "deep" / "b.json"


def by_symbolic_link(labels: Path, elsewhere: Path) -> Path:
    (elsewhere / "link").symlink_to(labels / "test.csv")
    return elsewhere / "link"


def by_linked_folder(labels: Path, elsewhere: Path) -> Path:
    (elsewhere / "all").symlink_to(labels)
    return elsewhere / "all" / "test" / "a.json"


def by_detour(labels: Path, elsewhere: Path) -> Path:
    return labels / "test" / ".." / "test.csv"


@pytest.mark.parametrize(
    "link", [by_hard_link, by_hard_link_of_a_folder, by_symbolic_link, by_linked_folder, by_detour]
)
def test_a_link_is_the_same_file_made_before_or_inside(
    labels: Path, tmp_path: Path, link: Callable[[Path, Path], Path]
) -> None:
    places = [tmp_path / name for name in ("before", "inside")]
    for place in places:
        place.mkdir()
    other = link(labels, places[0])
    with sealed(truth(labels)):
        assert not is_open(other)
        assert not is_open(link(labels, places[1]))
    assert is_open(other)


def test_a_file_that_takes_the_place_of_a_closed_one_is_closed_and_a_moved_one_stays_so(
    labels: Path,
) -> None:
    with sealed(truth(labels)):
        (labels / "test.csv").rename(labels / "moved.csv")
        assert not is_open(labels / "moved.csv")
        (labels / "train.csv").rename(labels / "test.csv")
        assert not is_open(labels / "test.csv")


def test_all_ways_of_python_are_held(labels: Path) -> None:
    before = os.open(labels / "test.csv", os.O_RDONLY)
    ways: list[Callable[[], object]] = [
        lambda: os.open(labels / "test.csv", os.O_RDONLY),
        lambda: open(os.fsencode(labels / "test.csv"), "rb"),  # noqa: PTH123, SIM115
        lambda: os.fdopen(before, closefd=False),
        lambda: pd.read_csv(labels / "test.csv"),
        lambda: pd.read_csv(labels / "test.csv", engine="python"),
        lambda: shutil.copy(labels / "test.csv", labels / "copy.csv"),
    ]
    with sealed(truth(labels)):
        for way in ways:
            with pytest.raises(StudyError, match=REFUSED):
                way()
        with pytest.raises(FileNotFoundError):
            (labels / "none.csv").read_text()
    os.close(before)


def test_an_inner_seal_opens_nothing_of_the_outer(labels: Path) -> None:
    with sealed(truth(labels)):
        with sealed([*truth(labels), labels / "train.csv"]):
            assert not is_open(labels / "train.csv")
        assert is_open(labels / "train.csv")
        assert not is_open(labels / "test.csv") and not is_open(labels / "test" / "a.json")
        with pytest.raises(ZeroDivisionError), sealed(truth(labels)):
            _ = 1 // 0
        assert not is_open(labels / "test.csv")
    assert is_open(labels / "test.csv")


def test_a_thread_that_leaves_opens_nothing_of_another(labels: Path) -> None:
    """Two threads enter one after the other, and the one that entered first, which has closed one
    file more, leaves first.
    """
    entered, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def hold(number: int) -> None:
        with sealed([*truth(labels), *([labels / "train.csv"] if number == 0 else [])]):
            entered[number].set()
            leave[number].wait(10)

    threads = [threading.Thread(target=hold, args=[number]) for number in (0, 1)]
    for number, thread in enumerate(threads):
        thread.start()
        assert entered[number].wait(10)
    seen = [(is_open(labels / "test.csv"), is_open(labels / "train.csv"))]
    for number, thread in enumerate(threads):
        leave[number].set()
        thread.join(10)
        seen.append((is_open(labels / "test.csv"), is_open(labels / "train.csv")))
    assert seen == [(False, False), (False, True), (True, True)]


def test_what_is_not_there_can_be_sealed(labels: Path) -> None:
    with sealed([labels / "later.csv"]):
        (labels / "train.csv").rename(labels / "later.csv")
        assert not is_open(labels / "later.csv")


def test_a_forked_process_is_held_as_well(labels: Path) -> None:
    with sealed(truth(labels)):
        child = os.fork()
        if child == 0:
            os._exit(int(is_open(labels / "test.csv")))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
