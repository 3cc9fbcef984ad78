"""Slides are read in worker processes, so that a hang or a crash of a native library costs one
slide and not the cohort.

This module decides the fate of a slide that fails, for one machine and for a cluster alike. A fault
of the slide (`SlideError`) costs the slide. A fault of the machine (no memory, a time limit,
storage that is away, a killed worker) leads to one more try, alone, when all others are done. What
fails again fails the whole, after the results of all others are stored. A process that crashes both
times in native code crashes because of its slide, and costs it.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from hnm.causes import Causes, causes_of, differences, in_words
from hnm.errors import CausesError, MachineError, ParamsError, SlideError, error_of_machine
from hnm.processes import limit_reads, worker_pool
from hnm.slides.cluster import cluster_runner
from hnm.slides.reading.failures import StorageError, patiently

Job = TypeVar("Job")
Result = TypeVar("Result")

LOCAL = "local"
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals by which native code ends its own process."""
SECONDS_TO_LOOK = 5.0
"""Seconds without an outcome after which the pool of processes is checked."""
NO_PROCESS = (
    "no process could be started to read it; free some memory, raise the limits of processes and"
    " open files (ulimit), or set HNM_WORKERS lower"
)
CURES = {"tiles": "raise tiles.{limit}", "open": "copy it to a disk that answers sooner"}
"""Step -> the cure for a slide that takes longer than a limit."""


Runner = Callable[..., Iterator[tuple[Any, Any]]]
"""Yields each of some jobs with its outcome."""


class CrashError(MachineError):
    """Native code ended the process that read a slide; the first time it may be the machine's
    memory.
    """


@dataclass(frozen=True)
class Task(Generic[Job, Result]):
    """The work on each slide, and its time limits."""

    function: Callable[[Job], Result]
    step: str
    """The step of the `SlideError` of a slide that crashes its reader."""
    seconds: float
    """The time limit of one job."""
    read_seconds: float | None
    """The time limit of one read in a job; None is no limit."""
    causes: Causes | None = None
    """The causes of the stored results of `function`; a machine of a cluster must have the same."""


def worker_count() -> int:
    """Returns the number of worker processes: HNM_WORKERS, or one for each core."""
    value = os.environ.get("HNM_WORKERS")
    if value is None:
        return os.cpu_count() or 1
    if not value.isdecimal() or int(value) < 1:
        raise ParamsError(
            f"the environment variable HNM_WORKERS={value!r} is no whole number of at least 1"
        )
    return int(value)


def executor_name() -> str:
    """Returns where slides are read: HNM_EXECUTOR, or `local`, in processes of this machine."""
    return os.environ.get("HNM_EXECUTOR", LOCAL)


def each(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    seconds: float,
    step: str,
    read_seconds: float | None = None,
    here: bool = False,
) -> Iterator[tuple[Job, Result | SlideError]]:
    """Yields each job with `function(job)`, or the error that costs the slide, as they complete.

    While storage fails a job is tried again, within its `seconds`. A job is tried once more, alone,
    after all others, where it fails for the machine, takes longer than `seconds` or in one read
    than `read_seconds`, or where its process ends. Any other exception is a defect and ends all.

    Args:
        function: is pickled, as the jobs are; paths in them must be absolute.
        jobs: all different; messages call them by their `slide_id`, where they have one.
        seconds: the time limit of one job.
        step: the step of the `SlideError` where a slide crashes its reader twice.
        read_seconds: the time limit of one read.
        here: whether they run on this machine even where HNM_EXECUTOR names a cluster, since they
            write where another machine does not look.

    Raises:
        MachineError: once all others are done, where jobs failed again; it names all of them.
    """
    if not jobs:
        return
    executor = LOCAL if here else executor_name()
    causes = None if executor == LOCAL else causes_of(function.__module__)
    task = Task(function, step, seconds, read_seconds, causes)
    failed: list[tuple[Job, MachineError]] = []
    with _runner(executor) as run:
        failed_once: dict[Job, MachineError] = {}
        for job, outcome in run(task, jobs, alone=False):
            if isinstance(outcome, MachineError):
                failed_once[job] = outcome
            else:
                yield job, outcome
        for job, outcome in run(task, list(failed_once), alone=True):
            if isinstance(outcome, CrashError) and isinstance(failed_once[job], CrashError):
                outcome = SlideError(f"{outcome}, twice", step=step)
            if isinstance(outcome, MachineError):
                failed.append((job, outcome))
            else:
                yield job, outcome
    if failed:
        raise _failure(failed, len(jobs))


def _runner(executor: str) -> AbstractContextManager[Runner]:
    if executor == LOCAL:
        return nullcontext(_run_here)
    return cluster_runner(_run_one, executor=executor, workers=worker_count())


def _failure(failed: Sequence[tuple[Job, MachineError]], jobs: int) -> MachineError:
    causes = sorted(f"{getattr(job, 'slide_id', job)}: {error}" for job, error in failed)
    return MachineError(
        f"{len(failed)} of {jobs} slides could not be read for causes of the machine, and not of"
        " the slides, each tried twice. All others are done, and what was finished is kept: mend"
        " the causes, or take these slides out of the manifest, and run the same command"
        " again:\n  " + "\n  ".join(causes)
    )


def _run_one(task: Task[Job, Result], job: Job) -> Result | SlideError | MachineError:
    """Returns the outcome of one job on a machine of a cluster, from a process of its own.

    Raises:
        CausesError: this machine would make other bytes than the one that asks, under whose causes
            they are stored.
    """
    if task.causes is not None and (
        changes := differences(task.causes, _causes_here(task.function.__module__))
    ):
        raise CausesError(
            f"{socket.gethostname()}, a machine of the cluster, is not as the one that asks it"
            f" ({in_words(changes)}); install the same versions there, and start its workers again"
        )
    ((_, outcome),) = _run_here(task, [job], alone=True)
    return outcome


@cache
def _causes_here(module: str) -> Causes:
    """Returns the causes of this process's beginning: an upgrade does not change its imports."""
    return causes_of(module)


def _run_here(
    task: Task[Job, Result], jobs: Sequence[Job], *, alone: bool
) -> Iterator[tuple[Job, Result | SlideError | MachineError]]:
    """Yields each job with its outcome, by processes of this machine, one by one where `alone`."""
    if not jobs:
        return
    workers = 1 if alone else min(worker_count(), len(jobs))
    most_running = 1 if alone else 2 * workers  # few: a pool that breaks forgets what waits in it
    modules = [task.function.__module__, "hnm.tables"]
    waiting = list(reversed(jobs))
    running: dict[Future[Result], Job] = {}
    is_patient = True
    with worker_pool(workers, modules, limit_reads, task.read_seconds) as pool:
        while waiting or running:
            while waiting and len(running) < most_running:
                job = waiting.pop()
                running[_scheduled(pool, task, job, is_patient)] = job
            done = wait(running, timeout=SECONDS_TO_LOOK, return_when=FIRST_COMPLETED).done
            for future in done or (() if pool.active else tuple(running)):
                outcome = _outcome(future, task)
                # while storage stays away, not each of a thousand slides waits for it
                is_patient = not isinstance(outcome, StorageError)
                yield running.pop(future), outcome


def _scheduled(
    pool: ProcessPool, task: Task[Job, Result], job: Job, is_patient: bool
) -> Future[Result]:
    function, arguments = (
        (patiently, [task.function, job]) if is_patient else (task.function, [job])
    )
    try:
        return pool.schedule(function, args=arguments, timeout=task.seconds)
    except RuntimeError:  # BrokenProcessPool, or pebble's own words for a pool that broke before
        return Future()


def _outcome(future: Future[Result], task: Task[Job, Result]) -> Result | SlideError | MachineError:
    try:
        return future.result(timeout=0)
    except (SlideError, MachineError) as error:
        return error
    except ProcessExpired as error:
        return _death(error.exitcode, task)
    except BrokenProcessPool:
        return MachineError(NO_PROCESS)
    except TimeoutError:
        if not future.done():  # the pool that it waited in broke
            return MachineError(NO_PROCESS)
        return _too_slow("it", task.seconds, CURES[task.step].format(limit="slide_seconds"))
    except (OSError, MemoryError) as error:
        return error_of_machine(error) or MachineError(f"the system refused what it needs: {error}")


def _death(code: int, task: Task[Job, Result]) -> MachineError:
    """Returns the reason why the process that read a slide ended with `code`."""
    if task.read_seconds is not None and code == -signal.SIGALRM:
        cure = CURES[task.step].format(limit="read_seconds")
        return _too_slow("one read", task.read_seconds, cure)
    if code == -signal.SIGKILL:
        return MachineError(
            "the process that read it was killed (SIGKILL), as the system does where memory is"
            " short; free some, or set HNM_WORKERS lower"
        )
    if -code in CRASHES:
        return CrashError(f"the process that read it crashed ({signal.Signals(-code).name})")
    return MachineError(
        f"the process that read it ended (exit code {code}); look whether something on this machine"
        " ends processes"
    )


def _too_slow(thing: str, seconds: float, cure: str) -> MachineError:
    return MachineError(f"{thing} took longer than {seconds:g} s and was given up; {cure}")
