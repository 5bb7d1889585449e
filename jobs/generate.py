"""Generate cats as splats: noise to Parquet, in bulk, on Ray.

    python -m jobs.generate --out out/splats --count 10000 --seed 1
    python -m jobs.generate --out s3://bucket/splats --count 1000000 --seed 1 --dry-run

The same command continues an interrupted run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.cli import run
from models import checkpoint
from models.errors import UserError, check_name
from models.sampler import SCHEDULES, SOLVERS
from pipeline.cluster import DEVICES
from pipeline.dataset import values_per_picture
from pipeline.generation import ROLLOUT_COLUMNS, generate
from pipeline.indices import LARGEST, Indices
from pipeline.plan import GenerationPlan, power_of_two_size
from pipeline.store import Store

# Of the 2 bytes a number takes, zstd leaves this much, measured on 16 pictures of the bundled weights.
COMPRESSED = 0.96


@dataclass(frozen=True)
class Options:
    """What to generate, and where to."""

    out: str
    """Folder or fsspec URL of the dataset (s3://bucket/name, for example)."""

    count: int
    """Number of pictures: the indices 0 to count - 1."""

    seed: int = 0
    """Seed of the dataset; picture i depends on the seed and i alone."""

    weights: str = str(checkpoint.PRETRAINED)
    """Weights from jobs.train, a path or fsspec URL; the bundled ones if not given."""

    steps: int = 16
    """Network calls a picture."""

    solver: str = "deis"
    """How noise becomes a cat: euler, heun, dpmpp2m or deis."""

    schedule: str = "early"
    """When the calls are made: early (denser near the noise) or uniform."""

    shard_size: int | None = None
    """Pictures a file; 64 to 4,096 by the number of pictures if not given."""

    batch_size: int = 256
    """Pictures through the network at once; part of the plan, since it changes the last bits."""

    threads: int = 1
    """Threads of an actor on a CPU; part of the plan, since they change the last bits."""

    workers: int | None = None
    """Number of actors; two a GPU, or one a CPU, of the cluster if not given."""

    device: str = "auto"
    """auto (GPUs where the cluster has some), cpu or gpu."""

    rollout: str | None = None
    """Indices, like 0-3 or 0,5,9: also draw how these became cats, to rollout.png."""

    stall_minutes: float = 60.0
    """Give up, and name the stuck shards, when none ends for so long."""

    dry_run: bool = False
    """Only print what would be made."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= LARGEST:
            raise UserError(f"--count {self.count}: give the number of pictures, at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: give a number from 0 to {2**63 - 1}")
        for name in ("steps", "shard_size", "batch_size", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
        if not self.stall_minutes > 0:
            raise UserError(f"--stall-minutes {self.stall_minutes}: give a number above 0")
        check_name("solver", self.solver, SOLVERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("device", self.device, DEVICES)
        if self.rollout is not None:
            chosen = Indices.parse(self.rollout)
            if chosen.stop > self.count:
                raise UserError(f"--rollout {self.rollout}: --count {self.count} makes the pictures 0-{self.count - 1}")
            if len(chosen) > ROLLOUT_COLUMNS:
                raise UserError(f"--rollout {self.rollout}: {len(chosen)} pictures; choose at most {ROLLOUT_COLUMNS}")


def make_plan(options: Options, weights: bytes) -> GenerationPlan:
    """The frozen plan of a command; UserError if the weights cannot be used."""
    config = checkpoint.parse(weights, options.weights).config
    return GenerationPlan(
        count=options.count,
        shard_size=options.shard_size or power_of_two_size(options.count, 64, 4096),
        seed=options.seed,
        model=checkpoint.fingerprint(weights),
        solver=options.solver,
        schedule=options.schedule,
        steps=options.steps,
        batch_size=options.batch_size,
        threads=options.threads,
        rows=config.rows,
        columns=config.columns,
        splats_per_patch=config.splats_per_patch,
        kernel=config.kernel,
        neighbourhood=config.neighbourhood,
    )


def main(options: Options) -> None:
    """Generate what the options say, or what an earlier run left undone."""
    weights = checkpoint.read(options.weights)
    plan = make_plan(options, weights)
    store = Store(options.out)
    if options.dry_run:
        print(describe(plan))
        return
    summary = generate(
        plan,
        weights,
        store,
        workers=options.workers,
        device=options.device,
        rollout=Indices.parse(options.rollout) if options.rollout is not None else None,
        stall_seconds=options.stall_minutes * 60,
    )
    print(f"{summary.pictures:,} cats in {summary.shards:,} shards, {summary.bytes / 1e6:,.1f} MB, in {store.url}")


def describe(plan: GenerationPlan) -> str:
    """What a plan will make, and the assumption behind the number of bytes."""
    raw = 2 * values_per_picture(plan)
    size = plan.count * raw * COMPRESSED
    return (
        f"{plan.num_shards:,} shards of up to {plan.shard_size:,} pictures, {plan.count:,} pictures,"
        f" {plan.count * plan.steps:,} network calls in batches of {plan.batch_size}\n"
        f"about {size / 1e6:,.1f} MB, assuming that zstd leaves {COMPRESSED:.0%} of {raw:,} bytes of float16 a picture"
    )


if __name__ == "__main__":
    sys.exit(run(Options, main))
