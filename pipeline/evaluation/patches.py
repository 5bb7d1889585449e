"""Fine detail: windows of pictures at 256 px, drawn so or enlarged from 64 px, against those of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models import distances
from models.features import FeatureNetwork, extract
from pipeline.evaluation.closeups import LARGE, Draw, drawing, drawn_uint8
from pipeline.evaluation.fidelity import BATCH, SEED, SIDE
from pipeline.evaluation.pictures import Chunk, Source
from pipeline.execution.progress import Ticker

if TYPE_CHECKING:  # the rest of this module works where Ray is not installed
    from pipeline.execution.tasks import Pool

CROPS = 8
ENLARGED = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
DRAWN, PHOTOGRAPHED = "drawn", "photographs"
# Pictures a task.
CHUNK = 25


def enlarge(pictures: np.ndarray, side: int, method: Image.Resampling) -> np.ndarray:
    """uint8 pictures [n, Y, X, 3] resized by Pillow to uint8 [n, side, side, 3]."""
    resized = np.empty((len(pictures), side, side, 3), np.uint8)
    for place, picture in enumerate(pictures):
        resized[place] = np.asarray(Image.fromarray(picture).resize((side, side), method))
    return resized


def variants(draw: Draw) -> dict[str, np.ndarray]:
    """Pictures at 256 px, uint8 [n, 256, 256, 3]: drawn so, and enlarged from 64 px in each of the ways of ENLARGED."""
    small = drawn_uint8(draw, SIDE)
    enlarged = {name: enlarge(small, LARGE, method) for name, method in ENLARGED.items()}
    return {DRAWN: drawn_uint8(draw, LARGE), **enlarged}


def crops(pictures: np.ndarray, first: int) -> np.ndarray:
    """CROPS windows of SIDE pixels from each of uint8 pictures [n, Y, X, 3]: uint8 [n CROPS, SIDE, SIDE, 3].

    The pictures are number `first` and following of their set; a picture's number alone decides where its windows are.
    """
    windows = []
    for number, picture in enumerate(pictures, first):
        offsets = np.random.default_rng([SEED, number]).integers(0, picture.shape[0] - SIDE + 1, (CROPS, 2))
        windows += [picture[y : y + SIDE, x : x + SIDE] for y, x in offsets]
    return np.stack(windows)


def compare_patches(ours: Mapping[str, Tensor], photographs: Tensor) -> dict[str, Any]:
    """Fréchet distances between patches, of one network's vectors; `photographs` holds twice as many as each of `ours`.

    {"drawn", "lanczos", "bicubic": distance to half of the photographs' patches, "floor": that of the other half,
    "gain": the share of the Lanczos distance that drawing saves, None where that is 0}.
    """
    half, other = photographs.chunk(2)
    figures = {name: distances.frechet(vectors, half) for name, vectors in ours.items()}
    gain = 1 - figures[DRAWN] / figures["lanczos"] if figures["lanczos"] else None
    return {**figures, "floor": distances.frechet(other, half), "gain": gain}


def num_pictures(wanted: int, source: Source, num_large: int, networks: Mapping[str, FeatureNetwork]) -> int:
    """How many pictures of a set can be compared in patches; 0 if too few for a covariance or no splats."""
    count = min(wanted, source.count, num_large // 2) if source.dataset else 0
    return count if count * CROPS > max(network.width for network in networks.values()) else 0


def weigh_patches(
    sources: Sequence[Source],
    large: np.ndarray,
    networks: Mapping[str, FeatureNetwork],
    pool: Pool,
    *,
    wanted: int,
    batch: int = BATCH,
) -> list[dict[str, Any] | None]:
    """Compare `wanted` pictures of each set with photographs [m, 256, 256, 3], in tasks of `pool`.

    {"pictures", "patches", "networks": see `compare_patches`} for each set; None where `num_pictures` is 0.
    """
    counts = [num_pictures(wanted, source, len(large), networks) for source in sources]
    extents = [*zip(sources, counts, strict=True), (Source("", "", len(large), large), 2 * max(counts))]
    chunks = [
        (place, number * CHUNK, chunk)
        for place, (source, count) in enumerate(extents)
        for number, chunk in enumerate(source.chunks(CHUNK, count))
    ]
    networks_ref = pool.share(dict(networks))
    jobs = ((networks_ref, chunk, first, pool.device, batch) for _, first, chunk in chunks)
    parts: list[list[dict[str, dict[str, Tensor]]]] = [[] for _ in extents]
    ticker = Ticker("parts looked at in patches", len(chunks))
    for done, ((place, _, _), part) in enumerate(zip(chunks, pool.map(_look_closely, jobs), strict=True), 1):
        parts[place].append(part)
        ticker.step(done)

    figures: list[dict[str, Any] | None] = [None] * len(sources)
    for place, count in enumerate(counts):
        if count:
            ours, real = _by_network(parts[place]), _by_network(parts[-1])
            pairs = ((ours[name], real[name][PHOTOGRAPHED][: 2 * count * CROPS], pool.device) for name in networks)
            compared = dict(zip(networks, pool.map(_compare, pairs), strict=True))
            figures[place] = {"pictures": count, "patches": count * CROPS, "networks": compared}
    return figures


def _look_closely(
    networks: Mapping[str, FeatureNetwork], chunk: Chunk, first: int, device: str, batch: int
) -> dict[str, dict[str, Tensor]]:
    """Vectors by network and variant; photographs have the one variant PHOTOGRAPHED."""
    pictures = {PHOTOGRAPHED: chunk} if isinstance(chunk, np.ndarray) else variants(drawing(*chunk, device))
    windows = {variant: crops(large, first) for variant, large in pictures.items()}
    return {
        name: {
            variant: extract(network, crop, device=device, batch=batch).vectors.cpu()
            for variant, crop in windows.items()
        }
        for name, network in networks.items()
    }


def _compare(ours: dict[str, Tensor], real: Tensor, device: str) -> dict[str, Any]:
    return compare_patches({name: vectors.to(device) for name, vectors in ours.items()}, real.to(device))


def _by_network(parts: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    return {
        name: {variant: torch.cat([part[name][variant] for part in parts]) for variant in of_network}
        for name, of_network in parts[0].items()
    }
