"""Sets of picture indices, and the one way they are written on a command line: `0-15`, `3`, `0-3,8,12-15`."""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

from models.errors import UserError

LARGEST = 2**63 - 1
"""Indices are int64 in Parquet."""


@dataclass(frozen=True)
class Indices(Sequence[int]):
    """A sorted set of picture indices, kept as disjoint ranges so that a billion of them cost nothing."""

    ranges: tuple[range, ...]

    @classmethod
    def first(cls, count: int) -> Indices:
        """The indices 0 to count - 1."""
        return cls((range(count),) if count else ())

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Indices:
        """The set of these numbers, given in any order and any number of times."""
        return cls.joining(range(number, number + 1) for number in numbers)

    @classmethod
    def joining(cls, ranges: Iterable[range]) -> Indices:
        """The set of all numbers of these ranges, none empty, in any order; they may overlap."""
        return cls(_merge(ranges))

    @classmethod
    @functools.lru_cache(maxsize=8)  # a plan asks for every shard
    def parse(cls, text: str) -> Indices:
        """Read inclusive ranges and single indices separated by commas; UserError for anything else."""
        ranges = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?\s*", part)
            if match is None:
                raise UserError(f"cannot read the indices {text!r}: write them like 0-15 or 3 or 0-3,8,12-15")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise UserError(f"the indices {part.strip()!r} run backwards: write {last}-{first}")
            if last >= LARGEST:
                raise UserError(f"the index {last} is too large")
            ranges.append(range(first, last + 1))
        return cls.joining(ranges)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[int]:
        for part in self.ranges:
            yield from part

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        places = range(len(self))[place]
        if isinstance(places, range):
            if places.step == 1:
                return self.between(places.start, places.stop)
            return [self[at] for at in places]
        part = bisect.bisect_right(self._positions, places) - 1
        return self.ranges[part][places - self._positions[part]]

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, SupportsIndex):
            return False
        number = operator.index(number)
        place = bisect.bisect_right(self.ranges, number, key=lambda part: part.start)
        return place > 0 and number in self.ranges[place - 1]

    def __str__(self) -> str:
        """The shortest text that `parse` reads back as the same set."""
        return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in self.ranges)

    @property
    def stop(self) -> int:
        """One more than the largest index; 0 for the empty set."""
        return self.ranges[-1].stop if self.ranges else 0

    def between(self, start: int, stop: int) -> Indices:
        """The subset from position `start` to before position `stop` of the sorted set."""
        parts = []
        for i in range(max(0, bisect.bisect_right(self._positions, start) - 1), len(self.ranges)):
            position = self._positions[i]
            if position >= stop:
                break
            piece = self.ranges[i][max(start - position, 0) : stop - position]
            if piece:
                parts.append(piece)
        return Indices(tuple(parts))

    def within(self, bounds: range) -> Indices:
        """Those from bounds.start to before bounds.stop."""
        cut = (range(max(part.start, bounds.start), min(part.stop, bounds.stop)) for part in self.ranges)
        return Indices(tuple(part for part in cut if part))

    @functools.cached_property
    def _positions(self) -> list[int]:
        """The position in the sorted set at which each range begins."""
        return [0, *itertools.accumulate(map(len, self.ranges))][:-1]


def _merge(ranges: Iterable[range]) -> tuple[range, ...]:
    """Sort ranges and join those that overlap or touch."""
    merged: list[range] = []
    for part in sorted(ranges, key=lambda r: r.start):
        if merged and part.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, part.stop))
        else:
            merged.append(part)
    return tuple(merged)
