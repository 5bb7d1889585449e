"""Choices that only the device can make: tiles of the kernels, modes of the compiler. Not part of a plain benchmark."""

from __future__ import annotations

from functools import partial

import torch

from models import checkpoint, kernels, rasterize_triton
from models.rasterize import rasterize
from pipeline.benchmark.bench import Bench

# Pixel rows, columns, splats at once of a warp's tile.
TILES = {
    64: [(8, 8, 1), (8, 8, 2), (8, 8, 4), (4, 8, 2), (4, 8, 4), (4, 8, 1)],
    128: [(8, 8, 2), (8, 16, 1), (8, 16, 2), (16, 16, 1), (4, 16, 2)],
    1024: [(8, 16, 2), (16, 16, 1), (8, 32, 1), (4, 32, 1), (16, 16, 2), (16, 32, 1), (8, 16, 1)],
}
# As rasterize_triton.BACKWARD_TILES: pixel rows and columns of a tile, splats at once, tiles in turn, skipped or not.
BACKWARD_TILES = {
    64: [(8, 8, 4, 9, False), (4, 8, 4, 18, False), (8, 8, 2, 9, False)],
    128: [(16, 8, 4, 4, False), (16, 8, 4, 18, False), (16, 8, 4, 9, False), (8, 8, 4, 9, False)],
    256: [(16, 16, 1, 4, True), (16, 16, 1, 8, True), (16, 8, 4, 9, False), (16, 8, 2, 8, True)],
    1024: [(16, 16, 1, 8, True), (16, 16, 1, 4, True), (32, 16, 1, 2, True), (16, 8, 4, 9, False)],
}
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
COUNT = {64: 4096, 128: 1024, 256: 256, 1024: 16}


def tune_forward(bench: Bench) -> None:
    """Every tile, and culling on and off."""
    kept = dict(rasterize_triton.FORWARD_TILES), kernels.NEGLIGIBLE[torch.float32]
    try:
        for side, tiles in TILES.items():
            for tile in tiles:
                rasterize_triton.FORWARD_TILES = {0: tile}
                _draw(bench, side, f"tile {tile}")
            rasterize_triton.FORWARD_TILES = kept[0]
            for negligible in (1e-30, 1e-4):
                kernels.NEGLIGIBLE[torch.float32] = negligible
                _draw(bench, side, f"negligible {negligible}")
            kernels.NEGLIGIBLE[torch.float32] = kept[1]
    finally:
        rasterize_triton.FORWARD_TILES, kernels.NEGLIGIBLE[torch.float32] = kept


def _draw(bench: Bench, side: int, choice: str) -> None:
    fields = bench.fields(COUNT[side])
    with torch.inference_mode():
        bench.measure(
            f"draw {side} px, {choice}", "Mpx", len(fields) * side**2 / 1e6, partial(rasterize, fields, side, side)
        )


def tune_backward(bench: Bench) -> None:
    """Every kind of tiles of the backward pass, beside the forward pass of the same pictures."""
    kept = rasterize_triton.BACKWARD_TILES
    try:
        for side, choices in BACKWARD_TILES.items():
            field = bench.fields(COUNT[side]).requires_grad_()
            pixels = len(field) * side**2 / 1e6
            bench.measure(f"draw {side} px, to be differentiated", "Mpx", pixels, partial(rasterize, field, side, side))
            image = rasterize(field, side, side)
            given = torch.randn_like(image)
            for tile_y, tile_x, splats, taken, skipped in choices:
                rasterize_triton.BACKWARD_TILES = {0: (tile_y, tile_x, splats, taken, skipped)}
                bench.measure(
                    f"backward {side} px, tile {tile_y}x{tile_x}, {splats} splats, {taken} tiles, "
                    + ("negligible skipped" if skipped else "all drawn"),
                    "Mpx",
                    pixels,
                    partial(torch.autograd.grad, image, field, given, retain_graph=True),
                )
    finally:
        rasterize_triton.BACKWARD_TILES = kept


def tune_network(bench: Bench) -> None:
    """The fused kernels, and beside them torch's own, as they are and compiled, at some sizes of batches."""
    for batch in (256, 1024, 2048):
        noise, t = torch.randn(batch, 3, 64, 64, device=bench.device), torch.full((batch,), 0.5, device=bench.device)
        # Only inference mode has the fused kernels.
        with torch.no_grad():
            expected = bench.denoiser(noise, t)
            bench.measure(f"network, batch {batch}, eager", "calls", batch, partial(bench.denoiser, noise, t))
        with torch.inference_mode():
            bench.measure(f"network, batch {batch}, fused", "calls", batch, partial(bench.denoiser, noise, t))
            apart = (bench.denoiser(noise, t) - expected).abs().mean()
            bench.report(f"mean difference of the splats from eager: {float(apart):.2e}")
        for mode in MODES:
            torch.compiler.reset()
            model = checkpoint.load(checkpoint.PRETRAINED).to(bench.device)
            model.backbone.compile(dynamic=False, mode=mode)
            with torch.inference_mode():
                bench.measure(f"network, batch {batch}, {mode}", "calls", batch, partial(model, noise, t))
                apart = (model(noise, t) - expected).abs().mean()
            bench.report(f"mean difference of the splats from eager: {float(apart):.2e}")
