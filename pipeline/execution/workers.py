"""Workers on Ray for the scheduler: tasks, or actors that are replaced when they die and follow the cluster's size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.exceptions
import torch
from ray import ObjectRef

from models.errors import UserError, one_line
from pipeline.datasets.plan import Shard
from pipeline.execution.scheduling import Ended
from pipeline.execution.tasks import abandon

OUT_OF_GPU_MEMORY = (
    "the GPU's memory is too small for it: give fewer --workers or a larger --gpus-per-worker, or jobs.generate a"
    " smaller --batch-size, with another --out since it is part of the plan"
)
OUT_OF_MEMORY = "the machine's memory ran out and Ray ended the process: give fewer --workers"


class TaskWorkers:
    """Ray tasks: `start(shard)` submits one, `capacity()` says how many at once.

    They must be made with max_retries=0: the scheduler retries.
    """

    def __init__(self, start: Callable[[Shard], ObjectRef], capacity: Callable[[], int]) -> None:
        self._start, self._capacity = start, capacity
        self._running: dict[ObjectRef, Shard] = {}

    def room(self, wanted: int) -> int:
        """How many more tasks there is room for; tasks hold nothing while idle."""
        return max(0, min(wanted, self._capacity() - len(self._running)))

    def submit(self, shard: Shard) -> None:
        """Start work on a shard."""
        self._running[self._start(shard)] = shard

    def wait(self, seconds: float) -> list[Ended]:
        """Wait, at most so long, until a task ends; all that have ended."""
        return [_outcome(self._running.pop(ref), ref) for ref in _ready(self._running, seconds)]

    def count(self) -> int:
        """How many tasks are submitted."""
        return len(self._running)

    def close(self) -> None:
        """Cancel what still runs."""
        abandon(self._running)


class ActorWorkers:
    """Ray actors with a method `work(shard)`: `start()` makes one, `capacity()` says how many.

    Each works on up to `hands` shards at once, in threads (Ray's max_concurrency must be no less), but on one until it
    has ended one well: so a shard that kills its process keeps killing none but itself. A shard is given only to an
    actor that is up: one that waits for a place in a full cluster holds nothing back.
    """

    def __init__(self, start: Callable[[], Any], capacity: Callable[[], int], hands: int = 1) -> None:
        self._start, self._capacity, self._hands = start, capacity, hands
        self._starting: dict[ObjectRef, Any] = {}
        self._up: dict[Any, int] = {}  # actors that take shards, and how many hands of each
        self._busy: dict[ObjectRef, tuple[Any, Shard]] = {}
        self._in_hand: Counter[Any] = Counter()  # actors of `_busy`; counted anew, each shard would cost as all do

    def room(self, wanted: int) -> int:
        """How many hands are free, after the number of actors has followed the work left and the cluster's size.

        Actors not needed are ended: what they hold, an actor of this or of another job may wait for.
        """
        idle = [actor for actor in self._up if not self._in_hand[actor]]
        spare = max(0, min(self._capacity() - len(self._in_hand), wanted))
        while len(self._starting) + len(idle) < spare:
            actor = self._start()
            self._starting[actor.__ray_ready__.remote()] = actor
        while self._starting and len(self._starting) + len(idle) > spare:
            ray.kill(self._starting.popitem()[1])
        while len(idle) > spare:
            actor = idle.pop()
            del self._up[actor]
            ray.kill(actor)
        return sum(hands - self._in_hand[actor] for actor, hands in self._up.items())

    def submit(self, shard: Shard) -> None:
        """Give a shard to the actor that has the least in hand."""
        free = (actor for actor, hands in self._up.items() if self._in_hand[actor] < hands)
        actor = min(free, key=self._in_hand.__getitem__)
        self._busy[actor.work.remote(shard)] = (actor, shard)
        self._in_hand[actor] += 1

    def wait(self, seconds: float) -> list[Ended]:
        """Wait, at most so long, until an actor is up or has ended a shard; what has ended."""
        ended = []
        for ref in _ready([*self._busy, *self._starting], seconds):
            if ref in self._starting:
                actor, shard = self._starting.pop(ref), None
                self._up[actor] = 1
            else:
                actor, shard = self._busy.pop(ref)
                self._in_hand[actor] -= 1
                if not self._in_hand[actor]:
                    del self._in_hand[actor]
            end = _outcome(shard, ref)
            if end.reason and not end.final:  # gone, or with a GPU context that may be broken
                self._up.pop(actor, None)
            elif shard is not None and actor in self._up:
                self._up[actor] = self._hands
            if actor not in self._up and (end.lost or not self._in_hand[actor]):
                ray.kill(actor)
            if shard is not None or end.reason:
                ended.append(end)
        return ended

    def count(self) -> int:
        """How many actors are up."""
        return len(self._up.keys() | self._in_hand.keys())

    def close(self) -> None:
        """End all actors."""
        for actor in {*self._up, *self._in_hand, *self._starting.values()}:
            ray.kill(actor)


def _ready(refs: Iterable[ObjectRef], seconds: float) -> list[ObjectRef]:
    """Those of `refs` that are ready, after waiting for one of them."""
    waiting = list(refs)
    if not ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)[0]:
        return []
    return ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)[0]


def _outcome(shard: Shard | None, ref: ObjectRef) -> Ended:
    """How the work behind a reference that is ready went."""
    try:
        result = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            return Ended(shard, reason=_brief(str(cause)), final=True)
        reason = f"{type(cause).__name__}: {_brief(str(cause))}"
        if isinstance(cause, torch.OutOfMemoryError):
            reason = f"{OUT_OF_GPU_MEMORY} ({reason})"
        return Ended(shard, reason=reason)
    except ray.exceptions.RayError as error:  # the process, its actor or its node is gone
        return _loss(shard, error)
    return Ended(shard, result=result if shard is not None else None)


def _loss(shard: Shard | None, error: ray.exceptions.RayError) -> Ended:
    text = str(error)
    if getattr(error, "actor_init_failed", False):
        # Ray keeps of an exception in a constructor its traceback, whose last line says what it was.
        reason = text.strip().splitlines()[-1]
        if torch.OutOfMemoryError.__name__ in reason:
            reason = f"{OUT_OF_GPU_MEMORY} ({reason})"
        mistake = f"{UserError.__module__}.{UserError.__name__}: "
        return Ended(shard, reason=_brief(reason.removeprefix(mistake)), lost=True, final=mistake in reason)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in text or "running low on memory" in text:
        return Ended(shard, reason=OUT_OF_MEMORY, lost=True)
    # The indented lines are Ray's numbers for the process.
    said = " ".join(line for line in text.splitlines() if not line.startswith("\t"))
    return Ended(shard, reason=_brief(f"{type(error).__name__}: {said}"), lost=True)


def _brief(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 300 else f"{line[:297]}..."
