"""Distillation: a student makes in a few calls what its teacher makes in many, or something more like photographs.

From the same fresh noise the teacher makes its cat, and the student its own, by as many calls as it will have; what
differs is the loss, and its gradient goes back through all of the student's calls. So the student meets the states
that it makes itself, and later calls learn to mend what earlier ones leave. A teacher makes one cat of a noise, so
there is nothing to average over; no noise comes twice, so there is nothing to learn by heart. How the calls are made is
learned together with the weights (see `few_calls`).

Without photographs a student is as good as its teacher at best. With them, the statistics of its pictures are drawn to
theirs as well (see `resemblance`), in detail too where photographs are large, and the teacher is what keeps each of
them a cat. The student may then be a better teacher than its own, and another be distilled from it.

Regression on what the teacher makes of a noise is of Luhman and Luhman ("Knowledge distillation in iterative generative
models", 2021); that a perceptual distance is what it wants, of Kang et al. ("Distilling diffusion models into
conditional GANs", 2024); generators that learn by the maximum mean discrepancy alone, of Li et al. ("Generative moment
matching networks", 2015).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser
from models.few_calls import FewCalls
from models.losses import Objective, picture_loss, total
from models.rasterize import WHOLE, Region
from models.resemblance import Likeness, cut
from models.sampler import Sampling, sample
from models.tuning import Tunable, finish


@dataclass(frozen=True)
class Teacher:
    """A denoiser and how it is sampled."""

    denoiser: Denoiser
    sampling: Sampling

    def make(self, noise: Tensor) -> Tensor:
        """The splat fields of noises [B, 3, Y, X], which gradients may be taken beside, though not through."""
        return sample(self.denoiser, noise, **asdict(self.sampling)).clone()


class Student(nn.Module):
    """A denoiser and the few calls that it makes, which learn together."""

    def __init__(self, denoiser: Denoiser, few: FewCalls) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.calls = Tunable(few)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The splat fields made of noises [B, 3, Y, X], and the pictures, of the same shape, that these are."""
        return finish(self.denoiser, self.calls(), noise)

    def finished(self) -> Denoiser:
        """The denoiser, which knows its calls as learned so far."""
        learned = self.calls.learned()
        self.denoiser.few_calls = {len(learned): learned}
        return self.denoiser


def distillation_loss(
    student: nn.Module,
    model: Denoiser,
    teacher: Teacher,
    noise: Tensor,
    *,
    objective: Objective,
    pixels: int | None,
    region: Region = WHOLE,
    lpips: nn.Module | None = None,
    likeness: Likeness | None = None,
    places: Tensor | None = None,
) -> dict[str, Tensor]:
    """Terms of models.losses.TERMS, each a scalar, for a Student, maybe wrapped, whose splats `model` draws.

    The student's cats are compared with the teacher's at the model's resolution, and in `region` at `pixels` by
    `pixels` unless that is None; together, with the photographs of `likeness`, which is shown a window of each large
    picture at its place of `places` [B, 2]. `noise` is [B, 3, Y, X].
    """
    wanted = teacher.make(noise)
    with torch.no_grad():
        clean = model.draw(wanted, *model.size)
        detailed = model.draw(wanted, pixels, pixels, region) if pixels is not None else None
    field, x = student(noise)
    finished = noise.new_zeros(len(noise))  # pictures have no velocity: whatever the last call's time, they weigh 1
    every = int  # of n pictures n are seen by the perceptual terms: the last x is a picture at any time
    terms = picture_loss(
        field,
        x,
        model,
        clean,
        finished,
        gated=every,
        objective=objective,
        detailed=detailed,
        region=region,
        lpips=lpips,
    )
    if likeness is not None:
        terms["photographs"] = objective.photographs * likeness.whole(x.clamp(-1.0, 1.0))
        if likeness.windows is not None:
            assert places is not None
            large = model.draw(field, likeness.pixels, likeness.pixels).clamp(-1.0, 1.0)
            seen = cut(large, places, *model.size)
            terms["detail_photographs"] = objective.detail_photographs * likeness.windows(seen)
    return total(terms)
