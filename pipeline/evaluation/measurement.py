"""The whole evaluation on Ray: sets of generated pictures drawn, looked at and weighed against photographs.

Work is cut into chunks by the pictures alone and joined in their order, and every task computes with one thread, so
that the figures do not depend on how many tasks run at once or when they end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.features import FeatureNetwork
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.evaluation import closeups, fidelity
from pipeline.evaluation.closeups import LARGE, Closeups, borders, consistency, spread
from pipeline.evaluation.fidelity import BATCH, SIDE, Comparison, Seen
from pipeline.evaluation.patches import weigh_patches
from pipeline.evaluation.pictures import Chunk, Photographs, Source
from pipeline.execution.cluster import connect
from pipeline.execution.progress import Ticker
from pipeline.execution.tasks import Pool

# Pictures a task.
CHUNK, CLOSEUP_CHUNK = 500, 2


@dataclass(frozen=True)
class Extent:
    """How many pictures of each set of splats are drawn large, and how many go through a network at once."""

    closeups: int = 48
    patches: int = 500
    batch: int = BATCH


@dataclass
class Weighed:
    """A set and all that was found about it; `figures` is plain numbers, ready for JSON."""

    source: Source
    pictures: np.ndarray
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    closeups: Closeups | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def measure(
    sources: Sequence[Source],
    photographs: Photographs,
    networks: Mapping[str, FeatureNetwork],
    *,
    extent: Extent,
    workers: int | None = None,
    device: str = "auto",
    stall_seconds: float = 3600.0,
) -> list[Weighed]:
    """Weigh every source against the photographs, of which up to twice `extent.patches` at 256 px are used.

    Figures of a set: `pictures`, `count`, `networks` (see `fidelity.compare`), `borders` by size as {"generated",
    "photographs"}, `consistency`, and `patches` by network (see `patches.compare_patches`); None for what pictures
    that are no splats or that are flat, or photographs that are not large, do not allow.

    Uses the Ray cluster this process is connected to, or connects for the while. Raises UserError for too few pictures
    of either kind, before any work, and as `Pool.map` does.
    """
    num_real = len(photographs.training) + len(photographs.heldout)
    fidelity.check_photographs(photographs.training, photographs.heldout)
    for source in sources:
        fidelity.check_enough(f"pictures of {source.url}", source.count, networks)
    fidelity.check_enough("photographs", num_real, networks, sets=2)
    with connect() as cluster:
        pool = Pool.on(cluster, workers=workers, device=device, stall_seconds=stall_seconds)
        weighed = _look_and_compare(sources, photographs, networks, pool, extent.batch)
        _draw_closeups(weighed, pool, extent.closeups)
        of_patches = weigh_patches(
            sources, photographs.large[LARGE], networks, pool, wanted=extent.patches, batch=extent.batch
        )
    of_photographs = _photograph_borders(photographs)
    for one, patches in zip(weighed, of_patches, strict=True):
        one.figures |= {
            "pictures": one.source.count,
            "count": fidelity.num_compared([source.count for source in sources], num_real),
            "networks": {name: comparison.figures for name, comparison in one.comparisons.items()},
            "borders": _borders(one, of_photographs),
            "consistency": consistency(one.closeups.agreement) if one.closeups else None,
            "patches": patches,
        }
    return weighed


def _look_and_compare(
    sources: Sequence[Source],
    photographs: Photographs,
    networks: Mapping[str, FeatureNetwork],
    pool: Pool,
    batch: int,
) -> list[Weighed]:
    real = [Source("", "", len(pictures), pictures) for pictures in (photographs.training, photographs.heldout)]
    chunks = [(number, chunk) for number, source in enumerate([*real, *sources]) for chunk in source.chunks(CHUNK)]
    networks_ref = pool.share(dict(networks))
    jobs = ((networks_ref, chunk, number > 0, pool.device, batch) for number, chunk in chunks)
    parts: list[list[dict[str, Seen]]] = [[] for _ in range(len(real) + len(sources))]
    drawn: list[list[np.ndarray]] = [[] for _ in parts]
    ticker = Ticker("pictures looked at", sum(source.count for source in [*real, *sources]))
    looked = 0
    for (number, _), (pictures, seen) in zip(chunks, pool.map(_look, jobs), strict=True):
        parts[number].append(seen)
        drawn[number].append(pictures)
        looked += len(pictures)
        ticker.step(looked)

    weighed = [Weighed(s, np.concatenate(p)) for s, p in zip(sources, drawn[len(real) :], strict=True)]
    per_network = [[Seen.joined([part[name] for part in of_set]) for of_set in parts] for name in networks]
    compared = pool.map(_compare, ((sets[2:], sets[0], sets[1], pool.device) for sets in per_network))
    for name, comparisons in zip(networks, compared, strict=True):
        for one, comparison in zip(weighed, comparisons, strict=True):
            one.comparisons[name] = comparison
    return weighed


def _look(
    networks: Mapping[str, FeatureNetwork], chunk: Chunk, mirrored: bool, device: str, batch: int
) -> tuple[np.ndarray, dict[str, Seen]]:
    pictures = chunk if isinstance(chunk, np.ndarray) else closeups.drawn_uint8(closeups.drawing(*chunk, device), SIDE)
    return pictures, {
        name: fidelity.look(network, pictures, mirrored=mirrored, device=device, batch=batch).to("cpu")
        for name, network in networks.items()
    }


def _compare(sets: list[Seen], training: Seen, heldout: Seen, device: str) -> list[Comparison]:
    return fidelity.compare([seen.to(device) for seen in sets], training.to(device), heldout.to(device))


def _draw_closeups(weighed: list[Weighed], pool: Pool, count: int) -> None:
    chunks = [
        (one, chunk)
        for one in weighed
        if one.source.dataset is not None
        for chunk in one.source.chunks(CLOSEUP_CHUNK, min(count, one.source.count))
    ]
    ticker = Ticker("parts drawn large", len(chunks))
    results = pool.map(_draw_large, ((chunk, pool.device) for _, chunk in chunks))
    for done, ((one, _), part) in enumerate(zip(chunks, results, strict=True), 1):
        one.closeups = part if one.closeups is None else Closeups.joined([one.closeups, part])
        ticker.step(done)


def _draw_large(chunk: tuple[SplatDataset, Indices], device: str) -> Closeups:
    return closeups.closeups(closeups.drawing(*chunk, device))


def _photograph_borders(photographs: Photographs) -> dict[int, dict[str, float | int] | None]:
    """By size, over all photographs at hand. None are enlarged: that makes a pattern of steps of its own."""
    sets = {SIDE: np.concatenate([photographs.training, photographs.heldout]), **photographs.large}
    return {side: spread(borders(pictures)) if len(pictures) else None for side, pictures in sets.items()}


def _borders(one: Weighed, of_photographs: Mapping[int, dict[str, float | int] | None]) -> dict[str, Any]:
    ratios = {SIDE: borders(one.pictures), **(one.closeups.borders if one.closeups else {})}
    return {
        str(side): {"generated": spread(ratios[side]) if side in ratios else None, "photographs": photographs}
        for side, photographs in of_photographs.items()
    }
