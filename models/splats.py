"""Splats: their nine physical parameters, and the activations that make a network's raw output physical.

Shape suffixes, here and in the rest of `models`: B pictures, H W rows and columns of patches, K splats a patch,
P parameters of a splat, N splats that reach a pixel (9 K), Y X pixels, D width of the transformer.

A splat field is a tensor [B, H, W, K, P] of physical parameters in the order of PARAMETERS. Lengths are in patches,
relative to the top-left corner of the splat's home patch; colours are in [-1, 1] display space, not clamped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PARAMETERS = ("u", "v", "kx", "ky", "rho", "r", "g", "b", "d")
MEANINGS = {
    "u": "mean, rightwards from the left edge of the home patch, in patches",
    "v": "mean, downwards from the top edge of the home patch, in patches",
    "kx": "inverse horizontal scale, 1/patches",
    "ky": "inverse vertical scale, 1/patches",
    "rho": "correlation of the two axes",
    "r": "red, -1 black to 1 full, not clamped",
    "g": "green",
    "b": "blue",
    "d": "depth: logarithm of the blending weight",
}

# What models reach that say nothing else, and what there may be at all.
SCALE_MIN, SCALE_MAX, SCALE_LIMIT = 0.25, 6.0, 24.0
# Raw scale at which a model that reaches further than SCALE_MAX is half-way there.
FINER = 4.0
CORRELATION_MAX = 0.95
# Neighbours hand over to each other within (2/pi) exp(-depth range / 2) patches (see kernels.log_window), so a small
# range is what keeps patch borders invisible at high magnification.
DEPTH_MAX = 4.0
LIMITS: dict[str, tuple[float, float]] = {
    "u": (-0.5, 1.5),
    "v": (-0.5, 1.5),
    "kx": (SCALE_MIN, SCALE_LIMIT),
    "ky": (SCALE_MIN, SCALE_LIMIT),
    "rho": (-CORRELATION_MAX, CORRELATION_MAX),
    "d": (-DEPTH_MAX, DEPTH_MAX),
}


def activate(raw: Tensor, scale_max: float = SCALE_MAX) -> Tensor:
    """Map raw network outputs [..., P] to physical splat parameters [..., P] within LIMITS (colours unbounded).

    Inverse scales are up to `scale_max`. Where they are not near SCALE_MAX it hardly changes them, so that a network
    that was trained with one may go on with another.
    """
    assert raw.shape[-1] == len(PARAMETERS)
    mean, scale, rho, colour, depth = raw.split([2, 2, 1, 3, 1], dim=-1)
    finer = math.log(scale_max / SCALE_MAX)
    exponent = math.log(SCALE_MAX / SCALE_MIN) * torch.sigmoid(scale)
    if finer:
        exponent = exponent + finer * torch.sigmoid(scale - FINER)
    return torch.cat(
        [
            0.5 + torch.tanh(mean),
            SCALE_MIN * torch.exp(exponent),
            CORRELATION_MAX * torch.tanh(rho),
            colour,
            DEPTH_MAX * torch.tanh(depth / DEPTH_MAX),
        ],
        dim=-1,
    )


def initial_raw(splats_per_patch: int) -> Tensor:
    """Raw parameters [K, P] whose means lie on a regular grid in the patch, round, mid-grey, at equal depth."""
    side = math.ceil(math.sqrt(splats_per_patch))
    cell = torch.arange(splats_per_patch)
    centres = torch.stack([(cell % side + 0.5) / side, (cell // side + 0.5) / side], dim=-1)
    raw = torch.zeros(splats_per_patch, len(PARAMETERS))
    raw[:, 0:2] = torch.atanh(centres - 0.5)
    return raw


def random_field(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A splat field [*shape, P], uniform over the ranges of usual models, colours uniform in [-1, 1]."""
    usual = LIMITS | dict.fromkeys(("kx", "ky"), (SCALE_MIN, SCALE_MAX))
    low, high = torch.tensor([usual.get(name, (-1.0, 1.0)) for name in PARAMETERS], dtype=dtype).T
    return low + (high - low) * torch.rand(*shape, len(PARAMETERS), generator=generator, dtype=dtype)
