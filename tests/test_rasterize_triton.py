"""The fused kernels against the torch reference: on the device where there is one, else in Triton's interpreter."""
# ruff: noqa: E402 - the interpreter is chosen before anything imports Triton

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when kernels are declared, so before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="the fused rasterizer needs Triton (Linux)")

from models import rasterize_triton
from models.kernels import DRAWABLE, NEGLIGIBLE
from models.pixels import Axis
from models.rasterize import rasterize, to_uint8
from models.rasterize_torch import draw as reference
from models.rasterize_triton import draw
from models.splats import LIMITS, PARAMETERS, random_field

VALUE_TOLERANCE = 1e-4  # absolute, in [-1, 1] display space
GRADIENT_TOLERANCE = 1e-3  # relative L2 norm, for each of the nine parameters
on_device = pytest.mark.skipif(DEVICE == "cpu", reason="takes the interpreter minutes")

# The interpreter divides and takes logarithms of tiles' pixels that lie beyond the picture, which are never stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def make_field(*shape: int) -> torch.Tensor:
    return random_field(torch.Generator().manual_seed(3), *shape).to(DEVICE)


def whole(pixels: int, patches: int) -> Axis:
    return Axis.of(pixels, 0.0, 1.0, patches)


def assert_agrees(field: torch.Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int = 3) -> None:
    exact = field.double().requires_grad_()
    expected = reference(exact, axis_y, axis_x, kernel, neighbourhood)
    given = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    expected.backward(given.double())
    field = field.clone().requires_grad_()
    image = draw(field, axis_y, axis_x, kernel, neighbourhood)
    image.backward(given)

    assert image.dtype == torch.float32
    assert image.shape == expected.shape
    if image.numel():
        assert (image - expected).abs().max() <= VALUE_TOLERANCE
    for name, got, wanted in zip(PARAMETERS, field.grad.unbind(-1), exact.grad.unbind(-1), strict=True):
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() <= GRADIENT_TOLERANCE * wanted.norm() + 1e-6 * exact.grad.norm(), name


@pytest.mark.parametrize("kernel", DRAWABLE)
def test_every_kernel(kernel):
    assert_agrees(make_field(1, 2, 1, 4), whole(9, 2), whole(7, 1), kernel)


@pytest.mark.parametrize("splats", [1, 5, 16, 64])
def test_any_number_of_splats_a_patch(splats):
    assert_agrees(make_field(1, 1, 2, splats), whole(4, 1), whole(11, 2), "wavelet")


def test_region_of_a_non_square_grid_in_several_pictures():
    # The region leaves the last row of patches without pixels, and gives them gradient all the same.
    axis_y, axis_x = Axis.of(7, 0.1, 0.6, 3), Axis.of(5, 0.55, 0.97, 2)
    assert_agrees(make_field(2, 3, 2, 3), axis_y, axis_x, "sharp")
    assert_agrees(make_field(2, 3, 2, 3), axis_y.slice(3, 6), axis_x, "gaussian")


# Those of every size, and one with fewer pixels a lane than are loaded at once, whose last strip is not full.
@pytest.mark.parametrize("tiles", [*rasterize_triton.BACKWARD_TILES.values(), (8, 8, 1, 2, True)])
def test_gradients_by_every_kind_of_tiles(tiles, monkeypatch):
    monkeypatch.setattr(rasterize_triton, "BACKWARD_TILES", {0: tiles})
    assert_agrees(make_field(1, 2, 2, 2), whole(19, 2), Axis.of(9, 0.1, 1.0, 2), "wavelet")


def test_separate_patches():
    assert_agrees(make_field(2, 2, 2, 16), whole(9, 2), whole(13, 2), "wavelet", neighbourhood=1)


@on_device
@pytest.mark.parametrize("kernel", DRAWABLE)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 65), (8, 8192), (128, 128)])
def test_odd_sizes(kernel, height, width):
    assert_agrees(make_field(2, 8, 8, 16), whole(height, 8), whole(width, 8), kernel)
    assert_agrees(make_field(1, 3, 5, 16), whole(height, 3), whole(width, 5), kernel)


@on_device
@pytest.mark.parametrize("splats", [1, 4, 16, 64, 100])
@pytest.mark.parametrize("batch", [0, 1, 257])
def test_batches(splats, batch):
    assert_agrees(make_field(batch, 2, 3, splats), whole(16, 2), whole(27, 3), "wavelet")


@on_device
def test_a_picture_does_not_depend_on_its_batch():
    field = make_field(257, 4, 4, 16)
    alone = draw(field[200:201], whole(32, 4), whole(32, 4), "wavelet", 3)
    assert torch.equal(draw(field, whole(32, 4), whole(32, 4), "wavelet", 3)[200], alone[0])


@on_device
def test_memory_of_a_large_picture():
    field = make_field(1, 8, 8, 16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    image = rasterize(field, 16384, 16384)
    assert torch.cuda.max_memory_allocated() - before - image.nbytes < 2 << 30


def test_skipping_negligible_splats_stays_within_its_bound(monkeypatch):
    field = make_field(1, 1, 2, 4)
    field[..., 2:4] = field[..., 2:4].clamp(min=3.0)
    axis_y, axis_x = whole(16, 1), whole(16, 2)
    images = []
    bound = NEGLIGIBLE[torch.float32]
    for negligible in (bound, 1e-30):
        monkeypatch.setitem(NEGLIGIBLE, torch.float32, negligible)
        images.append(draw(field, axis_y, axis_x, "wavelet", 3))
    assert not torch.equal(*images), "nothing was skipped"
    assert (images[0] - images[1]).abs().max() <= bound * field[..., 5:8].abs().max() + 1e-6


def test_skipping_negligible_splats_hardly_changes_gradients(monkeypatch):
    field = make_field(1, 1, 1, 4)
    field[..., :2] = field[..., :2].clamp(0.3, 0.7)
    field[..., 2:4] = field[..., 2:4].clamp(1.5, 3.0)
    field[..., 4] = 0.0
    # Three whose weights fall by up to 2^-50 across the patch, and one that is negligible everywhere.
    field[..., 8] = torch.tensor([0.0, 0.0, 0.0, -60.0])
    field = field.requires_grad_()
    image = draw(field, whole(24, 1), whole(24, 1), "wavelet", 3)
    gradients = []
    for skipped in (True, False):
        monkeypatch.setattr(rasterize_triton, "BACKWARD_TILES", {0: (8, 8, 1, 4, skipped)})
        gradients.append(torch.autograd.grad(image.square().sum(), field, retain_graph=True)[0])
    assert gradients[1][..., 3, :].any()
    assert not gradients[0][..., 3, :].any(), "nothing was skipped"
    apart, size = ((gradients[0] - gradients[1]).flatten(0, -2).norm(dim=0), gradients[1].flatten(0, -2).norm(dim=0))
    assert (apart <= 2 * NEGLIGIBLE[torch.float32] * size).all()


def test_extreme_parameters_stay_finite():
    low, high = torch.tensor([LIMITS.get(name, (-1.0, 1.0)) for name in PARAMETERS]).T
    field = torch.stack([low, high])[:, None, None, None].expand(2, 1, 2, 2, 9).clone().to(DEVICE)
    field[..., 2:4] = LIMITS["kx"][1]
    assert_agrees(field, whole(8, 1), whole(16, 2), "wavelet")


def test_a_tile_whose_weights_lie_too_far_apart_for_one_common_scale():
    field = make_field(1, 1, 2, 4)
    field[..., :2] = 0.0
    field[..., 2:4] = LIMITS["kx"][1]
    field[..., 4] = 0.9
    field[:, :, 1, :, 8] = -60.0  # beyond what a denoiser emits
    assert_agrees(field, whole(9, 1), whole(16, 2), "gaussian")


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_small_outputs_are_the_float_picture_rounded(dtype):
    field = make_field(2, 1, 2, 4)
    field[..., 5:8] *= 3.0  # beyond the display's range, where bytes are clamped
    arguments = whole(7, 1), whole(13, 2), "wavelet", 3
    exact, small = draw(field, *arguments), draw(field, *arguments, dtype)
    assert small.dtype == dtype
    if dtype == torch.uint8:
        assert small.is_contiguous(memory_format=torch.channels_last)
        levels = small.permute(0, 2, 3, 1).int() - to_uint8(exact).int()
        assert levels.abs().max() <= 1
        assert levels.count_nonzero() <= 0.01 * levels.numel()
    else:
        assert torch.equal(small, exact.half())


def test_empty_batch():
    field = make_field(0, 2, 2, 4).requires_grad_()
    image = draw(field, whole(16, 2), whole(16, 2), "wavelet", 3)
    image.sum().backward()
    assert image.shape == (0, 3, 16, 16)
    assert field.grad.shape == field.shape
    assert reference(field, whole(16, 2), whole(16, 2), "wavelet", 3).shape == image.shape


def test_compiles_without_a_graph_break():
    field, axis = make_field(1, 1, 1, 4), whole(8, 1)

    def loss(raw):
        return draw(raw.tanh(), axis, axis, "wavelet", 1).square().mean()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        raw = field.clone().requires_grad_()
        function(raw).backward()
        gradients.append(raw.grad)
    torch.testing.assert_close(*gradients)
