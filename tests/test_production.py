"""Whole runs under faults: workers, drivers and machines that die, signals; and what a run tells while it goes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import data_bytes, ray_workers

from jobs import cli, generate
from pipeline.execution.progress import Console, Progress

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


@pytest.fixture
def here(ray_cluster) -> str:
    """The address of the session's cluster, for commands of their own process to join."""
    return ray_cluster.get_runtime_context().gcs_address


def sample(count: int) -> list:
    """Seeds of a fault: the first in every run of the tests, the others with the slow ones."""
    return [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, count))]


class Killer(threading.Thread):
    """SIGKILLs the workers of this process's Ray, several times, each time while a file is being written in `out`."""

    def __init__(self, out: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.random = out, random.Random(seed)
        self.killed: set[int] = set()
        self.done = threading.Event()

    def run(self) -> None:
        for _ in range(3):
            folder = self.out / self.random.choice(["data", "_stats"])
            pause, wait = self.random.uniform(0, 0.3), self.random.uniform(0, 0.002)
            while not self.done.is_set():
                time.sleep(pause)
                workers = ray_workers("Generator.work")
                deadline = time.monotonic() + 0.5
                while workers and time.monotonic() < deadline and not any(folder.glob(".*.tmp")):
                    pass
                if workers and time.monotonic() < deadline:
                    time.sleep(wait)
                    for pid in workers:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    self.killed |= workers
                    break


@pytest.mark.parametrize("seed", sample(5))
@pytest.mark.timeout(120)
def test_workers_killed_while_they_write_and_commit_leave_the_same_bytes(whole, tiny_weights, tmp_path, capsys, seed):
    out = tmp_path / "splats"
    killer = Killer(out, seed)
    killer.start()
    try:
        assert run(*arguments(out, tiny_weights)) == 0
    finally:
        killer.done.set()
        killer.join()
    retried = int(re.search(r"retried (\d+)  failed 0\n", capsys.readouterr().out)[1])
    assert killer.killed
    assert retried
    assert data_bytes(out) == whole


@pytest.mark.parametrize("seed", sample(10))
@pytest.mark.timeout(120)
def test_a_driver_killed_and_started_again_at_once_leaves_the_same_bytes(here, whole, tiny_weights, tmp_path, seed):
    out, chance = tmp_path / "splats", random.Random(seed)
    process = start(*arguments(out, tiny_weights), RAY_ADDRESS=here)
    try:
        wait_for_shards(out, chance.randrange(1, SHARDS // 2), process)
        time.sleep(chance.uniform(0, 0.05))
    finally:
        process.kill()  # the driver alone: its workers may write on for a moment
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("_stats/shard-*.json")}
    assert len(kept) < SHARDS
    assert run(*arguments(out, tiny_weights)) == 0
    assert data_bytes(out) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {path.name for path in out.rglob(".*")} == set()


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "SIGTERM"), pytest.param(signal.SIGINT, 130, "Ctrl-C", marks=pytest.mark.slow)],
)
def test_a_signal_stops_within_three_seconds_and_says_how_to_go_on(
    here, whole, tiny_weights, tmp_path, number, code, name
):
    out = tmp_path / "splats"
    process = start(*arguments(out, tiny_weights), RAY_ADDRESS=here)
    try:
        wait_for_shards(out, 1, process)
        sent = time.monotonic()
        process.send_signal(number)
        told, errors = process.communicate(timeout=30)
        took = time.monotonic() - sent
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, errors
    assert took < 3 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert re.search(r"^shards \d+/30  ", told)
    assert errors.endswith(f"stopped by {name}; the same command continues from here\n")
    assert "Traceback" not in errors
    assert run(*arguments(out, tiny_weights)) == 0
    assert data_bytes(out) == whole


def test_prometheus_finds_the_counts_on_the_metrics_port(ray_cluster, whole, tiny_weights, tmp_path):
    out = tmp_path / "splats"
    assert run(*arguments(out, tiny_weights)) == 0
    (node,) = ray_cluster.nodes()
    expected = {"shards_total": SHARDS, "pictures_total": 4 * SHARDS, "shards_planned": SHARDS}
    expected |= {"shards_committed": SHARDS, "shards_failed": 0, "shards_running": 0, "workers": 0}
    deadline = time.monotonic() + 30
    while not expected.items() <= (found := scrape(node, str(out))).items():
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert found["pictures_per_second"] > 0


def scrape(node: dict, dataset: str) -> dict[str, float]:
    """What a node of Ray shows of one dataset, by the name of the metric, as Prometheus reads it."""
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = re.findall(r"^ray_splatcats_(\w+)\{(.*)\} (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, tags, value in lines if f'dataset="{dataset}"' in tags}


def test_a_terminal_gets_a_bar_that_leaves_one_line_behind(monkeypatch, capsys):
    leader, follower = os.openpty()
    with open(follower, "w") as terminal, open(leader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "110")
        console, progress = Console(), Progress(12, total_pictures=120, workers=2)
        console._shown = 0
        progress.add(10)
        console.show(progress, last=False)
        drawn = screen.read(4096).decode()
        console.show(progress, last=True)
        erased = screen.read(4096).decode()
    assert drawn.startswith("\r\x1b[K[##......................] shards 1/12  10 pictures  ")
    assert "\n" not in drawn
    assert erased == "\r\x1b[K"
    assert capsys.readouterr().out.count("shards 1/12") == 1


@pytest.mark.slow
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
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert before < SHARDS
    assert data_bytes(out) == whole
