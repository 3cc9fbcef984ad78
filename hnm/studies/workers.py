"""Several processes that do the same work; one that dies stops no other, and none outlives its
parent.
"""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

from pebble import ProcessExpired

from hnm.processes import keep_freed_memory, worker_pool

SECONDS_TO_LOOK = 5.0
"""After so long without an answer it is looked whether the pool of processes still works."""


def expect_workers(*modules: str) -> None:
    """Has a server import `modules`, beside this process, that all later workers are forked from:
    imports of seconds are made once for all of them.
    """
    forkserver.set_forkserver_preload(["hnm.fork_server", *modules])
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
    with worker_pool(len(arguments), [], keep_freed_memory) as pool:
        futures = [pool.schedule(_interruptible, (work, *each)) for each in arguments]
        waiting: set[Future[bool]] = set(futures)
        while waiting and pool.active:
            waiting = wait(waiting, timeout=SECONDS_TO_LOOK).not_done
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


def _interruptible(work: Callable[..., bool], *arguments: Any) -> bool:
    """Does `work`, which SIGTERM, by which the pool stops its workers, interrupts as Ctrl-C does:
    it then withdraws its trial.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work(*arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
