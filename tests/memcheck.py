"""Every fused kernel at odd sizes, for compute-sanitizer to watch: `make memcheck`, on a GPU.

What the kernels compute is compared with references by the tests; here only where they read and write counts.
"""

from __future__ import annotations

import sys

import torch

from models.denoiser import Denoiser, DenoiserConfig
from models.kernels import KERNELS
from models.noise import white_noise
from models.rasterize import VIEWS, WHOLE, Region, rasterize
from models.sampler import Sampling, sample
from models.splats import random_field

SIZES = ((1, 1), (63, 65), (257, 129), (8, 8192))
SPLATS, BATCHES = (1, 4, 16, 64), (0, 1, 257)


def field(*shape: int) -> torch.Tensor:
    """Random splats [B, H, W, K, P] on the GPU."""
    return random_field(torch.Generator().manual_seed(3), *shape).cuda()


def draw(
    splats: torch.Tensor,
    height: int,
    width: int,
    kernel: str = "wavelet",
    region: Region = WHOLE,
    neighbourhood: int = 3,
) -> None:
    """Draw, and take gradients."""
    image = rasterize(splats.requires_grad_(), height, width, kernel=kernel, region=region, neighbourhood=neighbourhood)
    image.sum().backward()


def main() -> None:
    """Launch the rasterizer and the transformer's blocks, forward and backward, and the kernel of noise."""
    if not torch.cuda.is_available():
        sys.exit("make memcheck needs a GPU that PyTorch sees")
    for kernel in KERNELS:
        draw(field(1, 2, 3, 16), 63, 65, kernel)
    for splats in SPLATS:
        draw(field(2, 2, 2, splats), 17, 31)
    for height, width in SIZES:
        draw(field(1, 8, 8, 16), height, width)
    for batch in BATCHES:
        draw(field(batch, 2, 2, 4), 9, 11)
    draw(field(2, 3, 5, 16), 40, 50, region=(0.1, 0.2, 0.77, 0.9))
    draw(field(2, 3, 5, 16), 63, 65, neighbourhood=1)
    draw(field(1, 2, 2, 16), 301, 299)  # patches large enough for the backward pass's larger tiles
    with torch.inference_mode():
        for dtype in (torch.uint8, torch.float16):
            for height, width in (*SIZES[:3], (65, 131)):
                rasterize(field(3, 8, 8, 16), height, width, dtype=dtype)
        for view in VIEWS:
            rasterize(field(2, 2, 3, 16), 33, 47, view=view)
    model = Denoiser(DenoiserConfig(blocks=2)).cuda().eval()
    how = Sampling(steps=2)
    for batch in (1, 5, 64):
        start = white_noise(0, range(batch), *model.size, "cuda")
        sample(model, start, steps=how.steps, solver=how.solver, schedule=how.schedule)
    assert model.requires_grad_().backbone.train_fused()
    for batch in (1, 5, 64):
        start = white_noise(0, range(batch), *model.size, "cuda")
        model(start, start.new_full((batch,), 0.5)).sum().backward()
    torch.cuda.synchronize()
    print("every kernel was launched")


if __name__ == "__main__":
    main()
