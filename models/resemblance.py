"""How far the statistics of generated pictures are from those of photographs, as something to learn from.

At the model's resolution pictures are compared whole; drawn larger, in windows cut at random, each with as many pixels:
so detail is learned that no photograph at the model's resolution could show.

Of a picture these are means and deviations of its three colours and of every channel of VGG16's five stages, which look
at it in its own size and enlarged; of the colours and the two deepest stages of whole pictures it is a mean for each
quarter. They are taken along the photographs' foremost principal components, divided by the square root of each one's
deviation: half-way to whitening, under which what hardly differs among photographs would count as much as anything.
What photographs hardly differ in, the texture of fur say, all generated pictures may have wrong: so what the S
statistics, in units of their deviations, are beyond the components counts besides; but by its mean alone, of which
there is only one. What they are along the components is left out of that, since it would add chance and little else.

Sets of pictures are compared by their maximum mean discrepancy (Gretton et al., "A kernel two-sample test", 2012) with
the kernel (1 + x y / sqrt(D))^2 of components x and y, which sees means and covariances, plus 2 s t / sqrt(S) of what
s and t the statistics are beyond, which sees means; unbiased, so that few pictures mislead by chance alone, but for a
constant where several windows are of one photograph. Of photographs it needs no more than means and covariances, and
takes them from others than the components: along these photographs differ more than their like. Pictures in hand are
compared with those generated last as well, which a learner in small steps would make much the same again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.vgg import Vgg16

# Of how pictures are judged: 1 by their components, 2 by the means of all statistics too, 3 as above.
EDITION = 3
COMPONENTS = 768  # at most
# At least so many photographs, or windows, for each component, or there are fewer: they would tell of these alone.
PHOTOGRAPHS_EACH = 4
# So many photographs are enough for one component, and as many to measure along it.
FEWEST = 2 * PHOTOGRAPHS_EACH
RECENT = 3072  # pictures remembered
# In units of sqrt(D), the length that photographs have on average, and of sqrt(S), theirs with what is along the
# components: a picture farther away counts as if it lay there. Else one that went wrong would outweigh all others.
FARTHEST = 2.0
TINY = 1e-4
FIRST_QUARTERED = 4  # stage of VGG16


class Features(NamedTuple):
    """What counts of pictures: where they lie along the components [B, D], and their statistics beyond these [B, S].

    Both such that the kernel of two pictures is (1 + x y)^2 + s t.
    """

    along: Tensor
    beyond: Tensor


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
            views = [[self.statistics(view) for view in (some, some.flip(3))] for some in photographs]
            # Each second photograph for the components, the others to measure.
            self._find_axes(torch.cat([view[::2] for pair in views for view in pair]))
            seen, mirrored = (self._features(torch.cat([pair[side][1::2] for pair in views])) for side in (0, 1))
            del views
        theirs = Features(*(torch.cat(both) for both in zip(seen, mirrored, strict=True)))
        count = len(theirs.along)
        self.mean = Features(*(each.mean(dim=0) for each in theirs))
        self.moment = theirs.along.T @ theirs.along / count
        # Of all pairs but those of a photograph with itself and with its mirror image.
        own = _kernels(theirs, theirs).mean() + _kernels(seen, mirrored).mean()
        self.among_photographs = (count * self._with_photographs(theirs).mean() - own) / (count - 2)
        self.recent = Features(*(each[:0] for each in theirs))

    def _find_axes(self, vectors: Tensor) -> None:
        """Set the centre and the components, from statistics [N, S], which are changed."""
        deviation, self.centre = torch.std_mean(vectors, dim=0)
        self.scale = deviation + 10 * TINY
        scaled = vectors.sub_(self.centre).div_(self.scale)
        count = min(COMPONENTS, len(scaled) // FEWEST)  # mirrored ones are not counted
        with torch.random.fork_rng([scaled.device] if scaled.is_cuda else []):  # the algorithm draws; always the same
            torch.manual_seed(0)
            _, strengths, axes = torch.svd_lowrank(scaled, q=min(count + 64, *scaled.shape), niter=3)
        self.axes, deviations = axes[:, :count], strengths[:count] / len(scaled) ** 0.5
        # Such that the variance of photographs along a component is 1 on average.
        self.stretch = (deviations * deviations.mean()).rsqrt()

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

    def features(self, pictures: Tensor) -> Features:
        """What counts of pictures [B, 3, Y, X]."""
        return self._features(self.statistics(pictures))

    def _features(self, vectors: Tensor) -> Features:
        scaled = (vectors - self.centre) / self.scale
        along = scaled @ self.axes
        return Features(_near(along * self.stretch), 2**0.5 * _near(scaled - along @ self.axes.T))

    def _with_photographs(self, ours: Features) -> Tensor:
        """The mean kernel [B] of each of ours with a photograph."""
        squares = (ours.along @ self.moment * ours.along).sum(dim=1)
        return 1.0 + 2.0 * ours.along @ self.mean.along + squares + ours.beyond @ self.mean.beyond

    def __call__(self, pictures: Tensor) -> Tensor:
        """How far pictures [B, 3, Y, X] and the recent ones, two or more in all, are from the photographs, a scalar.

        Its gradient is that of the pictures' own share: as if only they, and all like them, were still to be made.
        """
        ours = self.features(pictures)
        others = Features(*(torch.cat([new.detach(), old]) for new, old in zip(ours, self.recent, strict=True)))
        self.recent = Features(*(each[: self.remembered] for each in others))
        kernel = (1.0 + ours.along @ others.along.T).square() + ours.beyond @ others.beyond.T
        among = (kernel.sum(dim=1) - kernel.diagonal()) / max(kernel.shape[1] - 1, 1)  # not what each has with itself
        across = self._with_photographs(ours)
        discrepancy = (among - 2.0 * across).mean().detach() + self.among_photographs
        pull = 2.0 * (among - across).mean()
        return discrepancy + pull - pull.detach()

    def anew(self) -> Resemblance:
        """The same judge, which has not seen a generated picture yet."""
        judge = copy.copy(self)
        judge.recent = Features(*(each[:0] for each in self.recent))
        return judge


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


def _kernels(a: Features, b: Features) -> Tensor:
    """The kernel [B] of each of a with the same of b."""
    return (1.0 + (a.along * b.along).sum(dim=1)).square() + (a.beyond * b.beyond).sum(dim=1)


def _near(places: Tensor) -> Tensor:
    """Places [B, N], none farther than FARTHEST, divided by the square root of sqrt(N)."""
    unit = places.shape[1] ** 0.5
    return places * (FARTHEST * unit / places.norm(dim=1, keepdim=True)).clamp(max=1.0) / unit**0.5


def _deviations(maps: Tensor) -> Tensor:
    """The deviation over each of maps [B, C, Y, X]: [B, C]. Above 0, where its slope would have no bound."""
    return (maps.var(dim=(2, 3), correction=0) + TINY).sqrt()
