"""Whether a dataset is what its plan says: every shard read and judged, as Ray tasks, and the bad ones removed.

A shard is sound if its record agrees with the plan, its files have the recorded size and checksum, and what they hold
is what the plan promises: splats of the right schema and indices, finite and within their physical bounds; pictures
that decode and have the planned size. Files that do not belong are reported and never removed: nobody knows whose
they are.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from models.errors import UserError
from models.splats import LIMITS, PARAMETERS
from pipeline import plan as plans
from pipeline.cluster import Cluster, connect
from pipeline.dataset import SplatDataset, schema
from pipeline.plan import DATA, GenerationPlan, Plan, RenderPlan, Shard, file_name, shard_name
from pipeline.production import FAILURES_FILE
from pipeline.progress import Progress
from pipeline.scheduling import TaskWorkers, run_shards
from pipeline.store import RECORDS, Record, Store, disagreement, record_name, shard_of_record

ROUNDING = 2.0**-10  # of float16, relative: what is stored may lie so far beyond a bound
_INFINITE = (-np.inf, np.inf)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `shard`: the one whose removal mends it, None where removal is not for us."""

    path: str
    reason: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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
    report: Callable[[Progress], None] = lambda progress: print(progress, flush=True),
) -> tuple[Plan, int, set[int]]:
    """Read the dataset at `store` whole and give what is wrong to `found`, one finding at a time.

    Returns its plan, the number of findings, and the bad shards, to be given to `repair`. A run that is at work in
    the same place makes shards without records, which are findings. UserError if there is no dataset.
    """
    plan = plans.load(store, Plan)
    shards, foreign = _survey(store, plan)
    findings = 0
    bad: set[int] = set()

    def take(finding: Finding) -> None:
        nonlocal findings
        findings += 1
        if finding.shard is not None:
            bad.add(finding.shard)
        found(finding)

    for finding in [*foreign, *_absent(store, plan, shards)]:
        take(finding)
    progress = Progress(len(shards), total_pictures=sum(len(plan.shard(id).indices) for id in shards))
    if shards:
        with connect() as cluster:
            workers = _Verifiers(store, plan, cluster, take)
            run_shards(map(plan.shard, sorted(shards)), workers, progress, stall_seconds=stall_seconds, report=report)
    return plan, findings, bad


def repair(store: Store, plan: Plan, shards: Iterable[int]) -> None:
    """Remove shards, the record first, so that whatever happens the next run makes them again. Idempotent."""
    for id in shards:
        store.remove(record_name(id))
        for name in plan.files(plan.shard(id)):
            store.remove(name)


def verify_shard(store: Store, plan: Plan, shard: Shard) -> Verdict:
    """Judge one shard of which something is there. Changes nothing. OSError where the store does not answer."""
    files = plan.files(shard)
    folder = plan.data(shard) if plan.data(shard) not in files else None
    there = store.sizes(plan.data(shard))
    reason = _judge(store, plan, shard, there)
    findings = [Finding(store.path(reason[0]), reason[1], shard.id)] if reason else []
    strays = sorted(there.keys() - set(files)) if folder else []
    findings += [Finding(store.path(name), "does not belong here") for name in strays]
    return Verdict(0 if findings else len(shard.indices), tuple(findings))


def _judge(store: Store, plan: Plan, shard: Shard, there: dict[str, int]) -> tuple[str, str] | None:
    """The first thing wrong with a shard, (name, reason), if anything is."""
    name, data = record_name(shard.id), plan.data(shard)
    lacking = [file for file in plan.files(shard) if file not in there]
    try:
        record = Record.parse(store.read(name))
    except FileNotFoundError:
        return data, "data without a record"
    if record is None or record.shard != shard.id:
        return name, "cannot be read as the record of this shard"
    if wrong := disagreement(record, plan):
        return name, wrong
    if len(lacking) == len(plan.files(shard)):
        return name, "a record without data"
    if lacking:
        return lacking[0], "is not there"
    size, sha256 = store.measure(plan.files(shard))
    if size != record.bytes:
        return data, f"has {size} bytes, its record says {record.bytes}"
    if sha256 != record.sha256:
        return data, "its checksum is not the recorded one"
    try:
        if isinstance(plan, GenerationPlan):
            _check_splats(store, plan, shard)
        else:
            assert isinstance(plan, RenderPlan)
            _check_pictures(store, plan, shard)
    except UserError as error:
        return data, str(error)
    return None


def _check_splats(store: Store, plan: GenerationPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of splats."""
    _check_table(store, plan.data(shard), schema(plan), len(shard.indices))
    low, high = torch.tensor([LIMITS.get(name, _INFINITE) for name in PARAMETERS]).T
    slack = ROUNDING * torch.maximum(low.abs(), high.abs()).nan_to_num(posinf=0.0)
    for indices, fields in SplatDataset(store.url).read(shard.indices):
        if not torch.isfinite(fields).all():
            raise UserError(f"a number that is not finite among pictures {indices[0]}-{indices[-1]}")
        beyond = ((fields < low - slack) | (fields > high + slack)).flatten(end_dim=-2).any(dim=0)
        if beyond.any():
            name = PARAMETERS[int(beyond.nonzero()[0])]
            raise UserError(f"{name} out of its bounds {LIMITS[name]} among pictures {indices[0]}-{indices[-1]}")


def _check_pictures(store: Store, plan: RenderPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of pictures."""
    pictures = _stored_pictures(store, plan, shard)
    for index, (number, name, encoded) in zip(shard.indices, pictures, strict=True):
        if (number, name) != (index, file_name(index, plan.extension)):
            raise UserError(f"picture {number} ({name}) where {index} should be")
        if reason := _picture_fault(encoded, plan):
            raise UserError(f"{name}: {reason}")


def _stored_pictures(store: Store, plan: RenderPlan, shard: Shard) -> Iterator[tuple[int, str, bytes]]:
    """Index, file name and contents of each picture, one after another."""
    if plan.output == "files":
        for index, name in zip(shard.indices, plan.files(shard), strict=True):
            yield index, name.rpartition("/")[2], store.read(name)
        return
    name = plan.data(shard)
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    _check_table(store, name, pa.schema([("index", pa.int64()), ("image", picture)]), len(shard.indices))
    with store.open(name) as file, _parquet_errors():
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            for row in parquet.read_row_group(group).to_pylist():
                image = row["image"] or {}
                yield row["index"], image.get("path") or "", image.get("bytes") or b""


def _check_table(store: Store, name: str, expected: pa.Schema, rows: int) -> None:
    """UserError unless a file is Parquet with exactly these columns and so many rows."""
    with store.open(name) as file, _parquet_errors():
        parquet = pq.ParquetFile(file)
    if not parquet.schema_arrow.equals(expected, check_metadata=False):
        raise UserError(f"has the columns {_columns(parquet.schema_arrow)}, not {_columns(expected)}")
    if parquet.metadata.num_rows != rows:
        raise UserError(f"has {parquet.metadata.num_rows} rows, not {rows}")


@contextlib.contextmanager
def _parquet_errors() -> Iterator[None]:
    """Raise what pyarrow says of a file's contents as a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk or the network
        raise UserError(f"cannot be read as Parquet ({' '.join(str(error).split())})") from None


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in schema)


def _picture_fault(encoded: bytes, plan: RenderPlan) -> str:
    """Why an encoded picture is not what the plan says; empty if it is."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow's guard against bombs stays on; it lets pass what the plan says.
        Image.MAX_IMAGE_PIXELS = max(limit or 0, plan.width * plan.height)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(encoded), formats=[plan.encoding])
            if picture.size != (plan.width, plan.height):
                return f"is {picture.width}x{picture.height}, not {plan.width}x{plan.height}"
            picture.load()
    except Exception as error:  # decoders meet damaged bytes with every kind of exception
        return f"does not decode ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return ""


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
    return Finding(store.path(name), "does not belong here")


def _shard_of_data(name: str, plan: Plan) -> int | None:
    digits = name.rpartition("/")[2].removeprefix("shard-").partition(".")[0]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19 and int(digits) < plan.num_shards):
        return None
    return int(digits) if plan.data(plan.shard(int(digits))) == name else None


def _absent(store: Store, plan: Plan, there: set[int]) -> Iterator[Finding]:
    """One finding for every run of shards of which nothing is there."""
    first = 0
    for id in [*sorted(there), plan.num_shards]:
        if id > first:
            names = shard_name(first) if id - first == 1 else f"{shard_name(first)} to {shard_name(id - 1)}"
            yield Finding(store.path(names), "missing")
        first = id + 1


@ray.remote(max_retries=0)
def _verify_task(store: Store, plan: Plan, shard: Shard) -> Verdict:
    torch.set_num_threads(1)
    return verify_shard(store, plan, shard)


class _Verifiers(TaskWorkers):
    """Tasks that judge shards, as many at once as the cluster has CPUs; what they find goes to `take`."""

    def __init__(self, store: Store, plan: Plan, cluster: Cluster, take: Callable[[Finding], None]) -> None:
        super().__init__(lambda shard: _verify_task.remote(store, plan, shard), max(1, int(cluster.cpus)))
        self._take = take

    def release(self, ref: Any, healthy: bool) -> None:
        """Take what a finished task has found."""
        super().release(ref, healthy)
        if healthy:
            verdict: Verdict = ray.get(ref)
            for finding in verdict.findings:
                self._take(finding)
