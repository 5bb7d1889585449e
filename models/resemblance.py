"""How far the statistics of generated pictures are from those of photographs, as something to learn from.

Of a picture these are the mean and the deviation, over the picture, of its three colours and of every channel of
VGG16's five stages. They are whitened: the photographs' foremost principal components, each at a variance of 1. Sets of
pictures are compared by their maximum mean discrepancy (Gretton et al., "A kernel two-sample test", 2012) with the
kernel (1 + x y / sqrt(D))^2, which sees means and covariances; unbiased, so that small batches mislead by chance alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.vgg import Vgg16

COMPONENTS = 192
TINY = 1e-4
AMONG_PHOTOGRAPHS = 2.0  # the kernel's mean over pairs of them: 1, and as whitened another 1


class Resemblance:
    """The statistics of photographs, and how far generated pictures are from them."""

    def __init__(self, trunk: Vgg16, photographs: Iterable[Tensor]) -> None:
        """`photographs`: batches [B, 3, Y, X] in [-1, 1], on the trunk's device; more than COMPONENTS in all."""
        self.trunk = trunk
        with torch.no_grad():
            vectors = torch.cat([self.statistics(batch) for batch in photographs])
            deviation, self.mean = torch.std_mean(vectors, dim=0)
            scale = deviation + 10 * TINY
            _, strengths, axes = torch.linalg.svd((vectors - self.mean) / scale, full_matrices=False)
            self.axes = (axes / scale / strengths[:, None])[:COMPONENTS].T * len(vectors) ** 0.5
            self.photographs = (vectors - self.mean) @ self.axes

    def statistics(self, pictures: Tensor) -> Tensor:
        """Means and deviations [B, 2950] of pictures [B, 3, Y, X]."""
        maps = [pictures, *self.trunk(pictures)]
        means = [each.mean(dim=(2, 3)) for each in maps]
        return torch.cat(means + [(each.var(dim=(2, 3), correction=0) + TINY).sqrt() for each in maps], dim=1)

    def __call__(self, pictures: Tensor) -> Tensor:
        """How far two or more pictures [B, 3, Y, X] are from the photographs, a scalar through which gradients flow."""
        ours = (self.statistics(pictures) - self.mean) @ self.axes
        count = len(ours)
        kernel = self._kernel(ours, ours)
        among = (kernel.sum() - kernel.trace()) / (count * (count - 1))
        return among - 2.0 * self._kernel(ours, self.photographs).mean() + AMONG_PHOTOGRAPHS

    @staticmethod
    def _kernel(a: Tensor, b: Tensor) -> Tensor:
        return (1.0 + a @ b.T / a.shape[1] ** 0.5).square()
