"""The bundled weights: their cats hold together at every size, and how they are sampled earns its place."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from models import checkpoint, sampler
from models.measures import border_ratio, psnr
from models.rasterize import rasterize


@pytest.fixture(scope="module")
def denoiser():
    return checkpoint.load(checkpoint.PRETRAINED)


@pytest.fixture(scope="module")
def cats(denoiser):
    """Sixteen generated cats."""
    how = checkpoint.sampling(checkpoint.read(checkpoint.PRETRAINED), "bundled")
    return sampler.sample(denoiser, sampler.noise(7, range(16), *denoiser.size), **asdict(how))


def test_cats_agree_with_themselves_at_other_sizes(cats):
    large = rasterize(cats[:4], 512, 512).clamp(-1, 1)
    assert psnr(F.avg_pool2d(large, 8), rasterize(cats[:4], 64, 64)).mean() >= 38


def test_no_patch_borders_in_cats(cats):
    ratios = torch.cat([border_ratio(rasterize(cat[None], 512, 512)) for cat in cats])
    assert ratios.mean() <= 1.05


def test_multistep_is_nearer_to_a_long_rollout_than_euler_and_learned_calls_than_as_many_others(denoiser):
    noise = sampler.noise(7, [2, 3], *denoiser.size)

    def picture(solver, steps, schedule):
        field = sampler.sample(denoiser, noise, steps=steps, solver=solver, schedule=schedule)
        return denoiser.draw(field, *denoiser.size).clamp(-1, 1)

    long = picture("euler", 96, "uniform")
    multistep = picture("deis", 16, "early")
    agreement = {name: psnr(picture("euler", 16, name), long).mean() for name in ("early", "uniform")}
    assert psnr(multistep, long).mean() > max(agreement.values()) + 3
    (calls,) = denoiser.few_calls
    others = psnr(picture("deis", calls, "early"), multistep).mean()
    assert psnr(picture("learned", calls, "learned"), multistep).mean() > others + 2
