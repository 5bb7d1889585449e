"""Pure functions over Ray tasks: results in the order of the jobs, a bounded number of tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch
from ray import ObjectRef

from models.errors import UserError, one_line
from pipeline.execution.cluster import Cluster
from pipeline.execution.memory import keep_freed

MAX_RETRIES = 2
GRACE_SECONDS = 0.3


@dataclass(frozen=True)
class Pool:
    """Where tasks run: at most `limit` at once, each on a GPU of its own or on one CPU thread."""

    limit: int
    options: dict[str, float]
    device: str
    stall_seconds: float

    @classmethod
    def on(cls, cluster: Cluster, *, workers: int | None, device: str, stall_seconds: float) -> Pool:
        """All GPUs or CPUs of a cluster, or `workers` of them; UserError for a device or GPUs that it has not."""
        use_gpu = cluster.has_gpu(device)
        limit = workers or max(1, int(cluster.gpus if use_gpu else cluster.cpus))
        options = cluster.demand(use_gpu, limit, gpus=1.0)
        return cls(limit, options, "cuda" if use_gpu else "cpu", stall_seconds)

    def share(self, value: Any) -> ObjectRef:
        """Put a large argument of many jobs where every machine fetches it once; jobs receive the value itself."""
        return ray.put(value)

    def map(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `function(*job)` for every job, in order. `function` is pure, so that a lost task can run again.

        Every task computes with one thread, since the number of threads changes the last bits. UserErrors and
        OSErrors of a task, such as a store's that fails to answer, are raised here as they are. UserError where no task
        ends for `stall_seconds`, or a process is lost for good.
        """
        task = _call.options(max_retries=MAX_RETRIES, **self.options)
        waiting = iter(enumerate(jobs))
        running: dict[ObjectRef, int] = {}
        done: dict[int, Any] = {}
        following = 0
        try:
            while True:
                while len(running) < self.limit and (job := next(waiting, None)):
                    running[task.remote(function, *job[1])] = job[0]
                if not running:
                    break
                ended = first_ended(running, self.stall_seconds)
                done[running.pop(ended)] = result(ended)
                while following in done:
                    yield done.pop(following)
                    following += 1
        finally:
            abandon(running)


def first_ended(refs: Iterable[ObjectRef], stall_seconds: float) -> ObjectRef:
    """One of the tasks that has ended, after waiting for it; UserError where none does for `stall_seconds`."""
    ended, _ = ray.wait(list(refs), num_returns=1, timeout=stall_seconds)
    if not ended:
        raise UserError(
            f"no task ended for {stall_seconds:.0f} s; see that the cluster has free CPUs or GPUs, or allow more time"
            " with --stall-minutes"
        )
    return ended[0]


def abandon(refs: Iterable[ObjectRef]) -> None:
    """End tasks whose results nobody will ask for.

    Ray (2.60; its pull request 54738 explains) ends the driver if a task ends in the very instant in which it is
    cancelled. So those that are about to end may do so; what is cancelled then takes longer.
    """
    running = list(refs)
    if running:
        for ref in ray.wait(running, num_returns=len(running), timeout=GRACE_SECONDS)[1]:
            ray.cancel(ref, force=True)


@ray.remote
def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    keep_freed()
    torch.set_num_threads(1)
    with torch.inference_mode():
        return function(*arguments)


def result(ref: ObjectRef) -> Any:
    """What a task returned. UserErrors and OSErrors that it raised are raised as they are, a lost process as one."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (UserError, OSError)):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(f"a process was lost, and so were those that replaced it: {one_line(error)}") from None
