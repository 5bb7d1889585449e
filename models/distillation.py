"""Distillation: one call of a student does what several calls of its teacher do.

Time is cut at the student's calls, every m-th time of the teacher's rollout. From z_a, a photograph with noise, the
teacher walks in m calls to the end b of the segment, and the student is to predict the x that un-lerps there at once,

    x* = z_a + (z_b - z_a) (1 - a) / (b - a),

which for b = 1 is the teacher's result. The walk is deterministic, so the student has nothing to average over. This is
progressive distillation (Salimans and Ho, 2022) in a single stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.losses import Objective, lerp, velocity_loss
from models.rasterize import WHOLE, Region
from models.sampler import SCHEDULES, SOLVERS, TEACHER_CALLS, Sampling, Step


def student_sampling(calls: int) -> Sampling:
    """How a student of so many calls is sampled."""
    return Sampling("euler", "distilled", calls)


@torch.no_grad()
def walk(teacher: Denoiser, z: Tensor, times: list[float]) -> list[Step]:
    """The teacher's steps from states [B, 3, Y, X] at the first of `times` to the last."""

    def denoise(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        field = teacher(z, z.new_full((len(z),), t))
        return field, teacher.draw(field, *teacher.size)

    return list(SOLVERS["deis"](denoise, z, times))


def targets(teacher: Denoiser, clean: Tensor, noise: Tensor, calls: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a student of `calls` calls is to learn from pictures [B, 3, Y, X], a part of them in each segment, in order.

    Returns its times [B], the states it sees and the x it is to predict [B, 3, Y, X], and the teacher's fields for
    those in the last segment.
    """
    fine, stride = SCHEDULES["early"](TEACHER_CALLS), TEACHER_CALLS // calls
    times, states, wanted = [], [], []
    field = clean.new_empty(0)
    for number, (x, eps) in enumerate(zip(clean.tensor_split(calls), noise.tensor_split(calls), strict=True)):
        first = number * stride
        # The solver extrapolates from the call before, so it starts there.
        before = min(first, 1)
        t = x.new_full((len(x),), fine[first - before])
        steps = walk(teacher, lerp(x, eps, t), fine[first - before : first + stride + 1])
        a, b = fine[first], fine[first + stride]
        z, field = steps[before].noisy, steps[-1].field
        times.append(torch.full_like(t, a))
        states.append(z)
        wanted.append(z + (steps[-1].after - z) * ((1.0 - a) / (b - a)))
    return torch.cat(times), torch.cat(states), torch.cat(wanted), field


def distillation_loss(
    student: torch.nn.Module,
    model: Denoiser,
    teacher: Denoiser,
    clean: Tensor,
    noise: Tensor,
    *,
    calls: int,
    objective: Objective,
    pixels: int,
    region: Region = WHOLE,
    lpips: torch.nn.Module | None = None,
    hints: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """Terms of models.losses.TERMS, each a scalar, for a student that maps (z, t, *hints) to fields and `model` draws.

    The perceptual term looks at the last segment alone: earlier x are no pictures. There the splats themselves are
    compared too, drawn at `pixels` by `pixels` in `region`, with the teacher's.
    """
    t, z, wanted, teachers = targets(teacher, clean, noise, calls)
    field = student(z, t, *hints)
    x = model.draw(field, *model.size)
    terms = {"velocity": velocity_loss(x, wanted, t, objective).mean()}
    count, last = len(clean), len(teachers)
    fine = model.draw(field[-last:], pixels, pixels, region)
    with torch.no_grad():
        detailed = teacher.draw(teachers, pixels, pixels, region)
    share = objective.detail / count
    terms["detail"] = share * velocity_loss(fine, detailed, t[-last:], objective).sum()
    if lpips is not None:
        terms["perceptual"] = objective.perceptual * lpips(x[-last:], wanted[-last:]).sum() / count
        kept = torch.arange(0, last, max(1, round(1 / objective.detail_perceptual_share)), device=clean.device)
        scale = share * objective.perceptual * last / len(kept)
        terms["detail_perceptual"] = scale * lpips(fine[kept], detailed[kept]).sum()
    terms["loss"] = torch.stack(list(terms.values())).sum()
    return terms
