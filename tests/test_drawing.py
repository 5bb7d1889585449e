import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from test_sinks import drawn

from jobs import render
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.rendering import drawing
from pipeline.rendering.drawing import begun_early, draw, frame_of, look_of


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_bands_draw_the_same_picture(splats, monkeypatch, fit):
    source = SplatDataset.open(str(splats))
    ((_, field),) = source.read(Indices.parse("1"))
    options = render.Options(splats=str(splats), out="", size="70x53", fit=fit, region="0.1,0,0.9,1")
    plan = render.make_plan(options, source)
    frame = frame_of(plan, 1.0)
    whole = draw(field, frame, look_of(plan))
    monkeypatch.setitem(drawing.PIXELS_AT_ONCE, "cpu", 70 * 10)
    bands = draw(field, frame, look_of(plan))
    assert whole.shape == (1, 53, 70, 3)
    np.testing.assert_allclose(bands.astype(int), whole.astype(int), atol=1)


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_pixels_for_jpeg_have_a_channel_to_spare(splats, fit):
    source = SplatDataset.open(str(splats))
    ((_, field),) = source.read(Indices.parse("1"))
    png, jpeg = (
        render.make_plan(render.Options(splats=str(splats), out="", size="70x53", fit=fit, encoding=encoding), source)
        for encoding in ("png", "jpeg")
    )
    colours, spare = (draw(field, frame_of(plan, 1.0), look_of(plan)) for plan in (png, jpeg))
    assert spare.shape == (1, 53, 70, 4)
    assert np.array_equal(spare[..., :3], colours)


def test_letterbox_shows_everything_between_black_bars(splats, tmp_path):
    wide, square = (
        np.asarray(Image.open(next(drawn(splats, tmp_path / size, size=size, fit="letterbox").glob("*/*02.png"))))
        for size in ("60x40", "40")
    )
    assert not wide[:, :10].any()
    assert not wide[:, 50:].any()
    assert np.array_equal(wide[:, 10:50], square)


def test_a_zoom_begins_whole_and_ends_at_its_place(splats, tmp_path):
    film = {"size": "48", "indices": "3", "encoding": "webp", "quality": 100}
    (path,) = drawn(splats, tmp_path / "film", **film, zoom="0.3,0.6,4", frames=5, fps=10).glob("*/*.webp")
    read = Image.open(path)
    assert read.n_frames == 5
    times = []
    for number, region in ((0, "0,0,1,1"), (4, "0.175,0.475,0.425,0.725")):
        (still,) = drawn(splats, tmp_path / region, **film, region=region).glob("*/*.webp")
        read.seek(number)
        np.testing.assert_allclose(
            np.asarray(read.convert("RGB")).astype(int), np.asarray(Image.open(still)).astype(int), atol=12
        )
        times.append(read.info["duration"])
    assert times == [100, 1000]


def test_a_rollout_begins_with_noise_and_ends_with_the_picture(splats, tmp_path):
    (path,) = drawn(splats, tmp_path / "film", size="128", indices="9", animate="rollout", encoding="gif").glob(
        "*/*.gif"
    )
    read = Image.open(path)
    assert read.n_frames == 3  # the noise and two network calls
    assert json.loads(read.info["comment"])["motion"] == "rollout"
    noise = np.asarray(read.convert("RGB")).reshape(64, 2, 64, 2, 3)
    assert (noise == noise[:, :1, :, :1]).mean() > 0.3  # squares, but for dither
    read.seek(2)
    (still,) = drawn(splats, tmp_path / "still", size="128", indices="9").glob("*/*.png")
    difference = np.abs(np.asarray(read.convert("RGB")).astype(int) - np.asarray(Image.open(still)))
    assert difference.mean() < 12
    kept = render.make_plan(
        render.Options(splats=str(splats), out="", animate="rollout"), SplatDataset.open(str(splats))
    ).pictures
    assert kept == Indices.parse("3,9")


def test_all_pictures_as_one_animation(splats, tmp_path):
    out = drawn(splats, tmp_path, size="48", indices="2-5", animate="pictures", shard_size=None, encoding="gif")
    (path,) = out.glob("*/*.gif")
    assert path.name == "00000002.gif"
    assert Image.open(path).n_frames == 4


def test_a_plan_of_an_earlier_version_is_read_as_it_was_meant(splats):
    plan = render.make_plan(render.Options(splats=str(splats), out="", fit="stretch"), SplatDataset.open(str(splats)))
    assert plan.to_dict().keys() == {
        *("format_version", "kind", "shard_size", "code_version", "source", "seed", "indices", "width", "height"),
        *("kernel", "neighbourhood", "view", "output", "encoding", "quality", "threads"),
    }
    assert "fit" in dataclasses.replace(plan, fit="crop").to_dict()


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]),
        ("cpu", ["begin 0", "use 0", "begin 1", "use 1", "begin 2", "use 2"]),
    ],
)
def test_a_gpu_has_the_next_picture_to_draw_while_one_is_used(device, expected):
    """A CPU has not: encoders get what is drawn at once."""
    events: list[str] = []

    def begun():
        for number in range(3):
            events.append(f"begin {number}")
            yield number

    for number in begun_early(begun(), device):
        events.append(f"use {number}")
    assert events == expected
    assert list(begun_early(iter([]), device)) == []
