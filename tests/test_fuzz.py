"""Whatever a file holds, it is read or refused in one line: no traceback, no hang, no partial output."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import EACH, File, only_in, try_inputs
from targets import FILES, Target, make_targets, parquet


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Path]:
    """The folder in which all files of these tests lie, temporary ones too."""
    with only_in(tmp_path_factory.mktemp("fuzz")) as folder:
        yield folder


@pytest.fixture(scope="module")
def targets(ground: Path, tiny_weights: Path, prepared_cats: str, vgg_weights) -> dict[str, Target]:
    return make_targets(ground, tiny_weights, prepared_cats, vgg_weights)


def try_files(target: Target, number: int, ground: Path) -> None:
    try_inputs(target.inputs.map(File), number, lambda data: target.refusal(data, ground))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow of odd metadata
def test_files_are_read_or_refused_in_one_line(name: str, targets: dict[str, Target], ground: Path) -> None:
    try_files(targets[name], 12, ground)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow of odd metadata
def test_ten_thousand_files(name: str, targets: dict[str, Target], ground: Path) -> None:
    try_files(targets[name], EACH, ground)


def table_with(change: Callable[[pa.Table], pa.Table]) -> Callable[[bytes], bytes]:
    return lambda data: parquet(change(pq.read_table(io.BytesIO(data))))


def fields_with(**fields: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


def config_with(**fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, **fields})
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


def safetensors_header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: len(text).to_bytes(8, "little") + text


def tar_of(kind: bytes, contents: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=stream, mode="w") as new:
            picture = old.next()
            new.addfile(picture, old.extractfile(picture))
            member = tarfile.TarInfo("00000000.json")
            member.type, member.size, member.linkname = kind, len(contents), "00000000.json"
            new.addfile(member, io.BytesIO(contents))
        return stream.getvalue()

    return change


def twice(name: str) -> Callable[[bytes], bytes]:
    return table_with(lambda table: table.append_column(name, table[name]))


def gap(table: pa.Table) -> pa.Table:
    values = table["splats"].to_pylist()
    return table.set_column(1, "splats", pa.array([None, *values[1:]], table["splats"].type))


HUGE = 2**62
FOUND_ONCE = {
    "a column twice": ("float16 shard", twice("splats"), "no column 'splats'"),
    "an empty row": ("float16 shard", table_with(gap), "'splats' has empty places"),
    "steps without t": ("rollouts", table_with(lambda table: table.drop_columns("t")), "no column 't'"),
    "steps without step": ("rollouts", table_with(lambda table: table.drop_columns("step")), "no column 'step'"),
    "steps without shape": ("rollouts", table_with(lambda table: table.replace_schema_metadata(None)), "the shape of"),
    "a step twice": ("rollouts", table_with(lambda table: pa.concat_tables([table, table])), "lacks steps"),
    "two columns of photographs": ("photographs in parquet", twice("image"), "no column 'image'"),
    "a name in no encoding": ("zip", lambda data: data.replace("K\u00e4".encode(), b"K\xff\xff"), "cannot be read"),
    "metadata that are a list": ("weights", safetensors_header(b'{"__metadata__": []}'), "not a safetensors file"),
    "a deep header": ("weights", safetensors_header(b"[" * 100_000), "not a safetensors file"),
    "weights of no end": ("weights", config_with(width=2**40, blocks=2**40), "width is"),
    "large weights": ("weights", config_with(width=2**16), "do not fit the model"),
    "a grid of no end": ("weights", config_with(rows=10**6, columns=10**6), "rows is 1000000"),
    "no heads": ("weights", config_with(heads=0), "heads is 0"),
    "more shards than memory": (
        "plan of splats",
        fields_with(count=HUGE, shard_size=1),
        "rows is 6 there, 1 by the plan",
    ),
    "more pictures than memory": (
        "plan of pictures",
        fields_with(indices=f"0-{HUGE}", shard_size=HUGE),
        "6.png is not",
    ),
    "a picture that is a program": ("plan of pictures", fields_with(encoding="eps"), "unknown encoding 'eps'"),
    "an unknown format": ("plan of pictures", fields_with(output="x"), "unknown format 'x'"),
    "a link to itself": ("pictures in webdataset", tar_of(tarfile.LNKTYPE, b""), "not a plain file"),
    "facts that are a number": ("pictures in webdataset", tar_of(tarfile.REGTYPE, b"3"), "00000000.jpg's .json should"),
    "deep facts": ("pictures in webdataset", tar_of(tarfile.REGTYPE, b"[" * 100_000), "00000000.jpg's .json should"),
}


@pytest.mark.parametrize("example", FOUND_ONCE)
def test_what_was_found_once(example: str, targets: dict[str, Target], ground: Path) -> None:
    name, change, part = FOUND_ONCE[example]
    assert part in targets[name].refusal(change(targets[name].good), ground)
