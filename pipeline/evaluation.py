"""How near generated pictures are to photographs, always beside how near photographs are to each other.

Protocol: 64 px uint8 pictures. The photographs are shuffled by SEED and split; `count` generated pictures are
compared with `count` photographs (the figure) and the same photographs with `count` others (the floor), so
that the bias which such distances have at finite counts is the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import distances
from models.errors import UserError
from models.features import FeatureNetwork, VggFeatures, extract, load_efficientnet
from models.vgg import load_vgg

SIDE = 64
SEED = 0
EFFICIENTNET, VGG = "efficientnet_lite0", "vgg16_relu5_3"


def load_networks(lpips: str | None = None) -> dict[str, FeatureNetwork]:
    """The feature networks by name: EfficientNet-lite0, and VGG16 where `lpips` is a path to its weights."""
    networks: dict[str, FeatureNetwork] = {EFFICIENTNET: load_efficientnet()}
    if lpips is not None:
        networks[VGG] = VggFeatures(load_vgg(lpips))
    return networks


def evaluate(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    networks: Mapping[str, FeatureNetwork],
    device: torch.device | str = "cpu",
    batch: int = 250,
) -> dict[str, Any]:
    """Compare generated pictures with photographs, both uint8 [n, 64, 64, 3], in the features of `networks`.

    `count`, the number of pictures in each set compared, is the number generated or half of the photographs,
    whichever is less; the memorised share looks at these generated pictures against *all* photographs, and
    P(cat) is averaged over all pictures of either kind. Deterministic: the same pictures in the same order
    give the same figures on one kind of device, and differ by rounding on another.

    Returns plain numbers, ready for JSON: `pictures` (generated, real, count) and for each of `networks`
    `frechet`, `kid`, `precision`, `recall`, `coverage` as {"generated": figure, "floor": figure}, `memorised`
    (share, threshold, expected) and, where the network classifies, `cat` as {"generated": P, "real": P}.
    Raises UserError for pictures of another shape and for too few of them.
    """
    for name, pictures in (("generated", generated), ("real", real)):
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(
                f"{name} pictures are {pictures.dtype} {pictures.shape}; needed: uint8 [n, {SIDE}, {SIDE}, 3]"
            )
    count = min(len(generated), len(real) // 2)
    for network in networks.values():
        distances.check_count(count, network.width)
    report: dict[str, Any] = {
        "pictures": {"generated": len(generated), "real": len(real), "count": count},
        "networks": {},
    }
    for name, network in networks.items():
        ours = extract(network, generated, device=device, batch=batch)
        photographs = extract(network, real, device=device, batch=batch)
        figures = compare(_shuffled(ours.vectors), _shuffled(photographs.vectors), count)
        if ours.cat is not None and photographs.cat is not None:
            figures["cat"] = {"generated": float(ours.cat.mean()), "real": float(photographs.cat.mean())}
        report["networks"][name] = figures
    return report


def compare(generated: Tensor, real: Tensor, count: int) -> dict[str, Any]:
    """The figures of one network, see `evaluate`, from shuffled vectors [>= count, D] and [>= 2 count, D]."""
    half, other = real[:count], real[count : 2 * count]
    pairs = {"generated": generated[:count], "floor": other}
    figures: dict[str, Any] = {
        "frechet": {name: distances.frechet(vectors, half) for name, vectors in pairs.items()},
        "kid": {name: distances.kid(vectors, half) for name, vectors in pairs.items()},
    }
    overlaps = {name: distances.overlap(vectors, half) for name, vectors in pairs.items()}
    for share in distances.Overlap._fields:
        figures[share] = {name: getattr(overlap, share) for name, overlap in overlaps.items()}
    memorised = distances.memorised(generated[:count], real)
    figures["memorised"] = {**memorised._asdict(), "expected": distances.QUANTILE}
    return figures


def _shuffled(vectors: Tensor) -> Tensor:
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(SEED))
    return vectors[order.to(vectors.device)]


def as_table(report: Mapping[str, Any]) -> str:
    """The report as lines of text: each figure beside its floor."""
    pictures = report["pictures"]
    lines = [
        f"{pictures['generated']:,} generated, {pictures['real']:,} real pictures; "
        f"{pictures['count']:,} against {pictures['count']:,} each, floor: real against other real"
    ]
    for network, figures in report["networks"].items():
        lines.append(f"{network:24}{'generated':>12}{'floor':>12}")
        for name in ("frechet", "kid", *distances.Overlap._fields):
            pair = figures[name]
            lines.append(f"  {name:22}{pair['generated']:12.4f}{pair['floor']:12.4f}")
        memorised = figures["memorised"]
        lines.append(f"  {'memorised share':22}{memorised['share']:12.4f}{memorised['expected']:12.4f}")
        if "cat" in figures:
            lines.append(f"  {'P(cat)':22}{figures['cat']['generated']:12.4f}{figures['cat']['real']:12.4f}")
    return "\n".join(lines)
