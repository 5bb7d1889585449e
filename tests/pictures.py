"""Pictures as arrays, and how two agree."""

import io

import numpy as np
import torch
from PIL import Image

from models.measures import psnr
from pipeline.training.batches import as_image


def pixels(encoded: bytes) -> np.ndarray:
    """An encoded picture as an array [Y, X, 3]."""
    return np.asarray(Image.open(io.BytesIO(encoded)))


def decibels(picture: np.ndarray, reference: np.ndarray) -> float:
    """How uint8 pictures [Y, X, 3] agree."""
    return float(psnr(*(as_image(torch.from_numpy(p.copy())[None]) for p in (picture, reference))))
