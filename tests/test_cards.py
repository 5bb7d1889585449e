import re
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pytest
from huggingface_hub import DatasetCard

from pipeline import open_dataset
from pipeline.datasets.splat_dataset import schema

COUNT = 230


@pytest.fixture(scope="module", params=["float16", "compact"])
def splats(request, stored_cats) -> Path:
    return stored_cats(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def test_the_code_of_a_card_decodes_what_is_beside_it(splats, monkeypatch):
    """The words for a stranger: with `datasets` and numpy alone they give what our own reader gives."""
    monkeypatch.chdir(splats)
    text = Path("README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["picture"].size == (512, 512)
    cats = open_dataset(".")
    np.testing.assert_allclose(names["splats"], cats[0].splats, rtol=1e-5, atol=1e-5)
    assert len(names["rows"]) == COUNT

    (query,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    (names["row"],) = duckdb.sql(query.replace("index = 0", "index = 167")).to_arrow_table().to_pylist()
    (decode,) = re.findall(r"^row = rows\[0\]\n(.*)", blocks[1], re.DOTALL | re.MULTILINE)
    exec(decode, names)
    np.testing.assert_allclose(names["splats"], cats[167].splats, rtol=1e-5, atol=1e-5)


def test_datasets_finds_the_data_of_the_folder_by_its_card(splats):
    rows = datasets.load_dataset(str(splats), split="train")
    assert rows["index"][:] == list(range(COUNT))
    assert rows.column_names == schema(open_dataset(str(splats)).plan).names
    data = DatasetCard.load(splats / "README.md").data
    assert data.size_categories == ["n<1K"]
    assert data.configs == [{"config_name": "default", "data_files": "data/*.parquet"}]


def test_duckdb_counts_and_finds_pictures(splats):
    shards = f"{splats}/data/*.parquet"
    assert duckdb.sql(f"SELECT count(*), max(index) FROM '{shards}'").fetchall() == [(COUNT, COUNT - 1)]
    found = duckdb.sql(f"SELECT index FROM '{shards}' WHERE index BETWEEN 149 AND 151 ORDER BY index").fetchall()
    assert found == [(149,), (150,), (151,)]
