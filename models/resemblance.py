"""How far the statistics of generated pictures are from those of photographs, as something to learn from.

Of a picture these are means and deviations of its three colours and of every channel of VGG16's five stages, which look
at it in its own size and enlarged; of the colours and the two deepest stages it is a mean for each quarter of the
picture. They are taken along the photographs' foremost principal components, divided by the square root of each one's
deviation: half-way to whitening, under which what hardly differs among photographs would count as much as anything.

Sets of pictures are compared by their maximum mean discrepancy (Gretton et al., "A kernel two-sample test", 2012) with
the kernel (1 + x y / sqrt(D))^2, which sees means and covariances; unbiased, so that few pictures mislead by chance
alone. Of photographs it needs no more than these two. Pictures in hand are compared with those generated last as well,
which a learner in small steps would make much the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.vgg import Vgg16

COMPONENTS = 768  # at most, and
PHOTOGRAPHS_EACH = 5  # at least: of fewer, components are of their chance
RECENT = 3072  # pictures remembered
# In units of sqrt(D), the length that photographs have on average: a picture beyond it counts as if it lay there. Else
# one that went wrong would outweigh all others.
FARTHEST = 2.0
TINY = 1e-4
FIRST_QUARTERED = 4  # stage of VGG16


class Resemblance:
    """The statistics of photographs, and how far generated pictures are from them."""

    def __init__(self, trunk: Vgg16, photographs: Iterable[Tensor], enlarged: Sequence[int] = (1, 2)) -> None:
        """`photographs`: batches [B, 3, Y, X] in [-1, 1], on the trunk's device, at least PHOTOGRAPHS_EACH in all.

        They are seen mirrored as well.
        The trunk looks at every picture so many times as large as it is.
        """
        self.trunk, self.enlarged = trunk, tuple(enlarged)
        with torch.no_grad():
            views = (view for batch in photographs for view in (batch, batch.flip(3)))
            vectors = torch.cat([self.statistics(view) for view in views])
            deviation, self.mean = torch.std_mean(vectors, dim=0)
            scale = deviation + 10 * TINY
            scaled = (vectors - self.mean) / scale
            devices = [vectors.device] if vectors.is_cuda else []
            with torch.random.fork_rng(devices):  # the algorithm draws; the components are the same every time
                torch.manual_seed(0)
                # Mirrored ones are not counted.
                count = min(COMPONENTS, len(vectors) // (2 * PHOTOGRAPHS_EACH))
                _, strengths, axes = torch.svd_lowrank(scaled, q=min(count + 64, *scaled.shape), niter=3)
            deviations = strengths[:count] / len(vectors) ** 0.5
            usual = deviations.mean().sqrt()
            self.axes = axes[:, :count] / (deviations.sqrt() * usual) / scale[:, None]
            # Of photographs along each component: 1 on average.
            self.variances = deviations / usual.square()
        self.recent = vectors.new_empty(0, self.axes.shape[1])

    def statistics(self, pictures: Tensor) -> Tensor:
        """Means and deviations [B, S] of pictures [B, 3, Y, X]."""
        parts = [F.adaptive_avg_pool2d(pictures, 2).flatten(1), _deviations(pictures)]
        for factor in self.enlarged:
            large = F.interpolate(pictures, scale_factor=factor, mode="bicubic") if factor > 1 else pictures
            dtype = torch.bfloat16 if large.is_cuda else large.dtype
            with torch.autocast(large.device.type, torch.bfloat16, enabled=large.is_cuda):
                maps = self.trunk(large.to(dtype, memory_format=torch.channels_last))
            for stage, channels in enumerate(maps, 1):
                quarters = 2 if stage >= FIRST_QUARTERED else 1
                parts += [F.adaptive_avg_pool2d(channels.float(), quarters).flatten(1), _deviations(channels.float())]
        return torch.cat(parts, dim=1)

    def features(self, pictures: Tensor) -> Tensor:
        """Where pictures [B, 3, Y, X] lie along the components [B, D], 0 being the photographs' mean."""
        ours = (self.statistics(pictures) - self.mean) @ self.axes
        bound = FARTHEST * ours.shape[1] ** 0.5
        return ours * (bound / ours.norm(dim=1, keepdim=True)).clamp(max=1.0)

    def __call__(self, pictures: Tensor) -> Tensor:
        """How far pictures [B, 3, Y, X] and the recent ones, two or more in all, are from the photographs, a scalar.

        Its gradient is that of the pictures' own share: as if only they, and all like them, were still to be made.
        """
        ours = self.features(pictures)
        width = ours.shape[1]
        others = torch.cat([ours.detach(), self.recent])
        self.recent = others[:RECENT]
        kernel = (1.0 + ours @ others.T / width**0.5).square()
        # Without what each has with itself; among photographs, the means are 0 and the covariance is diagonal.
        among = (kernel.sum(dim=1) - kernel.diagonal()) / max(len(others) - 1, 1)
        across = 1.0 + (ours.square() * self.variances).sum(dim=1) / width
        photographs = 1.0 + self.variances.square().sum() / width
        discrepancy = (among - 2.0 * across).mean().detach() + photographs
        pull = 2.0 * (among - across).mean()
        return discrepancy + pull - pull.detach()


def _deviations(maps: Tensor) -> Tensor:
    """The deviation over each of maps [B, C, Y, X]: [B, C]. Above 0, where its slope would have no bound."""
    return (maps.var(dim=(2, 3), correction=0) + TINY).sqrt()
