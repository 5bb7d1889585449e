"""The blend of `models.rasterize` in plain torch: any device, any float type, differentiable; the fast path on CPUs.

Pixels are taken in tiles that lie within one patch and fit the cache. The squared distance q is a polynomial of second
degree in a pixel's place, so over a tile it is one small matrix product [splats, 6] @ [6, pixels]; the logarithms of
the weights are another, the windows' logarithms being six more rows. Coefficients are relative to the tile's middle:
about a far origin they would cancel in float32. Splats whose weight is negligible all over a tile are left out.

Shape suffixes as in `models.splats`; G tiles, S neighbours along an axis, T and L a tile's pixels along x and y.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.kernels import DRAWABLE, FALLOFF, cutoff, log_window
from models.pixels import Axis
from models.splats import PARAMETERS

# Splat-pixel pairs evaluated at once: what fits the cache on a CPU, enough to fill the device on CUDA.
PAIRS_AT_ONCE = {"cpu": 300_000, "cuda": 1 << 26}
TILE_WIDTH = 64
# The log2 of a window that is 0, as a number that may be multiplied by 0.
NOTHING = -1e5
LOG2E = math.log2(math.e)


def draw(field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int) -> Tensor:
    """Samples [B, 3, Y, X] of splat fields [B, H, W, K, P] at the crossings of two axes, in the field's float type."""
    if len(field) == 0:
        return field.new_zeros(0, 3, len(axis_y), len(axis_x)) + field.sum()  # a gradient, if an empty one
    near = _neighbours(field, neighbourhood)
    home_y, place_y = axis_y.centres()
    index_x, offset_x, home_x = _tiles(axis_x)
    index_x, offset_x, home_x = index_x.to(field.device), offset_x.to(near), home_x.to(field.device)
    window_x = _windows(offset_x, home_x, axis_x.patches, neighbourhood)
    lines = PAIRS_AT_ONCE["cuda" if field.is_cuda else "cpu"] // (near.shape[3] * offset_x.shape[1])
    strips = []
    for row, count in zip(*(x.tolist() for x in torch.unique_consecutive(home_y, return_counts=True)), strict=True):
        begin = int(torch.searchsorted(home_y, row))
        splats = near[:, row, home_x]
        for offset_y in place_y[begin : begin + count].to(near).tensor_split(math.ceil(count / max(1, lines))):
            window_y = _windows(offset_y, torch.tensor(row, device=field.device), axis_y.patches, neighbourhood)
            strip = _strip(splats, offset_y, offset_x, window_y, window_x, max(1, lines // len(offset_y)), kernel)
            strips.append(strip.flatten(3, 4)[..., index_x])
    return torch.cat(strips, dim=2)


def _strip(
    splats: Tensor,
    offset_y: Tensor,
    offset_x: Tensor,
    window_y: Tensor,
    window_x: Tensor,
    at_once: int,
    kernel: str,
) -> Tensor:
    """Colours [B, 3, L, G, T] of a row of tiles, from the splats [B, G, N, P] that reach each, `at_once` tiles at once.

    Offsets [L] and [G, T] are in the home patch, `window_y` [S, L] and `window_x` [G, S, T] the log2 windows.
    """
    batch, tiles, reach, _ = splats.shape
    side = len(window_y)
    middle_y = 0.5 * (offset_y[0] + offset_y[-1])
    middle_x = 0.5 * (offset_x[:, :1] + offset_x[:, -1:])
    y, x = (offset_y - middle_y)[None, None, :, None], (offset_x - middle_x)[:, None, None]
    terms = [torch.ones_like(x), y, x, y * y, y * x, x * x, window_y[None, :, :, None], window_x[:, :, None]]
    place = torch.cat([term.expand(tiles, -1, len(offset_y), offset_x.shape[1]) for term in terms], dim=1).flatten(2)

    neighbour = torch.arange(side * side, device=splats.device).repeat_interleave(reach // side**2)
    chosen = torch.cat([F.one_hot(neighbour // side, side), F.one_hot(neighbour % side, side)], dim=1).to(splats)
    distance = _distance_form(splats, middle_y, middle_x)
    logit = distance * (-FALLOFF * LOG2E)
    logit = torch.cat(
        [logit[..., :1] + splats[..., 8:] * LOG2E, logit[..., 1:], chosen.expand(batch, tiles, -1, -1)], -1
    )
    colour = splats[..., 5:8].mT

    if at_once == 1:
        kept = _reaching(logit.detach(), place, y.flatten(), x.flatten(1))
    recompute = torch.is_grad_enabled() and splats.requires_grad
    across, pictures = min(at_once, tiles), max(1, at_once // tiles)
    parts = []
    for b in range(0, batch, pictures):
        made = []
        for g in range(0, tiles, across):
            some = slice(b, b + pictures), slice(g, g + across)
            forms = logit[some], distance[some], colour[some]
            if at_once == 1:
                number = kept[b, g].nonzero()[:, 0]
                forms = forms[0][:, :, number], forms[1][:, :, number], forms[2][..., number]
            arguments = (*forms, place[some[1]], kernel)
            # Recomputed in the backward pass: the pairs of a few tiles are all that is ever held.
            made.append(checkpoint(_blend, *arguments, use_reentrant=False) if recompute else _blend(*arguments))
        parts.append(torch.cat(made, dim=1))
    blended = torch.cat(parts).unflatten(3, (len(offset_y), -1))  # [B, G, 3, L, T]
    return blended.permute(0, 2, 3, 1, 4)


def _blend(logit: Tensor, distance: Tensor, colour: Tensor, place: Tensor, kernel: str) -> Tensor:
    """Colours [B, G, 3, M] at places [G, 6 + 2 S, M], from forms [B, G, N, ...] and colours [B, G, 3, N]."""
    share = logit @ place  # [B, G, N, M]
    # The largest logarithm is subtracted, so a pixel far from everything still takes its nearest splats' colour.
    share = share.sub_(share.detach().amax(dim=2, keepdim=True)).exp2_()
    amount = share * DRAWABLE[kernel](distance @ place[:, :6])
    return colour @ amount / share.sum(dim=2, keepdim=True)


def _distance_form(splats: Tensor, middle_y: Tensor, middle_x: Tensor) -> Tensor:
    """Coefficients [B, G, N, 6] of q in 1, y, x, y^2, y x, x^2, a pixel's place from the middle of its tile."""
    u, v, kx, ky, rho, *_ = splats.unbind(-1)
    a, b = u - middle_x, v - middle_y
    xx, xy, yy = kx * kx, rho * kx * ky, ky * ky
    by_x, by_y = xx * a + xy * b, xy * a + yy * b
    return torch.stack([by_x * a + by_y * b, -2.0 * by_y, -2.0 * by_x, yy, 2.0 * xy, xx], dim=-1)


def _reaching(logit: Tensor, place: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Which splats [B, G, N] may matter in a tile: the others' weights are negligible at each of its pixels.

    A logarithm of a weight is concave over a tile, window and all: least in a corner, and nowhere above its tangent
    plane. `y` [L] and `x` [G, T] are the places along the axes.
    """
    width = x.shape[1]
    corners = place[:, :, [0, width - 1, -width, -1]]
    least = (logit @ corners).amin(-1)
    above = logit[..., 0] + logit[..., 1].abs() * y[-1] + logit[..., 2].abs() * x[:, -1:]
    window = (logit[..., 6:] @ corners[:, 6:]).amax(-1)
    return above + window > least.amax(-1, keepdim=True) - cutoff(logit.shape[2], logit.dtype)


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


def _tiles(axis: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """Cut an axis into tiles of T pixels within one patch: index of each pixel in them, offsets [G, T], patches [G].

    Tiles that have fewer pixels than others repeat their last one, which nothing refers to.
    """
    home, place = axis.centres()
    count = torch.bincount(home, minlength=axis.patches)
    most = int(count.max())
    width = math.ceil(most / math.ceil(most / TILE_WIDTH))
    rank = torch.arange(len(home)) - (count.cumsum(0) - count)[home]
    begin = (rank % width == 0).nonzero()[:, 0]
    end = torch.cat([begin[1:], begin.new_tensor([len(home)])]) - 1
    pixel = (begin[:, None] + torch.arange(width)).clamp(max=end[:, None])
    tile = torch.cumsum(rank % width == 0, 0) - 1
    return tile * width + rank % width, place[pixel], home[begin]


def _windows(offset: Tensor, home: Tensor, patches: int, neighbourhood: int) -> Tensor:
    """log2 of the windows of the neighbours at `offset` [..., T] in the patches `home` [...]: [..., S, T].

    NOTHING where the window is 0 or the neighbour is beyond the picture; 0 for a neighbourhood of 1, without windows.
    """
    if neighbourhood == 1:
        return torch.zeros_like(offset).unsqueeze(-2)
    step = (torch.arange(neighbourhood, device=offset.device) - neighbourhood // 2)[:, None]
    neighbour = home[..., None, None] + step
    window = log_window(offset.unsqueeze(-2) - step) * LOG2E
    return window.where((neighbour >= 0) & (neighbour < patches), -math.inf).clamp(min=NOTHING)
