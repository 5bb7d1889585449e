"""Stored splats in Python, for users: a dataset as a sequence of cats that draw themselves, without Ray or the model.

from pipeline import open_dataset

cats = open_dataset("out/splats")
cats[7].draw(1024).save("cat.png")
"""

from __future__ import annotations

import io
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex, overload

import torch
from PIL import Image
from torch import Tensor

from models.errors import UserError
from models.rasterize import VIEWS, WHOLE, Region, rasterize, to_uint8
from pipeline.datasets import records
from pipeline.datasets.codec import Shape
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan
from pipeline.datasets.splat_dataset import SplatDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_PIXELS = 512


def open_dataset(url: str) -> Cats:
    """Open a dataset that jobs.generate made or is making, at a folder or any fsspec URL; reads its plan, no data.

    Raises UserError if there is none.
    """
    dataset = SplatDataset(url)
    return Cats(dataset, range(dataset.plan.count))


@dataclass(frozen=True, eq=False)
class Cat:
    """One picture as splats. A notebook shows it."""

    index: int
    splats: Tensor = field(repr=False)  # float32 [rows, columns, splats a patch, 9], see models.splats
    plan: GenerationPlan = field(repr=False)

    def draw(
        self,
        size: int | tuple[int, int] = SHOWN_PIXELS,
        *,
        view: str = "colour",
        kernel: str | None = None,
        neighbourhood: int | None = None,
        region: Region = WHOLE,
    ) -> Image.Image:
        """Draw at `size` pixels a side, or (width, height), as `models.rasterize.rasterize` says. A pure function.

        `kernel` and `neighbourhood` are those the splats were made for if not given. UserError for what cannot be.
        """
        width, height = (size, size) if isinstance(size, int) else size
        with torch.inference_mode():
            picture = rasterize(
                self.splats[None],
                height,
                width,
                region=region,
                view=view,
                kernel=kernel or self.plan.kernel,
                neighbourhood=neighbourhood or self.plan.neighbourhood,
            )
        return Image.fromarray(to_uint8(picture)[0].numpy())

    def show_views(self, size: int = SHOWN_PIXELS, views: Sequence[str] = VIEWS) -> Figure:
        """The picture and the looks inside it, side by side, as a matplotlib figure, which a notebook shows.

        UserError where matplotlib is not installed.
        """
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
            number = operator.index(place)  # type: ignore[arg-type]
        except TypeError:
            return Cats(self.dataset, [self.indices[operator.index(p)] for p in place])  # type: ignore[union-attr]
        index = self.indices[number]
        return Cat(index, self.splats([index])[0], self.plan)

    def __repr__(self) -> str:
        return f"<{len(self):,} cats of {self.dataset.store.url}>"

    def splats(self, indices: Sequence[int]) -> Tensor:
        """The splats of the pictures of these numbers, float32 [B, rows, columns, splats a patch, 9].

        Any order, repetitions too; every row group they lie in is read once.
        """
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
        shards = {record.shard for record in records.committed(self.dataset.store)}
        return Cats(self.dataset, [i for i in self.indices if i // self.plan.shard_size in shards])

    def to_torch(self) -> SplatTensors:
        """A torch Dataset of the splats, for a DataLoader with any number of workers."""
        return SplatTensors(self)


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
