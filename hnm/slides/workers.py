"""Slides are read in worker processes, so that a hang or a crash of a native library costs one
slide and not the cohort.

What becomes of a slide that fails is decided here, for one machine and for a cluster alike. What
the slide is (`SlideError`) costs the slide. What the machine did (no memory, a time limit, storage
that is away, a killed worker) is tried once more, alone, when all others are done; what fails again
fails the whole, after all others are kept. A process that crashes both times in native code crashes
of its slide, and costs it.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from typing import Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from hnm.causes import Causes, causes_of, differences, in_words
from hnm.errors import CausesError, MachineError, ParamsError, SlideError, error_of_machine
from hnm.processes import die_with_parent, limit_reads
from hnm.slides.cluster import cluster_runner
from hnm.slides.reading.failures import StorageError, patiently

Job = TypeVar("Job")
Result = TypeVar("Result")

LOCAL = "local"
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals by which native code ends its own process."""
SECONDS_TO_LOOK = 5.0
"""After so long without an outcome it is looked whether the pool of processes still works."""
NO_PROCESS = (
    "no process could be started to read it; free some memory, raise the limits of processes and"
    " open files (ulimit), or set HNM_WORKERS lower"
)
CURES = {"tiles": "raise tiles.{limit}", "open": "copy it to a disk that answers sooner"}
"""Step -> what helps a slide that takes longer than a limit."""


class CrashError(MachineError):
    """Native code ended the process that read a slide; the first time it may be the machine's
    memory.
    """


@dataclass(frozen=True)
class Task(Generic[Job, Result]):
    """What is done with each slide, and for how long at most."""

    function: Callable[[Job], Result]
    step: str
    """Of the `SlideError` of a slide that crashes its reader."""
    seconds: float
    """Of one job."""
    read_seconds: float | None
    """Of one read in a job; None is no limit."""
    causes: Causes | None = None
    """Of `function` where the results are kept; a machine of a cluster must have the same."""


def worker_count() -> int:
    """Number of worker processes: the environment variable HNM_WORKERS, or one for each core."""
    named = os.environ.get("HNM_WORKERS")
    if named is None:
        return os.cpu_count() or 1
    if not named.isdecimal() or int(named) < 1:
        raise ParamsError(
            f"the environment variable HNM_WORKERS={named!r} is no whole number of at least 1"
        )
    return int(named)


def executor_name() -> str:
    """Where slides are read: the environment variable HNM_EXECUTOR, or `local`, processes of this
    machine.
    """
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
    """Each job with the result of `function(job)`, or the error that costs the slide, in order of
    completion.

    While storage fails a job is tried again, within its `seconds`. One that fails for the machine,
    takes longer than `seconds`, or in one read of a slide than `read_seconds`, or whose process
    ends, is tried once more, alone, after all others. Any other exception is a defect: it ends all.

    Args:
        function: is pickled, as the jobs are; paths in them must be absolute.
        jobs: messages call them by their `slide_id`, where they have one.
        seconds: time limit of one job.
        step: of the `SlideError` where a slide crashes its reader, twice.
        read_seconds: time limit of one read.
        here: they run here although HNM_EXECUTOR names a cluster, as those that write where another
        machine does not look.

    Raises:
        MachineError: once all others are done, where a job failed again; it names all of them.
    """
    if not jobs:
        return
    executor = LOCAL if here else executor_name()
    task = Task(
        function,
        step,
        seconds,
        read_seconds,
        None if executor == LOCAL else causes_of(function.__module__),
    )
    runner: AbstractContextManager[
        Callable[..., Iterator[tuple[Job, Result | SlideError | MachineError]]]
    ]
    runner = (
        nullcontext(_here)
        if executor == LOCAL
        else cluster_runner(_one, executor=executor, workers=worker_count())
    )
    with runner as run:
        before: list[tuple[Job, MachineError]] = []
        for job, outcome in run(task, jobs, alone=False):
            if isinstance(outcome, MachineError):
                before.append((job, outcome))
            else:
                yield job, outcome
        crashed = [job for job, error in before if isinstance(error, CrashError)]
        failed: list[tuple[Job, MachineError]] = []
        for job, outcome in run(task, [job for job, _ in before], alone=True):
            if isinstance(outcome, CrashError) and job in crashed:
                outcome = SlideError(f"{outcome}, twice", step=step)
            if isinstance(outcome, MachineError):
                failed.append((job, outcome))
            else:
                yield job, outcome
    if failed:
        raise _failure(failed, len(jobs))


def _failure(failed: Sequence[tuple[Job, MachineError]], jobs: int) -> MachineError:
    causes = sorted(f"{getattr(job, 'slide_id', job)}: {error}" for job, error in failed)
    return MachineError(
        f"{len(failed)} of {jobs} slides could not be read for causes of the machine, and not of"
        " the slides, each tried twice. All others are done, and what was finished is kept: mend"
        " the causes, or take these slides out of the manifest, and run the same command"
        " again:\n  " + "\n  ".join(causes)
    )


def _one(task: Task[Job, Result], job: Job) -> Result | SlideError | MachineError:
    """The outcome of one job on a machine of a cluster, in a process of its own.

    Raises:
        CausesError: this machine would make other bytes than the one that asks, under whose causes
        they are kept.
    """
    if task.causes is not None and (
        changes := differences(task.causes, _causes_here(task.function.__module__))
    ):
        raise CausesError(
            f"{socket.gethostname()}, a machine of the cluster, is not as the one that asks it"
            f" ({in_words(changes)}); install the same versions there, and start its workers again"
        )
    ((_, outcome),) = _here(task, [job], alone=True)
    return outcome


@cache
def _causes_here(module: str) -> Causes:
    """Those of this process's beginning: what it has imported stays when it is upgraded on disk."""
    return causes_of(module)


def _here(
    task: Task[Job, Result], jobs: Sequence[Job], *, alone: bool
) -> Iterator[tuple[Job, Result | SlideError | MachineError]]:
    """Each job with its outcome, by processes of this machine; by one, where each is to be
    `alone`.
    """
    if not jobs:
        return
    # forkserver: workers are forked at once from a clean process, without this one's threads and
    # locks, that has
    # imported what every stage file imports, and this program's package, which each of them would
    # else import anew
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hnm.slides.served", task.function.__module__, "hnm.tables", *_program()]
    )
    _start_server()
    workers = 1 if alone else min(worker_count(), len(jobs))
    patient = True
    with ProcessPool(
        max_workers=workers, initializer=_begin, initargs=[task.read_seconds], context=context
    ) as pool:
        try:
            waiting = list(reversed(jobs))
            running: dict[Future[Result], Job] = {}
            while waiting or running:
                while waiting and len(running) < (
                    1 if alone else 2 * workers
                ):  # few: what waits in a pool that breaks is forgotten there
                    job = waiting.pop()
                    running[_scheduled(pool, task, job, patient)] = job
                done = wait(running, timeout=SECONDS_TO_LOOK, return_when=FIRST_COMPLETED).done
                for future in done or (() if pool.active else tuple(running)):
                    outcome = _outcome(future, task)
                    patient = not isinstance(
                        outcome, StorageError
                    )  # while storage stays away, not each of a thousand slides waits for it
                    yield running.pop(future), outcome
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _scheduled(
    pool: ProcessPool, task: Task[Job, Result], job: Job, patient: bool
) -> Future[Result]:
    function, arguments = (patiently, [task.function, job]) if patient else (task.function, [job])
    try:
        return pool.schedule(function, args=arguments, timeout=task.seconds)
    except RuntimeError:  # BrokenProcessPool, or pebble's own words for a pool that broke before
        return Future()


def _start_server() -> None:
    """Starts the process that workers are forked from, deaf to Ctrl-C, which a terminal sends to it
    too; it and the workers end with this process.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only there a signal's handler can be set
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _begin(read_seconds: float | None) -> None:
    """What a worker does first."""
    die_with_parent()
    limit_reads(read_seconds)


def _program() -> list[str]:
    """The package of the module that `python -m` runs in this process."""
    spec = sys.modules["__main__"].__spec__
    return [spec.parent] if spec is not None and spec.parent else []


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
        return MachineError(
            f"it took longer than {task.seconds:g} s and was given up;"
            f" {CURES[task.step].format(limit='slide_seconds')}"
        )
    except (OSError, MemoryError) as error:
        return error_of_machine(error) or MachineError(f"the system refused what it needs: {error}")


def _death(code: int, task: Task[Job, Result]) -> MachineError:
    """Why the process that read a slide ended with `code`."""
    if task.read_seconds is not None and code == -signal.SIGALRM:
        return MachineError(
            f"one read took longer than {task.read_seconds:g} s and was given up;"
            f" {CURES[task.step].format(limit='read_seconds')}"
        )
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
