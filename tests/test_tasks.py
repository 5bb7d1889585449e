"""The ordered map over Ray tasks: order, mistakes of users, lost processes."""

import errno
import os
import sys
from pathlib import Path

import pytest
import ray

from jobs import cli
from models.errors import UserError
from pipeline.execution.tasks import Pool

# Workers cannot import tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def pool(ray_cluster) -> Pool:
    return Pool(2, {"num_cpus": 1}, "cpu", stall_seconds=60)


def square(number: int) -> int:
    if number == 9:
        raise UserError("number 9 cannot be used")
    return number**2


def ask_a_store() -> None:
    raise OSError(errno.EIO, "We are sorry", "s3://cats/splats")


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "done"


def test_results_keep_the_order_of_the_jobs(pool: Pool) -> None:
    numbers = (5, 1, 4, 0, 3)
    assert list(pool.map(square, ((number,) for number in numbers))) == [25, 1, 16, 0, 9]


def test_a_mistake_of_the_user_comes_through_as_it_is(pool: Pool) -> None:
    with pytest.raises(UserError, match=r"^number 9 cannot be used$"):
        list(pool.map(square, ((number,) for number in range(20))))


def test_a_store_that_fails_to_answer_is_told_as_where_it_was_asked(pool: Pool) -> None:
    with pytest.raises(OSError, match="sorry") as caught:
        list(pool.map(ask_a_store, [()]))
    assert cli.describe(caught.value) == "We are sorry: s3://cats/splats"


def test_a_lost_process_is_replaced(pool: Pool, tmp_path: Path) -> None:
    assert list(pool.map(die_once, [(tmp_path / "died",)])) == ["done"]


def test_tasks_that_never_end_are_told(ray_cluster) -> None:
    # More CPUs than there are: the task waits for ever.
    pool = Pool(1, {"num_cpus": 99}, "cpu", stall_seconds=1)
    with pytest.raises(UserError, match="no task ended for 1 s; see that the cluster has free CPUs"):
        list(pool.map(square, [(1,)]))
