"""What the benchmark measures of training: steps of the loop itself, beside steps of the eager baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from models.losses import Objective, training_loss
from models.perceptual import Lpips, random_weights
from models.vgg import STAGES, Vgg16
from pipeline.benchmark.baseline import EagerDenoiser
from pipeline.benchmark.bench import MATRIX_FLOPS, Bench, Row
from pipeline.training.batches import Pictures, make_batch
from pipeline.training.recipe import Budget, Recipe
from pipeline.training.state import State
from pipeline.training.trainer import train
from pipeline.training.training_set import TrainingSet

# No time lies below this gate: LPIPS looks at every picture, and at 128 px at every fourth.
OBJECTIVE = Objective(perceptual_gate=1e-9, detail_perceptual_share=0.25)
DETAILED = 3 / 8  # of the pictures, with LPIPS


class _EnoughError(Exception):
    """Leaves the training loop without a checkpoint."""


@dataclasses.dataclass
class _Rates:
    """The outlet of a training run that ends after so many reports; it makes no checkpoints."""

    wanted: int
    found: list[float] = dataclasses.field(default_factory=list)

    def tell(self, metrics: dict[str, float]) -> None:
        self.found.append(metrics["pictures_per_second"])
        if len(self.found) == self.wanted:
            raise _EnoughError

    def keep(self, folder: Path, step: int) -> None:
        raise NotImplementedError

    def report(self, metrics: dict[str, float], kept: None) -> None:
        pass


def without_lpips(bench: Bench) -> None:
    """Steps of the training loop itself, without LPIPS: drawn at 64 px alone."""
    _train(bench, "train", lpips=False, detailed=0.0)


def with_lpips(bench: Bench) -> None:
    """The same with LPIPS at 64 px, 3/8 of the pictures also drawn at 128 px, LPIPS there on a quarter of these.

    In a batch of 512: LPIPS of all 512 at 64 px, 192 drawn at 128 px, LPIPS of 48 there.
    """
    _train(bench, "train, LPIPS and 128 px", lpips=True, detailed=DETAILED)


def fused(bench: Bench) -> None:
    """Both by the project's own kernels instead of compiled blocks, on a GPU."""
    if bench.cuda:
        _train(bench, "train, fused", lpips=False, detailed=0.0, fused=True)
        _train(bench, "train, fused, LPIPS and 128 px", lpips=True, detailed=DETAILED, fused=True)


def _train(bench: Bench, name: str, *, lpips: bool, detailed: float, fused: bool = False) -> None:
    device = torch.device(bench.device)
    recipe = Recipe(objective=OBJECTIVE, batch=512 if bench.cuda else 4, lpips=lpips)
    eyes = _random_lpips(device) if lpips else None
    state = State.new(recipe, device)
    every, reports = (20, 6) if bench.cuda else (1, 3)
    outlet = _Rates(reports)
    pictures = _random_pictures(device, detailed)
    budget = Budget(steps=1_000_000, report_every=every, save_every=1_000_000)
    with bench.peak() as peak, tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(state, recipe, budget, pictures, outlet=outlet, work=Path(folder), perceptual=eyes, fused=fused)
    first, *warm = outlet.found  # the first holds the compilation
    rate = statistics.median(warm)
    flops = 6 * sum(p.numel() for p in state.model.parameters()) * 64
    spread = (max(warm) - min(warm)) / rate
    measured = bench.baselines and not fused  # which has the same one
    baseline = _train_baseline(bench, recipe, detailed, eyes) if measured else None
    limit, seconds = bench.limit(MATRIX_FLOPS / flops), recipe.batch / rate
    compiled = every * recipe.batch / first - every * seconds
    note = f"batch {recipe.batch}; compiled in {compiled:.0f} s" if bench.cuda else f"batch {recipe.batch}"
    bench.add(Row(name, "pictures", rate, seconds, spread, len(warm), peak[0], baseline, limit, note))


def _train_baseline(bench: Bench, recipe: Recipe, detailed: float, eyes: Lpips | None) -> float:
    recipe = dataclasses.replace(recipe, batch=100 if bench.cuda else 2)
    model = EagerDenoiser(recipe.model).to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = make_batch(recipe, _random_pictures(torch.device(bench.device), detailed), 0, 0, 0, 1)
    kept = {key: value for key, value in batch.items() if key in ("clean", "noise", "t", "detailed")}

    def step() -> None:
        training_loss(model, model, objective=recipe.objective, lpips=eyes, **kept)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()

    return recipe.batch / statistics.median(bench.time(step)[0])


def _random_pictures(device: torch.device, detailed: float, count: int = 1024) -> Pictures:
    chance = np.random.default_rng(0)
    large = round(count * detailed)
    return Pictures(
        TrainingSet(
            small=chance.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
            large=chance.integers(0, 256, (large, 256, 256, 3), dtype=np.uint8),
            large_rows=np.arange(large),
        ),
        device,
    )


def _random_lpips(device: torch.device) -> Lpips:
    weights = random_weights(torch.Generator().manual_seed(0))
    heads = [weights[f"lin{stage}.weight"] for stage in range(len(STAGES))]
    return Lpips(Vgg16(weights), heads).to(device).eval()
