"""The training loop of one rank: pictures on a device in, checkpoints out. Knows neither Ray nor storage.

`distributed` runs it under Ray Train. The same step follows from the same (recipe, step, rank) whenever it is
run: every random choice is drawn from a generator seeded with the three. (What judges by photographs remembers the
last pictures, and does not when a run is continued.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.distillation import Teacher, distillation_loss
from models.errors import UserError
from models.losses import TERMS, training_loss
from models.perceptual import Lpips
from models.resemblance import Likeness
from pipeline.training.batches import Pictures, make_batch, make_noise_batch, mixed_seed
from pipeline.training.keeper import Keeper
from pipeline.training.recipe import Budget, Recipe, rate_share
from pipeline.training.state import State

PATIENCE = 20.0  # seconds without a report
DROPOUT = 1  # what sets its seed apart from that of a batch


class Outlet(Protocol):
    """Where what training yields goes. Metrics are plain numbers by name, of the steps since those before."""

    def tell(self, metrics: dict[str, float]) -> None:
        """Show metrics to the user; on rank 0."""

    def keep(self, folder: Path, step: int) -> Any:
        """Store the checkpoint of a step for good; on rank 0, in a thread beside training."""

    def report(self, metrics: dict[str, float], kept: Any) -> None:
        """Meet the other ranks, which call it equally often; `kept` is what `keep` returned, if anything, on rank 0."""


def train(
    state: State,
    recipe: Recipe,
    budget: Budget,
    source: Pictures | Teacher,
    *,
    outlet: Outlet,
    work: Path,
    heldout: Tensor | None = None,
    perceptual: Lpips | None = None,
    likeness: Likeness | None = None,
    rank: int = 0,
    ranks: int = 1,
    fused: bool = False,
) -> None:
    """Train `state` on until the budget is spent, and tell `outlet` how it goes.

    `source` is what there is to learn from: photographs, or a teacher if recipe.distil is not 0, beside which
    `likeness` may judge by photographs. These, `state` and `perceptual` are on one device. Checkpoints are made in
    `work` on rank 0, with the loss of the photographs `heldout`, uint8 [N, Y, X, 3], and training goes on meanwhile.
    `fused`: on CUDA by the kernels of `models.transformer_training` instead of compiled.
    Raises UserError, on all ranks alike, when the loss is not finite, and the checkpoints kept so far stay good; or
    when it cannot be `fused`.
    """
    device = next(state.model.parameters()).device
    model: torch.nn.Module = state.model
    denoiser = state.model.denoiser
    if fused and not denoiser.backbone.train_fused():
        raise UserError("--fused: there are no kernels for this shape of model on this device; leave it out")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        # The blocks are alike: one compilation serves all, and their gradients are ready, to be reduced over the ranks,
        # one after the other.
        if not fused:
            for block in denoiser.backbone.blocks:
                block.compile(dynamic=False)
        if perceptual is not None:
            perceptual.compile(dynamic=False)
    if ranks > 1:
        # Buffers are constants: there is nothing to send.
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)

    make: Callable[..., dict[str, Any]]
    loss: Callable[..., dict[str, Tensor]]
    if isinstance(source, Pictures):
        make, loss = partial(make_batch, recipe, source), partial(training_loss, model, denoiser)
    else:
        make = partial(make_noise_batch, recipe, device)
        pixels = recipe.detail_pixels if recipe.detail else None
        loss = partial(distillation_loss, model, denoiser, source, pixels=pixels, likeness=likeness)
    log = Meter(state, recipe, budget, device)
    metrics: dict[str, float] = {}
    keeper = Keeper(recipe, source, heldout, work, outlet.keep) if rank == 0 else None
    saved = state.seconds
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(make, state.step, 0, rank, ranks)
        while log.progress < 1.0:
            terms: dict[str, Tensor] = {}
            for piece in range(recipe.pieces):
                batch = upcoming.result()
                last = piece + 1 == recipe.pieces
                following = (state.step + 1, 0) if last else (state.step, piece + 1)
                upcoming = ahead.submit(make, *following, rank, ranks)
                torch.manual_seed(mixed_seed(recipe.seed, state.step, rank, piece, DROPOUT))
                # The ranks' gradients are brought together with the last piece.
                alone = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
                with alone:
                    found = loss(objective=recipe.objective, lpips=perceptual, **batch)
                    (found["loss"] / recipe.pieces).backward()
                for name, value in found.items():
                    terms[name] = terms.get(name, 0.0) + value.detach() / recipe.pieces
            terms["norm"] = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
            state.optimizers.step(rate_share(recipe, state.step, budget.progress(state.step, state.seconds)))
            state.step += 1
            state.update_averages(recipe.ema_widths)
            log.add(terms)
            save = state.step % budget.save_every == 0 or budget.steps == state.step
            if save or log.due(ranks):
                try:
                    metrics = log.flush(ranks)
                except UserError:
                    outlet.report(metrics, keeper and settle(keeper, state, metrics, wait=True))
                    raise
                save = save or log.progress >= 1.0 or state.seconds - saved >= 60.0 * budget.save_minutes
                kept = keeper and settle(keeper, state, metrics, wait=save)
                if save:
                    saved = state.seconds
                    if keeper:
                        keeper.begin(state)
                if keeper and log.progress < 1.0:
                    outlet.tell(metrics)
                outlet.report(metrics, kept)
    if metrics:  # there was something left to do, and its last checkpoint is begun
        kept = keeper and settle(keeper, state, metrics, wait=True)
        if keeper:
            outlet.tell(metrics)
        outlet.report(metrics, kept)


def settle(keeper: Keeper, state: State, metrics: dict[str, float], *, wait: bool) -> Any:
    """What the keeper has stored since, if anything; its losses join the history and the metrics."""
    made = keeper.take(wait=wait)
    if made is None:
        return None
    state.history[made.entry] |= made.losses
    metrics |= made.losses
    return made.kept


class Meter:
    """Sums the terms of the loss on the device, and reads them only when a report is due."""

    def __init__(self, state: State, recipe: Recipe, budget: Budget, device: torch.device) -> None:
        self.state, self.recipe, self.budget, self.device = state, recipe, budget, device
        self.sums = self.zeros()
        self.steps = 0
        self.since = time.monotonic()
        self.progress = budget.progress(state.step, state.seconds)

    def due(self, ranks: int) -> bool:
        """Whether a report is; the same on every rank.

        On CPUs, whose steps may take seconds, not only after so many of them. A GPU would wait for the question.
        """
        if self.state.step % self.budget.report_every == 0:
            return True
        if self.device.type != "cpu":
            return False
        late = torch.tensor(int(time.monotonic() - self.since > PATIENCE))
        if ranks > 1:
            dist.all_reduce(late)
        return bool(late)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take one step's terms."""
        for name, value in terms.items():
            self.sums[name] += value
        self.steps += 1

    def zeros(self) -> dict[str, Tensor]:
        """Nothing summed yet. All ranks sum the same names, though one may have no detailed pictures."""
        return {name: torch.zeros((), device=self.device) for name in (*TERMS, "norm")}

    def flush(self, ranks: int) -> dict[str, float]:
        """Means since the last flush, with rate and time left; the same on every rank. Raises UserError on NaN."""
        now = time.monotonic()
        # One clock decides for all ranks when time is up: they must leave the loop at the same step.
        values = torch.stack([*self.sums.values(), torch.tensor(now - self.since, device=self.device) * self.steps])
        values = values.double() / self.steps
        if ranks > 1:
            dist.all_reduce(values)
            values /= ranks
        metrics = dict(zip([*self.sums, "seconds"], values.tolist(), strict=True))
        seconds = metrics["seconds"]
        # Terms that are off are 0 on every rank.
        metrics = {name: value for name, value in metrics.items() if value != 0.0}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise UserError(
                f"the loss is not finite between steps {self.state.step - self.steps} and {self.state.step}; "
                "the last checkpoint is good: lower --learning-rate and train into another --out"
            )
        self.state.seconds += seconds
        self.progress = self.budget.progress(self.state.step, self.state.seconds)
        metrics |= {
            "step": self.state.step,
            "minutes": self.state.seconds / 60.0,
            "pictures_per_second": self.steps * self.recipe.batch / seconds,
            "eta_minutes": self.state.seconds / 60.0 * (1.0 / self.progress - 1.0),
        }
        shortened = {key: float(f"{value:.6g}") for key, value in metrics.items()}
        self.state.history.append({**shortened, "step": self.state.step})
        self.sums, self.steps, self.since = self.zeros(), 0, now
        return metrics
