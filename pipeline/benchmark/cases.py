"""What the benchmark measures of the models: drawing, its backward pass, network calls, rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch

from models import sampler
from models.noise import white_noise
from models.rasterize import rasterize, to_uint8
from models.recorded import RecordedSample
from models.sampler import SOLVERS
from pipeline.benchmark.baseline import eager_draw
from pipeline.benchmark.bench import (
    BACKWARD_CALLS,
    FORWARD_CALLS,
    MATRIX_FLOPS,
    RECORDED,
    ROLLOUT,
    SPECIAL_FUNCTIONS,
    Bench,
)
from pipeline.execution.transfer import download

# Side in pixels: pictures at once, on a GPU and on a CPU.
SIZES = {64: (4096, 8), 128: (1024, 2), 256: (256, 1), 512: (64, 1), 1024: (16, 1), 2048: (4, 1), 4096: (1, 1)}
BACKWARD_SIZES = (64, 128, 256, 1024)
# Pixels of one call of the baseline: it holds a dozen tensors of 144 numbers a pixel.
BASELINE_PIXELS = {"cuda": 1 << 20, "cpu": 1 << 16}


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
