"""Several processes that do the same work; one that dies stops no other, and none outlives its
parent.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

from pebble import ProcessExpired, ProcessPool

from hnm.processes import die_with_parent, keep_freed_memory

SECONDS_TO_LOOK = 5.0
"""After so long without an answer it is looked whether the pool of processes still works."""


def expect_workers(*modules: str) -> None:
    """Has a server import `modules`, beside this process, that all later workers are forked from:
    imports of seconds are made once for all of them.
    """
    forkserver.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def run_workers(
    work: Callable[..., bool], arguments: Sequence[tuple[Any, ...]], say: Callable[[str], None]
) -> tuple[bool, int]:
    """Runs `work` with each of `arguments` in a process each, until all have ended.

    An interrupt of this process interrupts them.

    Returns:
        Whether one of them returned True, and how many were killed.

    Raises:
        HnmError: a worker raised it; the others have ended then.
    """
    # forked from a clean process: this one has threads and locks
    context = multiprocessing.get_context("forkserver")
    with ProcessPool(len(arguments), initializer=_begin, context=context) as pool:
        try:
            futures = [pool.schedule(_interruptible, (work, *each)) for each in arguments]
            waiting: set[Future[bool]] = set(futures)
            while waiting and pool.active:
                waiting = wait(waiting, timeout=SECONDS_TO_LOOK).not_done
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise
    deaths = [_death(future) for future in futures]
    for number, death in enumerate(deaths):
        if death is not None:
            say(f"worker {number} was killed ({death}); its trial is run again")
    answers = [future.result() for future, death in zip(futures, deaths, strict=True) if not death]
    return any(answers), len(deaths) - len(answers)


def _death(future: Future[bool]) -> str | None:
    """Returns how the process ended that should have answered; None where it answered."""
    error = future.exception() if future.done() else BrokenProcessPool()
    if isinstance(error, ProcessExpired):
        return f"exit code {error.exitcode}"
    return "no process could be started" if isinstance(error, BrokenProcessPool) else None


def _begin() -> None:
    die_with_parent()
    keep_freed_memory()


def _interruptible(work: Callable[..., bool], *arguments: Any) -> bool:
    """Does `work`, which SIGTERM, by which the pool stops its workers, interrupts as Ctrl-C does:
    it then withdraws its trial.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(*arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
