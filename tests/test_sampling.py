"""One shard of noise to one shard of splats, without Ray."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from conftest import make_lively, make_weights

from models import checkpoint
from models.denoiser import DenoiserConfig
from models.recorded import RecordedSample
from models.sampler import Sampling, noise, sample
from models.tuning import written_out
from pipeline.generation.sampling import ShardSampler, plan_for

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_shards_in_hand_at_once_are_the_shards_one_after_the_other(device):
    """Three threads of a process and one model, as an actor on a GPU has them; batches do not divide the shards."""
    weights = make_weights(DenoiserConfig(width=64, blocks=2, heads=2))
    plan = plan_for(
        weights, "of the test", count=52, shard_size=10, seed=3, solver="deis", schedule="early", steps=3,
        batch_size=4, threads=1,
    )  # fmt: skip
    sampler = ShardSampler(checkpoint.parse(weights, "of the test").to(device), plan)
    shards = list(plan.shards())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_by_one = [sampler(shard) for shard in shards]
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as hands:
        at_once = list(hands.map(sampler, shards))
    assert [table.num_rows for table in at_once] == [10, 10, 10, 10, 10, 2]
    assert at_once == one_by_one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_rollout_makes_what_a_rollout_makes_of_every_noise():
    denoiser = make_lively(DenoiserConfig(width=64, blocks=2, heads=2)).cuda()
    denoiser.few_calls = {3: written_out(Sampling(steps=3), 64)}
    for how in (Sampling(steps=3), Sampling("learned", "learned", 3)):
        recorded = RecordedSample(denoiser, how, 4)
        for seed in (1, 2):
            start = noise(seed, range(4), *denoiser.size)
            assert torch.equal(recorded(start.pin_memory()), sample(denoiser, start.cuda(), **asdict(how)))
