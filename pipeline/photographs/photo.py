"""One photograph: from encoded bytes to a square RGB picture, its identity, its reductions, its PNG.

Every function is pure. The same bytes give the same pixels; which decoder Pillow was built with may move a JPEG's
pixels by a level between machines.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import UserError, one_line

SIDE_MIN = 64
Box = tuple[int, int, int, int]

Image.init()
# What cameras and the web produce. Pillow knows more, and some of that starts other programs (PostScript).
FORMATS = tuple(name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN)
# Measured on 256 px cats: level 1 takes 4.5 ms and 113 KB, level 6 15 ms and 121 KB, no compression 2.5 ms and 197 KB.
PNG_LEVEL = 1


def parse_box(text: str) -> Box:
    """Read "x0,y0,x1,y1" as a square of source pixels of at least SIDE_MIN; UserError where it is none."""
    try:
        x0, y0, x1, y1 = (int(number) for number in text.split(","))
    except ValueError as error:
        raise UserError(f"--box {text}: four whole numbers x0,y0,x1,y1 are needed") from error
    if min(x0, y0) < 0 or x1 - x0 != y1 - y0:
        raise UserError(f"--box {text} is not a square within a picture (x1-x0 = y1-y0, none negative)")
    if x1 - x0 < SIDE_MIN:
        raise UserError(f"--box {text} is smaller than {SIDE_MIN} x {SIDE_MIN} pixels")
    return x0, y0, x1, y1


def decode(data: bytes, box: Box | None = None) -> Image.Image:
    """Decode one picture, upright, to a square RGB crop at its native resolution.

    The crop is `box` in pixels of the upright picture, else the largest centred square. Transparency is composited
    on white; 16-bit grey is scaled to 8 bits; colour profiles are not applied; of an animation the first frame is
    taken. Raises ValueError for a crop below SIDE_MIN or a box outside the picture, and whatever Pillow raises for
    bytes that it cannot decode; its limit against decompression bombs is an error from MAX_IMAGE_PIXELS on.
    """
    if not data:
        raise ValueError("empty file")
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels are too many for a photograph")
        picture = ImageOps.exif_transpose(opened)
    width, height = picture.size
    if box is None:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = left, top, left + side, top + side
    elif box[2] > width or box[3] > height:
        raise ValueError(f"the box {','.join(map(str, box))} reaches outside the picture's {width} x {height} pixels")
    if box[2] - box[0] < SIDE_MIN:
        raise ValueError(f"its {width} x {height} pixels give a square below {SIDE_MIN}")
    return _to_rgb(picture.crop(box))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("grey levels beyond 16 bits have no known white")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point grey levels have no known white")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def reason(error: Exception) -> str:
    """Why a picture could not be used, in one line that is the same on every run."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture ({', '.join(FORMATS)})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def identity(picture: Image.Image) -> str:
    """The sha256 (hex) of a crop's size and RGB pixels: equal exactly for equal crops, whatever their encoding."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height} RGB ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def is_heldout(identity: str) -> bool:
    """Whether a photograph belongs to the 5 % never trained on; depends on nothing but its crop's pixels."""
    return int(identity[:8], 16) % 20 == 0


def reduce_to_cap(picture: Image.Image, cap: int) -> Image.Image:
    """A square picture at `cap` pixels where it is larger, else itself.

    By Lanczos: the ratio is rarely whole, and Pillow's box filter gives each output pixel whole source pixels only,
    so that near ratio 1 it repeats some and averages others.
    """
    return picture if picture.width <= cap else picture.resize((cap, cap), Image.Resampling.LANCZOS)


def reduce_area(picture: Image.Image, side: int) -> Image.Image:
    """A square RGB picture reduced to `side` by exact area averaging, also where the ratio is not whole."""
    source = picture.width
    assert source >= side
    if source % side == 0:
        return picture.reduce(source // side) if source > side else picture
    # Source pixel j covers [j side, (j+1) side) and output pixel i [i source, (i+1) source) on a common grid. The
    # overlaps are whole numbers and their sums exact in float64, so that no machine rounds differently.
    pixel = np.arange(source) * side
    output = np.arange(side)[:, None] * source
    overlap = np.minimum(pixel + side, output + source) - np.maximum(pixel, output)
    weights = overlap.clip(min=0).astype(np.float64)
    rows = weights @ np.asarray(picture, dtype=np.float64).reshape(source, source * 3)
    sums = weights @ rows.reshape(side, source, 3).transpose(1, 0, 2).reshape(source, side * 3)
    levels = np.floor(sums / source**2 + 0.5).astype(np.uint8)
    return Image.fromarray(levels.reshape(side, side, 3).transpose(1, 0, 2).copy())


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG, without metadata."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()
