"""Whole runs under faults: workers, drivers and machines that die, signals; and what a run tells while it goes."""

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
from conftest import data_bytes
from processes import has_stopped, ray_workers, session, signal_all, stop, wait_for_session_end

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
    """SIGKILLs the workers of this process's Ray, several times, each time while one writes a file of the dataset.

    They are stopped to be looked at, so that the one found writing is still at it when it is killed.
    """

    def __init__(self, out: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.random = out, random.Random(seed)
        self.kills = 0
        self.done = threading.Event()

    def run(self) -> None:
        seen: set[Path] = set()
        for _ in range(3):
            start = len(seen) + self.random.randrange(8)
            while not self.done.wait(0.0005):
                new = {*self.out.glob("data/.*.tmp"), *self.out.glob("_stats/.*.tmp")} - seen
                seen |= new
                if not new or len(seen) < start:
                    continue
                time.sleep(self.random.uniform(0, 0.002))
                workers = ray_workers("Generator.work")
                signal_all(workers, signal.SIGSTOP)
                if any(has_stopped(pid) and self.is_writing(pid) for pid in workers):
                    signal_all(workers, signal.SIGKILL)
                    self.kills += 1
                    break
                signal_all(workers, signal.SIGCONT)

    def is_writing(self, pid: int) -> bool:
        """Whether a stopped process has a file open that has not got its name yet."""
        files = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return any(name.startswith(f"{self.out}/") and name.endswith(".tmp") for name in files)


@pytest.mark.parametrize("seed", sample(5))
@pytest.mark.timeout(200)
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
    assert killer.kills
    assert retried >= killer.kills
    assert data_bytes(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
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
    ("number", "code", "name", "joins"),
    [
        (signal.SIGTERM, 143, "SIGTERM", True),
        pytest.param(signal.SIGTERM, 143, "SIGTERM", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "Ctrl-C", False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_within_three_seconds_and_says_how_to_go_on(
    here, whole, tiny_weights, tmp_path, number, code, name, joins
):
    for attempt in range(5):
        out = tmp_path / f"splats-{attempt}"
        process = start(*arguments(out, tiny_weights), **({"RAY_ADDRESS": here} if joins else {}))
        try:
            wait_for_shards(out, 1, process)
            seen = len(list(out.glob("_stats/shard-*.json")))
            told, errors = stop(process, number)
        finally:
            process.kill()
            process.wait()
        if process.returncode or seen < SHARDS // 2:  # else it may have been done before the signal came
            break
    assert process.returncode == code, errors
    assert re.search(r"^shards \d+/30  ", told)
    assert errors == f"stopped by {name}; the same command continues from here\n"
    wait_for_session_end(process.pid)
    assert run(*arguments(out, tiny_weights)) == 0
    assert data_bytes(out) == whole


@pytest.mark.parametrize("part", ["gcs_server", pytest.param("raylet", marks=pytest.mark.slow)])
def test_a_signal_stops_a_run_whose_ray_is_starting(tiny_weights, tmp_path, part):
    process = start(*arguments(tmp_path / "splats", tiny_weights))
    try:
        deadline = time.monotonic() + 60
        while not any(part in name for name in session(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        _, errors = stop(process, signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM")
    assert "Traceback" not in errors
    wait_for_session_end(process.pid)
    assert not (tmp_path / "splats").exists()


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
