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
from models.kernels import DRAWABLE
from models.pixels import Axis
from models.rasterize import _draw as reference
from models.rasterize_triton import CULLED_TILES, draw
from models.splats import LIMITS, PARAMETERS, random_field

VALUE_TOLERANCE = 1e-4  # absolute, in [-1, 1] display space
GRADIENT_TOLERANCE = 1e-3  # relative L2 norm, for each of the nine parameters

# The interpreter divides and takes logarithms of tiles' pixels that lie beyond the picture, which are never stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def make_field(*shape: int) -> torch.Tensor:
    return random_field(torch.Generator().manual_seed(3), *shape).to(DEVICE)


def assert_agrees(field: torch.Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int = 3) -> None:
    exact = field.double().requires_grad_()
    expected = reference(exact, axis_y, axis_x, kernel, neighbourhood)
    given = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    expected.backward(given.double())
    field = field.clone().requires_grad_()
    image = draw(field, axis_y, axis_x, kernel, neighbourhood)
    image.backward(given)

    assert image.dtype == torch.float32
    assert (image - expected).abs().max() <= VALUE_TOLERANCE
    for name, got, wanted in zip(PARAMETERS, field.grad.unbind(-1), exact.grad.unbind(-1), strict=True):
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() <= GRADIENT_TOLERANCE * wanted.norm() + 1e-7, name


@pytest.mark.parametrize("kernel", DRAWABLE)
def test_every_kernel(kernel):
    assert_agrees(make_field(1, 2, 1, 4), Axis.of(9, 0.0, 1.0, 2), Axis.of(7, 0.0, 1.0, 1), kernel)


@pytest.mark.parametrize("splats", [1, 5, 16, 64])
def test_any_number_of_splats_a_patch(splats):
    assert_agrees(make_field(1, 1, 2, splats), Axis.of(4, 0.0, 1.0, 1), Axis.of(11, 0.0, 1.0, 2), "wavelet")


def test_region_of_a_non_square_grid_in_several_pictures():
    # The region leaves the last row of patches without pixels, and gives them gradient all the same.
    axis_y, axis_x = Axis.of(7, 0.1, 0.6, 3), Axis.of(5, 0.55, 0.97, 2)
    assert_agrees(make_field(2, 3, 2, 3), axis_y, axis_x, "sharp")
    assert_agrees(make_field(2, 3, 2, 3), axis_y.slice(3, 6), axis_x, "gaussian")


def test_separate_patches():
    assert_agrees(
        make_field(2, 2, 2, 16), Axis.of(9, 0.0, 1.0, 2), Axis.of(13, 0.0, 1.0, 2), "wavelet", neighbourhood=1
    )


def test_skipping_negligible_neighbours_stays_within_its_bound(monkeypatch):
    field = make_field(1, 1, 2, 4)
    field[..., :2] = field[..., :2].clamp(0.3, 0.7)
    field[..., 2:4] = LIMITS["kx"][1]
    axis_y, axis_x = Axis.of(16, 0.0, 1.0, 1), Axis.of(32, 0.0, 1.0, 2)
    field = field.requires_grad_()
    images, gradients = [], []
    for tiles in (CULLED_TILES, 1 << 30):
        monkeypatch.setattr(rasterize_triton, "CULLED_TILES", tiles)
        images.append(draw(field, axis_y, axis_x, "wavelet", 3))
        gradients.append(torch.autograd.grad(images[-1].square().sum(), field)[0])
    assert (images[0] - images[1]).abs().max() <= 2 * 9 * 4 * 2.0**-26 + 1e-6
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


def test_extreme_parameters_stay_finite():
    low, high = torch.tensor([LIMITS.get(name, (-1.0, 1.0)) for name in PARAMETERS]).T
    field = torch.stack([low, high])[:, None, None, None].expand(2, 1, 2, 2, 9).clone().to(DEVICE)
    field[..., 2:4] = LIMITS["kx"][1]
    assert_agrees(field, Axis.of(8, 0.0, 1.0, 1), Axis.of(16, 0.0, 1.0, 2), "wavelet")


def test_empty_batch():
    field = make_field(0, 2, 2, 4).requires_grad_()
    image = draw(field, Axis.of(16, 0.0, 1.0, 2), Axis.of(16, 0.0, 1.0, 2), "wavelet", 3)
    image.sum().backward()
    assert image.shape == (0, 3, 16, 16)
    assert field.grad.shape == field.shape
    assert reference(field, Axis.of(16, 0.0, 1.0, 2), Axis.of(16, 0.0, 1.0, 2), "wavelet", 3).shape == image.shape


def test_compiles_without_a_graph_break():
    field, axis = make_field(1, 1, 1, 4), Axis.of(8, 0.0, 1.0, 1)

    def loss(raw):
        return draw(raw.tanh(), axis, axis, "wavelet", 1).square().mean()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        raw = field.clone().requires_grad_()
        function(raw).backward()
        gradients.append(raw.grad)
    torch.testing.assert_close(*gradients)
