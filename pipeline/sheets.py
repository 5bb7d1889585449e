"""Sheets of pictures, to look at what a model makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from models.denoiser import Denoiser
from models.rasterize import to_uint8
from models.sampler import noise, sample

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


def sample_sheet(denoiser: Denoiser, seed: int, *, count: int = 24, columns: int = 8, steps: int = 16) -> Image.Image:
    """Pictures 0.. of a seed, drawn at twice the model's size: the same noise at every checkpoint of a training."""
    height, width = denoiser.size
    device = next(denoiser.parameters()).device
    with torch.inference_mode():
        field = sample(denoiser, noise(seed, range(count), height, width).to(device), steps=steps, solver="deis")
        pictures = to_uint8(denoiser.draw(field, 2 * height, 2 * width)).cpu().numpy()
    return contact_sheet(list(pictures), columns)
