"""Inception-v3 with random weights against figures of an independent implementation, and its weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import UserError
from models.features import extract
from models.inception import Inception, load_inception, resize_as_tensorflow1


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights in the layout of the file, such that activations stay near 1; two tensors that are not needed."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, like in Inception().state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = like
        elif name.endswith("conv.weight"):
            tensors[name] = torch.randn(like.shape, generator=generator) * (2 / like[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = torch.rand(like.shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(like.shape, generator=generator) * 0.1
    return {**tensors, "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Inception:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(weights, path)
    return load_inception(str(path))


def test_features_equal_those_of_another_implementation(network: Inception) -> None:
    # Recorded from torch-fidelity 0.4.0 with the same weights. A mean that counts padding gives norms of 2.483 and
    # 1.812, a mean in the last block 2.490 and 1.811, resizing between half-pixel centres 2.538 and 1.864.
    ramp = np.arange(64, dtype=np.uint8) * 4
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=-1)
    vectors = extract(network, np.stack([picture, picture[::-1, ::-1] // 2])).vectors
    assert vectors.shape == (2, 2048)
    assert vectors.square().mean(dim=1).sqrt().tolist() == pytest.approx([2.566408, 1.858700], abs=1e-4)
    assert vectors[0, :4].tolist() == pytest.approx([0, 0.0025253, 0.0203003, 4.987762], abs=1e-4)
    assert vectors[1, -4:].tolist() == pytest.approx([0.6410100, 0, 0, 1.3426992], abs=1e-4)


def test_resizing_starts_at_the_corner_and_repeats_the_last_pixel() -> None:
    resized = resize_as_tensorflow1(torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]]), 4)
    assert resized[0, 0, 0].tolist() == [0, 2, 4, 4]
    assert resized[0, 0, :, 0].tolist() == [0, 4, 8, 8]


def test_a_wrong_weights_file_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=f"no Inception weights at {path}"):
        load_inception(str(path))
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(UserError, match=rf"{path} cannot be used .* expected safetensors"):
        load_inception(str(path))
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("Mixed_7c.branch_pool")}, path)
    with pytest.raises(UserError, match=rf"{path} lack Mixed_7c\.branch_pool\.bn\.bias and 4 more"):
        load_inception(str(path))
    save_file(weights | {"Mixed_5b.branch1x1.conv.weight": torch.zeros(64, 1, 1, 1)}, path)
    with pytest.raises(UserError, match=rf"{path} cannot be used .*size mismatch"):
        load_inception(str(path))
