"""LPIPS: distance of two pictures in the features of VGG16 (Zhang et al., 2018, version 0.1)."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.errors import UserError
from models.vgg import STAGES, Vgg16, load_vgg


class Lpips(nn.Module):
    """VGG16 trunk and the five non-negative linear heads, frozen."""

    def __init__(self, trunk: Vgg16, heads: list[Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        for stage, head in enumerate(heads):
            self.register_buffer(f"head{stage}", head.reshape(1, -1, 1, 1).float())

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distances [B] of pictures [B, 3, Y, X] in [-1, 1] from targets of the same shape; sides of at least 16.

        Gradients flow to `image` alone. On CUDA the convolutions run in bfloat16, channels last.
        """
        dtype = torch.bfloat16 if image.is_cuda else image.dtype
        with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
            taps = self.trunk(image.to(dtype, memory_format=torch.channels_last))
            with torch.no_grad():
                target_taps = self.trunk(target.to(dtype, memory_format=torch.channels_last))
        distance = image.new_zeros(len(image), dtype=torch.float32)
        for stage, (a, b) in enumerate(zip(taps, target_taps, strict=True)):
            difference = (unit(a) - unit(b)).square() * self.get_buffer(f"head{stage}")
            distance = distance + difference.sum(dim=1).mean(dim=(1, 2))
        return distance


def unit(tap: Tensor) -> Tensor:
    """Scale the channels of every pixel to length 1, in float32."""
    tap = tap.float()
    return tap * torch.rsqrt(tap.square().sum(dim=1, keepdim=True) + 1e-10)


def load_lpips(path: str) -> Lpips:
    """Read `features.N.weight/bias` and `lin0..lin4.weight` from a safetensors file. Raises UserError naming it."""
    trunk = load_vgg(path)
    with safe_open(path, framework="pt") as file:
        names = [f"lin{stage}.weight" for stage in range(len(STAGES))]
        absent = sorted(set(names) - set(file.keys()))
        if absent:
            raise UserError(f"LPIPS weights {path} lack {', '.join(absent)}; the README says how to make the file")
        heads = [file.get_tensor(name) for name in names]
    for name, head, (_, width) in zip(names, heads, STAGES, strict=True):
        if head.numel() != width:
            raise UserError(f"LPIPS weights {path}: {name} has {head.numel()} numbers, not {width}")
    return Lpips(trunk, heads).eval()


def random_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """What `load_lpips` reads, but random, such that activations stay near 1: as slow as trained ones, and as large."""
    tensors: dict[str, Tensor] = {}
    width_in = 3
    for stage, (numbers, width) in enumerate(STAGES):
        for number in numbers:
            deviation = (2 / (9 * width_in)) ** 0.5
            tensors[f"features.{number}.weight"] = deviation * torch.randn(width, width_in, 3, 3, generator=generator)
            tensors[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=generator)
            width_in = width
        tensors[f"lin{stage}.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return tensors
