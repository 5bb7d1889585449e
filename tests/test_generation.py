"""Splats made on Ray: whole runs, what they write, and what they do about faults."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import data_bytes
from PIL import Image
from processes import wait_for_session_end

from jobs import cli, generate, verify
from models import checkpoint, sampler
from models.errors import UserError
from models.noise import white_noise
from pipeline.datasets import records, rollout_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan_file import PLAN_FILE
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.production import produce
from pipeline.generation.sampling import ShardSampler
from pipeline.storage.store import Store

ROOT = Path(__file__).parents[1]
COUNT = 22
QUICK = ["--steps", "2", "--solver", "euler", "--shard-size", "4", "--batch-size", "3"]


def arguments(out: Path, weights: Path, *more: str, count: int = COUNT) -> list[str]:
    return ["--out", str(out), "--weights", str(weights), "--count", str(count), "--seed", "7", *QUICK, *more]


def command(*args: str) -> int:
    return cli.run(generate.Options, generate.main, list(args))


@pytest.fixture(scope="module")
def clean(ray_cluster, tiny_weights, tmp_path_factory) -> Path:
    """An uninterrupted run with one worker."""
    out = tmp_path_factory.mktemp("clean") / "splats"
    assert command(*arguments(out, tiny_weights, "--workers", "1", "--rollout", "0-2,9")) == 0
    return out


def test_the_dataset_is_complete_and_nothing_else_is_there(clean):
    shards = [f"shard-{i:05d}" for i in range(6)]
    assert {str(path.relative_to(clean)) for path in clean.rglob("*") if path.is_file()} == {
        PLAN_FILE,
        "summary.json",
        "README.md",
        "rollout.png",
        *(f"data/{shard}.parquet" for shard in shards),
        *(f"_stats/{shard}.json" for shard in shards),
    }
    indices = pq.read_table(clean / "data", columns=["index"]).column("index").to_pylist()
    assert sorted(indices) == list(range(COUNT))
    source = SplatDataset.open(str(clean))
    for record in records.committed(source.store):
        assert source.store.measure([record.data]) == (record.bytes, record.sha256)
        assert record.rows == record.last - record.first + 1
    assert "data_files: data/*.parquet" in (clean / "README.md").read_text()


def test_three_workers_write_the_same_bytes_as_one(clean, tiny_weights, tmp_path):
    assert command(*arguments(tmp_path / "three", tiny_weights, "--workers", "3")) == 0
    assert data_bytes(tmp_path / "three") == data_bytes(clean)


def test_a_picture_depends_on_its_seed_and_index_and_is_its_neighbours_distinct(clean, tiny_weights):
    denoiser = checkpoint.load(tiny_weights)
    ((indices, fields),) = SplatDataset.open(str(clean)).read(Indices.parse("5-7"))
    alone = sampler.sample(denoiser, white_noise(7, [6], *denoiser.size), steps=2, solver="euler")
    assert indices == [5, 6, 7]
    torch.testing.assert_close(fields[1], alone[0], atol=5e-3, rtol=2e-3)  # float16 on disk
    assert (fields[1] - fields[0]).abs().max() > 0.1


def test_a_shard_is_a_pure_function_of_plan_weights_and_number(clean, tiny_weights):
    denoiser = checkpoint.load(tiny_weights)
    plan = SplatDataset.open(str(clean)).plan
    torch.manual_seed(1)
    first = ShardSampler(denoiser, plan)(plan.shard(5))
    torch.manual_seed(2)
    assert ShardSampler(denoiser, plan)(plan.shard(5)) == first
    assert first == pq.read_table(clean / "data/shard-00005.parquet")
    other = ShardSampler(denoiser, dataclasses.replace(plan, seed=8))(plan.shard(5))
    assert other.column("splats") != first.column("splats")


def test_the_rollout_sheet_goes_from_noise_to_the_generated_picture(clean, tiny_weights):
    sheet = np.asarray(Image.open(clean / "rollout.png"))
    assert sheet.shape == (3 * 64, 4 * 64, 3)  # noise and 2 network calls; pictures 0, 1, 2, 9
    denoiser = checkpoint.load(tiny_weights)
    noise = white_noise(7, [9], *denoiser.size)
    top = sheet[:64, -64:].astype(float) / 127.5 - 1
    np.testing.assert_allclose(top, noise[0].permute(1, 2, 0).clamp(-1, 1).numpy(), atol=0.01)
    ((_, field),) = SplatDataset.open(str(clean)).read(Indices.parse("9"))
    drawn = denoiser.draw(field, 64, 64)[0].permute(1, 2, 0).clamp(-1, 1).numpy()
    np.testing.assert_allclose(sheet[-64:, -64:].astype(float) / 127.5 - 1, drawn, atol=0.03)


def test_kept_rollouts_hold_every_step_and_end_as_the_dataset(splats):
    source = SplatDataset.open(str(splats))
    kept = list(rollout_file.read(source, Indices.parse("3,9")))
    assert rollout_file.kept(source) == Indices.parse("3,9")
    for rollout, (_, field) in zip(kept, source.read(Indices.parse("3,9")), strict=True):
        assert rollout.times == pytest.approx(sampler.early(2)[:2])
        assert rollout.noisy.shape == (2, 3, 64, 64)
        expected = white_noise(0, [rollout.index], 64, 64)[0]
        torch.testing.assert_close(rollout.noisy[0], expected, atol=2e-3, rtol=1e-3)  # float16
        torch.testing.assert_close(rollout.fields[-1], field[0], atol=5e-3, rtol=2e-3)
        assert (rollout.fields[0] - rollout.fields[1]).abs().max() > 0.01
    assert b"meaning" in pq.read_schema(splats / "rollout.parquet").metadata[b"splatcats"]


def test_a_flipped_bit_of_a_kept_rollout_is_found(splats, tmp_path, capsys):
    shutil.copytree(splats, tmp_path / "set")
    path = tmp_path / "set" / "rollout.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rollout\.parquet is damaged .* with --keep-rollout"):
        list(rollout_file.read(SplatDataset.open(str(tmp_path / "set")), Indices.parse("3,9")))
    assert cli.run(verify.Options, verify.main, [str(tmp_path / "set")]) == 1
    said = capsys.readouterr()
    assert f"{path}: is damaged" in said.out
    assert "1 finding; see to what is named above" in said.err


def test_a_morph_goes_from_one_picture_of_a_dataset_to_another(clean, tiny_weights, tmp_path):
    options = ["--weights", str(tiny_weights), "--seed", "7", *QUICK, "--between", "2,13", "--frames", "5"]
    assert command("--out", str(tmp_path / "morph"), *options) == 0
    morph = torch.cat([fields for _, fields in SplatDataset.open(str(tmp_path / "morph")).read(Indices.parse("0-4"))])
    ends = torch.cat([fields for _, fields in SplatDataset.open(str(clean)).read(Indices.parse("2,13"))])
    torch.testing.assert_close(morph[[0, 4]], ends, atol=5e-3, rtol=2e-3)
    for before, after in itertools.pairwise(morph):
        assert 0 < (after - before).norm() < (ends[1] - ends[0]).norm()
    assert command("--out", str(tmp_path / "morph"), *options[:-3], "2,14", "--frames", "5") == 1


def test_killed_and_run_again_gives_the_bytes_of_an_uninterrupted_run(ray_cluster, tiny_weights, tmp_path):
    def options(out: Path) -> list[str]:
        return arguments(out, tiny_weights, "--workers", "2", count=120)

    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.generate", *options(out)], cwd=ROOT, start_new_session=True, env=os.environ
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("_stats/*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_for_session_end(process.pid)
    committed = list(out.glob("_stats/*.json"))
    assert 1 <= len(committed) < 30
    torn = out / "data" / ".shard-00029.parquet.0123abcd.tmp"
    torn.write_bytes(b"PAR1")
    kept = {path: path.stat().st_mtime_ns for path in committed}

    assert command(*options(out)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert command(*options(tmp_path / "clean")) == 0
    assert len(data_bytes(out)) == 30
    assert data_bytes(out) == data_bytes(tmp_path / "clean")


def test_a_truncated_shard_is_made_again(clean, tiny_weights, tmp_path):
    out = tmp_path / "set"
    args = arguments(out, tiny_weights, count=8)
    assert command(*args) == 0
    good = data_bytes(out)
    (out / "data/shard-00001.parquet").write_bytes(good["shard-00001.parquet"][:1000])
    assert command(*args) == 0
    assert data_bytes(out) == good


def test_among_other_files_nothing_is_written(tiny_weights, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / "README.md").write_text("mine")
    assert command(*arguments(out, tiny_weights)) == 1
    assert [path.name for path in out.iterdir()] == ["README.md"]


def test_workers_that_cannot_be_had_leave_nothing(ray_cluster, clean, tmp_path):
    def no_gpu(cluster):
        raise UserError("no GPU here")

    store = Store(str(tmp_path / "set"))
    with pytest.raises(UserError, match="no GPU here"):
        produce(SplatDataset.open(str(clean)).plan, store, no_gpu, str, stall_seconds=1.0)
    assert store.entries() == []


@pytest.mark.slow
def test_two_drivers_at_once_both_end_with_one_sound_dataset(clean, tiny_weights, tmp_path):
    out = tmp_path / "shared"
    options = [sys.executable, "-m", "jobs.generate", *arguments(out, tiny_weights, "--workers", "1")]
    drivers = [subprocess.Popen(options, cwd=ROOT, start_new_session=True) for _ in range(2)]
    for driver in drivers:
        assert driver.wait(200) == 0
        wait_for_session_end(driver.pid)
    assert data_bytes(out) == data_bytes(clean)
    assert cli.run(verify.Options, verify.main, [str(out)]) == 0


def test_another_seed_in_the_same_place_is_refused_and_changes_nothing(clean, tiny_weights, capsys):
    before = {path: path.stat().st_mtime_ns for path in clean.rglob("*")}
    assert command(*arguments(clean, tiny_weights, "--seed", "8")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "seed is 7 there, 8 here" in error
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*")} == before
