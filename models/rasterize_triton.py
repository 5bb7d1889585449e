"""Fused Triton kernels for `models.rasterize`: the same blend in one launch forward and three backward, CUDA fp32.

Splats are binned by construction: a pixel sees the splats of its 3x3 patches and no others, so nothing is sorted and
nothing is accumulated atomically; results are deterministic. Forward, one warp draws one tile of one patch's pixels.
Backward, one warp gathers the gradients of one patch's splats from some tiles of its 3x3 patches of pixels, recomputing
the weights from each pixel's log-sum-exp; for that, pixels are laid out anew, 28 bytes each.

Splats whose weight is negligible at every pixel of a tile are skipped: those below 2^-cutoff of the largest weight
there, by exact bounds over the tile. The cutoff grows with K such that all skipped splats together change a pixel by
at most `kernels.NEGLIGIBLE` of the largest colour. Backward, a tile is skipped by the splats that are below 2^-cutoff
of every pixel's sum of weights there.

Both passes are torch custom operators: `torch.compile` neither traces nor breaks at them, and they never wait for the
device. The few kilobytes that say where pixels lie are uploaded when a size is first drawn or differentiated, then
kept, so do that once before capturing it in a CUDA graph.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from models.kernels import DRAWABLE, cutoff, log_window
from models.pixels import Axis
from models.splats import PARAMETERS
from models.triton_backward import backward
from models.triton_forward import forward
from models.triton_layout import combine, pack

# Tiles of the forward pass (pixel rows, columns, splats at once), by the least pixels that a patch has along x.
FORWARD_TILES = {0: (8, 8, 2), 16: (16, 16, 1)}
# Of the backward pass, likewise: pixel rows and columns of a tile; the splats that a warp takes at once; the tiles that
# it takes for them, one after the other, which should fit in its part of the cache; and whether it skips those in which
# the splats are negligible (then tiles are a power of 2, at most 32). 32 / splats is a multiple of the columns.
BACKWARD_TILES = {0: (8, 8, 4, 9, False), 16: (16, 8, 4, 4, False), 32: (16, 16, 1, 4, True), 128: (16, 16, 1, 8, True)}
COMBINED_SPLATS, COMBINED_STRIPS = 16, 8


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


@functools.lru_cache(maxsize=1024)
def _tiled(axis: Axis, neighbourhood: int, device: torch.device, tile: int) -> tuple[Tensor, Tensor, int]:
    """An axis cut into tiles within patches, on the device, and tiles a patch: pixels int32 [n], places [n', 2, n].

    n is tiles a patch times patches drawn times `tile`; where a patch has fewer pixels, they are -1. Places are, for
    each of n' neighbours, the pixel's offset in the neighbour's patch, and the log2 window there; where there is no
    pixel, those of the patch's last.
    """
    edges, places, first, drawn, most = _places(axis, neighbourhood, torch.device("cpu"))
    tiles = triton.cdiv(most, tile)
    low, end = (edges[at : at + drawn, None].long() for at in (first, first + 1))
    pixel = low + torch.arange(tiles * tile)
    nearest = torch.minimum(pixel, end - 1).clamp(min=0).flatten()
    steps = torch.arange(neighbourhood)[:, None] - neighbourhood // 2
    table = torch.stack([places[:1, nearest] - steps, places[1:, nearest]], dim=1)
    return pixel.where(pixel < end, -1).int().flatten().to(device), table.contiguous().to(device), tiles


def _geometry(
    field: Tensor, axis_y: Axis, axis_x: Axis, neighbourhood: int
) -> tuple[list[Tensor], list[int], tuple[int, int]]:
    """Launch arguments of both passes (tables, then sizes), and the most pixels of a patch along either axis."""
    edges_y, place_y, first_row, drawn_rows, most_y = _places(axis_y, neighbourhood, field.device)
    edges_x, place_x, first_column, drawn_columns, most_x = _places(axis_x, neighbourhood, field.device)
    sizes = [*field.shape[1:3], first_row, first_column, drawn_rows, drawn_columns, len(axis_y), len(axis_x)]
    return [edges_y, place_y, edges_x, place_x], sizes, (most_y, most_x)


def _options(field: Tensor, kernel: str, neighbourhood: int) -> dict[str, object]:
    """What both passes are compiled for."""
    splats = field.shape[3]
    return {
        "K": splats,
        "KP": triton.next_power_of_2(splats),
        "SIDE": neighbourhood,
        "KERNEL": kernel,
        "CUTOFF": cutoff(neighbourhood**2 * splats),
        "FAST": field.is_cuda,
        "num_stages": 1,
    }


def _launch_forward(
    field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int, keep_lse: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    image, lse = _outputs(field, len(axis_y), len(axis_x), keep_lse, dtype)
    if len(field) == 0:
        return image, lse
    tables, sizes, (most_y, most_x) = _geometry(field, axis_y, axis_x, neighbourhood)
    block_y, block_x, group = FORWARD_TILES[max(least for least in FORWARD_TILES if least <= most_x)]
    tiles = triton.cdiv(most_y, block_y), triton.cdiv(most_x, block_x)
    options = _options(field, kernel, neighbourhood)
    words = neighbourhood**2 * max(1, triton.next_power_of_2(field.shape[3]) // 16)
    forward[(len(field) * sizes[4] * sizes[5] * tiles[0] * tiles[1],)](
        field,
        *tables,
        image,
        lse,
        *sizes,
        *tiles,
        SLOTS=triton.next_power_of_2(words),
        BLOCK_Y=block_y,
        BLOCK_X=block_x,
        GROUP=group,
        KEEP_LSE=keep_lse,
        num_warps=1,
        **options,
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
    _, sizes, (_, most_x) = _geometry(field, axis_y, axis_x, neighbourhood)
    tile_y, tile_x, group, taken, cull = BACKWARD_TILES[max(least for least in BACKWARD_TILES if least <= most_x)]
    pixels_y, place_y, tiles_y = _tiled(axis_y, neighbourhood, field.device, tile_y)
    pixels_x, place_x, tiles_x = _tiled(axis_x, neighbourhood, field.device, tile_x)
    grid_y, grid_x = len(pixels_y) // tile_y, len(pixels_x) // tile_x
    tiles = batch * grid_y * grid_x
    packed = field.new_empty(tiles, neighbourhood + 4, tile_y * tile_x)
    least = field.new_empty(tiles, neighbourhood)
    lanes = 32 // group
    pack[(tiles,)](
        pixels_y, place_y, pixels_x, image, lse, gradient, packed, least, grid_y, grid_x, *sizes[-2:],
        SIDE=neighbourhood, LANES=lanes, COLUMN=tile_y * tile_x // lanes, TILE_X=tile_x, num_warps=1, num_stages=1,
    )  # fmt: skip
    strips = triton.cdiv(neighbourhood**2 * tiles_y * tiles_x, taken)
    patches = batch * rows * columns
    partial = field.new_empty(patches, strips, len(PARAMETERS), splats)
    step_y = axis_y.patches * (axis_y.stop - axis_y.start) / axis_y.pixels
    backward[(patches * strips,)](
        field, place_y, place_x, packed, least, partial, *sizes[:-2], tiles_y, tiles_x, strips, step_y,
        TILE_Y=tile_y, TILE_X=tile_x, GROUP=group, TAKEN=taken, CULL=cull, num_warps=1,
        **_options(field, kernel, neighbourhood),
    )  # fmt: skip
    count = patches * splats
    combine[(triton.cdiv(count, COMBINED_SPLATS),)](
        field, partial, to_field, count, strips, K=splats, BLOCK=COMBINED_SPLATS, STRIPS=COMBINED_STRIPS,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return to_field


def _outputs(field: Tensor, height: int, width: int, keep_lse: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch = len(field)
    layout = torch.channels_last if dtype == torch.uint8 else torch.contiguous_format
    image = torch.empty((batch, 3, height, width), dtype=dtype, device=field.device, memory_format=layout)
    return image, field.new_empty((batch, height, width) if keep_lse else (0,))


_AXES = "int[] sizes_y, float[] span_y, int[] sizes_x, float[] span_x, str kernel, int neighbourhood"


def _axis(sizes: list[int], span: list[float]) -> Axis:
    """An axis from an operator's arguments: its integers, and its fractions."""
    pixels, patches, first, last = sizes
    return Axis(pixels, span[0], span[1], patches, first, last)


@torch.library.custom_op(
    "splatcats::draw",
    mutates_args=(),
    schema=f"(Tensor field, {_AXES}, bool keep_lse, ScalarType dtype) -> (Tensor, Tensor)",
)
def _draw_operator(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse, dtype):  # type: ignore[no-untyped-def]
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    with torch.cuda.device_of(field):  # Triton launches on the current one
        return _launch_forward(field.contiguous(), *axes, kernel, neighbourhood, keep_lse, dtype)


@_draw_operator.register_fake
def _(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse, dtype):  # type: ignore[no-untyped-def]
    return _outputs(field, sizes_y[3] - sizes_y[2], sizes_x[3] - sizes_x[2], keep_lse, dtype)


@torch.library.custom_op(
    "splatcats::draw_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor field, Tensor image, Tensor lse, {_AXES}) -> Tensor",
)
def _backward_operator(  # type: ignore[no-untyped-def]
    gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood
):
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    with torch.cuda.device_of(field):
        return _launch_backward(gradient.contiguous(), field.contiguous(), image, lse, *axes, kernel, neighbourhood)


@_backward_operator.register_fake
def _(gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood):  # type: ignore[no-untyped-def]
    return torch.empty_like(field, memory_format=torch.contiguous_format)


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    field, *ctx.arguments, _, _ = inputs
    ctx.save_for_backward(field, *output)


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]
    return _backward_operator(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * 8


_draw_operator.register_autograd(_differentiate, setup_context=_remember)


def draw(
    field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Samples [B, 3, Y, X] of splat fields [B, H, W, K, 9], fp32, at the crossings of two axes.

    The same function as the reference in `models.rasterize`, to 1e-4, and once differentiable in `field`. `dtype` is
    that of the samples: float32; float16; or uint8, clamped, rounded, and laid out channels last, without gradient.
    """
    assert kernel in DRAWABLE
    assert field.dtype == torch.float32
    keep_lse = torch.is_grad_enabled() and field.requires_grad and dtype == torch.float32
    arguments = []
    for axis in (axis_y, axis_x):
        arguments += [[axis.pixels, axis.patches, axis.first, axis.last], [axis.start, axis.stop]]
    image, _ = _draw_operator(field if keep_lse else field.detach(), *arguments, kernel, neighbourhood, keep_lse, dtype)
    return image
