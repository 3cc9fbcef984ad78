"""Slides are read in worker processes, so that a hang or a crash of a native library costs one slide and not the cohort."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from functools import partial
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from hnm.errors import ParamsError, SlideError
from hnm.processes import die_with_parent, limit_reads
from hnm.slides.cluster import each_on_cluster
from hnm.slides.storage import patiently

Job = TypeVar("Job")
Result = TypeVar("Result")

LOCAL = "local"


def worker_count() -> int:
    """Number of worker processes: the environment variable HNM_WORKERS, or one for each core."""
    named = os.environ.get("HNM_WORKERS")
    if named is None:
        return os.cpu_count() or 1
    if not named.isdecimal() or int(named) < 1:
        raise ParamsError(f"the environment variable HNM_WORKERS={named!r} is no whole number of at least 1")
    return int(named)


def executor_name() -> str:
    """Where slides are read: the environment variable HNM_EXECUTOR, or `local`, processes of this machine."""
    return os.environ.get("HNM_EXECUTOR", LOCAL)


def each(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, seconds: float, step: str, read_seconds: float | None = None, here: bool = False
) -> Iterator[tuple[Job, Result | SlideError]]:
    """Each job with the result of `function(job)`, or the error that costs the slide, in order of completion.

    A job that takes longer than `seconds`, or in one read of a slide than `read_seconds`, or ends its process, becomes a
    `SlideError` of `step`. While storage fails a job is tried again, within its `seconds`. Any other exception is a
    defect: it ends all. `function` and the jobs are pickled; paths in them must be absolute. Where HNM_EXECUTOR names a
    cluster, they run there, unless they are to run `here`, as those that write where another machine does not look.
    """
    if not jobs:
        return
    if here or (executor := executor_name()) == LOCAL:
        yield from _each_here(function, jobs, workers=worker_count(), seconds=seconds, step=step, read_seconds=read_seconds)
    else:
        alone = partial(_alone, function, seconds=seconds, step=step, read_seconds=read_seconds)
        yield from each_on_cluster(alone, jobs, executor=executor, workers=worker_count(), step=step)


def _alone(function: Callable[[Job], Result], job: Job, *, seconds: float, step: str, read_seconds: float | None) -> Result | SlideError:
    """The outcome of one job, in a process of its own."""
    ((_, outcome),) = _each_here(function, [job], workers=1, seconds=seconds, step=step, read_seconds=read_seconds)
    return outcome


def _each_here(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, seconds: float, step: str, read_seconds: float | None
) -> Iterator[tuple[Job, Result | SlideError]]:
    # forkserver: workers are forked at once from a clean process, without this one's threads and locks, that has
    # imported what every stage file imports, and this program's package, which each of them would else import anew
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "hnm.tables", *_program()])
    with ProcessPool(max_workers=min(workers, len(jobs)), initializer=_begin, initargs=[read_seconds], context=context) as pool:
        try:
            job_of: dict[Future[Result | SlideError], Job] = {pool.schedule(patiently, args=[function, job], timeout=seconds): job for job in jobs}
            for future in as_completed(job_of):
                yield job_of[future], _outcome(future, step, seconds, read_seconds)
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _begin(read_seconds: float | None) -> None:
    """What a worker does first."""
    die_with_parent()
    limit_reads(read_seconds)


def _program() -> list[str]:
    """The package of the module that `python -m` runs in this process."""
    spec = sys.modules["__main__"].__spec__
    return [spec.parent] if spec is not None and spec.parent else []


def _outcome(future: Future[Result | SlideError], step: str, seconds: float, read_seconds: float | None) -> Result | SlideError:
    try:
        return future.result()
    except SlideError as error:
        return error
    except TimeoutError:
        return SlideError(f"it took longer than {seconds:g} s and was given up", step=step)
    except ProcessExpired as error:
        if read_seconds is not None and error.exitcode == -signal.SIGALRM:
            return SlideError(f"one read took longer than {read_seconds:g} s and was given up", step=step)
        return SlideError(f"the process that read it died (exit code {error.exitcode})", step=step)
