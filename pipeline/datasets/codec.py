"""How a splat field is kept in the columns of a shard: plain float16, or compact integers with a documented meaning.

`float16` is one column `splats`: what everybody can read at once. `compact` is a column of small integers for each
parameter, two fifths of the bytes, at a precision that pictures do not show. Both are defined by what is written
here and nothing else: no table is learned from data, so a row means the same in every file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from models.splats import LIMITS, PARAMETERS
from pipeline.datasets.plan import GenerationPlan

# Such that rounding each parameter costs a picture about the same, 59 to 60 dB: measured by drawing fields with one
# parameter rounded at a time. Scales are rounded as logarithms.
UNITS = {
    "u": 1 / 128,
    "v": 1 / 128,
    "kx": 1 / 32,
    "ky": 1 / 32,
    "rho": 1 / 24,
    "r": 1 / 12,
    "g": 1 / 12,
    "b": 1 / 12,
    "d": 1 / 36,
}
# A splat that lies d below the highest of its patch is seen about exp(-d) as much, so it can be rounded more coarsely.
# 0.7 was measured best of 0.5, 0.7 and 1: 0.4 KiB a picture less than without, at the same error.
COVER = 0.7
# Integers are stored unsigned, this much higher, so that all but their lowest byte are nearly always the same.
ZERO = 0x8080
LOGARITHMIC = ("kx", "ky")


@dataclass(frozen=True)
class Shape:
    """The form of one picture's field."""

    rows: int
    columns: int
    splats: int

    @classmethod
    def of(cls, plan: GenerationPlan) -> Shape:
        """The form that a plan's pictures have."""
        return cls(plan.rows, plan.columns, plan.splats_per_patch)

    @property
    def total(self) -> int:
        """Splats of a picture."""
        return self.rows * self.columns * self.splats

    @property
    def field(self) -> tuple[int, ...]:
        """Of an array: [H, W, K, P]."""
        return self.rows, self.columns, self.splats, len(PARAMETERS)


class Codec(Protocol):
    """One way to keep splat fields."""

    takes: torch.dtype
    """Of the fields to encode, which are rounded to it where they are made."""

    def columns(self, shape: Shape) -> list[pa.Field]:
        """The columns of a shard besides `index`."""

    def encode(self, field: np.ndarray) -> list[pa.Array]:
        """Those columns from finite fields [B, H, W, K, P]; a pure function."""

    def decode(self, table: pa.Table, shape: Shape) -> np.ndarray:
        """Fields float32 [B, H, W, K, P] from a table that has those columns."""

    def explain(self) -> dict[str, Any]:
        """What a stranger needs in order to decode, for the metadata of a file: `layout`, and numbers if any."""

    def example(self, shape: Shape) -> str:
        """Python that makes `splats`, float [H, W, K, P], of a dictionary `row` of lists, with numpy as `np`."""


class Float16:
    """One fixed-size list of float16 a picture."""

    takes = torch.float16

    def columns(self, shape: Shape) -> list[pa.Field]:
        """`splats`."""
        return [pa.field("splats", pa.list_(pa.float16(), shape.total * len(PARAMETERS)))]

    def encode(self, field: np.ndarray) -> list[pa.Array]:
        """Rounded to the nearest."""
        return [lists(field.astype(np.float16, copy=False))]

    def decode(self, table: pa.Table, shape: Shape) -> np.ndarray:
        """The same numbers as float32."""
        return flat_values(table, "splats").astype(np.float32).reshape(-1, *shape.field)

    def explain(self) -> dict[str, Any]:
        """The order of the numbers."""
        return {
            "layout": "`splats` is the array [rows, columns, splats_per_patch, 9] flattened in C order: the last axis"
            " changes fastest."
        }

    def example(self, shape: Shape) -> str:
        """A reshape."""
        return f'splats = np.array(row["splats"]).reshape{shape.field}\n'


class Compact:
    """A fixed-size list of uint16 for each parameter, and one of their centres."""

    takes = torch.float32

    def columns(self, shape: Shape) -> list[pa.Field]:
        """`centre`, then one a parameter."""
        centre = pa.field("centre", pa.list_(pa.uint16(), len(PARAMETERS) * shape.splats))
        return [centre, *(pa.field(name, pa.list_(pa.uint16(), shape.total)) for name in PARAMETERS)]

    def encode(self, field: np.ndarray) -> list[pa.Array]:
        """Rounded to the nearest integers, each parameter after those that its decoding needs.

        In double precision, so that another processor's exp does not turn a rounding over.
        """
        values = np.ascontiguousarray(field.transpose(4, 0, 3, 1, 2), np.float64)  # [P, B, K, H, W]
        wanted = dict(zip(PARAMETERS, values, strict=True))
        centres, integers = {}, {}
        fine, green = np.ones(()), np.zeros(())
        for name in ("d", "u", "v", "kx", "ky", "rho", "g", "r", "b"):
            value = np.log(wanted[name]) if name in LOGARITHMIC else wanted[name]
            if name in "rb":
                value = value - green
            value = value / UNITS[name]
            centres[name] = _integers(value.mean(axis=(-2, -1), keepdims=True))
            integers[name] = _integers((value - centres[name]) / fine)
            if name == "d":
                fine = _fineness(UNITS["d"] * (centres["d"] + integers["d"]))
            elif name == "g":
                green = UNITS["g"] * (centres["g"] + integers["g"] * fine)
        joined = np.stack([centres[name] for name in PARAMETERS], axis=1)  # [B, P, K, 1, 1]
        return [lists((array + ZERO).astype(np.uint16)) for array in (joined, *(integers[n] for n in PARAMETERS))]

    def decode(self, table: pa.Table, shape: Shape) -> np.ndarray:
        """What `explain` says, clipped to the ranges of the parameters."""
        grid = (shape.splats, shape.rows, shape.columns)
        centres = _signed(table, "centre").reshape(-1, len(PARAMETERS), shape.splats, 1, 1)
        field = np.empty((table.num_rows, *shape.field), np.float32)
        numbers = {name: _signed(table, name).reshape(-1, *grid) for name in PARAMETERS}
        fine = np.ones(())
        for p, name in reversed(list(enumerate(PARAMETERS))):
            value = UNITS[name] * (centres[:, p] + numbers[name] * fine)
            if name == "d":
                fine = _fineness(value)
            if name in LOGARITHMIC:
                value = np.exp(value)
            field[..., p] = np.clip(value, *LIMITS.get(name, (-np.inf, np.inf))).transpose(0, 2, 3, 1)
        field[..., 5] += field[..., 6]
        field[..., 7] += field[..., 6]
        return field

    def explain(self) -> dict[str, Any]:
        """Formula, order and numbers."""
        return {
            "layout": "Each parameter p has a column of integers, the array [splats_per_patch, rows, columns] flattened"
            " in C order: the last axis changes fastest; `centre` is the array [9, splats_per_patch] in the order of"
            f" the parameters. Take {ZERO} from every stored integer, then"
            " p = unit_p (centre[p, splat] + n[splat, row, column] fineness), with fineness = 1 for d and"
            f" fineness = exp({COVER} (top - d) - 1) for the others, where top is the greatest d of the patch's splats."
            " This gives the logarithms of kx and ky, and r - g and b - g in the place of r and b. Clip to the ranges.",
            "zero": ZERO,
            "units": UNITS,
        }

    def example(self, shape: Shape) -> str:
        """The formula, in numpy."""
        grid = (shape.splats, shape.rows, shape.columns)
        units = ", ".join(f"1 / {round(1 / unit)}" for unit in UNITS.values())
        return f"""n = np.array([row[name] for name in {" ".join(PARAMETERS)!r}.split()]).reshape(9, {str(grid)[1:-1]})
centre = np.array(row["centre"]).reshape(9, {shape.splats}, 1, 1) - {ZERO}
unit = np.array([{units}]).reshape(9, 1, 1, 1)
d = unit[8] * (centre[8] + n[8] - {ZERO})
fineness = np.exp({COVER} * (d.max(axis=0) - d) - 1)
u, v, kx, ky, rho, r, g, b, _ = unit * (centre + (n - {ZERO}) * fineness)
rho = rho.clip({LIMITS["rho"][0]}, {LIMITS["rho"][1]})
splats = np.stack([u, v, np.exp(kx), np.exp(ky), rho, r + g, g, b + g, d]).transpose(2, 3, 1, 0)
"""


CODECS: dict[str, Codec] = {"float16": Float16(), "compact": Compact()}


def _fineness(d: np.ndarray) -> np.ndarray:
    """How coarsely the other parameters of a splat are rounded, in units, by its depth [B, K, H, W]."""
    return np.exp(COVER * (d.max(axis=1, keepdims=True) - d) - 1.0)


def _integers(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), -ZERO, 0xFFFF - ZERO)


def lists(array: np.ndarray) -> pa.Array:
    """One fixed-size list for each element of the first axis."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array[0].size)


def flat_values(table: pa.Table, name: str) -> np.ndarray:
    """The numbers of a column of fixed-size lists, one after another."""
    return table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _signed(table: pa.Table, name: str) -> np.ndarray:
    return flat_values(table, name).astype(np.int32) - ZERO
