"""Scaling measured at a tiny size: every run of the table, by the real jobs on a real Ray."""

import json
import os

import pytest

from jobs import benchmark, cli
from models.denoiser import DenoiserConfig
from pipeline.benchmark import scaling
from pipeline.benchmark.scaling_cases import CPU, GPU, Bench, Extent, steady_rate
from pipeline.datasets.records import Record

MODEL = DenoiserConfig(splats_per_patch=4, width=16, blocks=1, heads=2)


@pytest.fixture
def tiny(tiny_weights, monkeypatch):
    """The work of one CPU, tiny."""
    extent = Extent(tiny_weights, 1, 8, 2, 2, 4, 1, 32, 4, 3, 1, 40, MODEL, lpips=False, detail=0)
    monkeypatch.setattr("pipeline.benchmark.scaling_cases.CPU", extent)


def measured(tmp_path, *works: str) -> list[dict]:
    out = tmp_path / "scaling.json"
    arguments = ["--scaling", "--device", "cpu", "--workers", "2", "--out", str(out), "--only", *works]
    assert cli.run(benchmark.Options, benchmark.main, arguments) == 0
    report = json.loads(out.read_text())
    assert report["machine"]["cpus"] == len(os.sched_getaffinity(0))
    return report["rows"]


def check(rows: list[dict], work: str, pictures: int) -> None:
    assert [(row["scaling"], row["units"], row["pictures"]) for row in rows if row["work"] == work] == [
        ("weak", 1, pictures),
        ("strong", 2, pictures),
        ("weak", 2, 2 * pictures),
    ]
    alone, *others = (row for row in rows if row["work"] == work)
    assert alone["efficiency"] == 1.0
    for row in others:
        assert row["efficiency"] == pytest.approx(row["rate"] / (2 * alone["rate"]))
        assert row["seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_generation_and_rendering_are_measured_on_one_and_two_cpus(ray_cluster, tiny, tmp_path, capsys):
    rows = measured(tmp_path, "generate", "render")
    check(rows, "generate", 16)
    check(rows, "render", 8)
    assert all(row["note"].endswith(" bounds") for row in rows if row["work"] == "render")
    table = capsys.readouterr().out.split(scaling.HEADER)[1].strip().splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| generate"] * 3 + ["| render"] * 3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_training_is_measured_on_one_and_two_processes(ray_cluster, tiny, tmp_path):
    check(measured(tmp_path, "train"), "train", 3 * 4)


def test_the_rate_leaves_out_warming_up_and_counts_parts_of_shards():
    # Two workers. The first shards take 10 s of warming up and end at 10 and 11; then 4 pictures take 2 s each.
    ends = {10: 10, 11: 10, 12: 2, 13: 2, 14: 2, 15: 2}
    records = [
        Record(number, "", rows=4, first=0, last=3, bytes=0, sha256="", seconds=float(seconds), finished=100.0 + end)
        for number, (end, seconds) in enumerate(ends.items())
    ]
    # From 11 to 15: half of a shard, and three.
    assert steady_rate(iter(records), 2) == pytest.approx((2 + 12) / 4)


@pytest.mark.parametrize(("extent", "cuda", "largest"), [(GPU, True, 8), (GPU, True, 64), (CPU, False, 16)])
def test_the_work_of_one_unit_lasts_until_the_most_units_are_all_at_work(tmp_path, extent, cuda, largest):
    bench = Bench(extent, tmp_path, largest, cuda)
    for pictures, size, in_hand in (
        (bench.generated, extent.generated_shard, bench.generating(largest)),
        (bench.drawn, extent.drawn_shard, bench.drawing(largest)),
    ):
        records = [
            Record(n, "", rows=size, first=0, last=0, bytes=0, sha256="", seconds=1.0, finished=n / in_hand)
            for n in range(pictures // size)
        ]
        assert steady_rate(iter(records), in_hand) == pytest.approx(in_hand * size, rel=0.2)


def test_powers_of_two_and_the_largest_are_measured():
    assert [scaling.counts(largest) for largest in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_mistakes_get_one_line(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for arguments, named in (
        (["--scaling", "--device", "cpu"], "unset RAY_ADDRESS"),
        (["--scaling", "--only", "draw"], "known: generate, render, train"),
        (["--workers", "2"], "--workers goes with --scaling"),
        (["--scaling", "--workers", "0"], "--workers 0"),
    ):
        assert cli.run(benchmark.Options, benchmark.main, arguments) == 1
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
