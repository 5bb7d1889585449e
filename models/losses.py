"""The training objective: x-prediction weighted as velocity, a perceptual term, and the same two at high resolution.

With z_t = t x + (1 - t) eps the velocity is x - eps = (x - z_t) / (1 - t), so the error of x divided by (1 - t)^2 is
the error of the velocity. The perceptual term looks at x-predictions only for t above a gate: earlier predictions are
means over many cats, and a perceptual loss would make them sharp at the price of variety (PixelGen, 2026).

Batches are laid out so that shapes never change: times are drawn stratified and sorted downwards within a group, so a
gate in t keeps a fixed number of pictures at the front of the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.errors import UserError
from models.rasterize import WHOLE, Region
from models.sampler import logit
from models.splats import PARAMETERS

TERMS = ("loss", "velocity", "perceptual", "detail", "detail_perceptual", "depth", "photographs", "detail_photographs")


@dataclass(frozen=True)
class Objective:
    """Weights and schedules of the loss."""

    time_mean: float = -0.4  # logit-normal times; below 0 favours noisier pictures
    time_spread: float = 1.0
    velocity_floor: float = 0.05  # 1 - t is not taken smaller than this in the weight
    perceptual: float = 0.5  # weight of LPIPS
    perceptual_gate: float = 0.3  # LPIPS counts for t above this
    detail: float = 1.0  # weight of a detailed picture's high-resolution terms beside its 64 px terms
    detail_perceptual_share: float = 0.3  # part of the detailed pictures whose LPIPS is taken at high resolution
    depth: float = 0.005  # weight of the mean square of the depths: where they differ much, patch borders show
    photographs: float = 1.0  # weight of how unlike photographs a student's pictures are; 0: it learns from none
    detail_photographs: float = 0.0  # weight of how unlike they are in windows at high resolution

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in vars(self).values()):
            raise UserError("the weights and schedules of the loss must be finite numbers")
        if not 0.0 < self.perceptual_gate < 1.0:
            raise UserError(f"a perceptual gate of {self.perceptual_gate} is not possible; give a time between 0 and 1")
        if not 0.0 < self.velocity_floor <= 1.0:
            raise UserError(
                f"a velocity floor of {self.velocity_floor} is not possible; give at most 1 and more than 0"
            )
        if not 0.0 < self.detail_perceptual_share <= 1.0:
            raise UserError(
                f"a share of {self.detail_perceptual_share} is not possible; give at most 1 and more than 0"
            )
        weights = (self.perceptual, self.detail, self.depth, self.photographs, self.detail_photographs)
        if not self.time_spread > 0.0 or min(weights) < 0.0:
            raise UserError("the spread of the times must be above 0, and no weight of the loss below 0")

    def gated(self, count: int) -> int:
        """How many of `count` stratified times certainly lie above the gate."""
        below = 0.5 * (
            1.0 + math.erf((logit(self.perceptual_gate) - self.time_mean) / (self.time_spread * math.sqrt(2)))
        )
        return max(0, count - math.ceil(count * below))


def draw_times(objective: Objective, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Stratified logit-normal times [count] in (0, 1), sorted downwards: one from each quantile of 1/count."""
    uniform = (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / count
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return torch.sigmoid(objective.time_mean + objective.time_spread * normal).flip(0)


def lerp(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t of pictures [B, 3, Y, X] and noise of the same shape at times [B]."""
    mix = t[:, None, None, None]
    return mix * clean + (1.0 - mix) * noise


def velocity_loss(x: Tensor, clean: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """Mean squared error of the velocity for each picture [B], from predictions and clean pictures [B, 3, Y, X]."""
    error = (x - clean).square().mean(dim=(1, 2, 3))
    return error / (1.0 - t).clamp(min=objective.velocity_floor).square()


def training_loss(
    denoiser: torch.nn.Module,
    model: Denoiser,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    objective: Objective,
    detailed: Tensor | None = None,
    region: Region = WHOLE,
    lpips: torch.nn.Module | None = None,
    hints: tuple[Tensor, ...] = (),
) -> dict[str, Tensor]:
    """Those of TERMS that are on, each a scalar; "loss", the sum of the others, is what to minimise.

    `clean` and `noise` are [B, 3, Y, X], `t` [B] from `draw_times`, once for the detailed pictures at the front and
    once for the rest. `detailed` [M, 3, S, S] is `region` of the first M pictures at high resolution. `denoiser` maps
    (z_t, t, *hints) to a field (it may be a compiled or data-parallel wrapper of `model`, which draws).
    """
    field = denoiser(lerp(clean, noise, t), t, *hints)
    x = model.draw(field, *model.size)
    gated = objective.gated
    return total(
        picture_loss(
            field, x, model, clean, t, gated=gated, objective=objective, detailed=detailed, region=region, lpips=lpips
        )
    )


def picture_loss(
    field: Tensor,
    x: Tensor,
    model: Denoiser,
    clean: Tensor,
    t: Tensor,
    *,
    gated: Callable[[int], int],
    objective: Objective,
    detailed: Tensor | None = None,
    region: Region = WHOLE,
    lpips: torch.nn.Module | None = None,
) -> dict[str, Tensor]:
    """What `training_loss` adds up, for fields [B, H, W, K, P] predicted at times t [B] and what they draw, x.

    The perceptual terms look at the first gated(n) of a group of n pictures.
    """
    count, many, device = len(clean), len(detailed) if detailed is not None else 0, clean.device
    terms = {"velocity": velocity_loss(x, clean, t, objective).mean()}
    front = gated(many)
    if lpips is not None:
        back = gated(count - many)
        seen = torch.cat([torch.arange(front, device=device), torch.arange(many, many + back, device=device)])
        terms["perceptual"] = objective.perceptual * lpips(x[seen], clean[seen]).sum() / count
    if detailed is not None and many:
        fine = model.draw(field[:many], detailed.shape[2], detailed.shape[3], region)
        share = objective.detail / count
        terms["detail"] = share * velocity_loss(fine, detailed, t[:many], objective).sum()
        if lpips is not None:
            few = min(front, max(1, round(front * objective.detail_perceptual_share)))
            # From the middle of each of so many stretches: pictures come in the order of their times.
            kept = ((torch.arange(few, device=device) + 0.5) * front / max(1, few)).long()
            scale = share * objective.perceptual * front / max(1, few)
            terms["detail_perceptual"] = scale * lpips(fine[kept], detailed[kept]).sum()
    if objective.depth:
        terms["depth"] = objective.depth * field[..., PARAMETERS.index("d")].square().mean()
    return terms


def total(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms, and their sum as "loss"."""
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}
