"""The frozen plan of a dataset: what it will hold, in which shards, and everything that decides its bytes.

A plan is written to ROOT/plan.json before anything else and never changed. Running the same command again finds the
same plan and continues; another plan in the same place is refused by name. How fast the work is done (workers, kind
of device, machines) is not part of a plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from models.errors import UserError
from pipeline.indices import Indices

if TYPE_CHECKING:
    from pipeline.store import Store

FORMAT_VERSION = 1
CODE_VERSION = "0.1.0"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Shard:
    """A numbered part of a dataset; the unit of work, of commit and of retry."""

    id: int
    indices: Indices

    @property
    def name(self) -> str:
        """The stem of the names of the shard's files."""
        return shard_name(self.id)


def shard_name(id: int) -> str:
    """The name of shard `id`, whose order as text is the order of the numbers."""
    return f"shard-{id:05d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every plan has: a sorted set of pictures cut into shards of equal size, the last one smaller."""

    kind: ClassVar[str]

    shard_size: int
    code_version: str = CODE_VERSION

    @property
    def pictures(self) -> Indices:
        """The indices of all pictures of the dataset."""
        raise NotImplementedError

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-len(self.pictures) // self.shard_size)

    def shard(self, id: int) -> Shard:
        """The shard with that number."""
        return Shard(id, self.pictures.between(id * self.shard_size, (id + 1) * self.shard_size))

    def shards(self) -> Iterator[Shard]:
        """All shards, in order, made one at a time."""
        return map(self.shard, range(self.num_shards))

    def to_dict(self) -> dict[str, int | str]:
        """The plan as it stands in plan.json: fields that came later only where they are not as they were before."""
        before = _later_fields(type(self))
        stated = {name: value for name, value in dataclasses.asdict(self).items() if value != before.get(name)}
        return {"format_version": FORMAT_VERSION, "kind": self.kind, **stated}

    def to_json(self) -> str:
        """The text of plan.json; equal plans give equal text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def fingerprint(self) -> str:
        """SHA-256 of the plan, by which a dataset made from this one names its source."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class GenerationPlan(Plan):
    """Pictures 0 to count - 1 as splats: picture i from the noise keyed (seed, i) and the model named by `model`."""

    kind: ClassVar[str] = "splats"

    count: int
    seed: int
    model: str  # SHA-256 of the weights
    solver: str
    schedule: str
    steps: int
    batch_size: int
    threads: int  # intra-op threads: on a CPU they change the last bits
    rows: int
    columns: int
    splats_per_patch: int
    kernel: str
    neighbourhood: int
    between: str = ""  # "a,b": picture i is i / (count - 1) of the way from the noise of picture a to that of picture b

    @property
    def pictures(self) -> Indices:
        """0 to count - 1."""
        return Indices.first(self.count)


@dataclass(frozen=True, kw_only=True)
class RenderPlan(Plan):
    """Pictures drawn from the splats of the dataset whose plan has the fingerprint `source`."""

    kind: ClassVar[str] = "pictures"

    source: str
    seed: int
    indices: str
    width: int
    height: int
    kernel: str
    neighbourhood: int
    view: str
    output: str
    encoding: str
    quality: int  # 0 for an encoding without loss
    threads: int
    region: str = "0.0,0.0,1.0,1.0"
    fit: str = "stretch"
    motion: str = "none"  # none: pictures stand still
    path: str = ""  # of a zoom
    frames: int = 1  # of a zoom
    frame_milliseconds: int = 0

    @property
    def pictures(self) -> Indices:
        """The chosen indices of the source."""
        return Indices.parse(self.indices)


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def load(store: Store, plan_type: type[AnyPlan]) -> AnyPlan:
    """Read the plan at `store`; UserError if there is none, or one of another kind, form or future version."""
    try:
        text = store.read(PLAN_FILE)
    except (FileNotFoundError, NotADirectoryError):
        found = f"has no {PLAN_FILE}" if store.exists("") else "does not exist"
        raise UserError(f"{store.url} {found}: not a dataset of {plan_type.kind}") from None
    return parse(_parse_json(text, store.url), plan_type, store.url)


def claim(store: Store, plan: Plan) -> None:
    """Write `plan` to `store`, or find it there; UserError that names each differing field if another is there."""
    try:
        if not store.exists(PLAN_FILE):
            store.write(PLAN_FILE, plan.to_json().encode())
        # Read back what stands there now: a second driver may have been faster.
        found = _parse_json(store.read(PLAN_FILE), store.url)
    except OSError as error:
        raise UserError(f"cannot write to {store.url}: {error.strerror or error}") from None
    if found.get("kind") != plan.kind:
        raise UserError(f"{store.url} holds a dataset of {found.get('kind')!r}: give {plan.kind} another --out")
    expected, found = ({**_later_fields(type(plan)), **fields} for fields in (plan.to_dict(), found))
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if names:
        differences = "; ".join(f"{n} is {found.get(n)!r} there, {expected.get(n)!r} here" for n in names)
        raise UserError(f"{store.url} holds another plan ({differences}): use its options, or another --out")


def parse(found: dict[str, object], plan_type: type[AnyPlan], where: str) -> AnyPlan:
    """Make a plan of `plan_type` from the fields of a plan.json; UserError that names `where` and what is wrong."""
    version, kind = found.get("format_version"), found.get("kind")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: {PLAN_FILE} has format version {version!r}, this is splatcats {CODE_VERSION}, which reads"
            f" version {FORMAT_VERSION}: use the version that wrote it"
        )
    if kind != plan_type.kind:
        raise UserError(f"{where} is a dataset of {kind!r}, not of {plan_type.kind!r}")
    types = {f.name: {"int": int, "str": str}[str(f.type)] for f in dataclasses.fields(plan_type)}
    values = _later_fields(plan_type) | {n: value for n, value in found.items() if n not in ("format_version", "kind")}
    wrong = [n for n, t in types.items() if type(values.get(n)) is not t] + [n for n in values if n not in types]
    if wrong:
        raise UserError(f"{where}: {PLAN_FILE} is damaged: {', '.join(wrong)}")
    return plan_type(**values)  # type: ignore[arg-type]


def _later_fields(plan_type: type[Plan]) -> dict[str, object]:
    """The fields that the first plans did not have, with what was understood then: these plans are read as before."""
    fields = dataclasses.fields(plan_type)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING and f.name != "code_version"}


def _parse_json(text: bytes, where: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {PLAN_FILE} is not a JSON object")
    return found


def power_of_two_size(count: int, smallest: int, largest: int) -> int:
    """A shard size for `count` pictures: about 64 shards, so that small jobs spread too, within the two bounds."""
    size = smallest
    while size < largest and size * 64 < count:
        size *= 2
    return size
