"""Train a splat denoiser on prepared photographs, data-parallel on Ray Train.

    python -m jobs.train --photos prepared --out runs/cats --minutes 60 --lpips lpips_vgg16.safetensors
    python -m jobs.train --photos prepared --out runs/fast --distil 4 --minutes 20 --lpips lpips_vgg16.safetensors

The same command continues a run that was stopped. OUT/weights.safetensors is what jobs.generate takes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cli import check_numbers, run
from models import checkpoint
from models.denoiser import BOUNDS, DenoiserConfig
from models.errors import UserError, check_name
from models.few_calls import MOST_CALLS
from models.kernels import KERNELS
from models.losses import Objective
from models.perceptual import load_lpips
from models.resemblance import EDITION
from models.splats import SCALE_LIMIT
from pipeline.datasets.indices import LARGEST
from pipeline.execution.cluster import connect
from pipeline.training import distributed
from pipeline.training.recipe import OPTIMIZERS, Budget, Recipe, Run
from pipeline.training.training_set import check

LEAST_DETAIL = 128  # px
# Peak learning rate, steps of warm-up, and steps between lines of progress, by which the learning rate falls.
TRAINING, DISTILLING = (Recipe.learning_rate, Recipe.warmup, Budget.report_every), (4e-5, 40, 10)


@dataclass(frozen=True)
class Options:
    """What to train on, what to train, for how long, and where to."""

    out: str
    """Folder (or fsspec URL) for checkpoints, weights and sample sheets; every worker must reach it."""

    photos: str | None = None
    """Folder (or fsspec URL) that jobs.prepare made; every worker must reach it. May be left out with --distil."""

    workers: int = 1
    """Number of data-parallel workers: one a GPU, or CPU processes where the cluster has no GPU."""

    steps: int | None = None
    """Stop after this many steps."""

    minutes: float | None = None
    """Stop after this many minutes of training, over all runs into the same --out."""

    weights: str | None = None
    """File of weights to start from, whose shape then replaces that of the options from --kernel to
    --splats-per-patch."""

    distil: int = 0
    """Calls of a student that learns to make of a noise what --weights, the bundled ones if not given, make of it, and,
    with --photos and --lpips, to make pictures with the statistics of photographs. 0 for no student."""

    lpips: str | None = None
    """File of perceptual weights; without it training runs without the perceptual term."""

    batch: int | None = None
    """Pictures a step, over all workers; 512 on GPUs if not given, 1,536 with --distil, and 64 on CPUs."""

    at_once: int | None = None
    """At most so many of a worker's pictures are in memory, where each takes 20 to 40 MB, times the calls of a student.
    A step sees more in pieces of one size, one after the other; --batch is rounded down for it. All if not given; with
    --distil 1,024 divided by the calls on GPUs, and 64 on CPUs."""

    optimizer: str = Recipe.optimizer
    """adamw, or muon, which moves the matrices of the blocks by Muon and everything else by AdamW."""

    learning_rate: float | None = None
    """Peak learning rate, of Muon's steps as of AdamW's; 6e-4 if not given, 4e-5 with --distil."""

    kernel: str = DenoiserConfig.kernel
    """Kernel of the splats: wavelet, sharp or gaussian."""

    width: int = DenoiserConfig.width
    """Width of the transformer."""

    blocks: int = DenoiserConfig.blocks
    """Blocks of the transformer."""

    heads: int = DenoiserConfig.heads
    """Attention heads; the width must be a multiple of 4 times this."""

    registers: int = DenoiserConfig.registers
    """Tokens of the transformer beside those of the patches. With any, its fused kernels are not used."""

    splats_per_patch: int = DenoiserConfig.splats_per_patch
    """Splats that describe a patch."""

    scale_max: float | None = None
    """Largest inverse scale of a splat, in 1/patches, up to 24: the larger, the finer detail there can be. That of
    --weights, or else 6, if not given."""

    detail: int = Recipe.detail
    """Photographs at least this wide supervise at high resolution too, and with --distil show students what detail is
    like; 0 turns that off."""

    seed: int = Recipe.seed
    """Seed of weights, batches and noise."""

    warmup: int | None = None
    """Steps over which the learning rate rises; 400 if not given, 40 with --distil."""

    decay: float = Recipe.decay
    """Last part of training over which the learning rate falls to 0."""

    ema_widths: tuple[float, ...] = Recipe.ema_widths
    """Widths of the averages of the weights, as parts of the training so far; the first is weights.safetensors."""

    augment: float = Recipe.augment
    """Chance of each of: zoom, turn, stretch, shift. The network is told, so that samples are not moved; 0 for none, as
    always with --distil."""

    dropout: float = Recipe.dropout
    """Share of the hidden layers that each step leaves out, against learning by heart."""

    fused: bool = False
    """On GPUs, train by kernels of this project instead of blocks that torch compiles; see docs/speed.md. Not with
    --dropout, nor with --registers."""

    objective: Objective = field(default_factory=partial(Objective, detail_photographs=0.03))
    """Weights and schedules of the loss."""

    report_every: int | None = None
    """Steps between lines of progress; 50 if not given, 10 with --distil; on CPUs there is one every 20 seconds at
    least."""

    save_every: int = Budget.save_every
    """Steps between checkpoints, of which there is one every ten minutes at least."""

    def __post_init__(self) -> None:
        check_name("kernel", self.kernel, KERNELS)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.steps is None and self.minutes is None:
            raise UserError("say how long to train: give --steps or --minutes, or both")
        check_numbers(self, "workers", "steps", "batch", "at_once", "width", "blocks", "heads", least=1)
        check_numbers(self, "warmup", "report_every", "save_every", least=1)
        check_numbers(self, "minutes", "learning_rate")
        check_numbers(self, "seed", least=0, most=LARGEST)
        check_numbers(self, "decay", "augment", least=0, most=1)
        for name in ("registers", "splats_per_patch"):
            least, most = BOUNDS[name]
            check_numbers(self, name, least=least, most=most)
        check_numbers(self, "scale_max", least=1, most=SCALE_LIMIT)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: give a share from 0 to below 1")
        if self.fused and (self.dropout or self.registers):
            raise UserError("--fused knows neither --dropout nor --registers: leave out one or the other")
        check_numbers(self, "distil", least=0, most=MOST_CALLS)
        if self.photos is None and not self.distil:
            raise UserError(
                "give --photos, a set made by jobs.prepare; or --distil, which can learn from --weights alone"
            )
        if self.photos is not None and self.distil and self.lpips is None:
            raise UserError("--photos with --distil needs --lpips, the file of the network that looks at them")
        if not self.ema_widths or not all(0 < width < 0.28 for width in self.ema_widths):
            raise UserError(f"--ema-widths {self.ema_widths}: give one or more numbers above 0 and below 0.28")
        if self.batch is not None and self.batch % self.workers:
            raise UserError(f"--batch {self.batch} is not a multiple of --workers {self.workers}")
        if self.width % (4 * self.heads):
            raise UserError(f"--width {self.width} is not a multiple of 4 times --heads {self.heads}")
        if self.detail < 0 or 0 < self.detail < LEAST_DETAIL:
            raise UserError(f"--detail {self.detail}: give 0 for none, or at least {LEAST_DETAIL}")
        self.model()

    def model(self) -> DenoiserConfig:
        """The shape of a new denoiser; UserError where there is none such."""
        names = ("kernel", "width", "blocks", "heads", "registers", "splats_per_patch")
        return self.reaching(DenoiserConfig(**{name: getattr(self, name) for name in names}))

    def reaching(self, model: DenoiserConfig) -> DenoiserConfig:
        """The same with --scale-max, if given."""
        return model if self.scale_max is None else replace(model, scale_max=self.scale_max)


def main(options: Options) -> None:
    """Check what can be checked here, then train on the cluster."""
    photographs = check(options.photos)[2] if options.photos is not None else None
    largest = largest_side(photographs)
    if options.photos is not None and options.detail > largest:
        remedy = f"; --detail {largest} takes the largest" if largest >= LEAST_DETAIL else ""
        print(f"no photograph has --detail {options.detail} px: learning from them at the model's size alone{remedy}")
    if options.lpips is None:
        print("no --lpips file: training without the perceptual term; pictures will be softer")
    else:
        load_lpips(options.lpips)
    model, start = options.model(), None
    weights = options.weights or (str(checkpoint.PRETRAINED) if options.distil else None)
    if weights is not None:
        data = checkpoint.read(weights)
        model, start = options.reaching(checkpoint.parse(data, weights).config), checkpoint.fingerprint(data)
    distributed.claim(options.out)
    with connect() as cluster:
        if cluster.gpus:
            cluster.require_gpus(options.workers)
        settings = make_run(options, model, start, weights, photographs, gpus=bool(cluster.gpus))
        last = distributed.run(settings, gpus=cluster.gpus, cpus_per_worker=cluster.cpu_share(options.workers, 1))
    print(f"trained {last['step']:,.0f} steps in {last['minutes']:.1f} minutes: {options.out}/weights.safetensors")


def largest_side(photographs: Mapping[str, Any] | None) -> int:
    """The side of the largest photographs of a prepared set, by its record, in pixels; 0 without any."""
    return max(map(int, photographs["sides"] if photographs else ()), default=0)


def pictures(options: Options, *, gpus: bool) -> tuple[int, int]:
    """How many a step sees, over all workers, and in how many pieces on each."""
    usual, at_once = (512, None) if gpus else (64, None)
    if options.distil:  # every call of a rollout is kept for its gradient
        usual, at_once = (1536, 1024 // options.distil) if gpus else (64, 64 // options.distil)
    each = max(1, (options.batch or usual) // options.workers)
    pieces = -(-each // max(1, options.at_once or at_once or each))
    return each // pieces * pieces * options.workers, pieces


def make_run(
    options: Options,
    model: DenoiserConfig,
    start: str | None,
    weights: str | None,
    photographs: Mapping[str, Any] | None,
    *,
    gpus: bool,
) -> Run:
    """The run that the options ask for, on GPUs or not, from `weights` with the fingerprint `start`.

    `photographs` is the record of the prepared set of the options.
    """
    batch, pieces = pictures(options, gpus=gpus)
    usual = DISTILLING if options.distil else TRAINING
    objective = options.objective
    judged = bool(options.distil and options.photos and objective.photographs)
    if not (judged and 0 < options.detail <= largest_side(photographs)):
        objective = replace(objective, detail_photographs=0.0)
    recipe = Recipe(
        model=model,
        batch=batch,
        pieces=pieces,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate or usual[0],
        warmup=options.warmup or usual[1],
        decay=options.decay,
        ema_widths=options.ema_widths,
        augment=0.0 if options.distil else options.augment,
        distil=options.distil,
        resemblance=EDITION if judged else 0,
        dropout=options.dropout,
        start=start,
        photographs=photographs.get("fingerprint") if photographs else None,  # sets of before 0.7.0 have none
        objective=objective,
        detail=options.detail,
        lpips=options.lpips is not None,
        seed=options.seed,
    )
    budget = Budget(options.steps, options.minutes, options.report_every or usual[2], options.save_every)
    return Run(
        photos=options.photos and absolute(options.photos),
        out=options.out,
        recipe=recipe,
        budget=budget,
        workers=options.workers,
        lpips=options.lpips and absolute(options.lpips),
        weights=weights and absolute(weights),
        fused=options.fused,
    )


def absolute(url: str) -> str:
    """A URL as it is; a path from the root: workers have another working directory."""
    return url if "://" in url else str(Path(url).resolve())


if __name__ == "__main__":
    sys.exit(run(Options, main, continues="the last checkpoint, if there is one"))
