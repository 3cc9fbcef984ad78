"""Slides on many machines, with one dask task for each slide.

Each slide is read in a process of its own beside dask's worker, as on one machine. Workers must see
slides and store at the same paths as the stage does, and be started without a nanny: dask lets a
worker under a nanny start no processes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from hnm.errors import MachineError, ParamsError

Task = TypeVar("Task")
Job = TypeVar("Job")
Outcome = TypeVar("Outcome")

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
"""Batch systems -> their class in dask-jobqueue, whose settings are dask's own configuration."""
SECONDS_TO_ANSWER = "30s"
AWAY = "the cluster went away while it was read; start its scheduler again"
SECONDS_TO_LOOK = 5.0
"""Seconds without an outcome after which the cluster's workers are counted."""
SECONDS_WITHOUT = 300.0
"""Seconds without a worker after which a cluster is given up. A batch system may take any time to
start its first.
"""
NO_WORKER = (
    "the cluster has had no worker for {:g} s; start workers, and look into the log of those that"
    " ended"
)


@contextmanager
def cluster_runner(
    function: Callable[[Task, Job], Outcome], *, executor: str, workers: int
) -> Iterator[Callable[..., Iterator[tuple[Job, Outcome | MachineError]]]]:
    """Yields a function that runs jobs on the workers of `executor`.

    It yields each job with `function(task, job)`, in order of completion, one by one where `alone`.
    A job whose worker dies is done by another. A job that several workers die of (dask's
    `distributed.scheduler.allowed-failures`) is a `MachineError`, and so are all jobs that are left
    where the scheduler goes away, or has no workers for `SECONDS_WITHOUT`.

    Args:
        function: is pickled.
        executor: a scheduler's address, or one of `QUEUES`, whose worker processes are given back
            when the block ends.
        workers: worker processes that are asked for.

    Raises:
        ParamsError: there is no such cluster.
    """
    try:
        dask: Any = import_module("distributed")
    except ImportError:
        raise ParamsError(
            f"the environment variable HNM_EXECUTOR={executor!r} needs dask; install it: pip"
            " install 'hnm[dask]'"
        ) from None
    with _client(dask, executor, workers) as client:
        watch = _Watch(client, had_worker=executor not in QUEUES)

        def run(
            task: Task, jobs: Sequence[Job], *, alone: bool
        ) -> Iterator[tuple[Job, Outcome | MachineError]]:
            for together in [[job] for job in jobs] if alone else [jobs]:
                if reason := watch.given_up:  # what is handed to it now never comes back
                    yield from ((job, MachineError(reason)) for job in together)
                    continue
                futures = client.map(function, [task] * len(together), together, pure=False)
                job_of = dict(zip(futures, together, strict=True))
                for future in _completed(dask.as_completed(futures, loop=client.loop), watch):
                    job = job_of.pop(future)
                    yield job, _outcome(dask, future, watch)
                    future.release()
                yield from ((job, MachineError(watch.given_up)) for job in job_of.values())

        yield run


class _Watch:
    """A look, now and then, whether a cluster can still do its tasks."""

    def __init__(self, client: Any, *, had_worker: bool) -> None:
        self._client = client
        self._had_worker = had_worker
        self._looked_at = time.monotonic()
        self._alive_at = self._looked_at

    @property
    def given_up(self) -> str:
        """The reason why nothing more can be expected of the cluster; "" as long as it works."""
        if self._client.status == "closed":  # it has given up its scheduler
            return AWAY
        is_without_workers = self._looked_at - self._alive_at >= SECONDS_WITHOUT
        return NO_WORKER.format(SECONDS_WITHOUT) if is_without_workers else ""

    def look(self) -> None:
        """Asks the scheduler for its workers, once in `SECONDS_TO_LOOK`."""
        if time.monotonic() - self._looked_at < SECONDS_TO_LOOK:
            return
        try:
            workers = self._client.sync(
                self._client.scheduler.ncores, callback_timeout=SECONDS_TO_ANSWER
            )
        # it is away, or hangs; while the client connects again it has no scheduler
        except (OSError, AttributeError):
            workers = {}
        self._looked_at = time.monotonic()
        self._had_worker = self._had_worker or bool(workers)
        if workers or not self._had_worker:
            self._alive_at = self._looked_at


def _completed(futures: Any, watch: _Watch) -> Iterator[Any]:
    """Yields dask's futures as they complete, until all have, or the cluster is given up."""
    while futures.count():
        if futures.has_ready():
            yield next(futures)
        elif watch.given_up:
            return
        else:
            time.sleep(0.05)
            watch.look()


def _outcome(dask: Any, future: Any, watch: _Watch) -> Any:
    while True:
        try:
            return future.result(timeout=SECONDS_TO_LOOK)
        except TimeoutError:  # its worker died with the outcome, which another makes again
            if watch.given_up:
                return MachineError(watch.given_up)
            watch.look()
        except dask.KilledWorker as error:
            return MachineError(
                f"the workers that read it died (the last: {error.last_worker.address}); give each"
                " more memory, or look into its log"
            )
        except CancelledError:
            return MachineError(AWAY)


@contextmanager
def _client(dask: Any, executor: str, workers: int) -> Iterator[Any]:
    """Yields a client of the cluster.

    A batch system is asked for `workers` worker processes, which are given back.
    """
    if executor not in QUEUES:
        try:
            client = dask.Client(executor, set_as_default=False, timeout=SECONDS_TO_ANSWER)
        except (OSError, ValueError) as error:
            raise ParamsError(
                f"the environment variable HNM_EXECUTOR={executor!r} is neither local, nor one of"
                f" {', '.join(QUEUES)}, nor the address of a dask scheduler that answers: {error}"
            ) from None
        with client:
            yield client
        return
    try:
        cluster = getattr(import_module("dask_jobqueue"), QUEUES[executor])(
            nanny=False, scheduler_options={"dashboard": False}
        )
    except (TypeError, ValueError) as error:
        raise ParamsError(
            f"dask's configuration jobqueue.{executor} is not whole: {error}; see docs/machines.md"
        ) from None
    with cluster, dask.Client(cluster, set_as_default=False) as client:
        cluster.scale(workers)
        yield client
