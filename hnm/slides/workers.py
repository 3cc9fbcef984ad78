"""Slides are read in worker processes, so that a hang or a crash of a native library costs one slide and not the cohort."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from hnm.errors import ParamsError, SlideError
from hnm.slides.storage import patiently

Job = TypeVar("Job")
Result = TypeVar("Result")


def worker_count() -> int:
    """Number of worker processes: the environment variable HNM_WORKERS, or one for each core."""
    named = os.environ.get("HNM_WORKERS")
    if named is None:
        return os.cpu_count() or 1
    if not named.isdecimal() or int(named) < 1:
        raise ParamsError(f"the environment variable HNM_WORKERS={named!r} is no whole number of at least 1")
    return int(named)


def each(function: Callable[[Job], Result], jobs: Sequence[Job], *, seconds: float, step: str) -> Iterator[tuple[Job, Result | SlideError]]:
    """Each job with the result of `function(job)`, or the error that costs the slide, in order of completion.

    A job that takes longer than `seconds`, or ends its process, becomes a `SlideError` of `step`. While storage fails a
    job is tried again, within its `seconds`. Any other exception is a defect: it ends all. `function` and the jobs are
    pickled; paths in them must be absolute.
    """
    if not jobs:
        return
    workers = min(worker_count(), len(jobs))
    # forkserver: workers are forked at once from a clean process, without this one's threads and locks, that has
    # imported what every stage file imports
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "hnm.tables"])
    with ProcessPool(max_workers=workers, initializer=_die_with_parent, context=context) as pool:
        try:
            job_of: dict[Future[Result | SlideError], Job] = {pool.schedule(patiently, args=[function, job], timeout=seconds): job for job in jobs}
            for future in as_completed(job_of):
                yield job_of[future], _outcome(future, seconds, step)
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _outcome(future: Future[Result | SlideError], seconds: float, step: str) -> Result | SlideError:
    try:
        return future.result()
    except SlideError as error:
        return error
    except TimeoutError:
        return SlideError(f"it took longer than {seconds:g} s and was given up", step=step)
    except ProcessExpired as error:
        return SlideError(f"the process that read it died (exit code {error.exitcode})", step=step)


def _die_with_parent() -> None:
    """Ends a hanging worker when the stage is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
