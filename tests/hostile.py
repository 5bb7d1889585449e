"""What users, disks and strangers may hand to a command: files changed at random, and odd command lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 3, 255, 10**6, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400]
TEXTS = [
    *("", " ", "-", "--", ",", ";", "x", "0", "-1", "1", "3", "0-3", "3-0", "0,1", "1-2,0-9", "0-9223372036854775806"),
    *("1e999", "-1e999", "nan", "inf", "1e-300", "0x10", "1_000", "9" * 40, "9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}"),
    *("None", "True", "{}", "[1]", "a\nb", "\x1b[2J", "\x85", "\u2028", "\ud800", "\udcff", "%s%n", "$(ls)", "~", "."),
    *(
        "..",
        "../..",
        "/",
        "//",
        "/dev/null",
        "nope://x",
        "memory://x",
        "file://",
        "zip://a::b.zip",
        "::",
        "s3:/x",
        "a::b",
    ),
    *("1x1", "0x9", "512x", "1920x1080", "99999999x9", "0,0,1,1", "0,0,0,0", "0.5,0,1,0.5", "0,0,nan,1", "0,0,1e-30,1"),
    *("0.5,0.5,4", "0.5,0.5,1e300", "0,0,1;1,1,9", "0,0,inf", ";;", "0,0,64,64", "0,0,99999999,99999999", "12,57"),
    *(
        "png",
        "jpeg",
        "webp",
        "gif",
        "raw",
        "eps",
        "parquet",
        "dzi",
        "tiff",
        "files",
        "webdataset",
        "rollout",
        "pictures",
    ),
    *("wavelet", "compact", "heun", "depth", "crop", "letterbox", "cpu", "gpu", "zoom", "early", "512", "4096", "16"),
]
SCALARS = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, True, False, 0.5, 1e308]),
    st.text(max_size=9),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def altered(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """A valid file after one to four changes: flipped, overwritten, cut, spliced with another, grown."""
    data = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers and footers decide most, so half of the places are near an end.
        near = draw(st.integers(0, min(len(data), 200)))
        place = draw(st.sampled_from([near, len(data) - near]) | st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64]) | st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "set", "cut", "delete", "repeat", "splice", "grow"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)) % (1 << 8 * width)
            data[place : place + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif change == "cut":
            del data[place:]
        elif change == "delete":
            del data[place : place + length]
        elif change == "repeat":
            data[place:place] = data[place : place + length]
        elif change == "splice":
            other = draw(st.sampled_from(examples))
            data[place : place + length] = other[place : place + length]
        elif change == "grow":
            data[place:place] = draw(st.binary(max_size=64))
    return bytes(data)


@st.composite
def altered_json(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """A valid JSON object of which some fields, at any depth, are other values, gone, or new."""
    value = json.loads(draw(st.sampled_from(examples)))
    _change(draw, value)
    return json.dumps(value).encode()


def _change(draw: st.DrawFn, value: dict[str, Any]) -> None:
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*sorted(value), "", "new"]))
        inner = value.get(name)
        if draw(st.integers(0, 5)) == 0:
            value.pop(name, None)
        elif isinstance(inner, dict) and draw(st.booleans()):
            _change(draw, inner)
        elif isinstance(inner, str) and inner.startswith("{") and draw(st.booleans()):
            nested = json.loads(inner)
            _change(draw, nested)
            value[name] = json.dumps(nested)
        elif type(inner) is int and draw(st.booleans()):
            value[name] = inner + draw(st.integers(-3, 3))
        else:
            value[name] = draw(JSON)


@st.composite
def altered_safetensors(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """Safetensors whose header, which is JSON, was altered, and perhaps the length that stands before it."""
    data = draw(st.sampled_from(examples))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    _change(draw, header["__metadata__"] if draw(st.booleans()) else header)
    text = json.dumps(header).encode()
    stated = len(text) + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1, 2**40]))
    return stated.to_bytes(8, "little") + text + data[8 + length :]


@st.composite
def altered_table(draw: st.DrawFn, tables: Sequence[pa.Table]) -> pa.Table:
    """A table of which columns are gone, renamed, twice there, of other types, with nulls, or rows are others."""
    table = draw(st.sampled_from(tables))
    for _ in range(draw(st.integers(1, 3))):
        if not table.num_columns:
            break
        place = draw(st.integers(0, table.num_columns - 1))
        name, column = table.column_names[place], table.column(place).combine_chunks()
        change = draw(
            st.sampled_from(["drop", "rename", "twice", "type", "nulls", "holes", "rows", "metadata", "value"])
        )
        if change == "drop":
            table = table.remove_column(place)
        elif change == "rename":
            table = table.rename_columns(
                [draw(st.sampled_from(["", name.upper(), "x"])) if n == name else n for n in table.column_names]
            )
        elif change == "twice":
            table = table.append_column(name, column)
        elif change == "type":
            kinds = [
                pa.null(),
                pa.string(),
                pa.int8(),
                pa.binary(),
                pa.list_(pa.float16()),
                pa.dictionary(pa.int8(), pa.string()),
            ]
            table = table.set_column(place, name, pa.nulls(table.num_rows, draw(st.sampled_from(kinds))))
        elif change == "nulls":
            keep = draw(st.lists(st.booleans(), min_size=table.num_rows, max_size=table.num_rows))
            table = table.set_column(
                place,
                name,
                pa.array([v if k else None for v, k in zip(column.to_pylist(), keep, strict=True)], column.type),
            )
        elif change == "holes" and pa.types.is_fixed_size_list(column.type) and table.num_rows:
            values = column.to_pylist()
            if values[0]:
                values[0][draw(st.integers(0, len(values[0]) - 1))] = None
            table = table.set_column(place, name, pa.array(values, column.type))
        elif change == "rows":
            start = draw(st.integers(0, table.num_rows))
            table = pa.concat_tables([table, table]).slice(start, draw(st.integers(0, 2 * table.num_rows)))
        elif change == "metadata":
            key = draw(st.sampled_from(sorted(table.schema.metadata or {b"x": b""})))
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), key: draw(st.binary(max_size=20))})
        elif change == "value" and pa.types.is_integer(column.type) and table.num_rows:
            values = column.to_pylist()
            values[-1] = draw(st.sampled_from([0, 1, 9, 127]))
            table = table.set_column(place, name, pa.array(values, column.type))
    return table


@st.composite
def command_lines(draw: st.DrawFn, options: type, given: dict[str, Sequence[str]]) -> list[str]:
    """Arguments for a dataclass of options, most of them by name; `given`: what also makes sense as their values."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(options)]
    arguments = []
    for name, values in given.items():
        if draw(st.integers(0, 9)):
            arguments += [f"--{name}" if name else "", draw(st.sampled_from(values))]
    for _ in range(draw(st.integers(0, 5))):
        value = draw(st.sampled_from(TEXTS) | st.integers(-3, 3000).map(str) | st.text(max_size=9))
        name = f"--{draw(st.sampled_from(names))}"
        arguments += draw(st.sampled_from([[name, value], [f"{name}={value}"], [name], [value], [name, value, value]]))
    return [argument.replace("\0", "") for argument in arguments if argument]
