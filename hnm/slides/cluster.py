"""Slides on many machines: one dask task a slide. Each is read in a process of its own beside dask's worker, as on one machine.

Workers must see slides and store at the same paths as the stage does, and be started without a nanny: dask lets a
worker under a nanny start no processes.
"""

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


@contextmanager
def cluster_runner(
    function: Callable[[Task, Job], Outcome], *, executor: str, workers: int
) -> Iterator[Callable[..., Iterator[tuple[Job, Outcome | MachineError]]]]:
    """What gives each of some jobs with `function(task, job)`, in order of completion, by the workers of `executor`; where each is to be `alone`, one by one.

    A job whose worker dies is done by another; one that several workers die of (dask's
    `distributed.scheduler.allowed-failures`) is a `MachineError`.

    Args:
        function: is pickled.
        executor: a scheduler's address, or one of `QUEUES`, of which the worker processes are given back when the block ends.
        workers: worker processes that are asked for.

    Raises:
        ParamsError: there is no such cluster.
    """
    try:
        dask: Any = import_module("distributed")
    except ImportError:
        raise ParamsError(f"the environment variable HNM_EXECUTOR={executor!r} needs dask; install it: pip install 'hnm[dask]'") from None
    with _client(dask, executor, workers) as client:

        def run(task: Task, jobs: Sequence[Job], *, alone: bool) -> Iterator[tuple[Job, Outcome | MachineError]]:
            for together in [[job] for job in jobs] if alone else [jobs]:
                if client.status == "closed":  # it gave up its scheduler; what is handed to it now never comes back
                    yield from ((job, MachineError(AWAY)) for job in together)
                    continue
                futures = client.map(function, [task] * len(together), together, pure=False)
                job_of = dict(zip(futures, together, strict=True))
                for future in dask.as_completed(futures, loop=client.loop):
                    job = job_of.pop(future)
                    yield job, _outcome(dask, future)
                    future.release()

        yield run


def _outcome(dask: Any, future: Any) -> Any:
    try:
        return future.result()
    except dask.KilledWorker as error:
        return MachineError(f"the workers that read it died (the last: {error.last_worker.address}); give each more memory, or look into its log")
    except CancelledError:
        return MachineError(AWAY)


@contextmanager
def _client(dask: Any, executor: str, workers: int) -> Iterator[Any]:
    """A client of the cluster; where it is of a batch system, `workers` worker processes are asked for, and given back."""
    if executor not in QUEUES:
        try:
            client = dask.Client(executor, set_as_default=False, timeout=SECONDS_TO_ANSWER)
        except (OSError, ValueError) as error:
            raise ParamsError(
                f"the environment variable HNM_EXECUTOR={executor!r} is neither local, nor one of {', '.join(QUEUES)}, nor the address of a dask scheduler"
                f" that answers: {error}"
            ) from None
        with client:
            yield client
        return
    try:
        cluster = getattr(import_module("dask_jobqueue"), QUEUES[executor])(nanny=False, scheduler_options={"dashboard": False})
    except (TypeError, ValueError) as error:
        raise ParamsError(f"dask's configuration jobqueue.{executor} is not whole: {error}; see docs/machines.md") from None
    with cluster, dask.Client(cluster, set_as_default=False) as client:
        cluster.scale(workers)
        yield client
