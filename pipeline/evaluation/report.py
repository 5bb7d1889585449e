"""The report of an evaluation: plain numbers for JSON, lines of text; `page` makes it a page to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.distances import NEIGHBOURS, QUANTILE
from pipeline.datasets.plan import CODE_VERSION
from pipeline.evaluation.closeups import HUGE, LARGE
from pipeline.evaluation.fidelity import SEED, SIDE, TITLES
from pipeline.evaluation.measurement import Weighed
from pipeline.evaluation.patches import CROPS
from pipeline.evaluation.pictures import Photographs

# Figures with a floor, in the order in which they are shown: key, name, decimals, whether less is better.
PAIRS = (
    ("frechet", "Fréchet distance", 2, True),
    ("kid", "KID", 5, True),
    ("precision", "precision", 3, False),
    ("recall", "recall", 3, False),
    ("coverage", "coverage", 3, False),
    ("cat", "P(cat)", 3, False),
)
PROTOCOL = {
    "Pictures": f"{SIDE} x {SIDE} px, uint8. Splats are drawn at that size with the kernel of their plan; photographs "
    "are cropped as for training and reduced by exact area averaging, exact duplicates dropped.",
    "Floor": f"The photographs, shuffled by seed {SEED}, are split: N generated pictures are compared with N "
    "photographs, and N other photographs with the same ones. N is the number generated, or half of the photographs "
    "where that is less. The bias of every distance at finite N is the same in both.",
    "EfficientNet-lite0": "Antialiased bicubic to 224 x 224, not rounded, ImageNet mean and deviation, float32, the "
    "1,280 features after global pooling. P(cat) is the probability of the ImageNet classes 281 to 285, averaged over "
    "all pictures.",
    "VGG16 relu5_3": "At 64 px, scaled as for LPIPS, float32, the mean over all positions: 512 features.",
    "Inception-v3": "The canonical FID network of 2015-12-05 where its weights are given: resized to 299 x 299 as "
    "TensorFlow 1 does, (x - 128) / 128, 2,048 pooled features.",
    "Fréchet distance": "Squared, between Gaussians with unbiased covariances, in float64.",
    "KID": "The unbiased squared MMD with the kernel (x·y / D + 1)^3 over all pairs; around 0 for sets of one origin.",
    "Precision, recall, coverage": f"Balls to the neighbour number {NEIGHBOURS} of the own set. Precision: generated "
    "pictures in some photograph's ball. Recall: photographs in some generated picture's ball. Coverage: photographs "
    "whose ball holds a generated picture.",
    "Memorised": "The distance in features from each picture, or its mirror image, to the nearest photograph of the "
    f"training part. The share of generated pictures nearer than the {QUANTILE:.0%} quantile of the same distance of "
    "held-out photographs. A model that copies nothing shows about that share.",
    "Borders": "Mean absolute step between neighbouring pixels across the borders of the 8 x 8 patches, over that "
    "inside patches, averaged over pictures (± standard error). Photographs may show block borders of the files "
    "they come from, where those coincide with patches. At a size that none of them has, they have no figure.",
    "Consistency": f"Each picture drawn at {HUGE} px, clamped and reduced by area, against itself drawn at {SIDE} px. "
    "Pictures that agree wholly, flat ones say, are left out.",
    "Patches": f"{CROPS} windows of {SIDE} px from each picture at {LARGE} px, at places drawn from a seed, against "
    f"such windows of photographs of {LARGE} px: of splats drawn at {LARGE} px, and of the same splats drawn at {SIDE} "
    "px and enlarged by Lanczos or bicubic.",
}


def to_json(
    weighed: Sequence[Weighed], photographs: Photographs, urls: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The whole report, ready for JSON."""
    return {
        "splatcats": CODE_VERSION,
        "photographs": {
            "urls": list(urls),
            "training": len(photographs.training),
            "heldout": len(photographs.heldout),
            "large": {str(side): len(pictures) for side, pictures in photographs.large.items()},
        },
        "sets": [
            {
                "label": one.source.label,
                "url": one.source.url,
                "plan": one.source.dataset.plan.to_dict() if one.source.dataset else None,
                **one.figures,
            }
            for one in weighed
        ],
        "notes": list(notes),
        "protocol": PROTOCOL,
    }


def rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The figures of one set as (name, generated, floor), a network's under a row of its title alone."""
    for network, of_network in figures["networks"].items():
        yield TITLES.get(network, network), "", ""
        for key, name, decimals, _ in PAIRS:
            if key in of_network:
                pair = of_network[key]
                yield name, f"{pair['generated']:.{decimals}f}", f"{pair['floor']:.{decimals}f}"
        memorised = of_network["memorised"]
        floor = f"{memorised['expected']:.2%} ± {memorised['expected_error']:.2%}"
        yield "memorised share", f"{memorised['share']:.2%}", floor
    yield "Drawn large", "", ""
    for side, pair in figures["borders"].items():
        texts = [f"{p['mean']:.3f} ± {p['error']:.3f}" if p else "-" for p in (pair["generated"], pair["photographs"])]
        yield f"border ratio at {side} px", texts[0], texts[1]
    consistency = figures["consistency"]
    text = f"{consistency['mean']:.1f} dB, worst {consistency['worst']:.1f}" if consistency else "-"
    yield f"{HUGE} px against {SIDE} px", text, "-"
    for network, patches in ((figures["patches"] or {}).get("networks") or {}).items():
        yield f"Patches at {LARGE} px, {TITLES.get(network, network)}", "", ""
        for name in ("drawn", "lanczos", "bicubic"):
            yield f"Fréchet distance, {name}", f"{patches[name]:.2f}", f"{patches['floor']:.2f}"
        yield "less than Lanczos by", "-" if patches["gain"] is None else f"{patches['gain']:.1%}", "-"


def as_table(report: Mapping[str, Any]) -> str:
    """The report as lines of text: each figure beside its floor."""
    photographs = report["photographs"]
    lines = [f"{photographs['training']:,} photographs trained on, {photographs['heldout']:,} held out"]
    for figures in report["sets"]:
        lines.append("")
        lines.append(f"{figures['label']}  {figures['url']}")
        lines.append(f"  {figures['count']:,} of {figures['pictures']:,} against as many photographs")
        lines.append(f"  {'':34}{'generated':>22}{'photographs':>18}")
        for name, generated, floor in rows(figures):
            lines.append(f"    {name:32}{generated:>22}{floor:>18}" if generated else f"  {name}")
    return "\n".join([*lines, "", *report["notes"]]).rstrip()
