"""The denoiser: noisy picture and time -> splat field of the clean picture (x-prediction through a rasterizer)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.errors import UserError, check_name
from models.few_calls import FewCalls
from models.kernels import KERNELS
from models.rasterize import WHOLE, Region, rasterize
from models.splats import PARAMETERS, SCALE_LIMIT, SCALE_MAX, activate, initial_raw
from models.transformer import PatchTransformer

# Far beyond what is of use; a file of weights may say anything.
BOUNDS = {
    **dict.fromkeys(("rows", "columns", "patch", "splats_per_patch"), (1, 256)),
    "neighbourhood": (1, 3),
    "registers": (0, 256),
    "width": (4, 1 << 16),
    "blocks": (1, 1024),
    "heads": (1, 1 << 14),
}


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape of a denoiser; stored with its weights."""

    rows: int = 8  # patches down
    columns: int = 8  # patches across
    patch: int = 8  # pixels along a patch, at the resolution the model works at
    splats_per_patch: int = 16
    kernel: str = "wavelet"
    neighbourhood: int = 3
    width: int = 384
    blocks: int = 16
    heads: int = 6
    registers: int = 0  # tokens that belong to no patch
    scale_max: float = SCALE_MAX  # largest inverse scale of a splat, 1/patches

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise UserError(f"{name} is {value!r}, not a whole number from {low} to {high}")
        if type(self.scale_max) not in (int, float) or not 1.0 <= self.scale_max <= SCALE_LIMIT:
            raise UserError(f"scale_max is {self.scale_max!r}, not a number from 1 to {SCALE_LIMIT:g}")
        check_name("kernel", str(self.kernel), KERNELS)
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 4 times {self.heads} heads")

    @property
    def height_pixels(self) -> int:
        """Height of the pictures the model denoises."""
        return self.rows * self.patch

    @property
    def width_pixels(self) -> int:
        """Width of the pictures the model denoises."""
        return self.columns * self.patch


class Denoiser(nn.Module):
    """Patch transformer with a splat head: the splats of a patch from its final token."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = PatchTransformer(
            rows=config.rows,
            columns=config.columns,
            inputs=3 * config.patch**2,
            width=config.width,
            blocks=config.blocks,
            heads=config.heads,
            registers=config.registers,
        )
        self.head = nn.Linear(config.width, config.splats_per_patch * len(PARAMETERS))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(initial_raw(config.splats_per_patch).flatten())
        # What was learned about these very weights, by the number of calls. Hints are where the weights are.
        self.few_calls: dict[int, FewCalls] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Denoiser:
        self.few_calls = {n: replace(few, hints=fn(few.hints)) for n, few in self.few_calls.items()}
        return super()._apply(fn, recurse)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures the model denoises."""
        return self.config.height_pixels, self.config.width_pixels

    def forward(self, noisy: Tensor, t: Tensor, hint: Tensor | None = None) -> Tensor:
        """Predict the clean picture's splat field [B, H, W, K, P] from z_t [B, 3, Y, X] and its times t [B].

        `hint` [B, width] tells the backbone what else is known of the pictures.

        On CUDA the backbone runs in bfloat16; the head always in float32, because a mean rounded to bfloat16 would
        be off by a quarter of a pixel at 512 px.
        """
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=noisy.is_cuda):
            features = self.backbone(self.tokens(noisy), t, hint)
        with torch.autocast(noisy.device.type, enabled=False):
            return self.field(self.head(features.float()))

    def tokens(self, picture: Tensor) -> Tensor:
        """The patches of pictures [B, 3, Y, X], row by row, a vector each: [B, H W, 3 * patch * patch]."""
        config = self.config
        tokens = picture.unflatten(3, (config.columns, config.patch)).unflatten(2, (config.rows, config.patch))
        return tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def field(self, raw: Tensor) -> Tensor:
        """The splat field [B, H, W, K, P] of the head's raw output [B, H W, K P]."""
        config = self.config
        raw = raw.unflatten(2, (config.splats_per_patch, -1)).unflatten(1, (config.rows, config.columns))
        return activate(raw, config.scale_max)

    def draw(self, field: Tensor, height: int, width: int, region: Region = WHOLE) -> Tensor:
        """Rasterize a field as this model was trained to be drawn: [B, 3, height, width]."""
        config = self.config
        return rasterize(field, height, width, region=region, kernel=config.kernel, neighbourhood=config.neighbourhood)
