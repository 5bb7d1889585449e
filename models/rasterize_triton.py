"""Fused Triton kernels for `models.rasterize`: the same blend in one launch forward and two backward, CUDA fp32.

Splats are binned by construction: a pixel sees the splats of its 3x3 patches and no others, so nothing is sorted and
nothing is accumulated atomically; results are deterministic. One program draws one tile of one patch's pixels. It walks
the neighbours twice, K splats at a time: first for each pixel's largest logit, then for the sums. Logits are kept in
units of log 2. The backward pass recomputes the weights from each pixel's log-sum-exp; a program writes the gradients
that its tile gives to each neighbour's splats, and a last kernel gathers them for every splat from its 3x3 patches.

Where a patch has many tiles, a neighbour all of whose weights are below 2^-CUTOFF of the largest weight at every pixel
of the tile is skipped. That changes a pixel by at most 2 * 9 K * 2^-CUTOFF of the largest colour: 4.3e-6 for K = 16.

Both passes are torch custom operators: `torch.compile` neither traces nor breaks at them, and they never wait for the
device. The few kilobytes that say where pixels lie are uploaded when a size is first drawn, then kept, so draw a size
once before capturing it in a CUDA graph.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from models import triton_kernels
from models.kernels import DRAWABLE, log_window
from models.pixels import Axis
from models.splats import PARAMETERS

# Pixels of a tile (rows, columns) and the splat-pixel pairs that one thread holds at once, which sets the warps.
# Measured on an H100, forward: 868 k pictures/s at 64 px; tiles of 8x8 with 8 pairs 679 k, with 16 pairs 809 k.
FORWARD_TILE, FORWARD_PAIRS = (4, 8), 16
BACKWARD_TILE, BACKWARD_PAIRS = (4, 8), 16
# A patch of at least this many tiles is worth testing its neighbours for negligible weight.
CULLED_TILES = 4
COMBINED_PATCHES = 8


@functools.lru_cache(maxsize=1024)
def _places(axis: Axis, neighbourhood: int, device: torch.device) -> tuple[Tensor, Tensor, int, int, int]:
    """An axis on the device: first pixel of each patch int32 [patches + 1], places [1 + neighbourhood, pixels].

    The places are the pixels' offsets in their patch, then the log2 windows of each neighbour, -inf beyond the picture.
    With them the first patch that has pixels, how many from there on have some, and the most pixels of any.
    """
    home, offset = axis.centres()
    edges = torch.searchsorted(home, torch.arange(axis.patches + 1))
    steps = torch.arange(neighbourhood)[:, None] - neighbourhood // 2
    if neighbourhood == 1:
        window = torch.zeros(1, len(axis), dtype=torch.float64)
    else:
        beyond = (home + steps < 0) | (home + steps >= axis.patches)
        window = log_window(offset - steps).masked_fill(beyond, -math.inf) * math.log2(math.e)
    first, last = int(home[0]), int(home[-1])
    places = torch.cat([offset[None], window]).float()
    return edges.int().to(device), places.to(device), first, last - first + 1, int(edges.diff().max())


def _geometry(
    field: Tensor, axis_y: Axis, axis_x: Axis, neighbourhood: int, tile: tuple[int, int]
) -> tuple[list[Tensor], list[int], int]:
    """Launch arguments shared by both passes (tables, then sizes) and the tiles of a patch."""
    edges_y, place_y, first_row, drawn_rows, most_y = _places(axis_y, neighbourhood, field.device)
    edges_x, place_x, first_column, drawn_columns, most_x = _places(axis_x, neighbourhood, field.device)
    tiles_y, tiles_x = triton.cdiv(most_y, tile[0]), triton.cdiv(most_x, tile[1])
    rows, columns = field.shape[1:3]
    sizes = [rows, columns, first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x]
    return [edges_y, place_y, edges_x, place_x], [*sizes, len(axis_y), len(axis_x)], tiles_y * tiles_x


def _warps(tile: tuple[int, int], splats: int, pairs: int) -> int:
    """Warps that give each thread at most about `pairs` of a tile's splat-pixel pairs with one patch."""
    return min(8, max(1, tile[0] * tile[1] * splats // (32 * pairs)))


def _launch_forward(
    field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int, keep_lse: bool
) -> tuple[Tensor, Tensor]:
    batch, _, _, splats, _ = field.shape
    image, lse = _outputs(field, len(axis_y), len(axis_x), keep_lse)
    if batch == 0:
        return image, lse
    tables, sizes, tiles = _geometry(field, axis_y, axis_x, neighbourhood, FORWARD_TILE)
    padded = triton.next_power_of_2(splats)
    triton_kernels.forward[(batch * sizes[4] * sizes[5] * tiles,)](
        field,
        *tables,
        image,
        lse,
        *sizes,
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        KERNEL=kernel,
        BLOCK_Y=FORWARD_TILE[0],
        BLOCK_X=FORWARD_TILE[1],
        CULL=tiles >= CULLED_TILES,
        KEEP_LSE=keep_lse,
        FAST=field.is_cuda,
        num_warps=_warps(FORWARD_TILE, padded, FORWARD_PAIRS),
        num_stages=1,
    )
    return image, lse


def _launch_backward(
    gradient: Tensor,
    field: Tensor,
    image: Tensor,
    lse: Tensor,
    axis_y: Axis,
    axis_x: Axis,
    kernel: str,
    neighbourhood: int,
) -> Tensor:
    batch, rows, columns, splats, _ = field.shape
    to_field = torch.empty_like(field)
    if batch == 0:
        return to_field
    tables, sizes, tiles = _geometry(field, axis_y, axis_x, neighbourhood, BACKWARD_TILE)
    padded = triton.next_power_of_2(splats)
    drawn = batch * sizes[4] * sizes[5]
    partial = field.new_empty(drawn, tiles, neighbourhood**2, len(PARAMETERS), splats)
    triton_kernels.backward[(drawn * tiles,)](
        field,
        *tables,
        image,
        lse,
        gradient,
        partial,
        *sizes,
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        KERNEL=kernel,
        BLOCK_Y=BACKWARD_TILE[0],
        BLOCK_X=BACKWARD_TILE[1],
        CULL=tiles >= CULLED_TILES,
        FAST=field.is_cuda,
        num_warps=_warps(BACKWARD_TILE, padded, BACKWARD_PAIRS),
        num_stages=1,
    )
    partial = partial.sum(1) if tiles > 1 else partial
    patches = batch * rows * columns
    triton_kernels.combine[(triton.cdiv(patches, COMBINED_PATCHES),)](
        field,
        partial,
        to_field,
        patches,
        *sizes[:6],
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        BLOCK=COMBINED_PATCHES,
        num_warps=4,
        num_stages=1,
    )
    return to_field


def _outputs(field: Tensor, height: int, width: int, keep_lse: bool) -> tuple[Tensor, Tensor]:
    batch = field.shape[0]
    image = field.new_empty(batch, 3, height, width)
    return image, field.new_empty((batch, height, width) if keep_lse else (0,))


# An axis as an operator's arguments: its integers, then its fractions.
_AXES = "int[] sizes_y, float[] span_y, int[] sizes_x, float[] span_x, str kernel, int neighbourhood"


def _axis(sizes: list[int], span: list[float]) -> Axis:
    pixels, patches, first, last = sizes
    return Axis(pixels, span[0], span[1], patches, first, last)


@torch.library.custom_op(
    "splatcats::draw",
    mutates_args=(),
    schema=f"(Tensor field, {_AXES}, bool keep_lse) -> (Tensor, Tensor)",
)
def _draw_operator(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse):  # type: ignore[no-untyped-def]
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    return _launch_forward(field.contiguous(), *axes, kernel, neighbourhood, keep_lse)


@_draw_operator.register_fake
def _(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse):  # type: ignore[no-untyped-def]
    return _outputs(field, sizes_y[3] - sizes_y[2], sizes_x[3] - sizes_x[2], keep_lse)


@torch.library.custom_op(
    "splatcats::draw_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor field, Tensor image, Tensor lse, {_AXES}) -> Tensor",
)
def _backward_operator(  # type: ignore[no-untyped-def]
    gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood
):
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    return _launch_backward(gradient.contiguous(), field.contiguous(), image, lse, *axes, kernel, neighbourhood)


@_backward_operator.register_fake
def _(gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood):  # type: ignore[no-untyped-def]
    return torch.empty_like(field, memory_format=torch.contiguous_format)


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    field, *ctx.arguments, _ = inputs
    ctx.save_for_backward(field, *output)


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]
    return _backward_operator(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * 7


_draw_operator.register_autograd(_differentiate, setup_context=_remember)


def draw(field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int) -> Tensor:
    """Samples [B, 3, Y, X] of splat fields [B, H, W, K, 9], fp32, at the crossings of two axes.

    The same function as the reference in `models.rasterize`, to 1e-4, and once differentiable in `field`.
    """
    assert kernel in DRAWABLE
    assert field.dtype == torch.float32
    keep_lse = torch.is_grad_enabled() and field.requires_grad
    arguments = []
    for axis in (axis_y, axis_x):
        arguments += [[axis.pixels, axis.patches, axis.first, axis.last], [axis.start, axis.stop]]
    image, _ = _draw_operator(field, *arguments, kernel, neighbourhood, keep_lse)
    return image
