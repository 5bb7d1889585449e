"""How far the statistics of generated pictures are from those of photographs, as something to learn from.

At the model's resolution pictures are compared whole; drawn larger, in windows cut at random, each with as many pixels:
so detail is learned that no photograph at the model's resolution could show.

Of a picture these are means and deviations of its three colours and of every channel of VGG16's five stages, which look
at it in its own size and enlarged; of the colours and the two deepest stages of whole pictures it is a mean for each
quarter. They are taken along the photographs' foremost principal components, divided by the square root of each one's
deviation: half-way to whitening, under which what hardly differs among photographs would count as much as anything.

Sets of pictures are compared by their maximum mean discrepancy (Gretton et al., "A kernel two-sample test", 2012) with
the kernel (1 + x y / sqrt(D))^2, which sees means and covariances; unbiased, so that few pictures mislead by chance
alone. Of photographs it needs no more than these two, and takes them from others than the components: along components
photographs differ more than their like. Pictures in hand are compared with those generated last as well, which a
learner in small steps would make much the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.vgg import Vgg16

COMPONENTS = 768  # at most
# At least so many photographs, or windows, for each component, or there are fewer: they would tell of these alone.
PHOTOGRAPHS_EACH = 4
# So many photographs are enough for one component, and as many to measure along it.
FEWEST = 2 * PHOTOGRAPHS_EACH
RECENT = 3072  # pictures remembered
# In units of sqrt(D), the length that photographs have on average: a picture beyond it counts as if it lay there. Else
# one that went wrong would outweigh all others.
FARTHEST = 2.0
TINY = 1e-4
FIRST_QUARTERED = 4  # stage of VGG16


class Resemblance:
    """The statistics of photographs, and how far generated pictures are from them."""

    def __init__(
        self,
        trunk: Vgg16,
        photographs: Iterable[Tensor],
        *,
        enlarged: Sequence[int] = (1, 2),
        quarters: bool = True,
        remembered: int = RECENT,
    ) -> None:
        """`photographs`: batches [B, 3, Y, X] in [-1, 1] on the trunk's device, FEWEST or more in all.

        They are seen mirrored as well. The trunk looks at every picture so many times `enlarged`; without `quarters` it
        does not matter where in a picture something is. No generated picture may be shown again that is among the last
        ones `remembered`.
        """
        self.trunk, self.enlarged, self.quarters, self.remembered = trunk, tuple(enlarged), quarters, remembered
        with torch.no_grad():
            # Each second photograph for the components, the others to measure.
            views = [[self.statistics(view) for view in (some, some.flip(3))] for some in photographs]
            first, second = (torch.cat([each[half::2] for pair in views for each in pair]) for half in (0, 1))
            del views
            self._find_axes(first)
            ours = self._along(second)
        width = ours.shape[1]
        self.mean, self.moment = ours.mean(dim=0), ours.T @ ours / len(ours)
        same = (1.0 + ours.square().sum(dim=1) / width**0.5).square().mean()
        pairs = 1.0 + 2.0 * self.mean.square().sum() / width**0.5 + self.moment.square().sum() / width
        self.among_photographs = (len(ours) * pairs - same) / (len(ours) - 1)
        self.recent = ours[:0]

    def _find_axes(self, vectors: Tensor) -> None:
        """Set the centre and the components, from statistics [N, S], which are changed."""
        deviation, self.centre = torch.std_mean(vectors, dim=0)
        scale = deviation + 10 * TINY
        scaled = vectors.sub_(self.centre).div_(scale)
        count = min(COMPONENTS, len(scaled) // FEWEST)  # mirrored ones are not counted
        with torch.random.fork_rng([scaled.device] if scaled.is_cuda else []):  # the algorithm draws; always the same
            torch.manual_seed(0)
            _, strengths, axes = torch.svd_lowrank(scaled, q=min(count + 64, *scaled.shape), niter=3)
        deviations = strengths[:count] / len(scaled) ** 0.5
        # Such that the variance of photographs along a component is 1 on average.
        self.axes = axes[:, :count] / (deviations * deviations.mean()).sqrt() / scale[:, None]

    def statistics(self, pictures: Tensor) -> Tensor:
        """Means and deviations [B, S] of pictures [B, 3, Y, X]."""
        parts = [self._means(pictures, quartered=True), _deviations(pictures)]
        for factor in self.enlarged:
            large = F.interpolate(pictures, scale_factor=factor, mode="bicubic") if factor > 1 else pictures
            dtype = torch.bfloat16 if large.is_cuda else large.dtype
            with torch.autocast(large.device.type, torch.bfloat16, enabled=large.is_cuda):
                maps = self.trunk(large.to(dtype, memory_format=torch.channels_last))
            for stage, half in enumerate(maps, 1):
                channels = half.float()
                parts += [self._means(channels, quartered=stage >= FIRST_QUARTERED), _deviations(channels)]
        return torch.cat(parts, dim=1)

    def _means(self, maps: Tensor, *, quartered: bool) -> Tensor:
        return F.adaptive_avg_pool2d(maps, 2 if quartered and self.quarters else 1).flatten(1)

    def features(self, pictures: Tensor) -> Tensor:
        """Where pictures [B, 3, Y, X] lie along the components [B, D]."""
        return self._along(self.statistics(pictures))

    def _along(self, vectors: Tensor) -> Tensor:
        ours = (vectors - self.centre) @ self.axes
        bound = FARTHEST * ours.shape[1] ** 0.5
        return ours * (bound / ours.norm(dim=1, keepdim=True)).clamp(max=1.0)

    def __call__(self, pictures: Tensor) -> Tensor:
        """How far pictures [B, 3, Y, X] and the recent ones, two or more in all, are from the photographs, a scalar.

        Its gradient is that of the pictures' own share: as if only they, and all like them, were still to be made.
        """
        ours = self.features(pictures)
        width = ours.shape[1]
        others = torch.cat([ours.detach(), self.recent])
        self.recent = others[: self.remembered]
        kernel = (1.0 + ours @ others.T / width**0.5).square()
        among = (kernel.sum(dim=1) - kernel.diagonal()) / max(len(others) - 1, 1)  # without what each has with itself
        across = 1.0 + 2.0 * ours @ self.mean / width**0.5 + (ours @ self.moment * ours).sum(dim=1) / width
        discrepancy = (among - 2.0 * across).mean().detach() + self.among_photographs
        pull = 2.0 * (among - across).mean()
        return discrepancy + pull - pull.detach()


@dataclass(frozen=True)
class Likeness:
    """What judges whole pictures at the model's resolution, and, if anything does, windows of them drawn larger."""

    whole: Resemblance
    windows: Resemblance | None = None
    pixels: int = 0  # side of the pictures that windows are cut from


def cut(pictures: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """A window [B, 3, height, width] of each of pictures [B, 3, Y, X]; `places` [B, 2] are uniform in [0, 1).

    Every window is as likely as any other.
    """
    (num_rows, num_columns), channels = pictures.shape[2:], pictures.shape[1]

    def along(size: int, whole: int, place: Tensor) -> Tensor:
        return (place * (whole - size + 1)).long()[:, None] + torch.arange(size, device=pictures.device)

    rows = along(height, num_rows, places[:, 0])[:, None, :, None].expand(-1, channels, -1, num_columns)
    columns = along(width, num_columns, places[:, 1])[:, None, None, :].expand(-1, channels, height, -1)
    return pictures.gather(2, rows).gather(3, columns)


def _deviations(maps: Tensor) -> Tensor:
    """The deviation over each of maps [B, C, Y, X]: [B, C]. Above 0, where its slope would have no bound."""
    return (maps.var(dim=(2, 3), correction=0) + TINY).sqrt()
