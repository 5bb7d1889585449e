"""Noise, of which every picture is made, and the way from one noise to another."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

if find_spec("triton") and torch.version.cuda:
    from models import noise_triton


def white_noise(
    seed: int, indices: Sequence[int], height: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise [B, 3, height, width] on a device, picture i a function of (seed, i) alone.

    The counter-based generator Philox (Salmon et al., 2011) is keyed by the pair, so no picture's noise depends on
    how pictures are batched, sharded or ordered. On CUDA it is made there, by `models.noise_triton`; without Triton on
    the CPU.
    """
    device = torch.device(device)
    if device.type == "cuda" and _has_triton():
        return noise_triton.white_noise(seed, torch.tensor(indices, device=device), height, width)
    made = torch.empty(len(indices), 3, height, width)
    for index, picture in zip(indices, made.numpy(), strict=True):
        key = np.array([seed, index], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=picture)
    return made.to(device)


def slerp(a: Tensor, b: Tensor, way: Tensor) -> Tensor:
    """Spherical interpolation of two noises [3, Y, X] at the shares `way` [B], 0 for a and 1 for b: [B, 3, Y, X].

    Keeps the length that noise has, and with it what the network expects; the straight line loses up to 30 % of it.
    """
    angle = torch.arccos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    way = way[:, None, None, None].to(a)
    return (torch.sin((1.0 - way) * angle) * a + torch.sin(way * angle) * b) / torch.sin(angle)


@functools.cache
def _has_triton() -> bool:
    """Whether noise for CUDA is made there; says so once where it is not."""
    found = "noise_triton" in globals()
    if not found:
        logging.getLogger(__name__).debug("there is no Triton for this GPU: making its noise on the CPU")
    return found
