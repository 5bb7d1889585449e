"""Encodings: pixels to bytes. One table; every encoder is deterministic and releases Python's lock while it works."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image, features

from models.errors import UserError
from pipeline.datasets.plan import CODE_VERSION

# Measured on four generated cats of 1024 px, one core of a shared machine, zlib 1.2.13, the filter `Sub` on every row:
# level 1 takes 24 ms and 655 KiB a picture, 2 31 ms and 620, 3 56 ms and 561, 4 42 ms and 490, 6 157 ms and 432.
# Pillow's own encoder (filters chosen row by row) takes 56 ms and 682 KiB at level 1, 77 ms and 542 at 4, 207 ms and
# 496 at 6. Level 4 is where time buys least after.
DEFLATE_LEVEL = 4
# Likewise, at quality 90: speed 8 takes 62 ms and 36 KiB, 6 246 ms and 23 KiB.
AVIF_SPEED = 8
SOFTWARE = f"splatcats {CODE_VERSION}"

Facts = dict[str, int | str]
"""What is known of a picture; plain values, the same in every output."""


@dataclass(frozen=True)
class Picture:
    """A picture to encode: uint8 [Y, X, channels] a frame, one unless it moves, and how long each is shown.

    Three channels, or one to spare behind them for an encoding that wants it.
    """

    facts: Facts
    frames: Sequence[np.ndarray]
    milliseconds: Sequence[int] = ()

    @property
    def index(self) -> int:
        """The number of the picture."""
        return int(self.facts["index"])


@dataclass(frozen=True)
class Encoding:
    """How a picture becomes bytes."""

    encode: Callable[[Picture, int], bytes]
    """Picture and quality, 1 to 100, to bytes."""
    largest_side: int  # in pixels
    qualities: bool = True  # or none to choose
    still: bool = True
    fastest: int = 0  # frames a second, since browsers play faster films slowly; 0: pictures stand still
    channels: int = 3
    """Of the pixels to encode. Pillow keeps a colour in 4 bytes, and shares a picture that is laid out like that. To
    copy it from 3 takes a seventh of the time of encoding JPEG, and Python's lock."""


def describe(facts: Facts) -> str:
    """The facts as JSON, the text in every file: PNG's `Description`, EXIF's `ImageDescription`, comments of others."""
    return json.dumps(facts)


def encode_png(picture: Picture, quality: int) -> bytes:
    """PNG, truecolour without alpha, `Sub` filter; the facts are the text chunk `Description`."""
    (pixels,) = picture.frames
    height, width, _ = pixels.shape
    texts = {"Software": SOFTWARE, "Description": describe(picture.facts)}
    chunks = [
        _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *(_png_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts.items()),
        _png_chunk(b"IDAT", zlib.compress(_filtered(pixels).data, DEFLATE_LEVEL)),
        _png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _filtered(pixels: np.ndarray) -> np.ndarray:
    """Rows of PNG's filter 1, `Sub`: each byte less the one a pixel to the left, after a byte that names the filter."""
    height, width, channels = pixels.shape
    rows = np.empty((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 0] = 1
    # Seen as pixels without a copy: a large picture is in memory often enough.
    seen = np.lib.stride_tricks.as_strided(rows[:, 1:], pixels.shape, (rows.strides[0], channels, 1))
    _difference(pixels, seen)
    return rows


def _difference(pixels: np.ndarray, out: np.ndarray) -> None:
    """Each pixel less its left neighbour, modulo 256, in every row of uint8 [Y, X, C], to `out` of the same shape."""
    out[:, 0] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=out[:, 1:])


def encode_deflate(picture: Picture, quality: int) -> bytes:
    """The contents of a TIFF tile, compression 8 (Adobe Deflate) with predictor 2 (horizontal differencing)."""
    (pixels,) = picture.frames
    differences = np.empty_like(pixels)
    _difference(pixels, differences)
    return zlib.compress(differences.data, DEFLATE_LEVEL)


def encode_ppm(picture: Picture, quality: int) -> bytes:
    """PPM (P6): a header of four short lines, the facts as a comment, then height * width * 3 bytes, row by row."""
    (pixels,) = picture.frames
    height, width, _ = pixels.shape
    return f"P6\n# {describe(picture.facts)}\n{width} {height}\n255\n".encode("ascii") + pixels.tobytes()


def encode_jpeg(picture: Picture, quality: int) -> bytes:
    """JPEG, 4:2:0 as is usual; the facts in EXIF."""
    (pixels,) = picture.frames
    height, width, channels = pixels.shape
    if channels == 4:
        image = Image.frombuffer("RGBX", (width, height), np.ascontiguousarray(pixels), "raw", "RGBX", 0, 1)
    else:
        image = Image.fromarray(pixels)
    # Pillow's encoder keeps Python's lock, but not while it writes to a file of the system's by itself.
    with _unnamed_file() as file:
        image.save(file, "JPEG", quality=quality, exif=_exif(picture.facts))
        file.seek(0)
        return file.read()


def encode_webp(picture: Picture, quality: int) -> bytes:
    """WebP, lossy, without alpha, animated if there are several frames; the facts in EXIF."""
    # Frames that draw over the one before (kmax above 1) have alpha for what stays, and are no smaller for it.
    moves = {"duration": list(picture.milliseconds), "loop": 0, "kmax": 1} if len(picture.frames) > 1 else {}
    # Pillow takes off the prefix, which a chunk of WebP has not, from pictures that stand still alone.
    exif = _exif(picture.facts).tobytes().removeprefix(b"Exif\0\0")
    return _saved(picture, "WEBP", quality=quality, exif=exif, **moves)


def encode_avif(picture: Picture, quality: int) -> bytes:
    """AVIF, 4:2:0; the facts in EXIF. One thread: pictures are encoded side by side."""
    exif = _exif(picture.facts).tobytes()
    return _saved(picture, "AVIF", quality=quality, speed=AVIF_SPEED, max_threads=1, exif=exif)


def encode_gif(picture: Picture, quality: int) -> bytes:
    """Animated GIF, 256 colours a frame, dithered; the facts as a comment.

    Frames last hundredths of a second, rounded such that together they last as long as the picture says.
    """
    reduced = [_dithered(Image.fromarray(pixels)) for pixels in picture.frames]
    ends = [round(end, -1) for end in itertools.accumulate(picture.milliseconds, initial=0)]
    buffer = io.BytesIO()
    reduced[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=reduced[1:],
        duration=[end - start for start, end in itertools.pairwise(ends)],
        loop=0,
        optimize=False,
        comment=describe(picture.facts).encode(),
    )
    return buffer.getvalue()


def _dithered(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours."""
    # Pillow dithers with a given palette only. Measured on a zoom of 512 px: this takes 29 ms and 130 KiB a frame, and
    # what the eye sees (both blurred, sigma 1.5 px) agrees at 51 dB; colours by median cut, not dithered, 57 ms, 85 KiB
    # and 44 dB. Colours chosen from all pixels would be no better, in 144 ms.
    some = picture.copy()
    some.thumbnail((128, 128), Image.Resampling.NEAREST, reducing_gap=None)
    colours = some.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    return picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG)


def _unnamed_file() -> BinaryIO:
    """A file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("picture"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _saved(picture: Picture, format: str, **options: object) -> bytes:
    first, *others = picture.frames
    if others:
        options |= {"save_all": True, "append_images": [Image.fromarray(pixels) for pixels in others]}
    buffer = io.BytesIO()
    Image.fromarray(first).save(buffer, format, **options)
    return buffer.getvalue()


def _exif(facts: Facts) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    exif[ExifTags.Base.ImageDescription] = describe(facts)
    return exif


ENCODINGS = {
    "png": Encoding(encode_png, 2**31 - 1, qualities=False),
    "jpeg": Encoding(encode_jpeg, 65_500, channels=4),
    "webp": Encoding(encode_webp, 16_383, fastest=90),
    "avif": Encoding(encode_avif, 32_768),  # what its decoders take
    "raw": Encoding(encode_ppm, 2**31 - 1, qualities=False),
    "gif": Encoding(encode_gif, 65_535, qualities=False, still=False, fastest=50),
    "deflate": Encoding(encode_deflate, 2**31 - 1, qualities=False),
}


def require(encoding: str) -> None:
    """Raise UserError if the Pillow that is installed cannot write `encoding`."""
    if encoding in ("avif", "webp") and not features.check(encoding):
        raise UserError(
            f"--encoding {encoding}: Pillow {PIL.__version__} here cannot write it; pip install 'pillow>=11.3'"
        )
