"""The convolutions of VGG16 with the input scaling of LPIPS, frozen: eyes of perceptual loss and evaluation.

The weights file is safetensors in torchvision's names, `features.N.weight` [out, in, 3, 3] and
`features.N.bias` [out], of any float type; other tensors in it (the heads of LPIPS, say) are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import UserError

# For each of the five stages, the numbers N of its convolutions in torchvision's `features`, and their width.
STAGES = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
LAYOUT = "expected safetensors with the features.N.weight and features.N.bias of torchvision's VGG16"


class Vgg16(nn.Module):
    """VGG16 up to relu5_3; its own weights are frozen, while gradients flow to the image."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `features.N.weight` and `.bias` of all thirteen convolutions from `weights`, in float32."""
        super().__init__()
        self.stages = nn.ModuleList()
        width_in = 3
        for numbers, width in STAGES:
            stage = nn.ModuleList()
            for number in numbers:
                convolution = nn.Conv2d(width_in, width, 3, padding=1)
                convolution.load_state_dict({key: weights[f"features.{number}.{key}"] for key in ("weight", "bias")})
                stage.append(convolution)
                width_in = width
            self.stages.append(stage)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map pictures [B, 3, Y, X] in [-1, 1] to relu1_2, 2_2, 3_3, 4_3 and 5_3.

        Tap number s (from 1) has the width of STAGES and Y, X divided by 2 to the power s - 1; Y and X are at
        least 16. The image has the float type that the module was moved to.
        """
        hidden = (image - self.shift) / self.scale
        taps: list[Tensor] = []
        for stage in self.stages:
            if taps:
                hidden = F.max_pool2d(hidden, 2)
            for convolution in stage.children():
                hidden = F.relu(convolution(hidden))
            taps.append(hidden)
        return taps


def load_vgg(path: str) -> Vgg16:
    """Read a frozen Vgg16 in float32 on the CPU from the safetensors file at `path`.

    Raises UserError, naming the file and the expected layout, where there is no such file, it is not
    safetensors, or a convolution is absent or of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [f"features.{n}.{key}" for numbers, _ in STAGES for n in numbers for key in ("weight", "bias")]
            absent = sorted(set(names) - set(file.keys()))
            if absent:
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                raise UserError(f"VGG16 weights {path} lack {absent[0]}{more}; {LAYOUT}")
            return Vgg16({name: file.get_tensor(name) for name in names})
    except FileNotFoundError as error:
        raise UserError(f"no VGG16 weights at {path}; {LAYOUT}") from error
    except (SafetensorError, OSError, RuntimeError) as error:
        # load_state_dict spreads a mismatch of shapes over several lines; the last one says which.
        raise UserError(
            f"VGG16 weights {path} cannot be used ({str(error).splitlines()[-1].strip()}); {LAYOUT}"
        ) from error
