"""A whole rollout recorded as a CUDA graph: the host asks for it as one piece of work instead of some hundreds.

Splats are those that `sampler.sample` makes. Small batches end sooner, since launching takes the host longer than
their work the GPU; and threads that write files do not come between two launches.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.sampler import Sampling, sample


class RecordedSample:
    """`sampler.sample` for noise of one shape, of a denoiser that is on a GPU and changes no more."""

    def __init__(self, denoiser: Denoiser, sampling: Sampling, batch: int) -> None:
        """Records, which takes a rollout of `batch` pictures, whose first compiles kernels, and a launch more."""
        device = next(denoiser.parameters()).device
        self._noise = torch.zeros(batch, 3, *denoiser.size, device=device)
        sample(denoiser, self._noise, **asdict(sampling))  # kernels are compiled and chosen before
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what they do on the GPU.
        with torch.cuda.device(device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._field = sample(denoiser, self._noise, **asdict(sampling))

    def __call__(self, noise: Tensor) -> Tensor:
        """The splat fields [B, H, W, K, P] of noises [B, 3, Y, X]."""
        self._noise.copy_(noise)
        self._graph.replay()
        return self._field.clone()
