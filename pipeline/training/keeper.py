"""Checkpoints made beside training: of a copy of the state, so that no rank waits for the disk or the store."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.distillation import Teacher
from models.losses import draw_times, lerp, velocity_loss
from pipeline.rendering.sheets import sample_sheet
from pipeline.training.batches import Pictures, as_image, spread
from pipeline.training.recipe import Recipe
from pipeline.training.state import State


@dataclass(frozen=True)
class Checkpoint:
    """One that is stored for good."""

    entry: int  # of the history, the last that it holds
    losses: dict[str, float]  # of `validate`
    kept: Any  # what the function that stored it returned


class Keeper:
    """One thread that makes and stores checkpoints, one after the other."""

    def __init__(
        self,
        recipe: Recipe,
        source: Pictures | Teacher,
        heldout: Tensor | None,
        work: Path,
        keep: Callable[[Path, int], Any],
    ) -> None:
        """`keep` stores a folder, which is in `work` and removed afterwards, as the checkpoint of a step."""
        self._recipe, self._source, self._heldout, self._work, self._keep = recipe, source, heldout, work, keep
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Checkpoint] | None = None

    def begin(self, state: State) -> None:
        """Begin with the checkpoint of `state`, which is copied and may go on. The one before was taken."""
        assert self._pending is None
        self._pending = self._thread.submit(self._make, copy.deepcopy(state))

    def take(self, *, wait: bool) -> Checkpoint | None:
        """The checkpoint begun, once, if it is stored; `wait` until it is. What storing it raised is raised here."""
        if self._pending is None or not (wait or self._pending.done()):
            return None
        made, self._pending = self._pending.result(), None
        return made

    def _make(self, state: State) -> Checkpoint:
        losses = validate(state, self._recipe, self._source, self._heldout)
        folder = self._work / f"step-{state.step}"
        folder.mkdir()
        state.save(folder, self._recipe)
        sheet = sample_sheet(state.denoisers[0], self._recipe.seed, sampling=self._recipe.sampling)
        sheet.save(folder / "sheet.png")
        kept = self._keep(folder, state.step)
        shutil.rmtree(folder)
        return Checkpoint(len(state.history) - 1, losses, kept)


def validate(state: State, recipe: Recipe, source: Pictures | Teacher, heldout: Tensor | None) -> dict[str, float]:
    """The average's velocity loss on photographs held out and on as many seen; a widening gap is overfitting.

    Times and noise are the same every time. Also kept in the last entry of the history.
    """
    if heldout is None or isinstance(source, Teacher):
        return {}
    losses, denoiser = {}, state.denoisers[0]
    for name, photographs in (("heldout", heldout), ("seen", spread(source.small, len(heldout)))):
        clean = as_image(photographs.to(source.device))
        generator = torch.Generator(source.device).manual_seed(recipe.seed)
        t = draw_times(recipe.objective, len(clean), generator, source.device)
        t = t[torch.randperm(len(t), generator=generator, device=source.device)]  # they come sorted
        noise = torch.randn(clean.shape, generator=generator, device=source.device)
        with torch.inference_mode():
            field = denoiser(lerp(clean, noise, t), t)
            drawn = denoiser.draw(field, *clean.shape[2:])
            losses[name] = float(velocity_loss(drawn, clean, t, recipe.objective).mean())
    state.history[-1] |= losses
    return losses
