"""From a GPU to the host, while either goes on with other work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def download(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a tensor to the host; what is returned waits until it is there, and gives it.

    Behind all work on the GPU that was begun before; a tensor on the host is there already.
    """
    if not tensor.is_cuda:
        return tensor.numpy
    # Pinned memory is copied to at the full rate of the bus, and beside other work; torch keeps it for later.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # sleep: a thread that spins takes a core from those that encode
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait
