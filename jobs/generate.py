"""Generate cats as splats: noise to Parquet, in bulk, on Ray.

    python -m jobs.generate --out out/splats --count 10000 --seed 1
    python -m jobs.generate --out s3://bucket/splats --count 1000000 --seed 1 --dry-run
    python -m jobs.generate --out out/morph --between 12,57 --frames 48 --seed 1

The same command continues an interrupted run.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from jobs.cli import check_numbers, counted, run
from models import checkpoint
from models.errors import UserError, check_name
from models.sampler import LEARNED, SCHEDULES, SOLVERS, Sampling, check_learned
from pipeline.datasets import plan_file
from pipeline.datasets.codec import CODECS, Shape
from pipeline.datasets.indices import LARGEST, Indices
from pipeline.datasets.plan import GenerationPlan, power_of_two_size
from pipeline.execution.cluster import DEVICES, check_gpu_share
from pipeline.generation.generator import generate
from pipeline.generation.rollouts import ROLLOUT_COLUMNS
from pipeline.generation.sampling import plan_for
from pipeline.storage.store import Store

# Measured on a file of 64 pictures of the bundled weights.
SPLAT_BYTES = {"float16": 16.6, "compact": 6.0}
# With the bundled weights on one H100, files included: 16,500 pictures of 4 network calls a second.
CALLS_PER_SECOND = 4 * 16_500
MORPH_FRAMES = 48
INDEX_DIGITS = 18  # of the two pictures of a morph


@dataclass(frozen=True)
class Options:
    """What to generate, and where to."""

    out: str
    """Folder or fsspec URL of the dataset (s3://bucket/name, for example)."""

    count: int | None = None
    """Number of pictures: the indices 0 to count - 1."""

    seed: int = 0
    """Seed of the dataset; picture i depends on the seed and i alone."""

    weights: str = str(checkpoint.PRETRAINED)
    """Weights from jobs.train, a path or fsspec URL; the bundled ones if not given."""

    steps: int | None = None
    """Network calls a picture; if not given, what the weights say."""

    solver: str | None = None
    """How noise becomes a cat: euler, heun, dpmpp2m, deis, or learned, which jobs.tune and jobs.train --distil add to
    weights for some numbers of calls; if not given, learned where the weights have it for --steps, or else what they
    say, or else deis."""

    schedule: str | None = None
    """When the calls are made: early (denser near the noise) or uniform; if not given, what the weights say, or else
    early. The solver learned has times of its own."""

    precision: str = "float16"
    """How splats are stored: float16, or compact, rounded such that pictures do not show it, in two fifths of the
    bytes."""

    shard_size: int | None = None
    """Pictures a shard; 64 to 4,096 (1.1 to 70 MB as float16) by the number of pictures if not given."""

    batch_size: int = 512
    """Pictures through the network at once; part of the plan, since it changes the last bits. A GPU is not busy with
    fewer than some hundred; on CPUs each takes 2 to 3 MB."""

    threads: int = 1
    """Threads of an actor on a CPU; part of the plan, since they change the last bits."""

    workers: int | None = None
    """Number of actors; as many as the GPUs of the cluster have room for, or one a CPU, if not given."""

    device: str = "auto"
    """auto (GPUs where the cluster has some), cpu or gpu."""

    gpus_per_worker: float = 1.0
    """Part of a GPU that an actor takes, up to 1: with less, several share one, or other work has a part of it."""

    between: str | None = None
    """Two indices, like 12,57: instead of --count pictures, the --frames pictures of a morph from one to the other."""

    frames: int | None = None
    """Pictures of a morph, both ends included; 48 if not given."""

    rollout: str | None = None
    """Indices, like 0-3 or 0,5,9: also draw how these became cats, to rollout.png, in place of an earlier one."""

    keep_rollout: str | None = None
    """Indices: also keep the splats of every step of these, in rollout.parquet, for jobs.render --animate rollout; in
    place of those of an earlier command."""

    stall_minutes: float = 60.0
    """Give up, and name the stuck shards, when none ends for so many minutes."""

    dry_run: bool = False
    """Only print what would be made."""

    def __post_init__(self) -> None:
        if self.count is not None and self.between is not None:
            raise UserError("--count and --between do not go together: a morph has --frames pictures")
        if self.count is None and self.between is None:
            raise UserError("give --count, the number of pictures, or --between, two of them to morph")
        if self.between is not None:
            parse_between(self.between)
        elif self.frames is not None:
            raise UserError(f"--frames {self.frames} goes with --between")
        check_numbers(self, "frames", least=2, most=LARGEST)
        check_numbers(self, "count", "steps", "shard_size", "batch_size", "threads", "workers", least=1, most=LARGEST)
        check_numbers(self, "seed", least=0, most=LARGEST)
        check_numbers(self, "stall_minutes")
        check_name("solver", self.solver or Sampling.solver, SOLVERS.keys() | {LEARNED})
        check_name("schedule", self.schedule or Sampling.schedule, SCHEDULES)
        check_name("precision", self.precision, CODECS)
        check_name("device", self.device, DEVICES)
        check_gpu_share(self.gpus_per_worker)
        for name, text in (("--rollout", self.rollout), ("--keep-rollout", self.keep_rollout)):
            if text is None:
                continue
            chosen = Indices.parse(text)
            if chosen.stop > self.pictures:
                made = f"--frames {self.pictures}" if self.count is None else f"--count {self.count}"
                raise UserError(f"{name} {text}: {made} makes the pictures 0-{self.pictures - 1}")
            if len(chosen) > ROLLOUT_COLUMNS:
                raise UserError(f"{name} {text}: {len(chosen)} pictures; choose at most {ROLLOUT_COLUMNS}")

    @property
    def pictures(self) -> int:
        """The number of pictures to make."""
        return self.count or self.frames or MORPH_FRAMES


def parse_between(text: str) -> tuple[int, int]:
    """Read `12,57`, two different indices; UserError for anything else."""
    match = re.fullmatch(r"\s*([0-9]+)\s*,\s*([0-9]+)\s*", text)
    if match is not None and max(map(len, match.groups())) > INDEX_DIGITS:
        raise UserError(f"--between {text}: give indices of up to {INDEX_DIGITS} digits")
    if match is None or int(match[1]) == int(match[2]):
        raise UserError(f"--between {text}: give two different indices, like 12,57")
    return int(match[1]), int(match[2])


def make_plan(options: Options, weights: bytes) -> GenerationPlan:
    """The frozen plan of a command; UserError if the weights cannot be used."""
    sampling = choose_sampling(options, weights)
    return plan_for(
        weights,
        options.weights,
        count=options.pictures,
        shard_size=options.shard_size or power_of_two_size(options.pictures, 64, 4096),
        seed=options.seed,
        solver=sampling.solver,
        schedule=sampling.schedule,
        steps=sampling.steps,
        batch_size=options.batch_size,
        threads=options.threads,
        precision=options.precision,
        between=",".join(map(str, parse_between(options.between))) if options.between is not None else "",
    )


def choose_sampling(options: Options, weights: bytes) -> Sampling:
    """How to sample: what the options say, then what the weights say; UserError for what does not go together."""
    known = checkpoint.learned_calls(weights, options.weights)
    calls = options.steps or checkpoint.sampling(weights, options.weights).steps
    if options.solver == LEARNED or (options.solver is options.schedule is None and calls in known):
        if options.schedule is not None:
            raise UserError(f"--schedule {options.schedule}: the solver {LEARNED} has times of its own; leave it out")
        check_learned(known, calls)
        return Sampling(LEARNED, LEARNED, calls)
    said = checkpoint.sampling(weights, options.weights, many=True)
    steps = options.steps or said.steps
    return Sampling(options.solver or said.solver, options.schedule or said.schedule, steps)


def main(options: Options) -> None:
    """Generate what the options say, or what an earlier run left undone."""
    weights = checkpoint.read(options.weights)
    plan = make_plan(options, weights)
    store = Store(options.out)
    if (trained := checkpoint.distilled(weights, options.weights)) and plan.solver != LEARNED:
        print(
            f"these weights were trained for {counted(trained, 'network call')} a picture; {plan.steps} of"
            f" {plan.solver} make others, worse where that was measured: leave out --steps, --solver and --schedule"
        )
    if options.dry_run:
        print(describe(plan))
        if plan_file.check(store, plan):
            print(f"begun in {store.url} already")
        return
    summary = generate(
        plan,
        weights,
        store,
        workers=options.workers,
        device=options.device,
        gpus_per_worker=options.gpus_per_worker,
        rollout=Indices.parse(options.rollout) if options.rollout is not None else None,
        keep_rollout=Indices.parse(options.keep_rollout) if options.keep_rollout is not None else None,
        stall_seconds=options.stall_minutes * 60,
    )
    cats, shards = counted(summary.pictures, "cat"), counted(summary.shards, "shard")
    print(f"{cats} in {shards}, {summary.bytes / 1e6:,.1f} MB, in {store.url}")


def describe(plan: GenerationPlan) -> str:
    """What a plan will make, and the assumption behind the number of bytes."""
    splats = Shape.of(plan).total
    size = plan.count * splats * SPLAT_BYTES[plan.precision]
    hours = plan.count * plan.steps / CALLS_PER_SECOND / 3600
    return (
        f"{counted(plan.num_shards, 'shard')} of up to {plan.shard_size:,} pictures, {plan.count:,} pictures,"
        f" {plan.count * plan.steps:,} network calls in batches of {plan.batch_size}\n"
        f"about {size / 1e6:,.1f} MB, assuming {SPLAT_BYTES[plan.precision]} bytes a splat, {splats:,} splats a picture"
        f"\nabout {hours:,.2g} GPU-hours, assuming {CALLS_PER_SECOND:,} network calls a second, as one"
        " H100 makes with the bundled weights"
    )


if __name__ == "__main__":
    sys.exit(run(Options, main, continues="here"))
