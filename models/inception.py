"""Inception-v3 as the canonical Fréchet inception distance uses it: the network of 2015-12-05 with its own pooling.

It differs from torchvision's Inception-v3: average pooling leaves the padding out of the mean, and the last block
takes a maximum there. The weights file is safetensors in the names of the state dict that pytorch-fid and
torch-fidelity share, `pt_inception-2015-12-05` (`Conv2d_1a_3x3.conv.weight`, `Mixed_7c.branch_pool.bn.running_var`,
...), of any float type; its `fc.*` and `*.num_batches_tracked` are left alone. Pickled files are not read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import UserError
from models.features import FeatureNetwork, Features

SIDE = 299
LAYOUT = (
    "expected safetensors with the tensors of pytorch-fid's pt_inception-2015-12-05 (Conv2d_1a_3x3.conv.weight, ...)"
)


class Conv(NamedTuple):
    """One convolution of a block: its name in the file, output width, kernel (rows, columns), stride, padding."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


# A chain feeds each step to the next; a step of several convolutions gives each the same input and joins the outputs.
Chain = tuple[tuple[Conv, ...], ...]


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU; attributes as in the file."""

    def __init__(self, width_in: int, spec: Conv) -> None:
        super().__init__()
        padding = (spec.kernel[0] // 2, spec.kernel[1] // 2) if spec.padded else (0, 0)
        self.conv = nn.Conv2d(width_in, spec.width, spec.kernel, spec.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(spec.width, eps=1e-3)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, width_in, Y, X] to [B, width, Y', X']."""
        return F.relu(self.bn(self.conv(hidden)))


class Mixed(nn.Module):
    """Parallel chains of convolutions over the same input, beside a pooled one; outputs joined along the channels."""

    def __init__(self, width_in: int, chains: tuple[Chain, ...], pool: str, pool_width: int) -> None:
        """`pool`: "mean" or "max" of 3x3 at stride 1, then a convolution; or "reduce", a maximum at stride 2."""
        super().__init__()
        self.chains, self.pool = chains, pool
        self.width = 0 if pool_width else width_in
        pooled = [((Conv("branch_pool", pool_width),),)] if pool_width else []
        for chain in (*chains, *pooled):
            width = width_in
            for step in chain:
                for spec in step:
                    self.add_module(spec.name, ConvNorm(width, spec))
                width = sum(spec.width for spec in step)
            self.width += width

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, width_in, Y, X] to [B, self.width, Y', X']."""
        outputs = []
        for chain in self.chains:
            output = hidden
            for step in chain:
                output = torch.cat([self.get_submodule(spec.name)(output) for spec in step], dim=1)
            outputs.append(output)
        if self.pool == "reduce":
            outputs.append(F.max_pool2d(hidden, 3, 2))
        elif self.pool == "max":
            outputs.append(self.get_submodule("branch_pool")(F.max_pool2d(hidden, 3, 1, 1)))
        else:
            pooled = F.avg_pool2d(hidden, 3, 1, 1, count_include_pad=False)
            outputs.append(self.get_submodule("branch_pool")(pooled))
        return torch.cat(outputs, dim=1)


def _chain(prefix: str, *steps: Conv) -> Chain:
    """One convolution a step; a name that starts with "_" is appended to `prefix`."""
    return tuple((step._replace(name=f"{prefix}{step.name}"),) for step in steps)


def _block_a(pool_width: int) -> tuple[tuple[Chain, ...], str, int]:
    double = (Conv("_1", 64), Conv("_2", 96, (3, 3)), Conv("_3", 96, (3, 3)))
    return (
        (
            _chain("branch1x1", Conv("", 64)),
            _chain("branch5x5", Conv("_1", 48), Conv("_2", 64, (5, 5))),
            _chain("branch3x3dbl", *double),
        ),
        "mean",
        pool_width,
    )


def _block_c(width: int) -> tuple[tuple[Chain, ...], str, int]:
    row, column = (1, 7), (7, 1)
    double = (Conv("_1", width), Conv("_2", width, column), Conv("_3", width, row), Conv("_4", width, column))
    return (
        (
            _chain("branch1x1", Conv("", 192)),
            _chain("branch7x7", Conv("_1", width), Conv("_2", width, row), Conv("_3", 192, column)),
            _chain("branch7x7dbl", *double, Conv("_5", 192, row)),
        ),
        "mean",
        192,
    )


def _block_e(pool: str) -> tuple[tuple[Chain, ...], str, int]:
    def fork(prefix: str) -> tuple[Conv, ...]:
        return Conv(f"{prefix}a", 384, (1, 3)), Conv(f"{prefix}b", 384, (3, 1))

    return (
        (
            _chain("branch1x1", Conv("", 320)),
            (*_chain("branch3x3", Conv("_1", 384)), fork("branch3x3_2")),
            (*_chain("branch3x3dbl", Conv("_1", 448), Conv("_2", 384, (3, 3))), fork("branch3x3dbl_3")),
        ),
        pool,
        192,
    )


def _reduce(*chains: Chain) -> tuple[tuple[Chain, ...], str, int]:
    return chains, "reduce", 0


STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, False),
)
POOLED_BEFORE = ("Conv2d_3b_1x1", "Mixed_5b")
HALVE = ((3, 3), 2, False)
BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _reduce(
        _chain("branch3x3", Conv("", 384, *HALVE)),
        _chain("branch3x3dbl", Conv("_1", 64), Conv("_2", 96, (3, 3)), Conv("_3", 96, *HALVE)),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _reduce(
        _chain("branch3x3", Conv("_1", 192), Conv("_2", 320, *HALVE)),
        _chain(
            "branch7x7x3", Conv("_1", 192), Conv("_2", 192, (1, 7)), Conv("_3", 192, (7, 1)), Conv("_4", 192, *HALVE)
        ),
    ),
    "Mixed_7b": _block_e("mean"),
    "Mixed_7c": _block_e("max"),
}


class Inception(FeatureNetwork):
    """Inception-v3 of the canonical FID, up to its 2,048 pooled features.

    Protocol: uint8 pictures of any size, resized to 299 x 299 as TensorFlow 1 did (bilinear, no half-pixel centres, not
    rounded), (x - 128) / 128, float32, the mean over 8 x 8 positions.
    """

    width = 2048

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for spec in STEM:
            self.add_module(spec.name, ConvNorm(width, spec))
            width = spec.width
        for name, block in BLOCKS.items():
            mixed = Mixed(width, *block)
            self.add_module(name, mixed)
            width = mixed.width
        assert width == self.width
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Features:
        """Map uint8 pictures [B, Y, X, 3] to vectors [B, 2048]."""
        hidden = (resize_as_tensorflow1(pictures.permute(0, 3, 1, 2).float(), SIDE) - 128) / 128
        for name, layer in self.named_children():
            if name in POOLED_BEFORE:
                hidden = F.max_pool2d(hidden, 3, 2)
            hidden = layer(hidden)
        return Features(hidden.mean(dim=(2, 3)))


def resize_as_tensorflow1(image: Tensor, side: int) -> Tensor:
    """Resize pictures [B, C, Y, X] bilinearly to [B, C, side, side], output pixel i taken from i * size / side."""

    def weights(size: int) -> Tensor:
        place = torch.arange(side, device=image.device, dtype=torch.float32) * (size / side)
        low = place.long()
        high = (low + 1).clamp(max=size - 1)
        share = (place - low)[:, None]
        return F.one_hot(low, size) * (1 - share) + F.one_hot(high, size) * share

    return weights(image.shape[2]) @ image @ weights(image.shape[3]).mT


def load_inception(path: str) -> Inception:
    """Read the frozen network in float32 from the safetensors file at `path`; UserError that names what is wrong."""
    network = Inception()
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    try:
        with safe_open(path, framework="pt") as file:
            absent = sorted(set(names) - set(file.keys()))
            if absent:
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                raise UserError(f"Inception weights {path} lack {absent[0]}{more}; {LAYOUT}")
            network.load_state_dict({name: file.get_tensor(name) for name in names}, strict=False)
    except FileNotFoundError as error:
        raise UserError(f"no Inception weights at {path}; {LAYOUT}") from error
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"Inception weights {path} cannot be used ({reason}); {LAYOUT}") from error
    return network
