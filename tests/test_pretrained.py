"""The bundled weights: their cats hold together at every size, and how they are sampled earns its place."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from models import checkpoint, sampler
from models.measures import border_ratio, psnr
from models.noise import white_noise
from models.rasterize import rasterize


@pytest.fixture(scope="module")
def denoiser():
    return checkpoint.load(checkpoint.PRETRAINED)


@pytest.fixture(scope="module")
def cats(denoiser):
    """Sixteen generated cats."""
    how = checkpoint.sampling(checkpoint.read(checkpoint.PRETRAINED), "bundled")
    return sampler.sample(denoiser, white_noise(7, range(16), *denoiser.size), **asdict(how))


def made(denoiser, indices, **sampling):
    """Pictures of seed 7 as a screen shows them."""
    field = sampler.sample(denoiser, white_noise(7, indices, *denoiser.size), **sampling)
    return denoiser.draw(field, *denoiser.size).clamp(-1, 1)


def test_cats_agree_with_themselves_at_other_sizes(cats):
    large = rasterize(cats[:4], 512, 512).clamp(-1, 1)
    assert psnr(F.avg_pool2d(large, 8), rasterize(cats[:4], 64, 64)).mean() >= 38


def test_no_patch_borders_in_cats(cats):
    ratios = torch.cat([border_ratio(rasterize(cat[None], 512, 512)) for cat in cats])
    assert ratios.mean() <= 1.05


def test_learned_calls_are_nearer_to_many_than_as_many_others(denoiser):
    (calls,) = denoiser.few_calls
    many = made(denoiser, [2, 3], steps=16, solver="deis")
    learned = psnr(made(denoiser, [2, 3], steps=calls, solver="learned", schedule="learned"), many)
    assert learned.mean() > psnr(made(denoiser, [2, 3], steps=calls, solver="deis"), many).mean() + 2
