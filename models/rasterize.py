"""Draw splat fields as pixels, at any height x width, whole or any region: the one entry.

    w_i = exp(d_i - 4 q_i) * window(row offset) * window(column offset)
    colour(pixel) = sum_i w_i kernel(q_i) c_i / sum_i w_i      over the splats i of the 3x3 patches around the pixel

The sums are evaluated tile by tile, so memory beyond the output does not grow with the picture: by
`models.rasterize_torch`, the reference, or on CUDA by the fused kernels of `models.rasterize_triton`.
"""

from __future__ import annotations

import functools
import logging
import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from models import rasterize_torch
from models.errors import UserError, check_name
from models.kernels import DRAWABLE, KERNELS
from models.pixels import Axis
from models.splats import PARAMETERS

if find_spec("triton") and torch.version.cuda:
    from models import rasterize_triton

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
VIEWS = ("colour", "blobs", "depth", "patches")

# Fewer pixels than this along a patch is below native resolution: several splats fall on a pixel, so draw finer
# and average.
NATIVE_PIXELS = 8
BLOB_SCALE = 7.0
BLOB_DIMMEST = 0.3  # of the 2 between black and white


def rasterize(
    field: Tensor,
    height: int,
    width: int,
    *,
    region: Region = WHOLE,
    kernel: str = "wavelet",
    neighbourhood: int = 3,
    view: str = "colour",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw a splat field [B, H, W, K, P] as pictures [B, 3, height, width] in [-1, 1], not clamped.

    `region` is the part drawn, (x0, y0, x1, y1) in fractions of the picture. Pixels are sampled at their centres, and
    averaged over finer samples along an axis with fewer than NATIVE_PIXELS pixels a patch. `neighbourhood` 3 blends
    the splats of the 3x3 patches around a pixel, 1 only those of its own patch (the seams show). `view` replaces the
    picture by a look inside: `blobs`, every splat a round dot at its mean; `depth`; `patches`, the grid drawn over.

    `dtype` is the pictures': float32 (or the field's own type, if that is finer); float16; or uint8, 0 to 255, clamped
    and rounded, laid out channels last, so that a large picture leaves the device once and small.

    Differentiable in `field` as float32; pure. Raises UserError for a size, region, kernel, neighbourhood or view that
    cannot be.
    """
    check_name("kernel", kernel, DRAWABLE if view != "colour" else KERNELS)
    check_name("view", view, VIEWS)
    if height < 1 or width < 1:
        raise UserError(f"size {width}x{height} is not drawable; both sides must be at least 1 pixel")
    if neighbourhood not in (1, 3):
        raise UserError(
            f"neighbourhood {neighbourhood} is not known; choose 3 (blended patches) or 1 (separate patches)"
        )
    check_region(region)
    x0, y0, x1, y1 = region
    batch, rows, columns, _, parameters = field.shape
    assert parameters == len(PARAMETERS)

    fine_y = max(1, math.ceil(NATIVE_PIXELS * rows * (y1 - y0) / height - 1e-9))
    fine_x = max(1, math.ceil(NATIVE_PIXELS * columns * (x1 - x0) / width - 1e-9))
    axis_y = Axis.of(height * fine_y, y0, y1, rows)
    axis_x = Axis.of(width * fine_x, x0, x1, columns)
    if view == "blobs":
        field, kernel = _as_blobs(field), "gaussian"
    elif view == "depth":
        field, kernel = _as_depth(field), "constant"

    # Bands of whole output pixels, so that the finer samples of one band are averaged before the next is drawn.
    band = max(1, (1 << 22) // (max(1, batch) * width * fine_x * fine_y)) if fine_y * fine_x > 1 else height
    fused = field.is_cuda and field.dtype == torch.float32 and _has_triton()
    draw = rasterize_triton.draw if fused else rasterize_torch.draw
    if fused and dtype != torch.float32 and fine_y * fine_x == 1 and view in ("colour", "depth"):
        return rasterize_triton.draw(field, axis_y, axis_x, kernel, neighbourhood, dtype)
    bands = []
    for top in range(0, height, band):
        part = axis_y.slice(top * fine_y, min(top + band, height) * fine_y)
        image = draw(field, part, axis_x, kernel, neighbourhood)
        bands.append(F.avg_pool2d(image, (fine_y, fine_x)) if fine_y * fine_x > 1 else image)
    image = torch.cat(bands, dim=2) if len(bands) > 1 else bands[0]

    if view == "blobs":
        image = image - 1.0
    elif view == "patches":
        image = _with_grid(image, Axis.of(height, y0, y1, rows), Axis.of(width, x0, x1, columns))
    return _levels(image) if dtype == torch.uint8 else image if dtype == torch.float32 else image.to(dtype)


def check_region(region: Region) -> None:
    """Raise UserError unless a region is a part of the picture."""
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(
            f"region {region} is not inside the picture; give fractions 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1"
        )


@functools.cache
def _has_triton() -> bool:
    """Whether fields on CUDA are drawn by the fused kernels; says so once where they are not."""
    found = "rasterize_triton" in globals()
    if not found:
        logging.getLogger(__name__).debug("Triton is not installed: drawing with the torch reference")
    return found


def to_uint8(image: Tensor) -> Tensor:
    """Pictures [B, 3, Y, X] in [-1, 1], or bytes already, as uint8 [B, Y, X, 3], clamped and rounded."""
    return (image if image.dtype == torch.uint8 else _levels(image)).permute(0, 2, 3, 1).contiguous()


def _levels(image: Tensor) -> Tensor:
    """-1 to 1 as 0 to 255, channels last."""
    levels = ((image.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.contiguous(memory_format=torch.channels_last)


def _as_blobs(field: Tensor) -> Tensor:
    """Every splat a round dot of one size and depth on black, dim to bright.

    Learned colours go far beyond the display's range, since a wavelet's flank turns them over: they are stretched to
    what can be seen.
    """
    u, v, *_ = field.unbind(-1)
    scale, zero = torch.full_like(u, BLOB_SCALE), torch.zeros_like(u)
    bright = BLOB_DIMMEST + (2.0 - BLOB_DIMMEST) * _stretched(field[..., 5:8])
    return torch.stack([u, v, scale, scale, zero, *bright.unbind(-1), zero], dim=-1)


def _as_depth(field: Tensor) -> Tensor:
    """Colours replaced by grey, from black at a picture's lowest depth to white at its highest."""
    grey = 2.0 * _stretched(field[..., 8:]) - 1.0
    return torch.cat([field[..., :5], grey, grey, grey, field[..., 8:]], dim=-1)


def _stretched(values: Tensor) -> Tensor:
    """Values [B, H, W, K, n] moved to 0..1, by the least and the greatest of each picture."""
    low, high = values.amin(dim=(1, 2, 3, 4), keepdim=True), values.amax(dim=(1, 2, 3, 4), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-6)


def _with_grid(image: Tensor, axis_y: Axis, axis_x: Axis) -> Tensor:
    """White lines of 1/64 patch, at least one pixel on either side, along the borders between patches.

    Where a patch has fewer pixels than native they are fainter, or small pictures would be white all over.
    """

    def whiteness(axis: Axis) -> Tensor:
        _, offset = axis.centres()
        pixels_per_patch = axis.pixels / (axis.patches * (axis.stop - axis.start))
        near = torch.minimum(offset, 1.0 - offset) < max(1 / 128, 0.501 / pixels_per_patch)
        return near * min(1.0, pixels_per_patch / NATIVE_PIXELS)

    white = torch.maximum(whiteness(axis_y)[:, None], whiteness(axis_x)[None, :])
    return image.lerp(torch.ones_like(image), white.to(image))
