"""From splats to uint8 pixels: pictures in bands of bounded size, and the frames of those that move.

Every output takes its pixels from `bands`, so the same splats at the same size are the same pixels in all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.rasterize import rasterize, to_uint8
from pipeline.datasets import rollout_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import RenderPlan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.transfer import download
from pipeline.rendering.encoders import ENCODINGS, Facts, Picture
from pipeline.rendering.framing import Frame, fit, parse_region, parse_zoom, zoom

# At most so many pixels are floating point numbers at once: larger pictures are drawn in bands, smaller ones together.
# On a GPU one call draws enough to outweigh its start; on a CPU it is the encoders that should not wait long.
PIXELS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 23}
# A whole picture, or all frames of one, is held in memory, about three times at once.
PIXELS_HELD = 1 << 28
# How long the last frame of an animation stands.
HOLD_MILLISECONDS = 1000

Item = TypeVar("Item")


@dataclass(frozen=True)
class Look:
    """How splats are drawn, whatever is shown of them, as `models.rasterize.rasterize` says, and their pixels."""

    kernel: str
    neighbourhood: int
    view: str
    channels: int = 3  # bytes of a pixel: 3, or 4, a byte of 0 behind the colours


def look_of(plan: RenderPlan) -> Look:
    """How a plan's pictures are drawn."""
    return Look(plan.kernel, plan.neighbourhood, plan.view, ENCODINGS[plan.encoding].channels)


def frame_of(plan: RenderPlan, aspect: float) -> Frame:
    """Where a plan's pictures show what, for splats on a grid whose columns are `aspect` times its rows."""
    return fit(plan.width, plan.height, parse_region(plan.region), plan.fit, aspect)


def facts_of(plan: RenderPlan, index: int) -> Facts:
    """What is known of a picture of the plan, for its reader."""
    names = ("seed", "kernel", "neighbourhood", "view", "width", "height", "region", "fit", "source")
    return {"index": index, **{name: getattr(plan, name) for name in names}}


def bands(fields: Tensor, frame: Frame, look: Look) -> Iterator[np.ndarray]:
    """Draw splat fields [B, H, W, K, P] from top to bottom, some rows at a time: uint8 [B, rows, width, channels]."""
    rows = _rows_at_once(fields, frame)
    tops = range(0, frame.height, rows)
    begun = (_begin(fields, frame, look, top, min(top + rows, frame.height)) for top in tops)
    for ready in begun_early(begun, fields.device.type):
        yield ready()


def _rows_at_once(fields: Tensor, frame: Frame) -> int:
    return max(1, PIXELS_AT_ONCE[fields.device.type] // (frame.width * len(fields)))


def begun_early(items: Iterator[Item], device: str) -> Iterator[Item]:
    """The same items, on a GPU each asked for before the one before it is used: it is drawn in that time."""
    if device == "cpu":
        yield from items
        return
    for item, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield cast(Item, item)


@torch.inference_mode()
def _begin(fields: Tensor, frame: Frame, look: Look, top: int, bottom: int) -> Callable[[], np.ndarray]:
    """Begin to draw the rows from `top` to `bottom`; what is returned waits for them, and gives them."""
    first, last = (min(max(row - frame.top, 0), frame.inner_height) for row in (top, bottom))
    inside = None
    if first < last:
        x0, y0, x1, y1 = frame.region
        down = (y1 - y0) / frame.inner_height
        # Beside y1 itself there may be no room for the rounding of a sum.
        low = y0 + last * down if last < frame.inner_height else y1
        drawn = rasterize(
            fields,
            last - first,
            frame.inner_width,
            region=(x0, y0 + first * down, x1, low),
            kernel=look.kernel,
            neighbourhood=look.neighbourhood,
            view=look.view,
            dtype=torch.uint8,
        )
        pixels = to_uint8(drawn)
        inside = download(F.pad(pixels, (0, look.channels - 3)) if look.channels > 3 else pixels)
        if (last - first, frame.inner_width) == (bottom - top, frame.width):
            return inside

    def framed() -> np.ndarray:
        band = np.zeros((len(fields), bottom - top, frame.width, look.channels), dtype=np.uint8)
        if inside is not None:
            above = frame.top + first - top
            band[:, above : above + last - first, frame.left : frame.left + frame.inner_width] = inside()
        return band

    return framed


def draw(fields: Tensor, frame: Frame, look: Look) -> np.ndarray:
    """Draw splat fields [B, H, W, K, P] whole: uint8 [B, height, width, channels]; a pure function of its arguments."""
    if _rows_at_once(fields, frame) >= frame.height:
        return next(bands(fields, frame, look))
    whole = np.empty((len(fields), frame.height, frame.width, look.channels), dtype=np.uint8)
    top = 0
    for band in bands(fields, frame, look):
        whole[:, top : top + band.shape[1]] = band
        top += band.shape[1]
    return whole


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block PyTorch computes in one thread: several spin while they wait for one that other work delays."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def begin_draw(fields: Tensor, frame: Frame, look: Look) -> Callable[[], np.ndarray]:
    """What `draw` gives, waited for by calling what is returned; begun now, if it is one band."""
    if _rows_at_once(fields, frame) >= frame.height:
        return _begin(fields, frame, look, 0, frame.height)
    return partial(draw, fields, frame, look)


def fields_of(source: SplatDataset, indices: Indices, device: str, at_once: int) -> Iterator[tuple[list[int], Tensor]]:
    """The chosen pictures' numbers and splat fields on `device`, at most `at_once` together."""
    for numbers, fields in source.read(indices):
        there = fields.to(device)
        for start in range(0, len(numbers), at_once):
            yield numbers[start : start + at_once], there[start : start + at_once]


def standing(source: SplatDataset, plan: RenderPlan, indices: Indices, device: str) -> Iterator[Picture]:
    """The chosen pictures, one frame each."""
    frame, look = frame_of(plan, source.plan.columns / source.plan.rows), look_of(plan)
    at_once = max(1, PIXELS_AT_ONCE[device] // (frame.width * frame.height))
    chosen = fields_of(source, indices, device, at_once)
    begun = ((numbers, begin_draw(fields, frame, look)) for numbers, fields in chosen)
    for numbers, ready in begun_early(begun, device):
        for index, pixels in zip(numbers, ready(), strict=True):
            yield Picture(facts_of(plan, index), [pixels])


def zooming(source: SplatDataset, plan: RenderPlan, indices: Indices, device: str) -> Iterator[Picture]:
    """Each of the chosen pictures as a zoom along the plan's path."""
    frame, look = frame_of(plan, source.plan.columns / source.plan.rows), look_of(plan)
    views = [frame.showing(region) for region in zoom(frame.region, parse_zoom(plan.path), plan.frames)]
    for numbers, field in fields_of(source, indices, device, 1):
        yield _moving(plan, numbers[0], [draw(field, view, look)[0] for view in views], path=plan.path)


def becoming(source: SplatDataset, plan: RenderPlan, indices: Indices, device: str) -> Iterator[Picture]:
    """Each of the chosen pictures as its rollout: the noise, then the splats that the network answered at each step."""
    frame, look = frame_of(plan, source.plan.columns / source.plan.rows), look_of(plan)
    for rollout in rollout_file.read(source, indices):
        steps = rollout.fields.to(device).split(1)
        frames = [_noise(rollout.noisy[:1], frame), *(draw(field, frame, look)[0] for field in steps)]
        yield _moving(plan, rollout.index, frames, times=json.dumps([0.0, *rollout.times]))


def _noise(noisy: Tensor, frame: Frame) -> np.ndarray:
    """What the network first saw, [1, 3, Y, X], in a frame as large squares: uint8 [height, width, 3]."""
    x0, y0, x1, y1 = frame.region
    height, width = noisy.shape[2:]
    row = ((y0 + (y1 - y0) * (torch.arange(frame.inner_height) + 0.5) / frame.inner_height) * height).long()
    column = ((x0 + (x1 - x0) * (torch.arange(frame.inner_width) + 0.5) / frame.inner_width) * width).long()
    inside = noisy[:, :, row.clamp(max=height - 1)][..., column.clamp(max=width - 1)]
    right, below = frame.width - frame.left - frame.inner_width, frame.height - frame.top - frame.inner_height
    return to_uint8(F.pad(inside, (frame.left, right, frame.top, below), value=-1.0))[0].numpy()


def succeeding(source: SplatDataset, plan: RenderPlan, indices: Indices, device: str) -> Iterator[Picture]:
    """All of the chosen pictures as the frames of one animation, which has the number of the first."""
    still = list(standing(source, plan, indices, device))
    yield _moving(plan, still[0].index, [picture.frames[0] for picture in still], pictures=str(indices))


def _moving(plan: RenderPlan, index: int, frames: list[np.ndarray], **known: str) -> Picture:
    milliseconds = [plan.frame_milliseconds] * (len(frames) - 1) + [HOLD_MILLISECONDS]
    return Picture({**facts_of(plan, index), "motion": plan.motion, **known}, frames, milliseconds)


Motion = Callable[[SplatDataset, RenderPlan, Indices, str], Iterator[Picture]]
MOTIONS: dict[str, Motion] = {"none": standing, "zoom": zooming, "rollout": becoming, "pictures": succeeding}
