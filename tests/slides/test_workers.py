import os
import time

import pytest

from hnm.errors import ParamsError, SlideError
from hnm.processes import one_read
from hnm.slides.cohort import Opening, identify
from hnm.slides.workers import each, worker_count


def outcomes(function, jobs, **limits):
    return dict(each(function, jobs, **{"seconds": 60.0, "step": "tiles", **limits}))


def read_and_work(job):
    """Sleeps in a read, and then outside of any, for so many seconds each."""
    read, work = job
    with one_read():
        time.sleep(read)
    time.sleep(work)
    return read + work


def test_each_job_has_its_result():
    assert outcomes(abs, [-3, 4, -5]) == {-3: 3, 4: 4, -5: 5}
    assert outcomes(abs, []) == {}


def test_a_hang_costs_one_slide():
    """The first sleeps beyond the limit; the others are done by the worker that replaces it."""
    result = outcomes(time.sleep, [30, 0.01, 0.02], seconds=1)
    assert result[0.01] is None
    assert result[0.02] is None
    assert isinstance(result[30], SlideError)
    assert (str(result[30]), result[30].step) == ("it took longer than 1 s and was given up", "tiles")


def test_a_read_that_hangs_costs_one_slide():
    """The limit counts for one read; what a job does beside reading may take longer."""
    result = outcomes(read_and_work, [(30, 0), (0, 1.5), (0.01, 0)], read_seconds=0.75)
    assert (result[0, 1.5], result[0.01, 0]) == (1.5, 0.01)
    assert (str(result[30, 0]), result[30, 0].step) == ("one read took longer than 0.75 s and was given up", "tiles")
    assert outcomes(read_and_work, [(0.2, 0)]) == {(0.2, 0): 0.2}


def test_a_crash_costs_one_slide(monkeypatch):
    monkeypatch.setenv("HNM_WORKERS", "1")
    result = outcomes(os._exit, [3, 4])
    assert [str(result[code]) for code in (3, 4)] == [f"the process that read it died (exit code {code})" for code in (3, 4)]


def test_what_is_wrong_with_a_slide_comes_back_with_its_step(tmp_path):
    ((_, outcome),) = each(identify, [Opening("a", str(tmp_path / "none.svs"), None)], seconds=60, step="tiles")
    assert isinstance(outcome, SlideError)
    assert (str(outcome), outcome.step) == ("none.svs does not exist", "open")


def test_a_defect_ends_all():
    with pytest.raises(ValueError, match="invalid literal"):
        outcomes(int, ["7", "x"])


def test_the_number_of_workers(monkeypatch):
    monkeypatch.setenv("HNM_WORKERS", "3")
    assert worker_count() == 3
    monkeypatch.delenv("HNM_WORKERS")
    assert worker_count() == os.cpu_count()
    for wrong in ("0", "-1", "two", "1.5", ""):
        monkeypatch.setenv("HNM_WORKERS", wrong)
        with pytest.raises(ParamsError, match=f"the environment variable HNM_WORKERS='{wrong}' is no whole number of at least 1"):
            worker_count()
