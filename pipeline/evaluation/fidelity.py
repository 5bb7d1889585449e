"""How near generated pictures are to photographs, always beside how near photographs are to each other.

Everything here is plain functions on one device. `measurement` runs them on Ray and adds what only splats allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import distances
from models.errors import UserError
from models.features import FeatureNetwork, VggFeatures, extract, load_efficientnet
from models.inception import load_inception
from models.vgg import load_vgg

SIDE = 64
SEED = 0
BATCH = 250
EFFICIENTNET, VGG, INCEPTION = "efficientnet_lite0", "vgg16_relu5_3", "inception_v3"
TITLES = {EFFICIENTNET: "EfficientNet-lite0", VGG: "VGG16 relu5_3", INCEPTION: "Inception-v3 (FID)"}


@dataclass(frozen=True)
class Seen:
    """What one network sees in n pictures: vectors [n, D]; those of the mirror images; P(cat) [n] if it classifies."""

    vectors: Tensor
    mirrored: Tensor | None = None
    cat: Tensor | None = None

    @classmethod
    def joined(cls, parts: list[Seen]) -> Seen:
        """The pictures of several parts, which have the same fields, as one."""
        mirrored = [part.mirrored for part in parts if part.mirrored is not None]
        cat = [part.cat for part in parts if part.cat is not None]
        return cls(
            torch.cat([part.vectors for part in parts]),
            torch.cat(mirrored) if mirrored else None,
            torch.cat(cat) if cat else None,
        )

    def to(self, device: torch.device | str) -> Seen:
        """The same on another device."""
        mirrored, cat = (None if tensor is None else tensor.to(device) for tensor in (self.mirrored, self.cat))
        return Seen(self.vectors.to(device), mirrored, cat)


@dataclass(frozen=True)
class Comparison:
    """One network's verdict on n generated pictures: figures for JSON, and for every picture what they rest on."""

    figures: dict[str, Any]
    # [count] rows of the generated pictures that were compared, in their shuffled order, and how real each looks
    compared: Tensor
    realism: Tensor
    # [n] distance to the nearest training photograph, its row, and whether the mirrored picture is the nearer one
    copy_distance: Tensor
    copy_row: Tensor
    copy_mirrored: Tensor
    # [h] the same distance of the held-out photographs
    heldout_distance: Tensor


def load_networks(lpips: str | None = None, inception: str | None = None) -> dict[str, FeatureNetwork]:
    """The feature networks by name: EfficientNet-lite0, and those for which a path to their weights is given."""
    networks: dict[str, FeatureNetwork] = {EFFICIENTNET: load_efficientnet()}
    if lpips is not None:
        networks[VGG] = VggFeatures(load_vgg(lpips))
    if inception is not None:
        networks[INCEPTION] = load_inception(inception)
    return networks


def check_photographs(training: np.ndarray, heldout: np.ndarray) -> None:
    """Raise a UserError unless both are uint8 [n, SIDE, SIDE, 3], and at least one."""
    for pictures in (training, heldout):
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(f"photographs are {pictures.dtype} {pictures.shape}; needed: uint8 [n, {SIDE}, {SIDE}, 3]")
    if not (len(training) and len(heldout)):
        raise UserError("photographs of both kinds are needed, trained on and held out; give more of them")


def check_enough(what: str, count: int, networks: Mapping[str, FeatureNetwork], *, sets: int = 1) -> None:
    """Raise a UserError that calls them `what` unless `count` pictures make so many sets that can be compared.

    Each needs more pictures than any of the networks has features, for its covariance to be regular.
    """
    width = max(network.width for network in networks.values())
    least = sets * (width + 1)
    if count < least:
        raise UserError(
            f"{count:,} {what} are too few for a covariance of {width:,} features: at least {least:,} are needed"
        )


def num_compared(generated: Sequence[int], real: int) -> int:
    """How many pictures of every set are compared: those of the smallest, or half of the photographs if that is less.

    One number for all: a Fréchet distance depends on it.
    """
    return min(*generated, real // 2)


def look(
    network: FeatureNetwork,
    pictures: np.ndarray,
    *,
    mirrored: bool,
    device: torch.device | str = "cpu",
    batch: int = BATCH,
) -> Seen:
    """What a network sees in uint8 pictures [n, Y, X, 3], and if `mirrored` in their mirror images; on `device`."""
    features = extract(network, pictures, device=device, batch=batch)
    flipped = extract(network, pictures[:, :, ::-1], device=device, batch=batch).vectors if mirrored else None
    return Seen(features.vectors, flipped, features.cat)


def compare(sets: list[Seen], training: Seen, heldout: Seen) -> list[Comparison]:
    """Weigh sets of generated pictures against photographs, in one network's eyes; all on one device.

    The photographs of both kinds are shuffled by SEED. As many as `num_compared` says are compared with generated
    pictures, and with as many other photographs: the floor. The bias that such distances have at finite counts is
    the same in both. Whether pictures are copies is judged against the photographs trained on alone, each picture
    or its mirror image, whichever is nearer, since training mirrors too; held-out photographs tell what is normal.

    Figures: `frechet`, `kid`, `precision`, `recall`, `coverage` as {"generated": figure, "floor": figure},
    `memorised` (share, threshold, expected, expected_error) and, where the network classifies, `cat` as
    {"generated": P, "floor": P}, averaged over all pictures of either kind.
    """
    real = _shuffled(torch.cat([training.vectors, heldout.vectors]))[0]
    heldout_distance = _nearest(heldout, training)[0]
    count = num_compared([len(ours.vectors) for ours in sets], len(real))
    half = distances.manifold(real[:count])
    floor = _figures(distances.manifold(real[count : 2 * count]), half)
    comparisons = []
    for ours in sets:
        vectors, order = _shuffled(ours.vectors)
        chosen = distances.manifold(vectors[:count])
        figures: dict[str, Any] = {
            name: {"generated": value, "floor": floor[name]} for name, value in _figures(chosen, half).items()
        }
        distance, row, is_mirrored = _nearest(ours, training)
        expected = distances.QUANTILE
        figures["memorised"] = {
            **distances.memorised(distance, heldout_distance)._asdict(),
            "expected": expected,
            # The threshold is itself drawn from this many photographs.
            "expected_error": (expected * (1 - expected) / len(heldout_distance)) ** 0.5,
        }
        if ours.cat is not None and training.cat is not None and heldout.cat is not None:
            real_cat = torch.cat([training.cat, heldout.cat])
            figures["cat"] = {"generated": float(ours.cat.mean()), "floor": float(real_cat.mean())}
        realism = distances.realism(chosen.vectors, half)
        evidence = (order[:count], realism, distance, row, is_mirrored, heldout_distance)
        comparisons.append(Comparison(figures, *(tensor.cpu() for tensor in evidence)))
    return comparisons


def _figures(generated: distances.Manifold, real: distances.Manifold) -> dict[str, float]:
    return {
        "frechet": distances.frechet(generated.vectors, real.vectors),
        "kid": distances.kid(generated.vectors, real.vectors),
        **distances.overlap(generated, real)._asdict(),
    }


def _nearest(seen: Seen, training: Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Distance [n] to the nearest training photograph, its row [n], and where the mirror image is the nearer [n]."""
    assert seen.mirrored is not None
    straight, mirrored = (distances.nearest(vectors, training.vectors) for vectors in (seen.vectors, seen.mirrored))
    is_mirrored = mirrored[0] < straight[0]
    distance, row = (torch.where(is_mirrored, *pair) for pair in zip(mirrored, straight, strict=True))
    return distance, row, is_mirrored


def _shuffled(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors in an order drawn from SEED, and that order."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(SEED)).to(vectors.device)
    return vectors[order], order
