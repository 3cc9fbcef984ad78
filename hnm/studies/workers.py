"""Several processes that do the same work; one that dies stops no other, and none outlives its
parent.
"""

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from hnm.errors import HnmError
from hnm.processes import keep_freed_memory

SERVED = "forkserver" in multiprocessing.get_all_start_methods()
"""Whether workers are forked from a server; elsewhere each is started from nothing. None is forked
from this process, which has threads and locks.
"""


def expect_workers(*modules: str) -> None:
    """Has a server import `modules`, beside this process, that all later workers are forked from:
    imports of seconds are made once for all of them.
    """
    if SERVED:
        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def run_workers(
    work: Callable[..., bool], arguments: Sequence[tuple[Any, ...]], say: Callable[[str], None]
) -> tuple[bool, int]:
    """Runs `work` with each of `arguments` in a process of its own, until all have ended.

    Returns:
        Whether one of them returned True, and how many were killed.

    Raises:
        HnmError: as a worker did; the others have ended then.
    """
    context = (
        multiprocessing.get_context("forkserver")
        if SERVED
        else multiprocessing.get_context("spawn")
    )
    workers = []
    for own in arguments:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(work, own, there))
        process.start()
        there.close()
        workers.append((process, here))
    try:
        answers = [_answer(pipe) for _, pipe in workers]
        for process, _ in workers:
            process.join()
    except BaseException:
        for process, _ in workers:
            process.join(
                timeout=10.0
            )  # an interrupt has reached them too; they withdraw their trials
            process.kill()
            process.join()
        raise
    killed = 0
    for number, ((process, _), answer) in enumerate(zip(workers, answers, strict=True)):
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            killed += 1
            say(
                f"worker {number} was killed (exit code {process.exitcode}); its trial is run again"
            )
    return any(answers), killed


def _answer(pipe: Connection) -> bool | Exception | None:
    """What a worker returned or raised; None where it was killed."""
    try:
        return pipe.recv()  # type: ignore[no-any-return]
    except EOFError:
        return None


def _run(work: Callable[..., bool], arguments: tuple[Any, ...], pipe: Connection) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    keep_freed_memory()
    try:
        pipe.send(work(*arguments))
    except HnmError as error:
        pipe.send(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        pipe.send(RuntimeError(f"a worker failed\n{traceback.format_exc()}"))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
