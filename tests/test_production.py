"""Whole runs under faults: workers, drivers and machines that die, signals; and what a run tells while it goes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_for_session_end

from jobs import cli, generate

ROOT = Path(__file__).parents[1]
SHARDS = 30


def arguments(out: Path, weights: Path, *more: str) -> list[str]:
    quick = ["--count", str(4 * SHARDS), "--shard-size", "4", "--batch-size", "2", "--steps", "2", "--seed", "7"]
    return ["--out", str(out), "--weights", str(weights), *quick, *more]


def start(*args: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a user starts it, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.generate", *args],
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args: str) -> int:
    return cli.run(generate.Options, generate.main, list(args))


def data_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "data").iterdir()}


def wait_for_shards(out: Path, number: int, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until so many shards are committed."""
    deadline = time.monotonic() + 120
    while len(list(out.glob("_stats/shard-*.json"))) < number:
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(ray_cluster, tiny_weights, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "splats"
    assert run(*arguments(out, tiny_weights)) == 0
    assert len(data_bytes(out)) == SHARDS
    return data_bytes(out)


@pytest.mark.timeout(200)
def test_machines_leave_without_a_word_and_others_join(cluster, whole, tiny_weights, tmp_path):
    out = tmp_path / "splats"
    first = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    process = start(*arguments(out, tiny_weights, "--stall-minutes", "2"), RAY_ADDRESS=cluster.address)
    try:
        wait_for_shards(out, 2, process)
        cluster.remove_node(first, allow_graceful=False)
        before = len(list(out.glob("_stats/*")))
        cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
        told, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    print(told, errors)
    assert process.returncode == 0, errors
    assert before < SHARDS
    assert data_bytes(out) == whole
