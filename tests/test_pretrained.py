"""The bundled weights: their cats hold together at every size, and the default solver earns its place."""

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
    return sampler.sample(denoiser, sampler.noise(7, range(16), *denoiser.size), steps=16, solver="deis")


def test_cats_agree_with_themselves_at_other_sizes(cats):
    large = rasterize(cats[:4], 512, 512).clamp(-1, 1)
    assert psnr(F.avg_pool2d(large, 8), rasterize(cats[:4], 64, 64)).mean() >= 38


def test_no_patch_borders_in_cats(cats):
    ratios = torch.cat([border_ratio(rasterize(cat[None], 512, 512)) for cat in cats])
    assert ratios.mean() <= 1.05


def test_multistep_is_nearer_to_a_long_rollout_than_euler(denoiser):
    noise = sampler.noise(7, [2], *denoiser.size)

    def picture(solver, steps, schedule):
        field = sampler.sample(denoiser, noise, steps=steps, solver=solver, schedule=schedule)
        return denoiser.draw(field, *denoiser.size)

    long = picture("euler", 256, "uniform")
    default = psnr(picture("deis", 16, "early"), long)
    assert default > psnr(picture("euler", 16, "early"), long) + 3
    assert default > psnr(picture("euler", 16, "uniform"), long) + 3
