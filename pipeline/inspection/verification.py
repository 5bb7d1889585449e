"""Whether a dataset is what its plan says: every shard read and judged, as Ray tasks, and the bad ones removed.

A shard is sound if its record agrees with the plan, its files have the recorded size and checksum, and what they hold
is what the plan promises: splats of the right schema and indices, finite and within their physical bounds; pictures
that decode and have the planned size. Files that do not belong are reported and never removed: nobody knows whose
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import ray
import torch

from models.errors import UserError, escaped
from pipeline.datasets import plan_file, rollout_file
from pipeline.datasets.plan import DATA, GenerationPlan, Plan, RenderPlan, Shard, shard_number
from pipeline.datasets.records import RECORDS, Record, disagreement, record_name, shard_of_record
from pipeline.datasets.rollout_file import ROLLOUTS
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.cluster import Cluster, connect
from pipeline.execution.production import FAILURES_FILE
from pipeline.execution.progress import Console, Progress
from pipeline.execution.scheduling import Ended, run_shards
from pipeline.execution.workers import TaskWorkers
from pipeline.inspection import contents
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `shard`: the one whose removal mends it, None where removal is not for us."""

    path: str
    reason: str
    shard: int | None = None

    def __str__(self) -> str:
        # Names of files may hold anything, even line breaks and what a terminal takes for commands.
        return escaped(f"{self.path}: {self.reason}")


@dataclass
class Report:
    """What was found in a dataset: how many findings, the bad shards, and whether some are missing."""

    plan: Plan
    findings: int = 0
    bad: set[int] = field(default_factory=set)
    missing: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found in one shard; `rows`: how many pictures it has if it is sound."""

    rows: int
    findings: tuple[Finding, ...]


def verify(
    store: Store,
    *,
    found: Callable[[Finding], None],
    stall_seconds: float = 3600.0,
) -> Report:
    """Read the dataset at `store` whole and give what is wrong to `found`, one finding at a time.

    A run that is at work in the same place makes shards without records, which are findings. UserError if there is no
    dataset.
    """
    plan = plan_file.load(store, Plan)
    shards, foreign = _survey(store, plan)
    report = Report(plan, missing=len(shards) < plan.num_shards)

    def take(finding: Finding) -> None:
        report.findings += 1
        if finding.shard is not None:
            report.bad.add(finding.shard)
        found(finding)

    for finding in [*foreign, *_absent(store, plan, shards), *_rollouts(store, plan)]:
        take(finding)
    progress = Progress(len(shards), total_pictures=sum(len(plan.shard(id).indices) for id in shards))
    if shards:
        with connect() as cluster:
            workers = _Verifiers(store, plan, cluster, take)
            console = Console()
            run_shards(
                map(plan.shard, sorted(shards)), workers, progress, stall_seconds=stall_seconds, report=console.show
            )
    return report


def repair(store: Store, plan: Plan, shards: Iterable[int]) -> None:
    """Remove shards, the record first, so that whatever happens the next run makes them again. Idempotent."""
    for id in shards:
        shard = plan.shard(id)
        store.remove(record_name(id))
        for name in plan.files(shard, store.sizes(plan.data(shard))):
            store.remove(name)


def verify_shard(store: Store, plan: Plan, shard: Shard) -> Verdict:
    """Judge one shard of which something is there. Changes nothing. OSError where the store does not answer."""
    there = store.sizes(plan.data(shard))
    files = plan.files(shard, there)
    fault = _fault(store, plan, shard, files)
    findings = [Finding(store.path(fault[0]), fault[1], shard.id)] if fault else []
    findings += [_foreign(store, name) for name in sorted(there.keys() - set(files))]
    return Verdict(0 if findings else len(shard.indices), tuple(findings))


def _fault(store: Store, plan: Plan, shard: Shard, files: list[str]) -> tuple[str, str] | None:
    """The first thing wrong with a shard that is held by `files`, (name, reason), if anything is."""
    name, data = record_name(shard.id), plan.data(shard)
    try:
        record = Record.parse(store.read(name))
    except FileNotFoundError:
        return data, "data without a record"
    if record is None or record.shard != shard.id:
        return name, "cannot be read as the record of this shard"
    if wrong := disagreement(record, plan):
        return name, wrong
    if not files:
        return name, "a record without data"
    size, sha256 = store.measure(files)
    if size != record.bytes:
        return data, f"has {size} bytes, its record says {record.bytes}"
    if sha256 != record.sha256:
        return data, "its checksum is not the recorded one"
    try:
        if isinstance(plan, GenerationPlan):
            contents.check_splats(store, plan, shard)
        else:
            assert isinstance(plan, RenderPlan)
            contents.check_pictures(store, plan, shard)
    except UserError as error:
        return data, str(error)
    return None


def _survey(store: Store, plan: Plan) -> tuple[set[int], list[Finding]]:
    """The shards of which something is there, by names alone, and the names that belong to no shard."""
    shards: set[int] = set()
    foreign: list[Finding] = []
    for name in (f"{RECORDS}/{entry}" for entry in store.entries(RECORDS)):
        id = shard_of_record(name)
        if id is not None and id < plan.num_shards:
            shards.add(id)
        elif name != FAILURES_FILE:
            foreign.append(_foreign(store, name))
    folders = [name for name in store.entries() if name.startswith("shard-")]
    for name in [*(f"{DATA}/{entry}" for entry in store.entries(DATA)), *folders]:
        id = _shard_of_data(name, plan)
        if id is None:
            foreign.append(_foreign(store, name))
        else:
            shards.add(id)
    return shards, foreign


def _foreign(store: Store, name: str) -> Finding:
    """What lies where shards lie and is none."""
    return Finding(store.path(name), "does not belong here")


def _shard_of_data(name: str, plan: Plan) -> int | None:
    shard = shard_number(name.rpartition("/")[2].partition(".")[0])
    if shard is None or shard >= plan.num_shards:
        return None
    return shard if plan.data(plan.shard(shard)) == name else None


def _absent(store: Store, plan: Plan, there: set[int]) -> Iterator[Finding]:
    """One finding for every run of shards of which nothing is there."""
    first = 0
    for id in [*sorted(there), plan.num_shards]:
        if id > first:
            ends = dict.fromkeys(plan.data(plan.shard(end)) for end in (first, id - 1))
            yield Finding(store.path(" to ".join(ends)), "missing")
        first = id + 1


@ray.remote(max_retries=0)
def _verify_task(store: Store, plan: Plan, shard: Shard) -> Verdict:
    torch.set_num_threads(1)
    return verify_shard(store, plan, shard)


def _rollouts(store: Store, plan: Plan) -> Iterator[Finding]:
    """What is wrong with the rollouts kept beside splats, where there are any."""
    if not isinstance(plan, GenerationPlan) or not store.exists(ROLLOUTS):
        return
    source, path = SplatDataset(store, plan), store.path(ROLLOUTS)
    try:
        for _ in rollout_file.read(source, rollout_file.kept(source)):
            pass
    except UserError as error:
        yield Finding(path, str(error).removeprefix(f"{path} "))


class _Verifiers(TaskWorkers):
    """Tasks that judge shards; what they find goes to `take`."""

    def __init__(self, store: Store, plan: Plan, cluster: Cluster, take: Callable[[Finding], None]) -> None:
        super().__init__(lambda shard: _verify_task.remote(store, plan, shard), cluster.capacity(None, num_cpus=1))
        self._take = take

    def wait(self, seconds: float) -> list[Ended]:
        """Take what tasks that have ended have found."""
        ended = super().wait(seconds)
        for end in ended:
            if isinstance(end.result, Verdict):
                for finding in end.result.findings:
                    self._take(finding)
        return ended
