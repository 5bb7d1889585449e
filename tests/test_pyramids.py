import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_sinks import drawn

ROOT = Path(__file__).parents[1]


def picture(splats: Path, out: Path, size: str, **options: str) -> np.ndarray:
    """Picture 3 at `size`, as PNG shows it."""
    (path,) = drawn(splats, out, size=size, indices="3", shard_size=1, **options).glob("shard-*/*.png")
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_tiff_is_the_picture_and_its_halves_in_tiles(splats, tmp_path, fit):
    tiled = {"indices": "3", "shard_size": 1, "format": "tiff", "fit": fit, "size": "1200x600"}
    (path,) = drawn(splats, tmp_path / "tiff", **tiled).glob("shard-*/*")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert [page.shape[:2] for page in tiff.pages] == [(600, 1200), (300, 600), (150, 300)]
        assert all(page.tile == (512, 512) for page in tiff.pages)
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1]
        assert json.loads(tiff.pages[0].description)["index"] == 3
        for page, size in zip(tiff.pages, ("1200x600", "600x300", "300x150"), strict=True):
            assert np.array_equal(page.asarray(), picture(splats, tmp_path / size, size, fit=fit))
    assert np.array_equal(np.asarray(Image.open(path)), picture(splats, tmp_path / "again", "1200x600", fit=fit))


def test_deep_zoom_tiles_make_up_the_picture_at_every_level(splats, tmp_path):
    tiled = {"indices": "3", "shard_size": 1, "format": "dzi", "size": "1100x600"}
    folder = drawn(splats, tmp_path / "dzi", **tiled) / "shard-00000"
    image = ElementTree.parse(folder / "00000003.dzi").getroot()
    assert (image.attrib["TileSize"], image.attrib["Overlap"], image.attrib["Format"]) == ("512", "0", "png")
    assert (image[0].attrib["Width"], image[0].attrib["Height"]) == ("1100", "600")
    levels = sorted((folder / "00000003_files").iterdir(), key=lambda path: int(path.name))
    assert [path.name for path in levels] == [str(level) for level in range(12)]
    assert Image.open(levels[0] / "0_0.png").size == (1, 1)
    for level, size in ((levels[11], (1100, 600)), (levels[10], (550, 300))):
        joined = Image.new("RGB", size)
        for tile in level.iterdir():
            column, row = map(int, tile.stem.split("_"))
            joined.paste(Image.open(tile), (512 * column, 512 * row))
        text = "x".join(map(str, size))
        assert np.array_equal(np.asarray(joined), picture(splats, tmp_path / text, text))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format", ["tiff", "dzi"])
def test_a_picture_of_8192_pixels_needs_less_than_2_gb(splats, tmp_path, format):
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from test_sinks import drawn
drawn(Path({str(splats)!r}), Path({str(tmp_path)!r}), size="8192", indices="3", shard_size=1, format={format!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) * 1024 < 2e9
    if format == "tiff":
        (path,) = tmp_path.glob("shard-*/*.tif")
        with tifffile.TiffFile(path) as tiff:
            assert [page.shape[0] for page in tiff.pages] == [8192, 4096, 2048, 1024, 512]
