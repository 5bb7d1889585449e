"""Draw splat fields as pixels, at any height x width, whole or any region: the one entry, and its torch reference.

    w_i = exp(d_i - 4 q_i) * window(row offset) * window(column offset)
    colour(pixel) = sum_i w_i kernel(q_i) c_i / sum_i w_i      over the splats i of the 3x3 patches around the pixel

The sums are evaluated tile by tile, one tile being some pixel rows of one row of patches, so memory beyond the output
does not grow with the picture. On CUDA `models.rasterize_triton` evaluates the same tiles in one kernel.

Shape suffixes as in `models.splats`; T is the most pixels that any patch has along an axis, C the 3 channels.
"""

from __future__ import annotations

import functools
import logging
import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.errors import UserError, check_name
from models.kernels import DRAWABLE, FALLOFF, KERNELS, log_window
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
# Splat-pixel pairs evaluated at once: cache-sized bands on the CPU, enough to fill the device on CUDA.
PAIRS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}


def rasterize(
    field: Tensor,
    height: int,
    width: int,
    *,
    region: Region = WHOLE,
    kernel: str = "wavelet",
    neighbourhood: int = 3,
    view: str = "colour",
) -> Tensor:
    """Draw a splat field [B, H, W, K, P] as pictures [B, 3, height, width] in [-1, 1], not clamped.

    `region` is the part drawn, (x0, y0, x1, y1) in fractions of the picture. Pixels are sampled at their centres, and
    averaged over finer samples along an axis with fewer than NATIVE_PIXELS pixels a patch. `neighbourhood` 3 blends
    the splats of the 3x3 patches around a pixel, 1 only those of its own patch (the seams show). `view` replaces the
    picture by a look inside: `blobs`, every splat a round dot at its mean; `depth`; `patches`, the grid drawn over.

    Differentiable in `field`; pure. Raises UserError for a size, region, kernel, neighbourhood or view that cannot be.
    """
    check_name("kernel", kernel, DRAWABLE if view != "colour" else KERNELS)
    check_name("view", view, VIEWS)
    if height < 1 or width < 1:
        raise UserError(f"size {width}x{height} is not drawable; both sides must be at least 1 pixel")
    if neighbourhood not in (1, 3):
        raise UserError(
            f"neighbourhood {neighbourhood} is not known; choose 3 (blended patches) or 1 (separate patches)"
        )
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(
            f"region {region} is not inside the picture; give fractions 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1"
        )
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
    draw = rasterize_triton.draw if fused else _draw
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
    return image


@functools.cache
def _has_triton() -> bool:
    """Whether fields on CUDA are drawn by the fused kernels; says so once where they are not."""
    found = "rasterize_triton" in globals()
    if not found:
        logging.getLogger(__name__).debug("Triton is not installed: drawing with the torch reference")
    return found


def to_uint8(image: Tensor) -> Tensor:
    """Pictures [B, 3, Y, X] in [-1, 1] as uint8 [B, Y, X, 3], clamped and rounded."""
    return ((image.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _draw(field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int) -> Tensor:
    """The torch reference: samples [B, C, Y, X] at the crossings of two axes."""
    near = _neighbours(field, neighbourhood)
    home_y, centre_y = axis_y.centres()
    centre_y = centre_y.to(near)
    batch, rows, columns, reach, _ = near.shape
    tile_x, offset_x = _padded_tiles(axis_x)
    tile_x, offset_x = tile_x.to(field.device), offset_x.to(near)
    budget = PAIRS_AT_ONCE["cuda" if field.is_cuda else "cpu"]
    row_pairs = offset_x.numel() * reach
    pictures = max(1, min(batch, budget // row_pairs))
    lines = max(1, budget // (row_pairs * pictures))
    window_x = _windows(offset_x, torch.arange(columns, device=field.device), columns, neighbourhood)

    strips = []
    for row, count in zip(*(x.tolist() for x in torch.unique_consecutive(home_y, return_counts=True)), strict=True):
        begin = int(torch.searchsorted(home_y, row))
        for offset_y in centre_y[begin : begin + count].split(lines):
            window_y = _windows(offset_y, torch.tensor(row, device=field.device), rows, neighbourhood)
            tiles = []
            for splats in near[:, row].split(pictures):
                arguments = (splats, offset_y, offset_x, window_y, window_x, kernel)
                # Recomputed in the backward pass: the pairs of one tile are all that is ever held.
                recompute = torch.is_grad_enabled() and field.requires_grad
                tiles.append(checkpoint(_tile, *arguments, use_reentrant=False) if recompute else _tile(*arguments))
            strips.append(torch.cat(tiles).flatten(3, 4)[..., tile_x])
    return torch.cat(strips, dim=2)


def _tile(
    splats: Tensor, offset_y: Tensor, offset_x: Tensor, window_y: Tensor, window_x: Tensor, kernel: str
) -> Tensor:
    """Blend the splats [B, W, N, P] that reach one row of patches at Y x (W, T) pixels: colours [B, C, Y, W, T]."""
    u, v, kx, ky, rho, *_, depth = splats.unbind(-1)  # [B, W, N] each
    reach = u.shape[-1]
    x = kx[:, :, None] * (offset_x[:, :, None] - u[:, :, None])  # [B, W, T, N]
    y = ky[:, :, None] * (offset_y[:, None] - v[:, :, None])  # [B, W, Y, N]
    per_splat = window_x.shape[-1] ** 2
    over_x = window_x[:, :, None, :, None].expand(-1, -1, window_x.shape[-1], -1, reach // per_splat).flatten(2)
    over_y = window_y[:, :, None, None].expand(-1, -1, window_y.shape[-1], reach // per_splat).flatten(1)
    q = (x * x)[:, :, None] + (y * y)[:, :, :, None] + (2.0 * rho[:, :, None] * x)[:, :, None] * y[:, :, :, None]
    logits = (depth[:, :, None] + over_y)[:, :, :, None] + over_x[:, None] - FALLOFF * q  # [B, W, Y, T, N]
    # softmax subtracts the largest logit, so a pixel far from everything still takes its nearest splats' colour.
    amounts = torch.softmax(logits, dim=-1) * DRAWABLE[kernel](q)
    colour = amounts.flatten(2, 3) @ splats[..., 5:8]  # [B, W, Y T, C]
    return colour.unflatten(2, (len(offset_y), -1)).permute(0, 4, 2, 1, 3)


def _neighbours(field: Tensor, neighbourhood: int) -> Tensor:
    """The splats that reach each patch [B, H, W, N, P], means relative to that patch; zeros beyond the picture."""
    margin = neighbourhood // 2
    padded = F.pad(field, (0, 0, 0, 0, margin, margin, margin, margin))
    near = padded.unfold(1, neighbourhood, 1).unfold(2, neighbourhood, 1).permute(0, 1, 2, 5, 6, 3, 4)
    step = torch.arange(neighbourhood, device=field.device, dtype=field.dtype) - margin
    shift = field.new_zeros(neighbourhood, neighbourhood, 1, len(PARAMETERS))
    shift[..., 0] = step[None, :, None]
    shift[..., 1] = step[:, None, None]
    return (near + shift).flatten(3, 5)


def _padded_tiles(axis: Axis) -> tuple[Tensor, Tensor]:
    """Group an axis by patch, padded to the most pixels T of any: (tile index of each pixel, offsets [patches, T])."""
    home, place = axis.centres()
    count = torch.bincount(home, minlength=axis.patches)
    most = int(count.max())
    index = home * most + torch.arange(len(home)) - (count.cumsum(0) - count)[home]
    offset = place.new_zeros(axis.patches * most)
    offset[index] = place
    return index, offset.view(axis.patches, most)


def _windows(offset: Tensor, home: Tensor, patches: int, neighbourhood: int) -> Tensor:
    """Log window of each neighbour along an axis at `offset` [..., T] of patch `home` [...]: [..., T, neighbourhood].

    Minus infinity for neighbours beyond the picture; 0 for a neighbourhood of 1, which has no window.
    """
    step = torch.arange(neighbourhood, device=offset.device) - neighbourhood // 2
    if neighbourhood == 1:
        return offset.new_zeros(*offset.shape, 1)
    neighbour = home[..., None, None] + step
    window = log_window(offset[..., None] - step)
    return window.where((neighbour >= 0) & (neighbour < patches), -math.inf)


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
    """Lines of 1/64 patch, at least one pixel on either side, along the borders between patches."""

    def near_border(axis: Axis) -> Tensor:
        _, offset = axis.centres()
        pixels_per_patch = axis.pixels / (axis.patches * (axis.stop - axis.start))
        return torch.minimum(offset, 1.0 - offset) < max(1 / 128, 0.501 / pixels_per_patch)

    line = near_border(axis_y)[:, None] | near_border(axis_x)[None, :]
    return torch.where(line.to(image.device), image.new_tensor(1.0), image)
