import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_store import make_plan

from models.measures import psnr
from models.rasterize import rasterize
from models.splats import LIMITS, PARAMETERS, random_field
from pipeline.datasets.codec import CODECS, COVER, LOGARITHMIC, UNITS, Shape
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import to_table, write_table

KIB = 1024


def stored(field: torch.Tensor, precision: str) -> tuple[torch.Tensor, float]:
    """What a file gives back of a field, and the bytes a picture takes, the file's metadata left out."""
    count, rows, columns, splats, _ = field.shape
    plan = make_plan(
        count=count, shard_size=count, rows=rows, columns=columns, splats_per_patch=splats, precision=precision
    )
    file = io.BytesIO()
    write_table(to_table(plan, Indices.first(count), field.numpy()), file)
    parquet = pq.ParquetFile(file)
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    size = sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
    return torch.from_numpy(CODECS[precision].decode(parquet.read(), Shape.of(plan))), size / count


def drawn(field: torch.Tensor, size: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([rasterize(part, size, size) for part in field.split(8)])


@pytest.mark.parametrize(
    ("size", "count"), [(72, 32), pytest.param(512, 32, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_compact_cats_are_small_and_look_the_same(cat_fields, size, count):
    field = cat_fields(count)
    compact, compact_bytes = stored(field, "compact")
    exact, exact_bytes = stored(field, "float16")
    assert compact_bytes < 6.5 * KIB
    assert exact_bytes < 17.5 * KIB
    expected = drawn(field, size)
    assert psnr(drawn(compact, size), expected).min() > 47
    assert psnr(drawn(exact, size), expected).min() > 70


@pytest.mark.parametrize("shape", [(3, 8, 8, 16), (2, 2, 3, 4), (1, 1, 1, 1)])
def test_every_number_comes_back_within_half_a_unit(shape):
    field = random_field(torch.Generator().manual_seed(0), *shape, dtype=torch.float64)
    field[..., 5:8] *= 20.0
    compact, _ = stored(field, "compact")
    assert compact.dtype == torch.float32
    depth = field[..., 8:]
    # The depths that decide how fine the others are were themselves rounded by half a unit.
    fineness = torch.exp(COVER * (depth.amax(-2, keepdim=True) - depth + UNITS["d"]) - 1).clamp(min=1e-9)
    for p, name in enumerate(PARAMETERS):
        a, b = field[..., p], compact[..., p].double()
        error = (a.log() - b.log() if name in LOGARITHMIC else a - b).abs()
        # Red and blue are differences to a green that is rounded too, but after it is: no error on top.
        limit = 0.5 * UNITS[name] * (1 if name == "d" else fineness[..., 0])
        assert (error <= limit + 1e-5).all(), name
        low, high = LIMITS.get(name, (-torch.inf, torch.inf))
        assert compact[..., p].min() >= np.float32(low), name
        assert compact[..., p].max() <= np.float32(high), name


def test_a_row_means_the_same_whatever_it_is_stored_with():
    field = random_field(torch.Generator().manual_seed(1), 5, 4, 4, 4)
    together, _ = stored(field, "compact")
    alone, _ = stored(field[3:4], "compact")
    torch.testing.assert_close(together[3:4], alone, atol=0, rtol=0)
