"""Chromium without a window, and what the gallery's canvas shows in it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")


def settle(page) -> None:
    page.wait_for_selector("#stage[aria-busy=false]")


def saved(page) -> np.ndarray:
    """What the canvas shows, as the key S saves it: RGBA uint8, transparent outside the picture."""
    with page.expect_download() as download:
        page.keyboard.press("s")
    return np.asarray(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGBA"))


def picture_in(canvas: np.ndarray) -> np.ndarray:
    """The part of the canvas that the picture covers."""
    rows, columns = np.nonzero(canvas[..., 3])
    covered = canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (covered[..., 3] == 255).all()
    return covered[..., :3]
