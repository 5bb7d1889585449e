"""Noise becoming cats, step by step: as a sheet to look at, and as the splats of every step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from models import sampler
from models.denoiser import Denoiser
from models.rasterize import to_uint8
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan
from pipeline.datasets.rollout_file import Rollout
from pipeline.generation.sampling import noise_of

ROLLOUT_ROWS = 17
ROLLOUT_COLUMNS = 64


def rollout_sheet(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> np.ndarray:
    """Noise becoming cats, uint8 [rows * Y, pictures * X, 3]: noise on top, below it what the model makes of it.

    One column a picture; the rows between are evenly spaced network calls, the last row is the result.
    """
    columns = []
    for _, steps in _rollouts(denoiser, plan, indices):
        rows = [to_uint8(steps[0].noisy), *(to_uint8(denoiser.draw(step.field, *denoiser.size)) for step in steps)]
        rows = [row.cpu() for row in rows]
        chosen = np.linspace(1, len(rows) - 1, min(ROLLOUT_ROWS, len(rows)) - 1).round().astype(int)
        columns.append(torch.stack([rows[0], *(rows[i] for i in chosen)]).numpy())
    sheet = np.concatenate(columns, axis=1)  # [rows, pictures, Y, X, 3]
    return sheet.swapaxes(1, 2).reshape(sheet.shape[0] * sheet.shape[2], -1, 3)


def kept_rollouts(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> Iterator[Rollout]:
    """Every step of the chosen pictures, in order: what the network saw, and the splats it answered."""
    for numbers, steps in _rollouts(denoiser, plan, indices):
        noisy = torch.stack([step.noisy for step in steps], dim=1).cpu()
        fields = torch.stack([step.field for step in steps], dim=1).cpu()
        for row, index in enumerate(numbers):
            yield Rollout(index, [step.t for step in steps], noisy[row], fields[row])


def _rollouts(
    denoiser: Denoiser, plan: GenerationPlan, indices: Indices
) -> Iterator[tuple[Indices, list[sampler.Step]]]:
    """All steps of the chosen pictures, a batch of pictures at a time."""
    for start in range(0, len(indices), plan.batch_size):
        batch = indices.between(start, start + plan.batch_size)
        noise = noise_of(denoiser, plan, batch)
        rollout = sampler.rollout(denoiser, noise, steps=plan.steps, solver=plan.solver, schedule=plan.schedule)
        yield batch, list(rollout)
