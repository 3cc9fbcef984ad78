"""Slides on many machines: one dask task a slide. Each is read in a process of its own beside dask's worker, as on one machine.

Workers must see slides and store at the same paths as the stage does, and be started without a nanny: dask lets a
worker under a nanny start no processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from hnm.errors import ParamsError, SlideError

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
"""Batch systems -> their class in dask-jobqueue, whose settings are dask's own configuration."""
SECONDS_TO_ANSWER = "30s"


def each_on_cluster(
    function: Callable[[Job], Result | SlideError], jobs: Sequence[Job], *, executor: str, workers: int, step: str
) -> Iterator[tuple[Job, Result | SlideError]]:
    """Each job with `function(job)`, in order of completion, on the workers of `executor`: a scheduler's address or one of `QUEUES`.

    A job whose worker dies is done by another; one that several workers die of (dask's
    `distributed.scheduler.allowed-failures`) becomes a `SlideError` of `step`. `ParamsError` where there is no such cluster.
    """
    try:
        dask: Any = import_module("distributed")
    except ImportError:
        raise ParamsError(f"the environment variable HNM_EXECUTOR={executor!r} needs dask; install it: pip install 'hnm[dask]'") from None
    with _client(dask, executor, workers) as client:
        job_of = {future: job for job, future in zip(jobs, client.map(function, jobs, pure=False), strict=True)}
        for future in dask.as_completed(list(job_of), loop=client.loop):
            job = job_of.pop(future)
            try:
                outcome = future.result()
            except dask.KilledWorker as error:
                outcome = SlideError(f"the workers that read it died (the last: {error.last_worker.address})", step=step)
            future.release()
            yield job, outcome


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
