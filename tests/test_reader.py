import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image
from torch.utils.data import DataLoader

from jobs import render
from models.errors import UserError
from models.rasterize import VIEWS
from pipeline import open_dataset
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.rendering.drawing import standing
from pipeline.rendering.framing import region_text

ROOT = Path(__file__).parents[1]
COUNT = 230  # in row groups of 64, 64, 22, and 64, 16


@pytest.fixture(scope="module", params=["float16", "compact"])
def splats(request, stored_cats) -> Path:
    return stored_cats(request.param)


@pytest.fixture(scope="module")
def fields(splats) -> torch.Tensor:
    """Every picture, read in bulk."""
    return torch.cat([part for _, part in SplatDataset.open(str(splats)).read(Indices.first(COUNT))])


class CountedFile(AbstractBufferedFile):
    """What object stores give: every range that is fetched is a request."""

    def _fetch_range(self, start, end):
        Counted.fetched.append((Path(self.path).name, start, end))
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


class Counted(AbstractFileSystem):
    """Local files behind `counted://`, as if they were far away."""

    protocol = "counted"
    root_marker = "/"
    fetched: ClassVar[list[tuple[str, int, int]]] = []

    def info(self, path, **_):
        stat = os.stat(self._strip_protocol(path))
        return {"name": path, "size": stat.st_size, "type": "file"}

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **options):
        return CountedFile(
            self, path, mode, block_size or "default", autocommit, cache_options=cache_options, **options
        )


fsspec.register_implementation("counted", Counted, clobber=True)


def test_cats_slices_lists_and_loops_are_the_pictures_of_their_numbers(splats, fields):
    cats = open_dataset(str(splats))
    assert len(cats) == COUNT
    for place in (0, 63, 64, 149, 150, -1, np.int64(7), torch.tensor(7)):
        cat = cats[place]
        assert cat.index == range(COUNT)[place]
        assert torch.equal(cat.splats, fields[cat.index])
    assert [cat.index for cat in cats[140:160][::-5]] == [159, 154, 149, 144]
    assert [cat.index for cat in cats[np.array([200, 3, 3])]] == [200, 3, 3]
    assert [cat.index for cat in cats[-12:]][-1] == COUNT - 1
    assert torch.equal(cats.splats([200, 3, 3, 151]), fields[[200, 3, 3, 151]])
    for wrong in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            cats[wrong]
    with pytest.raises(IndexError, match="has the pictures 0-229"):
        cats.splats([5, COUNT])
    for wrong in ("7", 1.5):
        with pytest.raises(TypeError):
            cats[wrong]


def test_numbers_may_be_a_tensor(splats, fields):
    chosen = torch.tensor([3, 170, 3])
    assert torch.equal(open_dataset(str(splats)).splats(chosen), fields[chosen])


def test_batches_are_all_cats_in_order(splats, fields):
    batches = list(open_dataset(str(splats)).batches(100))
    assert [len(batch) for batch in batches] == [100, 100, 30]
    assert torch.equal(torch.cat(batches), fields)
    with pytest.raises(UserError, match="batches of 0"):
        next(open_dataset(str(splats)).batches(0))


def test_a_torch_loader_with_workers_gives_every_cat_once(splats, fields):
    tensors = open_dataset(str(splats))[:200].to_torch()
    torch.manual_seed(0)
    order = torch.randperm(200).tolist()
    loader = DataLoader(tensors, batch_size=32, sampler=order, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), fields[order])


def test_one_cat_costs_a_footer_and_one_row_group_and_its_neighbours_nothing(splats, fields):
    cats = open_dataset(f"counted://{splats}")
    Counted.fetched.clear()
    assert torch.equal(cats[70].splats, fields[70])
    path = splats / "data/shard-00000.parquet"
    footer = pq.ParquetFile(path).metadata
    group = footer.row_group(1)
    starts = [group.column(i).data_page_offset for i in range(group.num_columns)]
    size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    assert {name for name, _, _ in Counted.fetched} == {path.name}
    tail = path.stat().st_size - max(footer.serialized_size + 8, 2**16)
    data = [(start, end) for _, start, end in Counted.fetched if start < tail]
    assert min(start for start, _ in data) >= min(starts)
    assert max(end for _, end in data) <= min(starts) + size
    assert sum(end - start for start, end in data) <= size
    assert len(Counted.fetched) <= 4  # requests: footer, its length, the columns together

    Counted.fetched.clear()
    cats[64], cats[127]
    assert not Counted.fetched
    cats[[130, 149, 131]].splats([130, 149, 131])
    assert sum(end - start for _, start, end in Counted.fetched) < size / 2  # 22 of 64 rows, and the footer is known


def test_missing_shards_matter_only_to_their_own_cats(splats, fields, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "_stats").mkdir()
    for name in ("plan.json", "data/shard-00001.parquet", "_stats/shard-00001.json"):
        (tmp_path / name).write_bytes((splats / name).read_bytes())
    cats = open_dataset(str(tmp_path))
    assert len(cats) == COUNT
    assert torch.equal(cats[180].splats, fields[180])
    with pytest.raises(UserError, match=r"data/shard-00000\.parquet is missing: run its generation again"):
        cats[149]
    available = cats.available()
    assert [available[0].index, len(available)] == [150, 80]
    assert torch.equal(torch.cat(list(available.batches(64))), fields[150:])
    assert torch.equal(cats[100:200].available()[[-1, 0]].splats([199, 150]), fields[[199, 150]])
    assert [cat.index for cat in cats[::-1].available()[:2]] == [229, 228]
    with pytest.raises(UserError, match=r"has no plan\.json"):
        open_dataset(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("size", "text", "options"),
    [
        (64, "64", {}),
        (np.int64(33), "33", {"region": (0.25, 0.25, 0.5, 0.5), "kernel": "sharp"}),
        ((60, 40), "60x40", {"view": "patches"}),
        (60, "60", {"region": (0.1, 0.2, 0.9, 0.4)}),
        ((60, 40), "60x40", {"region": (0.1, 0.2, 0.9, 0.4), "fit": "letterbox", "neighbourhood": 1}),
        ((40, 60), "40x60", {"fit": "stretch"}),
    ],
)
def test_a_cat_draws_what_the_command_draws(splats, size, text, options):
    source = SplatDataset.open(str(splats))
    told = {name: region_text(value) if name == "region" else value for name, value in options.items()}
    plan = render.make_plan(render.Options(splats=str(splats), out="", size=text, indices="3", **told), source)
    (expected,) = standing(source, plan, plan.pictures, "cpu")
    drawn = open_dataset(str(splats))[3].draw(size, **options)
    np.testing.assert_array_equal(np.asarray(drawn), expected.frames[0])


def test_a_cat_shows_itself_in_a_notebook(splats):
    cat = open_dataset(str(splats))[3]
    assert cat._repr_png_().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in cat.show_views(32).axes] == list(VIEWS)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda cats: cats[3].draw(0), "both sides must be at least 1"),
        (lambda cats: cats[3].draw(1.5), "size 1.5: give whole pixels, like 1024, or"),
        (lambda cats: cats[3].draw("12"), "size '12': give whole pixels"),
        (lambda cats: cats[3].draw((1, 2, 3)), "give whole pixels"),
        (lambda cats: cats[3].draw(10**6), "python -m jobs.render --size 1000000x1000000"),
        (lambda cats: cats[3].draw(8, view="nonsense"), "unknown view"),
        (lambda cats: cats[3].draw(8, kernel="nonsense"), "unknown kernel"),
        (lambda cats: cats[3].draw(8, fit="nonsense"), "unknown fit"),
        (lambda cats: cats[3].draw(8, region=(0, 0.5, 1, 0.5)), "is not inside the picture"),
        (lambda cats: cats[3].draw(8, region=(0, 0, 1e-8, 1e-8)), "finer than single precision"),
        (lambda cats: cats[3].show_views(views=[]), "at least one of the views colour, blobs"),
        (lambda cats: cats[[True, False]], "not by truth values"),
        (lambda cats: cats[np.array([True, False])], "not by truth values"),
        (lambda cats: cats[torch.tensor([True, False])], "not by truth values"),
    ],
)
def test_mistakes_are_named_in_one_line(splats, mistake, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        mistake(open_dataset(str(splats)))
    assert "\n" not in str(raised.value)


def test_a_pickled_dataset_reads_in_a_process_without_ray_or_the_model(splats, fields):
    cats = open_dataset(str(splats))[10:]
    cats[0]
    code = """
import pickle, sys
import pipeline
assert "torch" not in sys.modules
sys.modules["matplotlib"] = None
cats = pickle.loads(sys.stdin.buffer.read())
cats[0].draw(16)
assert not {"ray", "models.denoiser", "models.transformer"} & set(sys.modules)
try:
    cats[0].show_views(16)
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
sys.stdout.buffer.write(cats.splats([12, 200]).numpy().tobytes())
"""
    out = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(cats), cwd=ROOT, capture_output=True)
    assert out.stderr.startswith(b"UserError show_views needs matplotlib"), out.stderr
    read = np.frombuffer(out.stdout, np.float32).reshape(fields[[12, 200]].shape)
    np.testing.assert_array_equal(read, fields[[12, 200]].numpy())


def test_the_readme_does_what_it_says(stored_cats, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    chosen = [block for block in blocks if "open_dataset" in block or "read_table" in block]
    assert len(chosen) >= 3
    (tmp_path / "out").mkdir()
    (tmp_path / "out/splats").symlink_to(stored_cats("float16"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in chosen:
        exec(block, names)
    assert Image.open("cat.png").size == (1024, 1024)
    assert Image.open("views.png").width > 4 * 256
