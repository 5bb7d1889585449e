"""Stored splats in Python, for users: a dataset as a sequence of cats that draw themselves, without Ray or the model.

from pipeline import open_dataset

cats = open_dataset("out/splats")
cats[7].draw(1024).save("cat.png")
"""

from __future__ import annotations

import io
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.errors import UserError, check_name
from models.rasterize import VIEWS, WHOLE, Region, check_region
from pipeline.datasets import records
from pipeline.datasets.codec import Shape
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.rendering import framing
from pipeline.rendering.drawing import PIXELS_HELD, Look, draw, one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_PIXELS = 512


def open_dataset(url: str) -> Cats:
    """Open a dataset that jobs.generate made or is making, at a folder or any fsspec URL; reads its plan, no data.

    Raises UserError if there is none.
    """
    dataset = SplatDataset.open(url)
    return Cats(dataset, range(dataset.plan.count))


@dataclass(frozen=True, eq=False)
class Cat:
    """One picture as splats. A notebook shows it."""

    index: int
    splats: Tensor = field(repr=False)  # float32 [rows, columns, splats a patch, 9], see models.splats
    plan: GenerationPlan = field(repr=False)

    def draw(
        self,
        size: SupportsIndex | tuple[SupportsIndex, SupportsIndex] = SHOWN_PIXELS,
        *,
        view: str = "colour",
        kernel: str | None = None,
        neighbourhood: int | None = None,
        region: Region = WHOLE,
        fit: str = "crop",
    ) -> Image.Image:
        """Draw `region`, the longer side of `size` pixels, or at (width, height), as jobs.render does.

        Where (width, height) has another shape than the region, `fit` shows its middle ("crop"), all of it between
        black bars ("letterbox"), or distorts it ("stretch"). `view`, `kernel` and `neighbourhood` are those of
        `models.rasterize.rasterize`, the latter two as the splats were made for if not given. A pure function.
        UserError for what cannot be, and for more than 268 megapixels.
        """
        check_region(region)
        check_name("fit", fit, framing.FITS)
        rows, columns, *_ = self.splats.shape
        width, height = _sides(size, region, columns / rows)
        frame = framing.fit(width, height, region, fit, columns / rows)
        framing.check_finest(frame.region, frame, rows, columns)
        look = Look(
            self.plan.kernel if kernel is None else kernel,
            self.plan.neighbourhood if neighbourhood is None else neighbourhood,
            view,
        )
        with one_thread():
            return Image.fromarray(draw(self.splats[None], frame, look)[0])

    def show_views(self, size: int = SHOWN_PIXELS, views: Sequence[str] = VIEWS) -> Figure:
        """The picture and the looks inside it, side by side, as a matplotlib figure, which a notebook shows.

        UserError for no views, and where matplotlib is not installed.
        """
        if not views:
            raise UserError(f"show_views: give at least one of the views {', '.join(VIEWS)}")
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise UserError("show_views needs matplotlib, which is not installed: pip install matplotlib") from None
        # A figure of its own and not pyplot's, so that none is kept and no window opens.
        figure = Figure(figsize=(3 * len(views), 3.3), layout="constrained")
        for axes, view in zip(figure.subplots(1, len(views), squeeze=False)[0], views, strict=True):
            axes.imshow(self.draw(size, view=view))
            axes.set_title(view)
            axes.set_axis_off()
        return figure

    def _repr_png_(self) -> bytes:
        """What Jupyter shows."""
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


class Cats(Sequence[Cat]):
    """The pictures of a dataset, or a selection of them, in a row: reading begins when one is taken.

    `cats[7]` is a Cat and reads one row group; a slice or a list of places is another Cats and reads nothing. Shards
    that are not there yet do not matter until one of their pictures is taken, which raises a UserError. Can be
    pickled.
    """

    def __init__(self, dataset: SplatDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    @property
    def plan(self) -> GenerationPlan:
        """What the dataset was made by."""
        return self.dataset.plan

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Cat: ...

    @overload
    def __getitem__(self, place: slice | Sequence[SupportsIndex]) -> Cats: ...

    def __getitem__(self, place: SupportsIndex | slice | Sequence[SupportsIndex]) -> Cat | Cats:
        if isinstance(place, slice):
            return Cats(self.dataset, self.indices[place])
        try:
            index = self._index(place)  # type: ignore[arg-type]
        except TypeError:  # arrays of numbers are known by this alone
            if not isinstance(place, Iterable):
                raise TypeError(f"cats are chosen by whole numbers, slices and lists, not by {place!r}") from None
            return Cats(self.dataset, [self._index(one) for one in place])
        return Cat(index, self.splats([index])[0], self.plan)

    def _index(self, place: SupportsIndex) -> int:
        """The number of the picture at a place, from the end if below 0."""
        number = _number(place)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no cat {number}: there are {len(self):,}")
        return self.indices[number]

    def __repr__(self) -> str:
        return f"<{len(self):,} cats of {self.dataset.store.url}>"

    def splats(self, indices: Sequence[int]) -> Tensor:
        """The splats of the pictures of these numbers, float32 [B, rows, columns, splats a patch, 9].

        Any order, repetitions too; every row group they lie in is read once.
        """
        indices = [operator.index(index) for index in indices]  # numbers of NumPy and torch too
        chosen = Indices.of(indices)
        if chosen.ranges and not 0 <= chosen.ranges[0][0] < chosen.stop <= self.plan.count:
            raise IndexError(f"{self.dataset.store.url} has the pictures 0-{self.plan.count - 1}")
        rows: dict[int, list[int]] = defaultdict(list)
        for row, index in enumerate(indices):
            rows[index].append(row)
        found = torch.empty(len(indices), *Shape.of(self.plan).field)
        for numbers, fields in self.dataset.read(chosen):
            for index, splats in zip(numbers, fields, strict=True):
                found[rows[index]] = splats
        return found

    def batches(self, size: int) -> Iterator[Tensor]:
        """All of them in order as splats [B, rows, columns, splats a patch, 9], `size` at a time, the last ones fewer.

        Raises UserError for a size below 1.
        """
        if size < 1:
            raise UserError(f"batches of {size}: give a number of at least 1")
        for start in range(0, len(self), size):
            yield self.splats(self.indices[start : start + size])

    def available(self) -> Cats:
        """Those whose shards are complete now, while a generation is at work or after it was interrupted."""
        size = self.plan.shard_size
        shards = Indices.of(record.shard for record in records.committed(self.dataset.store))
        if isinstance(self.indices, range) and self.indices.step == 1:  # of millions, without a look at each
            pieces = (range(part.start * size, part.stop * size) for part in shards.ranges)
            return Cats(self.dataset, Indices.joining(pieces).within(self.indices))
        return Cats(self.dataset, [index for index in self.indices if index // size in shards])

    def to_torch(self) -> SplatTensors:
        """A torch Dataset of the splats, for a DataLoader with any number of workers."""
        return SplatTensors(self)


def _sides(size: object, region: Region, aspect: float) -> tuple[int, int]:
    """Width and height in pixels of a `size` as `Cat.draw` takes it; UserError for others and for too many."""
    try:
        if isinstance(size, SupportsIndex):
            width, height = framing.with_longer_side(operator.index(size), region, aspect)
        else:
            width, height = map(operator.index, size)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise UserError(f"size {size!r}: give whole pixels, like 1024, or (width, height), like (1920, 1080)") from None
    if min(width, height) < 1:
        raise UserError(f"size {size!r} makes {width}x{height} pixels: both sides must be at least 1")
    if width * height > PIXELS_HELD:
        raise UserError(
            f"size {size!r} makes {width}x{height} pixels, more than the {PIXELS_HELD / 1e6:,.0f} megapixels that are"
            f" held in memory at once: use python -m jobs.render --size {width}x{height}"
        )
    return width, height


def _number(place: SupportsIndex) -> int:
    """A place as an int; UserError for truth values, which would count as 0 and 1."""
    if isinstance(place, bool) or getattr(place, "dtype", None) in (np.bool_, torch.bool):
        raise UserError("cats are chosen by their places, not by truth values: give numbers, like [0, 2]")
    return operator.index(place)


class SplatTensors(torch.utils.data.Dataset[Tensor]):
    """Splats as a torch Dataset: tensors [rows, columns, splats a patch, 9], in the order of `cats`. Can be pickled."""

    def __init__(self, cats: Cats) -> None:
        self.cats = cats

    def __len__(self) -> int:
        return len(self.cats)

    def __getitem__(self, place: int) -> Tensor:
        return self.cats[place].splats

    def __getitems__(self, places: list[int]) -> list[Tensor]:
        """A whole batch, which DataLoader asks for at once, so that every row group is read once."""
        return list(self.cats.splats([self.cats.indices[place] for place in places]))
