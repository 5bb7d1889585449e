"""Distillation: a student makes in a few calls what its teacher makes in many.

From the same fresh noise the teacher makes its cat, and the student its own, by as many calls as it will have; what
differs is the loss, and its gradient goes back through all of the student's calls. So the student meets the states
that it makes itself, and later calls learn to mend what earlier ones leave. A teacher makes one cat of a noise, so
there is nothing to average over; no noise comes twice, so there is nothing to learn by heart. No photograph is needed.

Regression on what the teacher makes of a noise is of Luhman and Luhman ("Knowledge distillation in iterative generative
models", 2021); that a perceptual distance is what it wants, of Kang et al. ("Distilling diffusion models into
conditional GANs", 2024). Both have one call.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.losses import Objective, picture_loss
from models.rasterize import WHOLE, Region
from models.sampler import Sampling, distilled, euler, sample


def student_sampling(calls: int) -> Sampling:
    """How a student of so many calls is sampled."""
    return Sampling("euler", "distilled", calls)


@dataclass(frozen=True)
class Teacher:
    """A denoiser and how it is sampled."""

    denoiser: Denoiser
    sampling: Sampling

    def make(self, noise: Tensor) -> Tensor:
        """The splat fields of noises [B, 3, Y, X], which gradients may be taken beside, though not through."""
        return sample(self.denoiser, noise, **asdict(self.sampling)).clone()


def distillation_loss(
    student: torch.nn.Module,
    model: Denoiser,
    teacher: Teacher,
    noise: Tensor,
    *,
    calls: int,
    objective: Objective,
    pixels: int | None,
    region: Region = WHOLE,
    lpips: torch.nn.Module | None = None,
    hints: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """Terms of models.losses.TERMS, each a scalar, for a student that maps (z, t, *hints) to fields and `model` draws.

    The student's cats are compared with the teacher's at the model's resolution, and in `region` at `pixels` by
    `pixels` unless that is None. `noise` is [B, 3, Y, X].
    """
    wanted = teacher.make(noise)
    with torch.no_grad():
        clean = model.draw(wanted, *model.size)
        detailed = model.draw(wanted, pixels, pixels, region) if pixels is not None else None

    def denoise(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        field = student(z, z.new_full((len(z),), t), *hints)
        return field, model.draw(field, *model.size)

    *_, last = euler(denoise, noise, distilled, calls)
    finished = noise.new_zeros(len(noise))  # pictures have no velocity: whatever the last call's time, they weigh 1
    every = int  # of n pictures n are seen by the perceptual terms: the last x is a picture at any time
    return picture_loss(
        last.field,
        model,
        clean,
        finished,
        gated=every,
        objective=objective,
        detailed=detailed,
        region=region,
        lpips=lpips,
    )
