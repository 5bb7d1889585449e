"""Datasets in an object store: a real server that speaks S3, which fails when it is told to."""

from __future__ import annotations

import errno
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import data_bytes
from object_store import S3
from test_atomic import SPLATS, run
from test_generation import arguments
from test_generation import command as generate

from jobs import cli, prepare, render, status, verify
from jobs import generate as generate_job
from models.errors import UserError
from pipeline.datasets import plan_file, records
from pipeline.datasets.plan import Plan
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.inspection.contents import check_pictures, check_splats
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store


def objects(url: str) -> dict[str, bytes]:
    """All objects of a dataset, without the records, which hold times."""
    store = Store(url)
    return {name: b"" if name.startswith("_stats/") else store.read(name) for name in store.sizes("")}


def check(url: str, *options: str) -> int:
    return cli.run(verify.Options, verify.main, [url, *options])


PLACES = ("plan.json", "data/shard-00001", "_stats/shard-00001")
FAULTS = ("500", "stored, but 500", "cut off", "time-out", "403")
QUICK = {("500", PLACES[1]), ("stored, but 500", PLACES[2]), ("403", PLACES[0])}
CASES = [(fault, where) for fault in FAULTS for where in PLACES]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "where"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_put_that_fails_is_tried_again_or_one_clear_error_and_the_rerun_completes(s3: S3, fault: str, where: str):
    clean, url = "s3://cats/clean", f"s3://cats/{fault}/{where}".replace(" ", "-").replace(",", "")
    run(SPLATS, clean)
    whole = objects(clean)
    s3.faults = [(f"PUT .*{url[10:]}.*{where}", fault, 1)]
    if fault == "403":  # not worth another try
        with pytest.raises((OSError, UserError), match=f"sorry|{where}") as caught:
            run(SPLATS, url)
        assert url in cli.describe(caught.value)
    else:
        run(SPLATS, url)
        assert objects(url) == whole
    assert len(s3.hit) == 1
    s3.faults = [(f"PUT .*{url[10:]}x.*{where}", fault, 1000)]
    with pytest.raises((OSError, UserError)) as caught:
        run(SPLATS, url + "x")
    assert cli.describe(caught.value).count(url + "x") == 1
    assert "\n" not in cli.describe(caught.value)
    for name, data in objects(url + "x").items():
        assert data == whole[name]
    s3.faults = []
    run(SPLATS, url + "x")
    assert objects(url + "x") == whole


@pytest.mark.slow
def test_generated_verified_repaired_and_drawn_in_an_object_store(
    s3: S3, ray_cluster, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, url = tmp_path / "splats", "s3://cats/bulk/splats"
    assert generate(*arguments(local, tiny_weights)) == 0
    s3.faults = [
        ("PUT .*bulk/splats/data/shard-00001", "500", 3),
        ("PUT .*bulk/splats/_stats/shard-00002", "stored, but 500", 3),
    ]
    in_store = [*arguments(tmp_path, tiny_weights)[2:], "--out", url]
    assert generate(*in_store) == 0
    assert len(s3.hit) == 6
    assert " failed 0" in capsys.readouterr().out
    assert in_url(url) == data_bytes(local)
    assert check(url) == 0
    assert cli.run(status.Options, status.main, [url]) == 0

    store = Store(url)
    data = store.read("data/shard-00003.parquet")
    store.write("data/shard-00003.parquet", data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    store.write("data/shard-00004.parquet", store.read("data/shard-00004.parquet")[:-1])
    store.remove("_stats/shard-00005.json")
    store.write("data/notes.txt", b"mine")
    capsys.readouterr()
    assert cli.run(status.Options, status.main, [url]) == 1
    assert "2 of 6 shards are missing" in capsys.readouterr().err
    assert check(url, "--repair") == 1
    said = capsys.readouterr()
    for finding in (
        "data/shard-00003.parquet: its checksum is not the recorded one",
        "data/shard-00004.parquet: has",
        "data/shard-00005.parquet: data without a record",
        "data/notes.txt: does not belong here",
    ):
        assert f"{url}/{finding}" in said.out
    assert "4 findings; removed 3 bad shards" in said.err
    assert in_url(url).keys() == {*data_bytes(local), "notes.txt"} - {f"shard-0000{i}.parquet" for i in (3, 4, 5)}
    assert generate(*in_store) == 0
    store.remove("data/notes.txt")
    assert check(url) == 0
    assert in_url(url) == data_bytes(local)

    options = ["--splats", url, "--out", "s3://cats/bulk/pictures", "--size", "16", "--indices", "0-3"]
    assert cli.run(render.Options, render.main, options) == 0
    assert check("s3://cats/bulk/pictures") == 0


FORMS = {"float16": {}, "parquet": {}, "webdataset": {}, "files": {}, "tiff": {"size": "600"}}
SILENCES = [(form, fault) for form in FORMS for fault in ("500", "cut off") if (form, fault) != ("webdataset", "500")]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ("webdataset", "500"),
        # The clients try for more than a minute, so a single time.
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("webdataset", "time-out"), *SILENCES]),
    ],
)
def test_a_store_that_fails_to_answer_is_no_damage(s3: S3, splats: Path, form: str, fault: str) -> None:
    source, store = SplatDataset.open(str(splats)), Store(f"s3://cats/unread-{form}-{fault.replace(' ', '-')}")
    if form == "float16":
        plan: Plan = source.plan
        shard = plan.shard(0)
        store.write(plan.data(shard), source.store.read(plan.data(shard)))
        store.write("plan.json", source.store.read("plan.json"))
        check = partial(check_splats, store, plan, shard)
    else:
        options = {"size": "40", **FORMS[form]}
        plan = render.make_plan(render.Options(str(splats), "", indices="0", format=form, **options), source)
        shard = plan.shard(0)
        render_shard(source, plan, shard, store, "cpu", 1)
        check = partial(check_pictures, store, plan, shard)
    check()
    s3.faults = [(r"GET .*/unread-.*shard-00000", fault, 1000)]
    with pytest.raises(OSError, match=f"{store.url}/.*shard-00000") as caught:
        check()
    assert caught.value.errno == errno.EIO
    s3.faults = []
    check()


def test_a_record_that_the_store_fails_to_give_is_no_missing_shard(s3: S3) -> None:
    """It would be done again, however long that takes."""
    run(SPLATS, "s3://cats/silent-record")
    store = Store("s3://cats/silent-record")
    done = [record.shard for record in records.committed(store)]
    s3.faults = [("GET .*silent-record/_stats/shard-00001", "403", 1000)]
    with pytest.raises(PermissionError, match=r"silent-record/_stats/shard-00001\.json"):
        list(records.committed(store))
    s3.faults = []
    assert [record.shard for record in records.committed(store)] == done


def test_names_are_no_patterns(s3: S3) -> None:
    named, other = Store("s3://cats/set[1]"), Store("s3://cats/set1")
    for store in (named, other):
        store.write("folder/a", store.url.encode())
    assert named.read_many(["folder/a", "b"]) == {"folder/a": b"s3://cats/set[1]"}
    named.remove_folder("folder")
    assert named.sizes("") == {}
    assert other.read("folder/a") == b"s3://cats/set1"


def test_browsers_are_told_what_files_are(s3: S3) -> None:
    store = Store("s3://cats/page")
    for name, kind in (("index.html", "text/html"), ("a/cat.png", "image/png"), ("style.css", "text/css")):
        store.write(name, b"x")
        assert fsspec.filesystem("s3").info(store.path(name))["ContentType"] == kind


def test_a_store_survives_a_fork(s3: S3) -> None:
    """PyTorch's DataLoader makes its workers so."""
    store = Store("s3://cats/forked")
    store.write("a", b"1")

    def child() -> None:
        os._exit(0 if store.read("a") == b"1" else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0


@pytest.mark.slow
def test_nothing_is_repaired_where_the_store_fails_to_answer(
    s3: S3, ray_cluster, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://cats/silent"
    assert generate(*arguments(tmp_path, tiny_weights)[2:], "--out", url) == 0
    Store(url).remove("_stats/shard-00002.json")
    whole = objects(url)
    s3.faults = [("GET .*silent/data/shard-00001", "500", 1000)]
    capsys.readouterr()
    assert check(url, "--repair") == 1
    said = capsys.readouterr()
    assert f"{url}/data/shard-00002.parquet: data without a record" in said.out
    assert "1 of 6 shards failed" in said.err
    assert f"{url}/data/shard-00001.parquet" in said.err
    assert "sorry" in said.err
    assert said.err.count("\n") == 1
    s3.faults = []
    assert objects(url) == whole
    assert check(url, "--repair") == 1
    assert "removed 1 bad shards" in capsys.readouterr().err


def in_url(url: str) -> dict[str, bytes]:
    return {name[5:]: data for name, data in objects(url).items() if name.startswith("data/")}


def test_a_plan_that_came_first_is_not_overwritten(s3: S3):
    store = Store("s3://cats/claimed")
    plan_file.claim(store, SPLATS)
    with pytest.raises(FileExistsError):
        store.write("plan.json", b"another", exclusive=True)
    assert plan_file.load(store, Plan) == SPLATS


def succeeds(job: Any, *options: object) -> None:
    assert cli.run(job.Options, job.main, list(map(str, options))) == 0


def fails(capsys: pytest.CaptureFixture[str], job: Any, *options: object) -> str:
    assert cli.run(job.Options, job.main, list(map(str, options))) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_one_line(tiny_weights, tmp_path, capsys):
    options = arguments(tmp_path, tiny_weights)[2:]
    said = fails(capsys, generate_job, "--out", "s3://nobody/splats", *options)
    assert "cannot use s3://nobody/splats: The specified bucket does not exist" in said
    assert "s3://nobody/splats does not exist" in fails(capsys, status, "s3://nobody/splats")


@pytest.mark.slow  # the clients try for a while
@pytest.mark.usefixtures("impatient")
def test_an_object_store_that_does_not_answer_is_one_line(tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = arguments(tmp_path, tiny_weights)[2:]
    said = fails(capsys, generate_job, "--out", "s3://cats/splats", *options)
    assert "cannot use s3://cats/splats: Could not connect" in said
    assert "Could not connect" in fails(capsys, verify, "s3://cats/splats")
    assert "Could not connect" in fails(capsys, prepare, "--photos", "s3://cats/a", "--out", tmp_path / "prepared")
