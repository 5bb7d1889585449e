import dataclasses
import json
import re
import time
from pathlib import Path

import pytest

from models.errors import UserError
from pipeline.indices import Indices
from pipeline.plan import CODE_VERSION, PLAN_FILE, GenerationPlan, RenderPlan, claim, load
from pipeline.store import Store

PLAN = GenerationPlan(
    count=10,
    shard_size=4,
    seed=3,
    model="ab" * 32,
    solver="deis",
    schedule="early",
    steps=4,
    batch_size=3,
    threads=1,
    rows=8,
    columns=8,
    splats_per_patch=16,
    kernel="wavelet",
    neighbourhood=3,
)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 64), (64, 64), (65, 64), (1000, 7)])
def test_shards_hold_every_picture_exactly_once(count, size):
    plan = dataclasses.replace(PLAN, count=count, shard_size=size)
    shards = list(plan.shards())
    assert [shard.id for shard in shards] == list(range(plan.num_shards))
    assert [index for shard in shards for index in shard.indices] == list(range(count))
    assert {len(shard.indices) for shard in shards[:-1]} <= {size}


def test_a_billion_pictures_cost_no_memory():
    plan = dataclasses.replace(PLAN, count=10**9, shard_size=10_000)
    assert plan.num_shards == 100_000
    assert plan.shard(99_999).indices == Indices((range(999_990_000, 10**9),))


def test_a_shard_of_scattered_pictures_is_found_without_reading_them_all():
    chosen = [3 * i + j for i in range(10_000) for j in (0, 1)]
    plan = RenderPlan(
        shard_size=3,
        source="",
        seed=0,
        indices=str(Indices.parse(",".join(map(str, chosen)))),
        width=8,
        height=8,
        kernel="wavelet",
        neighbourhood=3,
        view="colour",
        output="files",
        encoding="png",
        quality=0,
        threads=1,
    )
    started = time.process_time()
    found = [index for shard in plan.shards() for index in shard.indices]
    assert time.process_time() - started < 5  # 0.2 s when this was written; 100 s if the text is read every time
    assert found == chosen


def test_the_same_plan_is_found_again_and_never_rewritten(tmp_path):
    store = Store(str(tmp_path / "new" / "place"))
    claim(store, PLAN)
    before = (tmp_path / "new/place" / PLAN_FILE).stat()
    claim(store, PLAN)
    assert (tmp_path / "new/place" / PLAN_FILE).stat() == before
    assert load(store, GenerationPlan) == PLAN


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GenerationPlan)])
def test_another_plan_in_the_same_place_is_refused_by_name(tmp_path, name):
    store = Store(str(tmp_path))
    claim(store, PLAN)
    value = getattr(PLAN, name)
    other = value + 1 if isinstance(value, int) else "other"
    with pytest.raises(UserError, match=f"{name} is {value!r} there, {other!r} here"):
        claim(store, dataclasses.replace(PLAN, **{name: other}))
    assert load(store, GenerationPlan) == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"kind": "pictures"}, "dataset of 'pictures'"),
        ({"seed": "1"}, "damaged: seed"),
        ({"seed": None}, "damaged: seed"),
        ({"surprise": 1}, "damaged: surprise"),
    ],
)
def test_plans_that_cannot_be_read_are_named(tmp_path, change, message):
    (tmp_path / PLAN_FILE).write_text(json.dumps({**PLAN.to_dict(), **change}))
    with pytest.raises(UserError, match=message):
        load(Store(str(tmp_path)), GenerationPlan)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_plan_that_is_no_json_object(tmp_path, text):
    (tmp_path / PLAN_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not a JSON object"):
        load(Store(str(tmp_path)), GenerationPlan)


def test_a_splat_plan_is_no_picture_plan(tmp_path):
    claim(Store(str(tmp_path)), PLAN)
    with pytest.raises(UserError, match="not of 'pictures'"):
        load(Store(str(tmp_path)), RenderPlan)


@pytest.mark.parametrize(
    ("text", "canonical", "count"),
    [("0-15", "0-15", 16), ("3", "3", 1), ("9,0-3, 2-5,6", "0-6,9", 8), ("1,1,1", "1", 1), ("0 - 2", "0-2", 3)],
)
def test_indices_are_inclusive_sorted_and_joined(text, canonical, count):
    indices = Indices.parse(text)
    assert str(indices) == canonical
    assert len(indices) == len(set(indices)) == count
    assert Indices.parse(canonical) == indices
    assert list(indices.between(1, 3)) == list(indices)[1:3]


@pytest.mark.parametrize(
    "text", ["", "-", "-1", "1-", "3-1", "1,,2", "0x10", "1.5", "a", "9" * 30, f"{2**63 - 1}", "٣"]
)
def test_indices_in_another_form_are_refused(text):
    with pytest.raises(UserError):
        Indices.parse(text)


def test_the_code_version_is_the_package_version():
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', pyproject, re.MULTILINE)[1] == CODE_VERSION
