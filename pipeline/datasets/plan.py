"""The frozen plan of a dataset: what it will hold, in which shards and files, and everything that decides its bytes.

How fast the work is done (workers, kind of device, machines) is not part of a plan. `plan_file` keeps plans.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from pipeline.datasets.indices import LARGEST, Indices

FORMAT_VERSION = 2
CODE_VERSION = "0.8.0"
DATA = "data"
# Encodings whose files do not end with their names, and outputs that are one file a shard, with how it ends.
EXTENSIONS = {"jpeg": "jpg", "raw": "ppm", "deflate": "tif"}
SHARD_FILES = {"parquet": "parquet", "webdataset": "tar"}


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
    """The name of shard `id`. Its order as text is that of the numbers up to 99,999; `index` tells beyond."""
    return f"shard-{id:05d}"


def shard_number(name: str) -> int | None:
    """The shard of that name; None if it is no shard's."""
    digits = name.removeprefix("shard-")
    plain = digits.isascii() and digits.isdigit() and len(digits) < 19
    return int(digits) if plain and shard_name(int(digits)) == name else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every plan has: a sorted set of pictures cut into shards of equal size, the last one smaller."""

    kind: ClassVar[str]
    bounds: ClassVar[dict[str, tuple[int, int]]]  # of numbers, where they are not 0 to LARGEST

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

    def data(self, shard: Shard) -> str:
        """The file, or folder, below the root that holds a shard."""
        return f"{DATA}/{shard.name}.parquet"

    def files(self, shard: Shard, there: Collection[str]) -> list[str]:
        """Of the files that are there below the root, those that hold a shard, in the order of its checksum."""
        return [name for name in (self.data(shard),) if name in there]

    @classmethod
    def later_fields(cls) -> dict[str, object]:
        """The fields that the first plans did not have, with what was understood then: these are read as before."""
        fields = dataclasses.fields(cls)
        return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING and f.name != "code_version"}

    def to_dict(self) -> dict[str, int | str]:
        """The plan as it stands in plan.json: fields that came later only where they are not as they were before."""
        before = self.later_fields()
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
    bounds: ClassVar[dict[str, tuple[int, int]]] = {
        **dict.fromkeys(("shard_size", "count", "steps", "batch_size", "threads", "neighbourhood"), (1, LARGEST)),
        **dict.fromkeys(("rows", "columns", "splats_per_patch"), (1, 256)),
    }

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
    precision: str = "float16"  # how splats are stored, one of pipeline.datasets.codec.CODECS
    between: str = ""  # "a,b": picture i is i / (count - 1) of the way from the noise of picture a to that of picture b

    @property
    def pictures(self) -> Indices:
        """0 to count - 1."""
        return Indices.first(self.count)


@dataclass(frozen=True, kw_only=True)
class RenderPlan(Plan):
    """Pictures drawn from the splats of the dataset whose plan has the fingerprint `source`."""

    kind: ClassVar[str] = "pictures"
    bounds: ClassVar[dict[str, tuple[int, int]]] = {
        **dict.fromkeys(("shard_size", "threads", "neighbourhood", "width", "height"), (1, LARGEST)),
    }

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

    @property
    def extension(self) -> str:
        """How the names of picture files end."""
        return EXTENSIONS.get(self.encoding, self.encoding)

    def data(self, shard: Shard) -> str:
        """The file that holds a shard, or the folder where it is several."""
        ending = SHARD_FILES.get(self.output)
        return f"{DATA}/{shard.name}.{ending}" if ending else shard.name

    def files(self, shard: Shard, there: Collection[str]) -> list[str]:
        """Of the files that are there below the root, those that hold a shard, in the order of its pictures."""
        if self.output in SHARD_FILES:
            return super().files(shard, there)
        # An animation of many pictures has the number of the first.
        indices = shard.indices.between(0, 1) if self.motion == "pictures" else shard.indices
        extension = re.escape(self.extension)
        endings = rf"\.dzi|_files/\d+/\d+_\d+\.{extension}" if self.output == "dzi" else rf"\.{extension}"
        file = re.compile(rf"{shard.name}/([0-9]{{8,19}})(?:{endings})")
        # Names are looked for among the indices, and not the other way: a plan may speak of more than memory holds.
        numbers = {name: match[1] for name in there if (match := file.fullmatch(name))}
        found = [name for name, number in numbers.items() if int(number) in indices and number == f"{int(number):08d}"]
        return sorted(found, key=lambda name: (int(numbers[name]), name))


def file_name(index: int, extension: str) -> str:
    """The name of a picture's file."""
    return f"{index:08d}.{extension}"


def power_of_two_size(count: int, smallest: int, largest: int) -> int:
    """A shard size for `count` pictures: about 64 shards, so that small jobs spread too, within the two bounds."""
    size = smallest
    while 2 * size <= largest and size * 64 < count:
        size *= 2
    return size
