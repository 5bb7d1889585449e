import itertools

import pytest

from models.errors import UserError
from pipeline.rendering.framing import fit, parse_region, parse_size, parse_zoom, region_text, zoom, zoom_text

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "region", "size"),
    [
        ("512", WHOLE, (512, 512)),
        ("640x480", WHOLE, (640, 480)),
        ("512", (0.0, 0.0, 1.0, 0.25), (512, 128)),
        ("100", (0.5, 0.0, 0.75, 0.75), (33, 100)),
    ],
)
def test_one_number_is_the_longer_side(text, region, size):
    assert parse_size(text, region) == size


def test_crop_keeps_the_middle_letterbox_everything_and_stretch_fills():
    wide = fit(200, 100, WHOLE, "crop", 1.0)
    assert (wide.region, wide.inner_width, wide.inner_height) == ((0.0, 0.25, 1.0, 0.75), 200, 100)
    assert fit(100, 200, WHOLE, "crop", 1.0).region == (0.25, 0.0, 0.75, 1.0)
    box = fit(201, 100, WHOLE, "letterbox", 1.0)
    assert (box.region, box.left, box.top, box.inner_width, box.inner_height) == (WHOLE, 50, 0, 100, 100)
    tall = fit(100, 300, (0.0, 0.0, 0.5, 0.25), "letterbox", 1.0)
    assert (tall.left, tall.top, tall.inner_width, tall.inner_height) == (0, 125, 100, 50)
    assert fit(200, 100, WHOLE, "stretch", 1.0).region == WHOLE
    assert fit(200, 100, WHOLE, "crop", 2.0) == fit(200, 100, WHOLE, "stretch", 2.0)


def test_a_zoom_is_smooth_in_scale_and_stays_inside():
    (point,) = parse_zoom("0.9,0.2,64")
    regions = list(zoom(WHOLE, [point], 101))
    assert regions[0] == WHOLE
    assert regions[-1] == pytest.approx(point.region(WHOLE))
    assert (regions[-1][0] + regions[-1][2]) / 2 == pytest.approx(0.9)
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in regions)
    widths = [x1 - x0 for x0, _, x1, _ in regions]
    assert widths[50] == pytest.approx(1 / 8)  # half of the time, half of the way in the logarithm
    steps = [a / b for a, b in itertools.pairwise(widths)]
    assert min(steps) >= 1
    assert steps[0] < 1.005 > steps[-1]
    assert max(steps) < 1.07
    # One point of the picture stays in its place on the screen.
    fixed = regions[-1][0] / (1 - widths[-1])
    assert all((fixed - x0) / (x1 - x0) == pytest.approx(fixed, abs=1e-9) for x0, _, x1, _ in regions)


def test_a_path_passes_its_waypoints():
    path = parse_zoom("0.3,0.4,8;0.7,0.4,8;0.5,0.5,1")
    regions = list(zoom(WHOLE, path, 31))
    assert regions[10] == pytest.approx(path[0].region(WHOLE))
    assert regions[20] == pytest.approx(path[1].region(WHOLE))
    assert regions[30] == pytest.approx(WHOLE)
    assert regions[15] == pytest.approx((0.4375, 0.3375, 0.5625, 0.4625))


def test_what_is_frozen_in_a_plan_reads_back_the_same():
    region = (1 / 3, 0.1, 2 / 3, 0.7)
    assert parse_region(region_text(region)) == region
    path = parse_zoom("0.1,0.2,3;0.333333333333,1,7")
    assert parse_zoom(zoom_text(path)) == path


@pytest.mark.parametrize("text", ["", "1,2", "0.1,0.2,inf", "a,b,c", "0.1,0.2,3;", "0.1;0.2;3"])
def test_paths_in_another_form_are_refused(text):
    with pytest.raises(UserError, match="--zoom"):
        parse_zoom(text)
