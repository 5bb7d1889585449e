"""What goes where in a drawn picture: its size, the region it shows, how that fits, the path of a zoom."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.errors import UserError
from models.rasterize import WHOLE, Region

FITS = ("crop", "letterbox", "stretch")
# Positions in a patch are float32 when splats are evaluated: finer than this, neighbouring pixels fall together.
FINEST_PATCHES = 2.0**-20


@dataclass(frozen=True)
class Frame:
    """A picture of width x height pixels that shows `region` in the box left, top, inner_width, inner_height."""

    width: int
    height: int
    region: Region
    left: int
    top: int
    inner_width: int
    inner_height: int

    def showing(self, region: Region) -> Frame:
        """The same picture of another region."""
        box = (self.left, self.top, self.inner_width, self.inner_height)
        return Frame(self.width, self.height, region, *box)

    def reduced(self, factor: int) -> Frame:
        """The same picture with `factor` times fewer pixels along both sides, rounded up."""
        left, top = self.left // factor, self.top // factor
        right, bottom = -(-(self.left + self.inner_width) // factor), -(-(self.top + self.inner_height) // factor)
        size = (-(-self.width // factor), -(-self.height // factor))
        return Frame(*size, self.region, left, top, right - left, bottom - top)


def fit(width: int, height: int, region: Region, how: str, aspect: float) -> Frame:
    """Frame `region` of a picture whose own width is `aspect` times its height.

    Where the shapes differ: `stretch` fills the frame with the region, `crop` with the middle of it, and `letterbox`
    shows all of it between black bars.
    """
    x0, y0, x1, y1 = region
    # How much wider the frame is, in proportion, than what it is to show.
    wider = width / height / _shape(region, aspect)
    whole = (0, 0, width, height)
    if how == "stretch" or math.isclose(wider, 1.0, rel_tol=1e-9):
        return Frame(width, height, region, *whole)
    if how == "crop":
        if wider > 1.0:
            middle, half = (y0 + y1) / 2, (y1 - y0) / wider / 2
            return Frame(width, height, (x0, middle - half, x1, middle + half), *whole)
        middle, half = (x0 + x1) / 2, (x1 - x0) * wider / 2
        return Frame(width, height, (middle - half, y0, middle + half, y1), *whole)
    inner_width = max(1, round(width / max(1.0, wider)))
    inner_height = max(1, round(height * min(1.0, wider)))
    place = ((width - inner_width) // 2, (height - inner_height) // 2)
    return Frame(width, height, region, *place, inner_width, inner_height)


def _shape(region: Region, aspect: float) -> float:
    x0, y0, x1, y1 = region
    return aspect * (x1 - x0) / (y1 - y0)


def with_longer_side(pixels: int, region: Region, aspect: float) -> tuple[int, int]:
    """Width and height of `region` at its own shape, the longer of `pixels`; the other may come out as 0."""
    shape = _shape(region, aspect)
    return (pixels, round(pixels / shape)) if shape >= 1.0 else (round(pixels * shape), pixels)


def parse_size(text: str, region: Region = WHOLE, aspect: float = 1.0) -> tuple[int, int]:
    """Read `640x480`, or `512`, the longer side of a picture of `region`, as (width, height); UserError for others."""
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise UserError(f"--size {text}: give pixels, like 1024, or WIDTHxHEIGHT, like 1920x1080")
    first = int(match[1])
    width, height = (first, int(match[2])) if match[2] else with_longer_side(first, region, aspect)
    if min(width, height) < 1:
        raise UserError(f"--size {text} makes {width}x{height} pixels: both sides must be at least 1")
    return width, height


def parse_region(text: str) -> Region:
    """Read `0.25,0.25,0.75,0.5` as (x0, y0, x1, y1); UserError unless it is a part of the picture."""
    x0, y0, x1, y1 = _numbers(text, 4, f"--region {text}: give x0,y0,x1,y1 in fractions, like 0.25,0.25,0.75,0.5")
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(
            f"--region {text} is not inside the picture: give fractions with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        )
    return x0, y0, x1, y1


def region_text(region: Region) -> str:
    """The text that `parse_region` reads back as the same region."""
    return ",".join(map(repr, region))


@dataclass(frozen=True)
class Waypoint:
    """A place on the way of a zoom: its centre in fractions of the picture, and how many times it is magnified."""

    x: float
    y: float
    factor: float

    def region(self, start: Region) -> Region:
        """The part of `start`, of its shape, that is seen there: moved inwards where it would lie outside.

        UserError where the centre itself is outside.
        """
        x0, y0, x1, y1 = start
        if not (x0 <= self.x <= x1 and y0 <= self.y <= y1):
            raise UserError(
                f"--zoom: {self.x:g},{self.y:g} is not inside the part of the picture that the film begins with,"
                f" {x0:g},{y0:g},{x1:g},{y1:g}: give a place there, or another --region or --size"
            )
        half_x, half_y = (x1 - x0) / self.factor / 2, (y1 - y0) / self.factor / 2
        x = min(max(self.x, x0 + half_x), x1 - half_x)
        y = min(max(self.y, y0 + half_y), y1 - half_y)
        return max(x0, x - half_x), max(y0, y - half_y), min(x1, x + half_x), min(y1, y + half_y)


def parse_zoom(text: str) -> tuple[Waypoint, ...]:
    """Read `0.4,0.45,12`, or several of these separated by `;`, as a path; UserError for anything else."""
    path = []
    for part in text.split(";"):
        usage = f"--zoom {text}: give x,y,factor, like 0.4,0.45,12, or several of these separated by ';'"
        x, y, factor = _numbers(part, 3, usage)
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise UserError(f"--zoom {text}: {x:g},{y:g} is not inside the picture; give fractions from 0 to 1")
        if not 1 <= factor < math.inf:
            raise UserError(f"--zoom {text}: factor {factor:g}; give a number of at least 1")
        path.append(Waypoint(x, y, factor))
    return tuple(path)


def zoom_text(path: Sequence[Waypoint]) -> str:
    """The text that `parse_zoom` reads back as the same path."""
    return ";".join(f"{p.x!r},{p.y!r},{p.factor!r}" for p in path)


def zoom(start: Region, path: Sequence[Waypoint], frames: int) -> Iterator[Region]:
    """The regions of an animation from `start` through the waypoints, each leg with the same time.

    The scale is exponential in the eased time, so the speed of the zoom looks even between a soft start and end; the
    corners move in proportion to the scale, which keeps one point of the picture where it is on the screen.
    """
    stops = [start, *(point.region(start) for point in path)]
    legs = list(itertools.pairwise(stops))
    for i in range(frames):
        time = len(legs) * i / max(1, frames - 1)
        leg = min(int(time), len(legs) - 1)
        yield _between(*legs[leg], _eased(time - leg))


def _eased(time: float) -> float:
    return time * time * (3.0 - 2.0 * time)


def _between(a: Region, b: Region, time: float) -> Region:
    ratio = (b[2] - b[0]) / (a[2] - a[0])
    # The share of the way for the corners: linear where the scale stays.
    moved = time if math.isclose(ratio, 1.0) else (ratio**time - 1.0) / (ratio - 1.0)
    x0, y0, x1, y1 = (p + (q - p) * moved for p, q in zip(a, b, strict=True))
    return x0, y0, x1, y1


def check_finest(region: Region, frame: Frame, rows: int, columns: int) -> None:
    """Raise UserError where pixels of `region` would lie nearer to each other than positions can be told apart."""
    x0, y0, x1, y1 = region
    pitch = min((x1 - x0) * columns / frame.inner_width, (y1 - y0) * rows / frame.inner_height)
    if pitch < FINEST_PATCHES:
        factor = f"at least {FINEST_PATCHES / pitch:.1f} times as much" if pitch > FINEST_PATCHES / 1e6 else "more"
        raise UserError(
            f"a region of {x1 - x0:g} x {y1 - y0:g} of the picture at {frame.width}x{frame.height} pixels is finer than"
            f" single precision resolves: show {factor}, or fewer pixels"
        )


def _numbers(text: str, count: int, usage: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(usage)
    return numbers
