"""The rasterizer: against a plain loop, across patch borders, in regions, at extremes."""

import math
import subprocess
import sys

import pytest
import torch

from models.errors import UserError
from models.kernels import KERNELS, NEGLIGIBLE
from models.measures import border_ratio
from models.rasterize import VIEWS, rasterize, to_uint8
from models.splats import LIMITS, PARAMETERS, SCALE_MAX, SCALE_MIN, activate, initial_raw, random_field


def plain(field, height, width, kernel, neighbourhood=3):
    """The formulas of the design, one pixel and one splat at a time, in float64."""
    rows, columns = field.shape[:2]
    image = torch.zeros(3, height, width, dtype=torch.float64)

    def window(p):
        return (0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, -p, p - 1)))) ** 2

    for y in range(height):
        for x in range(width):
            px, py = (x + 0.5) / width * columns, (y + 0.5) / height * rows
            total, colour = 0.0, torch.zeros(3, dtype=torch.float64)
            for i in range(rows):
                for j in range(columns):
                    reach = neighbourhood // 2
                    if abs(i - int(py)) > reach or abs(j - int(px)) > reach:
                        continue
                    for u, v, kx, ky, rho, *rgb, d in field[i, j].tolist():
                        dx, dy = kx * (px - j - u), ky * (py - i - v)
                        q = dx * dx + 2 * rho * dx * dy + dy * dy
                        weight = math.exp(d - 4 * q) * (window(py - i) * window(px - j) if reach else 1.0)
                        total += weight
                        colour += weight * float(KERNELS[kernel](torch.tensor(q))) * torch.tensor(rgb).double()
            image[:, y, x] = colour / total
    return image


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("neighbourhood", "size"), [(3, (24, 16)), (3, (25, 19)), (1, (24, 17))])
def test_agrees_with_a_plain_loop(generator, kernel, neighbourhood, size):
    field = random_field(generator, 1, 3, 2, 5)
    image = rasterize(field, *size, kernel=kernel, neighbourhood=neighbourhood)
    expected = plain(field[0].double(), *size, kernel, neighbourhood)
    torch.testing.assert_close(image[0].double(), expected, atol=1e-4, rtol=0)


def test_patch_borders_do_not_show(generator):
    # 64 pixels a patch, as an 8x8 grid has at 512 px; a smaller grid has the same borders in less time.
    field = random_field(generator, 64, 2, 2, 16)
    assert border_ratio(rasterize(field, 128, 128), patches=(2, 2)).mean() <= 1.02
    assert border_ratio(rasterize(field[:8], 128, 128, neighbourhood=1), patches=(2, 2)).mean() >= 2


@pytest.mark.parametrize("view", VIEWS)
def test_a_region_is_that_part_of_the_whole(generator, view):
    field = random_field(generator, 2, 4, 6, 4)
    whole = rasterize(field, 120, 180, view=view)
    part = rasterize(field, 33, 50, region=(40 / 180, 7 / 120, 90 / 180, 40 / 120), view=view)
    torch.testing.assert_close(part, whole[:, :, 7:40, 40:90], atol=1e-5, rtol=0)


def test_below_native_size_is_the_mean_of_finer_samples(generator):
    field = random_field(generator, 1, 4, 4, 16)
    fine = torch.nn.functional.avg_pool2d(rasterize(field, 32, 32), (4, 2))
    torch.testing.assert_close(rasterize(field, 8, 16), fine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("end", [0, 1])
def test_extreme_parameters_stay_finite(generator, kernel, end):
    field = random_field(generator, 1, 2, 2, 16)
    for i, name in enumerate(PARAMETERS):
        if name in LIMITS:
            field[..., i] = LIMITS[name][end if name in ("rho", "u", "v") else 1 if name != "d" else 0]
    field.requires_grad_()
    image = rasterize(field, 40, 40, kernel=kernel)
    image.sum().backward()
    assert image.isfinite().all()
    assert field.grad.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients(generator, kernel):
    field = random_field(generator, 1, 2, 2, 2, dtype=torch.float64)
    # Gentle scales: finite differences of a steep edge measure the step, not the slope.
    field[..., 2:4] = 0.5 + 0.1 * field[..., 2:4]
    field.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: rasterize(f, 16, 17, kernel=kernel), field, eps=1e-6, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_picture():
    script = (
        "import torch; from models.rasterize import rasterize; from models.splats import random_field\n"
        "rasterize(random_field(torch.Generator(), 1, 8, 8, 16), 256, 16384)\n"
        "import re; print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert int(out.stdout) < 0.7 * 2**20, "a picture of 4 Mpx took more than 0.7 GiB"


def test_splats_left_out_of_a_tile_do_not_change_it(generator, monkeypatch):
    field = random_field(generator, 1, 2, 2, 16)
    drawn = rasterize(field, 384, 320)
    monkeypatch.setitem(NEGLIGIBLE, torch.float32, 1e-30)
    complete = rasterize(field, 384, 320)
    assert not torch.equal(drawn, complete), "nothing was left out"
    torch.testing.assert_close(drawn, complete, atol=2e-5, rtol=0)
    # Another order of sums than in large tiles, and other tiles than at double precision.
    exact = rasterize(field.double(), 384, 320)
    torch.testing.assert_close(complete.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("view", VIEWS)
def test_small_types_are_the_float_picture_rounded(generator, view):
    field = random_field(generator, 2, 2, 2, 4)
    exact = rasterize(field, 24, 8, view=view)
    assert torch.equal(rasterize(field, 24, 8, view=view, dtype=torch.float16), exact.half())
    levels = rasterize(field, 24, 8, view=view, dtype=torch.uint8)
    assert levels.shape == exact.shape
    assert torch.equal(to_uint8(levels), to_uint8(exact))


def test_raw_outputs_become_physical():
    raw = torch.full((9,), 50.0) * torch.tensor([[-1.0], [1.0]])
    for scale_max in (3.0, SCALE_MAX, 24.0):
        limits = LIMITS | {"kx": (SCALE_MIN, scale_max), "ky": (SCALE_MIN, scale_max)}
        for low_high, name in zip(activate(raw, scale_max).T, PARAMETERS, strict=True):
            if name in limits:
                torch.testing.assert_close(low_high, torch.tensor(limits[name]))
    # A network that is told of a larger bound begins as it was, but for its finest splats.
    some = torch.linspace(-5.0, 5.0, 101)[:, None].expand(-1, 9)
    usual, finer = activate(some), activate(some, 16.0)
    coarse = usual[:, 2] < 3.0
    torch.testing.assert_close(finer[coarse], usual[coarse], rtol=0.06, atol=0.0)
    assert (finer[-1, 2:4] > 9.0).all()
    means = activate(initial_raw(16))[:, :2]
    assert sorted({round(float(u), 4) for u in means[:, 0]}) == [0.125, 0.375, 0.625, 0.875]


def test_views_look_inside():
    field = random_field(torch.Generator().manual_seed(1), 1, 8, 8, 4)
    field[..., 5:8] = -3.0
    field[:, :, 4:, :, 5:8] = 3.0
    blobs = to_uint8(rasterize(field, 256, 256, view="blobs"))
    for column, expected in ((2, 38), (6, 255)):
        u, v = field[0, 3, column, 0, :2].tolist()
        pixel = blobs[0, int((3 + v) * 32), int((column + u) * 32)]
        assert abs(int(pixel[0]) - expected) < 30, "a dot is not where the splat is, or not as bright"
    assert (blobs < 20).float().mean() > 0.3, "the ground between blobs is not black"
    field[..., 8] = -1.0
    field[:, :, 4:, :, 8] = 1.0
    depth = to_uint8(rasterize(field, 64, 64, view="depth"))
    assert depth[:, :, :16].max() < 10
    assert depth[:, :, 48:].min() > 245
    grid = rasterize(field, 64, 64, view="patches")
    assert (grid[..., 32] == 1).all()
    small, plain = (rasterize(field, 16, 16, view=view) for view in ("patches", "colour"))
    # Of two pixels a patch every one lies at a border: the grid is a veil, and no wall.
    torch.testing.assert_close(small, plain + 0.25 * (1 - plain))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"height": 0}, "size 8x0"),
        ({"kernel": "boxy"}, "wavelet"),
        ({"view": "x-ray"}, "blobs"),
        ({"neighbourhood": 5}, "neighbourhood 5"),
        ({"region": (0.5, 0.0, 1.5, 1.0)}, "region"),
    ],
)
def test_what_cannot_be_drawn_is_named(change, named):
    field = random_field(torch.Generator(), 1, 1, 1, 1)
    with pytest.raises(UserError, match=named):
        rasterize(field, **{"height": 8, "width": 8, **change})
