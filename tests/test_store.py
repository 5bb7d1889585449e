import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_plan import PLAN

from models.errors import UserError
from models.splats import PARAMETERS
from pipeline.datasets import records
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan
from pipeline.datasets.plan_file import claim
from pipeline.datasets.records import Record
from pipeline.datasets.splat_dataset import METADATA_KEY, ROW_GROUP, SplatDataset, to_table, write_table
from pipeline.storage.store import Store

SHARD = "data/shard-00000.parquet"
RECORD = "_stats/shard-00000.json"


def make_plan(**changes) -> GenerationPlan:
    fields = {k: v for k, v in PLAN.to_dict().items() if k not in ("format_version", "kind")}
    return GenerationPlan(**{**fields, "count": 300, "shard_size": 200, **changes})


@pytest.fixture
def dataset(tmp_path):
    """300 small random pictures in two shards, committed: (store, plan, fields)."""
    plan = make_plan(rows=2, columns=2, splats_per_patch=16)
    store = Store(str(tmp_path / "set [1]*"))
    claim(store, plan)
    fields = np.random.default_rng(0).normal(size=(300, 2, 2, 16, len(PARAMETERS))).astype(np.float16)
    for shard in plan.shards():
        part = fields[list(shard.indices)]
        with store.create(f"data/{shard.name}.parquet") as output:
            write_table(to_table(plan, shard.indices, part), output.file)
        records.write(
            store,
            Record(
                shard.id,
                f"data/{shard.name}.parquet",
                len(part),
                shard.indices.ranges[0].start,
                shard.indices.stop - 1,
                output.bytes,
                output.sha256,
            ),
        )
    return store, plan, fields


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    store = Store(str(tmp_path))

    def half_write(name: str) -> None:
        with store.create(name) as output:
            output.file.write(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        half_write("data/a")
    assert list(tmp_path.rglob("*")) == [tmp_path / "data"]
    store.write("data/a", b"first")
    with pytest.raises(OSError, match="full"):
        half_write("data/a")
    assert (tmp_path / "data/a").read_bytes() == b"first"
    store.write("data/a", b"second")
    assert os.listdir(tmp_path / "data") == ["a"]
    assert store.read("data/a") == b"second"


def test_files_are_readable_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        Store(str(tmp_path)).write("a", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_only_our_own_temporary_files_are_removed(dataset, tmp_path):
    store, _, _ = dataset
    orphan = tmp_path / "set [1]*/data/.shard-00001.parquet.0123abcd.tmp"
    foreign = tmp_path / "set [1]*/data/.notes.tmp"
    for path in (orphan, foreign):
        path.write_bytes(b"x")
    assert store.remove_orphans() == 1
    assert foreign.exists()
    assert not orphan.exists()


def test_a_shard_counts_only_with_its_record_and_data_of_the_recorded_size(dataset, tmp_path):
    store, _, _ = dataset
    root = tmp_path / "set [1]*"
    assert [record.shard for record in records.committed(store)] == [0, 1]
    record, data = (root / RECORD).read_bytes(), (root / SHARD).read_bytes()

    def committed() -> list[int]:
        found = [r.shard for r in records.committed(store)]
        (root / RECORD).write_bytes(record)
        (root / SHARD).write_bytes(data)
        return found

    (root / RECORD).unlink()
    assert committed() == [1]
    (root / SHARD).unlink()
    assert committed() == [1]
    (root / SHARD).write_bytes(data[:-1])
    assert committed() == [1]
    stated = json.loads(record)
    odd = [
        {"timings": {"drawing": "x"}},
        {"shard": []},
        {"rows": "200"},
        {"rows": 199},
        {"shard": 1},
        {"first": 7},
        {"data": "../set/data"},
    ]
    for garbage in (b"", b"{}", b"[1]", b"[" * 10**5, record[:-9], *(json.dumps(stated | o).encode() for o in odd)):
        (root / RECORD).write_bytes(garbage)
        assert committed() == [1]
    (root / "_stats/notes.json").write_text("{}")
    (root / "data/other.parquet").write_bytes(b"x")
    assert committed() == [0, 1]


def test_the_parquet_file_explains_itself(dataset, tmp_path):
    _, plan, fields = dataset
    file = pq.ParquetFile(tmp_path / "set [1]*" / SHARD)
    assert file.schema_arrow.field("index").type == pa.int64()
    assert file.schema_arrow.field("splats").type == pa.list_(pa.float16(), fields[0].size)
    assert file.schema_arrow.names == ["index", "splats"]
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) == ROW_GROUP
    about = json.loads(file.schema_arrow.metadata[METADATA_KEY])
    assert [p["name"] for p in about["parameters"]] == list(PARAMETERS)
    assert about["plan"] == plan.to_dict()
    assert {"layout", "formulas"} <= about.keys()


@pytest.mark.parametrize("text", ["0-299", "0", "299", "63-64", "199-200", "5,64-130,198-201,299"])
def test_any_pictures_are_read_across_row_groups_and_shards(dataset, text):
    store, _, fields = dataset
    chosen = Indices.parse(text)
    numbers, values = [], []
    for indices, field in SplatDataset.open(store.url).read(chosen):
        assert len(indices) <= ROW_GROUP
        numbers += indices
        values.append(field.numpy())
    assert numbers == list(chosen)
    np.testing.assert_array_equal(np.concatenate(values), fields[list(chosen)].astype(np.float32))


def test_damage_within_a_shard_is_named_and_not_returned(dataset, tmp_path):
    store, _, _ = dataset
    path = tmp_path / "set [1]*" / SHARD
    data = path.read_bytes()
    for position in range(200, len(data) - 20_000, len(data) // 20):
        path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        with pytest.raises(UserError, match=r"shard-00000\.parquet is damaged"):
            list(SplatDataset.open(store.url).read(Indices.parse("0-199")))


def test_missing_truncated_and_foreign_shards_are_told_apart(dataset, tmp_path):
    store, plan, _ = dataset
    source, path = SplatDataset.open(store.url), tmp_path / "set [1]*" / SHARD
    source.require(plan.pictures)
    with pytest.raises(UserError, match="has the pictures 0-299; there is no picture 300"):
        source.require(Indices.parse("7,300"))
    data = path.read_bytes()
    path.write_bytes(data[:500])
    with pytest.raises(UserError, match=r"is damaged.*has 500 bytes"):
        source.require(Indices.parse("0-299"))
    source.require(Indices.parse("200-299"))
    with pytest.raises(UserError, match="is damaged"):
        list(source.read(Indices.parse("0")))
    (tmp_path / "set [1]*" / RECORD).unlink()
    with pytest.raises(UserError, match="1 of 2 shards needed are missing, the first is shard-00000"):
        source.require(Indices.parse("0-299"))
    pq.write_table(pa.table({"index": [0], "splats": ["cat"]}), path)
    with pytest.raises(UserError, match="no column 'splats'"):
        list(source.read(Indices.parse("0")))


@pytest.mark.parametrize("name", ["../x", "/x", "data/../../x"])
def test_no_name_leaves_the_folder(tmp_path, name):
    with pytest.raises(UserError, match="leads out of"):
        Store(str(tmp_path)).write(name, b"")


@pytest.mark.parametrize("url", ["memory://x", "nonsense://x", "/"])
def test_places_that_cannot_be_used_are_named(url):
    with pytest.raises(UserError, match=f"cannot use {url}"):
        Store(url)
