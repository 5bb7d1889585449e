"""One shard of noise to one shard of splats, without Ray."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from conftest import make_lively, make_weights

from models import checkpoint
from models.denoiser import DenoiserConfig
from models.noise import white_noise
from models.recorded import RecordedSample
from models.sampler import Sampling, sample
from models.tuning import written_out
from pipeline.execution.transfer import download
from pipeline.generation import sampling
from pipeline.generation.sampling import ShardSampler, plan_for

CONFIG = DenoiserConfig(width=64, blocks=2, heads=2)
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("chosen", [{}, {"between": "3,8", "precision": "compact"}])
def test_shards_in_hand_at_once_are_the_shards_one_after_the_other(device, chosen, monkeypatch):
    """Threads of a process and one model, as an actor on a GPU has them; batches do not divide the shards."""
    monkeypatch.setattr(sampling, "NOISE_AT_ONCE", 9)  # two batches
    weights = make_weights(CONFIG)
    plan = plan_for(
        weights, "of the test", count=52, shard_size=10, seed=3, solver="deis", schedule="early", steps=3,
        batch_size=4, threads=1, **chosen,
    )  # fmt: skip
    denoiser = checkpoint.parse(weights, "of the test").to(device)
    shards = list(plan.shards())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_by_one = [ShardSampler(denoiser, plan)(shard) for shard in shards]
    finally:
        torch.set_num_threads(before)
    sampler = ShardSampler(denoiser, plan)  # on a GPU it records while others are at work
    with ThreadPoolExecutor(6, initializer=torch.set_num_threads, initargs=(1,)) as hands:
        at_once = list(hands.map(sampler, shards))
    assert [table.num_rows for table in at_once] == [10, 10, 10, 10, 10, 2]
    assert at_once == one_by_one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_rollout_makes_what_a_rollout_makes_of_every_noise():
    denoiser = make_lively(CONFIG)
    denoiser.few_calls = {3: written_out(Sampling(steps=3), CONFIG.width)}
    denoiser.cuda()
    for how in (Sampling(steps=3), Sampling("learned", "learned", 3)):
        recorded = RecordedSample(denoiser, how, 4)
        starts = [white_noise(seed, range(4), *denoiser.size, "cuda") for seed in (1, 2)]
        # The second is begun before the first is there.
        found = [download(recorded(start)) for start in starts]
        for there, start in zip(found, starts, strict=True):
            assert torch.equal(torch.from_numpy(there()), sample(denoiser, start, **asdict(how)).cpu())
