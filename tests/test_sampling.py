"""One shard of noise to one shard of splats, without Ray."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_weights

from models import checkpoint
from models.denoiser import DenoiserConfig
from pipeline.generation.sampling import generate_shard, plan_for

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_shards_in_hand_at_once_are_the_shards_one_after_the_other(device):
    """Three threads of a process and one model, as an actor on a GPU has them; batches do not divide the shards."""
    weights = make_weights(DenoiserConfig(width=64, blocks=2, heads=2))
    plan = plan_for(
        weights, "of the test", count=52, shard_size=10, seed=3, solver="deis", schedule="early", steps=3,
        batch_size=4, threads=1,
    )  # fmt: skip
    denoiser = checkpoint.parse(weights, "of the test").to(device)
    shards, turn = list(plan.shards()), threading.Lock()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_by_one = [generate_shard(denoiser, plan, shard) for shard in shards]
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as hands:
        at_once = list(hands.map(lambda shard: generate_shard(denoiser, plan, shard, turn), shards))
    assert [table.num_rows for table in at_once] == [10, 10, 10, 10, 10, 2]
    assert at_once == one_by_one
