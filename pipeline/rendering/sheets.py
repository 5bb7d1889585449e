"""Sheets of pictures, to look at what a model makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.denoiser import Denoiser
from models.noise import white_noise
from models.rasterize import rasterize, to_uint8
from models.sampler import DEFAULT_SAMPLING, Sampling, sample

GAP = 4


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Lay uint8 pictures [Y, X, 3] of one size on a white grid, row by row."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(picture), (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def sample_sheet(
    denoiser: Denoiser,
    seed: int,
    *,
    count: int = 24,
    columns: int = 8,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> Image.Image:
    """Pictures 0.. of a seed, drawn at twice the model's size: the same noise at every checkpoint of a training."""
    height, width = denoiser.size
    device = next(denoiser.parameters()).device
    with torch.inference_mode():
        start = white_noise(seed, range(count), height, width, device)
        field = sample(denoiser, start, **vars(sampling))
        pictures = to_uint8(denoiser.draw(field, 2 * height, 2 * width)).cpu().numpy()
    return contact_sheet(list(pictures), columns)


def anatomy_sheet(field: Tensor, kernel: str) -> Image.Image:
    """One splat field [1, H, W, K, P] at 1024 and at 64 pixels, and its views: 1024 wide, 2048 high."""
    sheet = Image.new("RGB", (1024, 2048), "white")
    small = _drawn(field, 64, kernel).resize((512, 512), Image.Resampling.NEAREST)
    parts = [
        (_drawn(field, 1024, kernel), (0, 0), "drawn at 1024 px"),
        (small, (0, 1024), "the same splats at 64 px"),
        (_drawn(field, 512, kernel, "blobs"), (512, 1024), "blobs: every splat a dot"),
        (_drawn(field, 512, kernel, "patches"), (0, 1536), "patches: 16 splats in each"),
        (_drawn(field, 512, kernel, "depth"), (512, 1536), "depth: who covers whom"),
    ]
    for picture, place, caption in parts:
        sheet.paste(picture, place)
        text = ImageDraw.Draw(sheet)
        at = (place[0] + 12, place[1] + picture.height - 36)
        text.text(at, caption, fill="white", font=ImageFont.load_default(24), stroke_width=2, stroke_fill="black")
    return sheet


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two sheets, tops aligned."""
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet


def _drawn(field: Tensor, size: int, kernel: str, view: str = "colour") -> Image.Image:
    return Image.fromarray(to_uint8(rasterize(field, size, size, kernel=kernel, view=view))[0].numpy())
