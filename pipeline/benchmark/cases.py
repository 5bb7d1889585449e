"""What the benchmark measures of the models: drawing, its backward pass, training, network calls, rollouts."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models import sampler
from models.losses import Objective, training_loss
from models.noise import white_noise
from models.perceptual import Lpips, random_weights
from models.rasterize import rasterize, to_uint8
from models.recorded import RecordedSample
from models.sampler import SOLVERS
from models.vgg import STAGES, Vgg16
from pipeline.benchmark.baseline import EagerDenoiser, eager_draw
from pipeline.benchmark.bench import (
    BACKWARD_CALLS,
    FORWARD_CALLS,
    MATRIX_FLOPS,
    RECORDED,
    ROLLOUT,
    SPECIAL_FUNCTIONS,
    Bench,
    Row,
)
from pipeline.execution.transfer import download
from pipeline.training.batches import Pictures, make_batch
from pipeline.training.recipe import Budget, Recipe
from pipeline.training.state import State
from pipeline.training.trainer import train
from pipeline.training.training_set import TrainingSet

# Side in pixels: pictures at once, on a GPU and on a CPU.
SIZES = {64: (4096, 8), 128: (1024, 2), 256: (256, 1), 512: (64, 1), 1024: (16, 1), 2048: (4, 1), 4096: (1, 1)}
BACKWARD_SIZES = (64, 128, 256, 1024)
# Pixels of one call of the baseline: it holds a dozen tensors of 144 numbers a pixel.
BASELINE_PIXELS = {"cuda": 1 << 20, "cpu": 1 << 16}
# No time lies below this gate: LPIPS looks at every picture, and at 128 px at every fourth.
OBJECTIVE = Objective(perceptual_gate=1e-9, detail_perceptual_share=0.25)


def draw(bench: Bench) -> None:
    """Drawing, forward, cats of the bundled weights."""
    for side, (many, few) in SIZES.items():
        count = many if bench.cuda else few
        fields, pixels = bench.fields(count), side * side
        band = min(side, max(8, BASELINE_PIXELS[bench.device] // side // 8 * 8))
        some = bench.fields(max(1, min(count, BASELINE_PIXELS[bench.device] // pixels)))
        with torch.inference_mode():
            row = bench.measure(
                f"draw {side} px x {count}",
                "Mpx",
                count * pixels / 1e6,
                partial(rasterize, fields, side, side),
                baseline=(
                    len(some) * band * side / 1e6,
                    partial(eager_draw, some, band, side),
                ),
                limit=bench.limit(SPECIAL_FUNCTIONS / (144 * FORWARD_CALLS) / 1e6),
            )
        if side == 64:
            bench.report(f"that is {row.rate * 1e6 / pixels:,.0f} pictures/s")


def draw_bytes(bench: Bench) -> None:
    """Drawing as bytes, and how long they take to reach the host."""
    count, side = (16, 1024) if bench.cuda else (1, 256)
    fields = bench.fields(count)
    with torch.inference_mode():
        bench.measure(
            f"draw {side} px x {count} as bytes, to the host",
            "Mpx",
            count * side * side / 1e6,
            lambda: download(to_uint8(rasterize(fields, side, side, dtype=torch.uint8)))(),
        )


def draw_backward(bench: Bench) -> None:
    """Gradients of the splats from those of the pixels, without the forward pass."""
    for side in BACKWARD_SIZES:
        many, few = SIZES[side]
        count = many if bench.cuda else few
        if side > 256 and not bench.cuda:
            continue
        some = max(1, min(count, BASELINE_PIXELS[bench.device] // 4 // side**2))
        band = min(side, max(8, BASELINE_PIXELS[bench.device] // 4 // side // 8 * 8))
        forward = next((row for row in bench.rows if row.name.startswith(f"draw {side} px x")), None)
        row = bench.measure(
            f"draw {side} px x {count}, backward",
            "Mpx",
            count * side * side / 1e6,
            _gradient(bench, partial(rasterize, height=side, width=side), count),
            baseline=(
                some * band * side / 1e6,
                _gradient(bench, partial(eager_draw, height=band, width=side), some),
            ),
            limit=bench.limit(SPECIAL_FUNCTIONS / (144 * BACKWARD_CALLS) / 1e6),
        )
        if forward is not None:
            bench.report(f"that is {forward.rate / row.rate:.2f} times as long as forward")


def _gradient(bench: Bench, function: Callable[[torch.Tensor], torch.Tensor], count: int) -> Callable[[], object]:
    field = bench.fields(count).requires_grad_()
    image = function(field)
    given = torch.randn_like(image)
    return lambda: torch.autograd.grad(image, field, given, retain_graph=True)


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


def training(bench: Bench) -> None:
    """Steps of the training loop itself, without LPIPS: drawn at 64 px alone."""
    _train(bench, "train", lpips=False, detailed=0.0)


def training_fused(bench: Bench) -> None:
    """Both by the project's own kernels instead of compiled blocks, on a GPU."""
    if not bench.cuda:
        return
    _train(bench, "train, fused", lpips=False, detailed=0.0, fused=True)
    _train(bench, "train, fused, LPIPS and 128 px", lpips=True, detailed=0.375, fused=True)


def training_lpips(bench: Bench) -> None:
    """The same with LPIPS at 64 px, 3/8 of the pictures also drawn at 128 px, LPIPS there on a quarter of these.

    In a batch of 512: LPIPS of all 512 at 64 px, 192 drawn at 128 px, LPIPS of 48 there.
    """
    _train(bench, "train, LPIPS and 128 px", lpips=True, detailed=0.375)


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
    baseline = _train_baseline(bench, recipe, detailed, eyes) if bench.baselines else None
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


def network(bench: Bench) -> None:
    """Calls of the denoiser, without drawing."""
    batch, some = (2048, 256) if bench.cuda else (8, 8)
    noise, t = torch.randn(batch, 3, 64, 64, device=bench.device), torch.full((batch,), 0.5, device=bench.device)
    denoiser, eager = bench.denoiser, bench.eager
    flops = 2 * sum(p.numel() for p in denoiser.parameters()) * 64
    with torch.inference_mode():
        bench.measure(
            f"network call, batch {batch}",
            "calls",
            batch,
            lambda: denoiser(noise, t),
            baseline=(some, lambda: eager(noise[:some], t[:some])),
            limit=bench.limit(MATRIX_FLOPS / flops),
        )


def rollout(bench: Bench) -> None:
    """Whole rollouts from noise on the device, each solver, and the few calls that the weights learned."""
    (batch, steps), some = ROLLOUT[bench.device], 64 if bench.cuda else 2
    noise = white_noise(0, range(batch), 64, 64, bench.device)
    for solver in SOLVERS:
        bench.measure(
            f"rollout {solver}, {steps} calls, batch {batch}",
            "pictures",
            batch,
            partial(sampler.sample, bench.denoiser, noise, steps=steps, solver=solver),
            baseline=(
                some,
                partial(sampler.sample, bench.eager, noise[:some], steps=steps, solver=solver),
            ),
        )
    for how in bench.learned:
        rolled = partial(sampler.sample, bench.denoiser, **dataclasses.asdict(how))
        for some in (*RECORDED, batch) if bench.cuda else (batch,):
            name = f"rollout {how.solver}, {how.steps} calls, batch {some}"
            bench.measure(name, "pictures", some, partial(rolled, noise[:some]))
            if bench.cuda:
                recorded = RecordedSample(bench.denoiser, how, some)
                bench.measure(f"{name}, recorded", "pictures", some, partial(recorded, noise[:some]))
