import os
import time
from pathlib import Path

import pytest
import ray

from models.errors import UserError
from pipeline.indices import Indices
from pipeline.plan import Shard
from pipeline.progress import Progress
from pipeline.scheduling import run_shards
from pipeline.store import Record
from pipeline.workers import ActorWorkers, TaskWorkers

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
            if "raise" in trouble:
                raise RuntimeError("out of\nluck")
            if "user" in trouble:
                raise UserError("shard-00003.parquet is damaged")
            if "hang" in trouble:
                time.sleep(60)
        return Record(shard.id, "", len(shard.indices), 0, 0, 0, "")

    return work


def actors(work, limit: int = 2) -> ActorWorkers:
    class Worker:
        def work(self, shard: Shard) -> Record:
            return work(shard)

    actor = ray.remote(num_cpus=0.5, max_restarts=0)(Worker)
    return ActorWorkers(actor.remote, lambda: limit)


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


def test_a_failing_shard_is_given_up_with_its_reason_and_the_rest_is_done(ray_cluster, tmp_path):
    with pytest.raises(UserError) as failure:
        run(actors(make_work(tmp_path, "raise")))
    text = str(failure.value)
    assert "\n" not in text
    assert f"1 of 6 shards failed, 5 are done ({THIRD}: RuntimeError: out of luck (3 attempts))" in text
    assert len(list(tmp_path.glob(f"{THIRD}-*"))) == 3
    assert len({path.name.split("-")[1] for path in tmp_path.iterdir()}) == 6


def test_what_the_user_must_mend_is_not_tried_again(ray_cluster, tmp_path):
    with pytest.raises(UserError, match=rf"\({THIRD}: shard-00003.parquet is damaged\)"):
        run(tasks(make_work(tmp_path, "user")))
    assert len(list(tmp_path.glob(f"{THIRD}-*"))) == 1


def test_a_stuck_shard_is_named_instead_of_waited_for(ray_cluster, tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"no shard ended for 3 s; stuck: {THIRD} \(attempt 1"):
        run(actors(make_work(tmp_path, "hang")), stall_seconds=3.0)
    assert time.monotonic() - started < 30


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
