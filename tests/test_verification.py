"""What is wrong with a dataset is found, named in a line each, removed on demand, and made again, the same bytes."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import data_bytes, draw_few, files, make_few

from jobs import cli, status, verify
from pipeline.datasets import plan_file
from pipeline.datasets.plan import Plan
from pipeline.inspection.verification import verify_shard
from pipeline.storage.store import Store

SPLATS = "data/shard-00001.parquet"


def check(url: Path, *options: str) -> int:
    return cli.run(verify.Options, verify.main, [str(url), *options])


def progress(url: Path) -> int:
    return cli.run(status.Options, status.main, [str(url)])


def test_whole_and_sound_datasets_pass(few_splats, few_pictures, capsys):
    assert check(few_splats) == 0
    assert "is whole and sound: 4 shards, 14 pictures" in capsys.readouterr().out
    for form in few_pictures:
        assert check(few_pictures[form]) == 0
        assert "3 shards, 6 pictures" in capsys.readouterr().out
    assert progress(few_splats) == 0
    assert "shards 4/4  14 of 14 pictures" in capsys.readouterr().out


def test_every_kind_of_damage_is_found_once_repaired_and_made_again(few_splats, tiny_weights, tmp_path, capsys):
    out = tmp_path / "splats"
    shutil.copytree(few_splats, out)
    whole = files(out)
    data = whole[SPLATS]
    (out / "data/shard-00000.parquet").unlink()
    (out / SPLATS).write_bytes(data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    (out / "_stats/shard-00002.json").unlink()
    (out / "data/shard-00003.parquet").write_bytes(whole["data/shard-00003.parquet"][:-1])
    foreign = [out / "data/notes.txt", out / "data/shard-00004.parquet", out / "_stats/shard-00009.json"]
    for path in foreign:
        path.write_bytes(b"mine")
    torn = out / "data/.shard-00001.parquet.0123abcd.tmp"
    torn.write_bytes(b"PAR1")

    assert progress(out) == 1
    assert "3 of 4 shards are missing" in capsys.readouterr().err  # to find the flipped byte takes a reader
    assert check(out, "--repair") == 1
    said = capsys.readouterr()
    findings = [line.removeprefix(f"{out}/") for line in said.out.splitlines() if line.startswith(f"{out}/")]
    assert sorted(findings) == [
        "_stats/shard-00000.json: a record without data",
        "_stats/shard-00009.json: does not belong here",
        "data/notes.txt: does not belong here",
        "data/shard-00001.parquet: its checksum is not the recorded one",
        "data/shard-00002.parquet: data without a record",
        f"data/shard-00003.parquet: has {len(whole['data/shard-00003.parquet']) - 1} bytes, its record says "
        f"{len(whole['data/shard-00003.parquet'])}",
        "data/shard-00004.parquet: does not belong here",
    ]
    assert "shards 4/4  0 pictures  0.0/s  eta 0s" in said.out
    assert said.err.count("\n") == 1
    assert "7 findings; removed 4 bad shards" in said.err
    assert not list(out.glob("data/shard-0000[0-3].parquet"))
    assert not list(out.glob("_stats/shard-0000[0-3].json"))
    assert [path.read_bytes() for path in foreign] == [b"mine"] * 3
    assert check(out) == 1
    assert "data/shard-00000.parquet to data/shard-00003.parquet: missing" in capsys.readouterr().out

    assert make_few(out, tiny_weights) == 0
    assert not torn.exists()
    assert check(out) == 1
    for path in foreign:
        path.unlink()
    assert check(out) == 0
    assert files(out) == whole


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_damage_to_pictures_is_found_repaired_and_made_again(few_splats, few_pictures, tmp_path, capsys, form):
    out = tmp_path / "out"
    shutil.copytree(few_pictures[form], out)
    whole = files(out)
    for path in out.glob("**/*"):
        if path.is_file() and "shard-00001" in str(path.relative_to(out)) and path.parent.name != "_stats":
            data = path.read_bytes()
            path.write_bytes(data[:-40] + bytes([data[-40] ^ 255]) + data[-39:])
    (out / "_stats/shard-00002.json").write_text("{")
    stray = out / ("shard-00000/00000001\n(copy).webp" if form == "files" else "data/00000001.webp")
    stray.write_bytes(b"mine")
    capsys.readouterr()
    assert check(out, "--repair") == 1
    said = capsys.readouterr()
    assert f"{stray}: does not belong here".replace("\n", "\\n") in said.out
    assert "shard-00001" in said.out
    assert "checksum is not the recorded one" in said.out
    assert f"{out}/_stats/shard-00002.json: cannot be read as the record of this shard" in said.out
    assert "3 findings; removed 2 bad shards" in said.err
    kept = (out / "_stats/shard-00000.json").stat().st_mtime_ns
    assert draw_few(few_splats, out, form) == 0
    assert (out / "_stats/shard-00000.json").stat().st_mtime_ns == kept  # the stray file does not undo its shard
    assert stray.read_bytes() == b"mine"
    stray.unlink()
    assert check(out) == 0
    assert files(out) == whole


def verdict(out: Path) -> str:
    store = Store(str(out))
    plan = plan_file.load(store, Plan)
    return " ".join(finding.reason for finding in verify_shard(store, plan, plan.shard(1)).findings)


def test_a_record_cannot_point_outside_its_dataset(few_splats, tmp_path, capsys):
    out, outside = tmp_path / "splats", tmp_path / "precious.parquet"
    shutil.copytree(few_splats, out)
    shutil.copy(out / SPLATS, outside)
    path = out / "_stats/shard-00001.json"
    for data in ("../precious.parquet", str(outside), "data/../../precious.parquet", "data/shard-00000.parquet"):
        path.write_text(json.dumps({**json.loads((few_splats / "_stats/shard-00001.json").read_text()), "data": data}))
        assert progress(out) == 1
        assert "1 of 4 shards are missing" in capsys.readouterr().err
        assert f"data is {data!r} there" in verdict(out)
    assert check(out, "--repair") == 1
    assert outside.read_bytes() == data_bytes(few_splats)["shard-00001.parquet"]
    assert data_bytes(out).keys() == data_bytes(few_splats).keys() - {"shard-00001.parquet"}


def test_the_status_of_a_run_at_work_and_of_one_that_stopped(few_splats, tmp_path, capsys):
    out = tmp_path / "splats"
    shutil.copytree(few_splats, out)
    (out / "_stats/shard-00003.json").unlink()
    (out / "_stats/failures.json").write_text(json.dumps({"shard-00003": "no cats left", "shard-00001": "in vain"}))

    def finish(ages: list[float]) -> None:
        for shard, age in enumerate(ages):
            path = out / f"_stats/shard-0000{shard}.json"
            times = {"finished": time.time() - age, "seconds": 30.0}
            path.write_text(json.dumps({**json.loads(path.read_text()), **times}))

    os.utime(out / "plan.json", (0, 0))
    finish([50, 30, 10])  # four pictures each 20 s
    assert progress(out) == 1
    said = capsys.readouterr()
    assert "shards 3/4  12 of 14 pictures" in said.out
    assert "0.2/s  eta 10s  missing 1  failed 1" in said.out
    assert "a run seems to be at work: the last sign of one is 10s old" in said.out
    assert "shard-00003 failed: no cats left" in said.out
    assert "in vain" not in said.out
    assert "1 of 4 shards are missing; wait for it" in said.err
    finish([10.2, 10.1, 10.0])  # three workers, which began at about the same time
    assert progress(out) == 1
    assert "0.4/s  eta 5s" in capsys.readouterr().out
    finish([86_440, 86_420, 600])  # the night between is no time of work
    assert progress(out) == 1
    said = capsys.readouterr()
    assert "no run seems to be at work: the last sign of one is 10m old" in said.out
    assert "run the command that made it again" in said.err


@pytest.mark.parametrize("job", [verify, status])
def test_places_without_a_dataset_are_named(tmp_path, capsys, job):
    for place, message in [(tmp_path, "has no plan.json"), (tmp_path / "none", "does not exist")]:
        assert cli.run(job.Options, job.main, [str(place)]) == 1
        assert f"{place} {message}: not a dataset" in capsys.readouterr().err
