import io
import json
from pathlib import Path

import numpy as np
import pytest
from pictures import decibels
from PIL import ExifTags, Image, ImageFilter, features

from models.errors import UserError
from pipeline.rendering import encoders
from pipeline.rendering.encoders import ENCODINGS, Picture

PHOTO = sorted((Path(__file__).parent / "photos").glob("*.jpg"))[0]
FACTS = {"index": 7, "seed": 2**62, "kernel": "wavelet", "source": "ab" * 32}
# What the README states for generated cats, which are as smooth as an enlarged photograph.
STATED = {"jpeg": 45, "webp": 45, "avif": 45, "png": np.inf, "raw": np.inf}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    side = 601  # odd: not a multiple of any block
    return np.asarray(Image.open(PHOTO).convert("RGB").resize((64, 64)).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("encoding", STATED)
def test_pillow_reads_the_picture_and_what_is_known_of_it(photo, encoding):
    made = ENCODINGS[encoding].encode(Picture(FACTS, [photo]), 90)
    assert made == ENCODINGS[encoding].encode(Picture(FACTS, [photo.copy()]), 90)
    read = Image.open(io.BytesIO(made))
    assert read.mode == "RGB"
    assert decibels(np.asarray(read), photo) >= STATED[encoding]
    if encoding == "png":
        assert json.loads(read.text["Description"]) == FACTS
    elif encoding == "raw":
        assert json.loads(made.split(b"\n")[1][2:]) == FACTS
        assert np.array_equal(np.frombuffer(made[-photo.size :], np.uint8).reshape(photo.shape), photo)
    else:
        assert json.loads(read.getexif()[ExifTags.Base.ImageDescription]) == FACTS


def test_a_channel_to_spare_changes_nothing(photo):
    spare = np.concatenate([photo, np.full_like(photo[..., :1], 77)], axis=2)
    for place in (np.s_[:], np.s_[:, 100:357]):  # a tile is part of a wider strip
        made = encoders.encode_jpeg(Picture(FACTS, [spare[place]]), 90)
        assert made == encoders.encode_jpeg(Picture(FACTS, [photo[place]]), 90)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 3)])
def test_png_of_any_size(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoders.encode_png(Picture(FACTS, [pixels]), 0)))), pixels)


def test_quality_is_passed_on(photo):
    for encoding in ("jpeg", "webp", "avif"):
        low, high = (len(ENCODINGS[encoding].encode(Picture(FACTS, [photo]), quality)) for quality in (30, 95))
        assert low < 0.7 * high


@pytest.mark.parametrize("encoding", ["webp", "gif"])
def test_animations_keep_their_frames_and_times(photo, encoding):
    frames = [np.roll(photo, 9 * i, axis=1) for i in range(4)]
    asked = [42, 42, 42, 1000]
    made = ENCODINGS[encoding].encode(Picture(FACTS, frames, asked), 90)
    read = Image.open(io.BytesIO(made))
    assert (read.n_frames, read.info["loop"]) == (4, 0)
    times = []
    for number, frame in enumerate(frames):
        read.seek(number)
        read.load()
        assert read.mode == "RGB" or encoding == "gif"
        assert decibels(blurred(read.convert("RGB")), blurred(Image.fromarray(frame))) > 47  # as seen from some way off
        times.append(read.info["duration"])
    # A chunk of EXIF in WebP is TIFF from its first byte on.
    assert encoding == "gif" or made[made.index(b"EXIF") + 8 :].startswith(b"MM\0*")
    late = np.cumsum(times) - np.cumsum(asked)
    assert np.abs(late).max() <= {"webp": 0, "gif": 5}[encoding]


def blurred(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))


def test_a_pillow_without_avif_is_named(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(UserError, match=r"cannot write it; pip install 'pillow>=11.3'"):
        encoders.require("avif")
    encoders.require("webp")
