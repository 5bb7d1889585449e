"""How one splat acts on a pixel: value kernels, depth falloff, and the window that hides patch borders.

A kernel gives a splat's value as a function of q >= 0, its squared Mahalanobis distance in patch units. Values may be
negative (that is what makes `wavelet` and `sharp` crisp); the blending weight exp(d - FALLOFF q) never is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# A splat's weight is exp(d - FALLOFF q): a soft z-buffer that prefers near splats of high depth.
FALLOFF = 4.0
# The part of the largest colour by which splats that are left out may change a pixel, all together.
NEGLIGIBLE = {torch.float32: 1e-5, torch.float64: 1e-12}


def wavelet(q: Tensor) -> Tensor:
    """exp(-0.9 q) cos(6 q): a cosine-modulated Gaussian."""
    # On a CPU, 2^x takes torch a third of the time of e^x.
    return torch.exp2((-0.9 / math.log(2.0)) * q) * torch.cos(6.0 * q)


def sharp(q: Tensor) -> Tensor:
    """A flat top with a steep edge and one negative lobe; s = 2 q, 1 - min(s,1)^16 - 4 exp(-s) sin(max(s,1) - 1)."""
    s = 2.0 * q
    return 1.0 - s.clamp(max=1.0) ** 16 - 4.0 * torch.exp(-s) * torch.sin(s.clamp(min=1.0) - 1.0)


def gaussian(q: Tensor) -> Tensor:
    """exp(-2 q): the plain control."""
    return torch.exp(-2.0 * q)


def constant(q: Tensor) -> Tensor:
    """1 everywhere: a plain weighted mean of the splats, for views of something other than colour."""
    return torch.ones_like(q)


# The kernels a model may be trained with and a user may choose.
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"wavelet": wavelet, "sharp": sharp, "gaussian": gaussian}
# What the rasterizer can draw with.
DRAWABLE = {**KERNELS, "constant": constant}


def log_window(position: Tensor) -> Tensor:
    """Logarithm of a patch's window at `position`, in patches from the patch's low edge, along one axis.

    The window is 1 within the patch, 0 <= position <= 1, and falls as the square of a raised cosine to exactly 0 one
    patch further on either side, so a sum over the 3x3 patches around a pixel has a continuous derivative everywhere.
    The square hands over from patch to patch earlier: where depths differ, a raised cosine alone does it within a
    few pixels of the far border, which shows (pretrained/tried.md, "Patch borders").
    """
    outside = torch.maximum(-position, position - 1.0).clamp(0.0, 1.0)
    # The raised cosine (1 + cos(pi x)) / 2 written as a square: exact near its zero, where fp32 would cancel.
    return 4.0 * torch.log(torch.cos(0.5 * math.pi * outside).clamp(min=0.0)).where(outside < 1.0, -math.inf)


def cutoff(splats: int, dtype: torch.dtype = torch.float32) -> float:
    """log2 of the largest weight over one that is negligible, where `splats` splats reach a pixel.

    If the weights left out are the part s of all, colour and mass are each off by at most that part: 2 s in the mean.
    """
    return math.log2(2 * splats / NEGLIGIBLE[dtype])
