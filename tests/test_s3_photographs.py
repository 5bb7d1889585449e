"""Photographs in an object store, and the prepared set: a store that fails to answer is not taken for damage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import s3fs
from conftest import files
from object_store import S3
from photographs import write_parquet, write_zip
from test_s3 import fails, succeeds

from jobs import prepare, train
from models.errors import UserError
from pipeline.photographs.prepared import RECORD
from pipeline.storage.store import Store
from pipeline.training import training_set

PHOTOGRAPHS = sorted((Path(__file__).parent / "photos").glob("*.jpg"))[:3]
FORMS = ("folder", "cats.zip", "cats.parquet")


def photographs_in(url: str, folder: Path) -> str:
    """Photographs in the object store, as what the URL's name says; the URL."""
    store = Store("s3://cats")
    if url.endswith(".zip"):
        store.write(url[10:], write_zip(folder / "cats.zip", PHOTOGRAPHS).read_bytes())
    elif url.endswith(".parquet"):
        store.write(url[10:], write_parquet(folder / "cats.parquet", PHOTOGRAPHS).read_bytes())
    else:
        for path in PHOTOGRAPHS:
            store.write(f"{url[10:]}/{path.name}", path.read_bytes())
    return url


def answer_until(s3: S3, number: int, requests: str, fault: str) -> None:
    """The first `number` of the requests are answered, those after them not; clients have forgotten what was listed."""
    s3.faults, s3.hit = [(requests, "", number), (requests, fault, 1000)], []
    s3fs.S3FileSystem.clear_instance_cache()


def failing(count: int, fault: str) -> range:
    """Which of so many requests shall be the first to fail: one only where the clients try for minutes."""
    return range(count - 1 if fault == "time-out" else 0, count)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "403") for name in FORMS),
        *(pytest.param(name, fault, marks=pytest.mark.slow) for name in FORMS for fault in ("500", "cut off")),
        pytest.param("folder", "time-out", marks=pytest.mark.slow),
    ],
)
def test_a_photograph_that_the_store_fails_to_give_is_an_error_and_never_left_out(s3, tmp_path, capsys, name, fault):
    url, out = photographs_in(f"s3://cats/{fault.replace(' ', '-')}/{name}", tmp_path), tmp_path / "prepared"
    # Listings too, where no answer takes the clients no minute.
    options, requests = ["--photos", url, "--out", out], "(GET|HEAD) /cats" if fault == "403" else f"GET .*/{name}"
    answer_until(s3, 1000, requests, fault)
    succeeds(prepare, *options)
    whole, count = files(out), len(s3.hit)
    assert json.loads(whole[RECORD])["kept"] == 3
    assert count
    for number in failing(count, fault):
        (out / RECORD).unlink(missing_ok=True)
        answer_until(s3, number, requests, fault)
        assert re.match(f"error: {url}.* cannot be re(ad|ached): ", fails(capsys, prepare, *options))
        assert not (out / RECORD).exists()
    answer_until(s3, 1000, requests, fault)
    succeeds(prepare, *options)
    assert files(out) == whole


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "fault", ["403", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("500", "cut off", "time-out"))]
)
def test_a_prepared_set_that_the_store_fails_to_give_is_not_called_damaged(s3, tmp_path, capsys, fault):
    url, requests = f"s3://cats/prepared-{fault.replace(' ', '-')}", "GET .*/prepared-"
    succeeds(prepare, "--photos", PHOTOGRAPHS[0].parent, "--out", url)
    answer_until(s3, 1000, requests, fault)
    whole = training_set.load(url, heldout=False, detail=128)
    count = len(s3.hit)
    for number in failing(count, fault):
        answer_until(s3, number, requests, fault)
        with pytest.raises(UserError, match=f"^{url}/(prepared.json|photos-00000.parquet) cannot be read: "):
            training_set.load(url, heldout=False, detail=128)
    answer_until(s3, 0, requests, fault)
    said = fails(capsys, train, "--photos", url, "--out", tmp_path / "run", "--steps", "1")
    assert f"error: {url}/prepared.json cannot be read: " in said
    s3.faults = []
    assert training_set.load(url, heldout=False, detail=128).small.tobytes() == whole.small.tobytes()
