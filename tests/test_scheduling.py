import dataclasses
import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import ray
import torch
from test_plan import PLAN

from models.errors import UserError
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import Shard
from pipeline.datasets.records import Record
from pipeline.execution.progress import Progress
from pipeline.execution.scheduling import Ended, run_shards
from pipeline.execution.workers import ActorWorkers, TaskWorkers

SHARDS = [Shard(i, Indices((range(10 * i, 10 * i + 10),))) for i in range(6)]
THIRD = SHARDS[3].name


def make_work(folder: Path, trouble: str = ""):
    """Work that notes each call in `folder` and has `trouble` in the third shard (the first time only if `once`)."""

    def work(shard: Shard) -> Record:
        calls = len(list(folder.glob(f"{shard.name}-*")))
        (folder / f"{shard.name}-{calls}-{os.getpid()}").touch()
        if shard.id == 3 and (calls == 0 or "once" not in trouble):
            if "exit" in trouble:
                os._exit(1)
            if "memory" in trouble:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if "raise" in trouble:
                raise RuntimeError("out of\nluck")
            if "user" in trouble:
                raise UserError("shard-00003.parquet is damaged")
        return Record(shard.id, "", len(shard.indices), 0, 0, 0, "")

    return work


def actors(work, limit: int = 2, hands: int = 1) -> ActorWorkers:
    class Worker:
        def work(self, shard: Shard) -> Record:
            return work(shard)

    actor = ray.remote(num_cpus=0.5, max_restarts=0, max_concurrency=hands)(Worker)
    return ActorWorkers(actor.remote, lambda: limit, hands)


def tasks(work, limit: int = 2) -> TaskWorkers:
    task = ray.remote(num_cpus=0.5, max_retries=0)(work)
    return TaskWorkers(task.remote, lambda: limit)


def quiet(progress: Progress, last: bool) -> None:
    pass


def run(workers, **options) -> Progress:
    progress = Progress(len(SHARDS), total_pictures=60)
    run_shards(SHARDS, workers, progress, report=quiet, **options)
    return progress


@pytest.mark.parametrize("kind", [actors, tasks])
@pytest.mark.parametrize("trouble", ["", "exit once", "raise once"])
def test_every_shard_is_done_whatever_dies_once(ray_cluster, tmp_path, kind, trouble):
    progress = run(kind(make_work(tmp_path, trouble)))
    assert (progress.done, progress.pictures, progress.retried) == (6, 60, 1 if trouble else 0)
    assert str(progress).startswith("shards 6/6  60 pictures")
    assert len(list(tmp_path.iterdir())) == 6 + progress.retried


def test_what_a_shard_takes_down_with_it_is_done_all_the_same(ray_cluster, tmp_path):
    """An actor has three shards in hand, and one of them always kills it."""
    work = make_work(tmp_path, "exit")

    class Worker:
        def __init__(self) -> None:
            self.lock, self.at_once = threading.Lock(), 0

        def work(self, shard: Shard) -> Record:
            with self.lock:
                self.at_once += 1
                (tmp_path / f"{self.at_once} at once").touch()
            time.sleep(0.2)
            record = work(shard)
            with self.lock:
                self.at_once -= 1
            return record

    actor = ray.remote(num_cpus=0.5, max_restarts=0, max_concurrency=3)(Worker)
    with pytest.raises(UserError, match=rf"^1 of 6 shards failed, 5 are done \({THIRD}: "):
        run(ActorWorkers(actor.remote, lambda: 1, hands=3), max_losses=3)
    assert (tmp_path / "3 at once").exists()
    assert not (tmp_path / "4 at once").exists()


def test_a_failing_shard_is_given_up_with_its_reason_and_the_rest_is_done(ray_cluster, tmp_path):
    with pytest.raises(UserError) as failure:
        run(actors(make_work(tmp_path, "raise")))
    text = str(failure.value)
    assert "\n" not in text
    assert f"1 of 6 shards failed, 5 are done ({THIRD}: RuntimeError: out of luck (3 attempts))" in text
    assert len(list(tmp_path.glob(f"{THIRD}-*"))) == 3
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 6


@pytest.mark.parametrize("kind", [actors, tasks])
def test_a_shard_that_kills_its_processes_is_given_up_with_its_reason(ray_cluster, tmp_path, kind):
    with pytest.raises(UserError) as failure:
        run(kind(make_work(tmp_path, "exit")), max_losses=2)
    text = str(failure.value)
    assert "\n" not in text
    assert f"1 of 6 shards failed, 5 are done ({THIRD}: " in text
    assert "(2 attempts)" in text
    assert len(list(tmp_path.glob(f"{THIRD}-*"))) == 2


def test_a_gpu_without_enough_memory_is_said_with_a_remedy(ray_cluster, tmp_path):
    with pytest.raises(UserError, match=rf"\({THIRD}: the GPU's memory is too small .* --batch-size.*\(3 attempts\)\)"):
        run(actors(make_work(tmp_path, "memory")))
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 6


@pytest.mark.parametrize(
    ("error", "times"), [(UserError("these weights are of no use"), 1), (RuntimeError("a library is missing"), 2)]
)
def test_workers_that_cannot_start_end_the_run(ray_cluster, tmp_path, error, times):
    class Worker:
        def __init__(self) -> None:
            (tmp_path / f"{os.getpid()}").touch()
            raise error

        def work(self, shard: Shard) -> Record:
            raise AssertionError

    actor = ray.remote(num_cpus=0.5, max_restarts=0)(Worker)
    with pytest.raises(UserError, match=rf"^no worker can start \((RuntimeError: )?{error}\); 0 of 6 shards are done$"):
        run(ActorWorkers(actor.remote, lambda: 1), max_losses=2)
    assert len(list(tmp_path.iterdir())) == times


def test_the_number_of_actors_follows_the_room_there_is(ray_cluster, tmp_path):
    """One at first; two once a third of the shards is done; one again for the last third."""
    marks: list[tuple[int, int]] = []

    def work(shard: Shard) -> Record:
        time.sleep(0.2)
        return Record(shard.id, "", len(shard.indices), 0, 0, 0, "")

    progress = Progress(30, total_pictures=300)
    workers = actors(work)
    workers._capacity = lambda: 2 if 10 <= progress.done < 20 else 1
    run_shards(
        (Shard(i, Indices((range(10 * i, 10 * i + 10),))) for i in range(30)),
        workers,
        progress,
        report=lambda progress, last: marks.append((progress.done, progress.workers)),
    )
    assert progress.done == 30
    assert {count for done, count in marks if 0 < done < 10} == {1}
    assert max(count for _, count in marks) == 2
    assert {count for done, count in marks if 22 <= done < 30} == {1}


def test_what_the_user_must_mend_is_not_tried_again(ray_cluster, tmp_path):
    with pytest.raises(UserError, match=rf"\({THIRD}: shard-00003.parquet is damaged\)"):
        run(tasks(make_work(tmp_path, "user")))
    assert len(list(tmp_path.glob(f"{THIRD}-*"))) == 1


def test_the_window_is_bounded_and_shards_are_made_when_needed(ray_cluster, tmp_path):
    made = []

    def shards():
        for shard in SHARDS:
            made.append(shard.id)
            finished = len(list(tmp_path.iterdir()))
            assert len(made) - finished <= 3
            yield shard

    progress = Progress(len(SHARDS))
    run_shards(shards(), tasks(make_work(tmp_path), limit=2), progress, report=quiet)
    assert progress.done == 6


class Instant:
    """Workers that are done at once, so that what remains is the cost of scheduling."""

    def __init__(self, limit: int) -> None:
        self.limit, self.largest = limit, 0
        self.running: list[Shard] = []

    def room(self, wanted: int) -> int:
        return min(wanted, self.limit - len(self.running))

    def submit(self, shard: Shard) -> None:
        self.running.append(shard)
        self.largest = max(self.largest, len(self.running))

    def wait(self, seconds: float) -> list[Ended]:
        shard = self.running.pop()
        return [Ended(shard, Record(shard.id, f"data/{shard.name}.parquet", len(shard.indices), 0, 0, 0, ""))]

    def count(self) -> int:
        return self.limit

    def close(self) -> None:
        assert not self.running


class Stuck(Instant):
    """Workers that never end the third shard."""

    def wait(self, seconds: float) -> list[Ended]:
        self.running.sort(key=lambda shard: shard.id == 3, reverse=True)
        if self.running[-1].id != 3:
            return super().wait(seconds)
        time.sleep(seconds)
        return []

    def close(self) -> None:
        assert [shard.id for shard in self.running] == [3]


def test_a_stuck_shard_is_named_instead_of_waited_for():
    with pytest.raises(UserError, match=rf"no shard ended for 1 s; stuck: {THIRD} \(attempt 1, for 1 s\); see that"):
        run(Stuck(2), stall_seconds=1.0)


def schedule(num_shards: int) -> float:
    """Schedule so many shards of 10,000 pictures on 512 instant workers; processor time that one took, in seconds."""
    plan = dataclasses.replace(PLAN, count=num_shards * 10_000, shard_size=10_000)
    workers = Instant(512)
    progress = Progress(plan.num_shards, total_pictures=plan.count)
    started = time.process_time()
    run_shards(plan.shards(), workers, progress, report=quiet)
    assert progress.pictures == plan.count
    assert workers.largest == min(512, num_shards)
    return (time.process_time() - started) / num_shards


def test_a_billion_pictures_cost_no_more_a_shard_than_a_million():
    schedule(100)
    few, many = min(schedule(100) for _ in range(10)), schedule(100_000)
    print(f"{few * 1e6:.1f} us a shard of 100, {many * 1e6:.1f} us of 100,000")
    assert many < 2 * few + 5e-6
    assert many < 1e-3


def test_the_memory_of_the_schedule_does_not_grow_with_the_plan():
    peaks = []
    for num_shards in (2_000, 20_000):
        tracemalloc.start()
        schedule(num_shards)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"peaks {peaks} bytes")
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 2**20
