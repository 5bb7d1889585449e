"""One photograph: what is done to its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from photographs import encoded, noise
from PIL import Image

from pipeline.photographs import photo


def test_area_reduction_is_exact() -> None:
    picture = noise(72)
    source = np.asarray(picture, dtype=np.float64)
    reduced = np.asarray(photo.reduce_area(picture, 64))
    # 72 / 64 = 9 / 8: repeat every pixel eightfold and average nine by nine.
    fine = source.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(reduced, np.floor(fine.reshape(64, 9, 64, 9, 3).mean((1, 3)) + 0.5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    grey = Image.new("L", (64, 64), 255)
    grey.paste(0, (0, 0, 32, 64))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        picture = grey.convert("RGBA")
        picture.putalpha(
            grey.point(lambda level: 255 - level)
        )  # the white half is transparent: its colour must not show
        picture.paste((200, 10, 10, 0), (32, 0, 64, 64))
        picture = picture.convert(mode)
    else:
        picture = grey.convert(mode)
    data = encoded(picture, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    decoded = np.asarray(photo.decode(data)).astype(int)
    assert decoded.shape == (64, 64, 3)
    assert (decoded[:, :32] <= 2).all()
    assert (decoded[:, 32:] >= 253).all()
