import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import cli
from models.errors import UserError
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import CODE_VERSION, GenerationPlan, Plan, RenderPlan
from pipeline.datasets.plan_file import PLAN_FILE, claim, load
from pipeline.storage.store import Store

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
PICTURES = RenderPlan(
    shard_size=3,
    source="cd" * 32,
    seed=3,
    indices="0-4,7-10",
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
    plan = dataclasses.replace(PICTURES, indices=str(Indices.of(chosen)))
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


@pytest.mark.parametrize(
    ("plan", "name"), [(plan, field.name) for plan in (PLAN, PICTURES) for field in dataclasses.fields(plan)]
)
def test_another_plan_in_the_same_place_is_refused_by_name(tmp_path, plan, name):
    store = Store(str(tmp_path))
    claim(store, plan)
    value = getattr(plan, name)
    other = value + 1 if isinstance(value, int) else "other"
    with pytest.raises(UserError, match=f"{name} is {value!r} there, {other!r} here"):
        claim(store, dataclasses.replace(plan, **{name: other}))
    assert load(store, Plan) == plan


def test_a_place_with_other_things_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / ".plan.json.0123abcd.tmp").write_bytes(b"{")  # of a claim that was killed: ours
    claim(Store(str(tmp_path)), PLAN)
    (tmp_path / PLAN_FILE).unlink()
    for name in ("README.md", "data"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"{tmp_path} holds .*{name}.* but no plan.json: give a new or empty"):
            claim(Store(str(tmp_path)), PLAN)
    assert not (tmp_path / PLAN_FILE).exists()


NUMBERS = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30])
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | st.floats() | st.text(), st.lists)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from([*PLAN.to_dict(), *PICTURES.to_dict(), "new"]), JSON), data=st.data())
def test_whatever_a_plan_file_holds_it_is_a_plan_or_one_line(tmp_path, changes, data):
    plan = data.draw(st.sampled_from([PLAN, PICTURES]))
    (tmp_path / PLAN_FILE).write_text(json.dumps({**plan.to_dict(), **changes}))
    said = ""
    try:
        found = load(Store(str(tmp_path)), Plan)
        assert found.num_shards > 0
        assert found.data(found.shard(found.num_shards - 1))
    except UserError as error:
        said = cli.describe(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"kind": "pictures"}, "dataset of 'pictures'"),
        ({"seed": "1"}, "damaged: seed"),
        ({"seed": None}, "damaged: seed"),
        ({"surprise": 1}, "damaged: surprise"),
        ({"shard_size": 0}, "damaged: shard_size"),
        ({"seed": -1}, "damaged: seed"),
        ({"solver": "../x"}, "damaged: solver"),
        ({"kernel": "\x1b[2J"}, "damaged: kernel"),
        ({"columns": 10**6}, "damaged: columns"),
    ],
)
def test_plans_that_cannot_be_read_are_named(tmp_path, change, message):
    (tmp_path / PLAN_FILE).write_text(json.dumps({**PLAN.to_dict(), **change}))
    with pytest.raises(UserError, match=message):
        load(Store(str(tmp_path)), GenerationPlan)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
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
    numbers = list(indices)
    assert [indices[i] for i in range(-count, count)] == numbers * 2
    assert [list(indices[part]) for part in (slice(1, -1), slice(None, None, -2))] == [numbers[1:-1], numbers[::-2]]
    assert list(indices.within(range(1, 7))) == [n for n in numbers if 1 <= n < 7]


@pytest.mark.parametrize(
    "text", ["", "-", "-1", "1-", "3-1", "1,,2", "0x10", "1.5", "a", "9" * 30, f"{2**63 - 1}", "٣"]
)
def test_indices_in_another_form_are_refused(text):
    with pytest.raises(UserError):
        Indices.parse(text)


def test_the_code_version_is_the_package_version():
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', pyproject, re.MULTILINE)[1] == CODE_VERSION
