"""The commands as a user starts them: their help, and a real Ray job on a real cluster."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import kill_session, wait_for_session_end

from jobs import cli

ROOT = Path(__file__).parents[1]
RUNTIME_ENV = "cluster/runtime_env.yaml"  # what the README tells users to give
# What they have when they are stopped.
CONTINUE = dict.fromkeys(["demo", "generate", "render"], "here") | {"train": "the last checkpoint, if there is one"}
COMMANDS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py") if "__main__" in path.read_text())
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = importlib.import_module(f"jobs.{name}")
    with pytest.raises(SystemExit) as ended:
        cli.run(job.Options, job.main, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m jobs.{name} ")
    examples = [line.strip() for line in shown.splitlines() if "python -m jobs." in line][1:]
    assert examples[0].startswith(f"python -m jobs.{name} ")
    assert all(example.count("python -m") == 1 for example in examples)
    for field in dataclasses.fields(job.Options):
        assert f"--{field.name.replace('_', '-')}" in shown or f"] {field.name.upper()}" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "1e3", "--out", "x"], "Error parsing --count: '1e3' is no INT"),
        (["--conut", "3", "--out", "x"], "Unrecognized options: --conut, 3; perhaps you meant --count or --out"),
        (["--conut", "3"], "give --out; unrecognized options: --conut 3"),
        (["--count", "3"], "give --out"),
        (["--out", "x", "--steps"], "Missing value for argument '--steps'. Expected 1 values"),
    ],
)
def test_options_that_cannot_be_read_are_named_in_a_short_line(arguments, said, capsys):
    job = importlib.import_module("jobs.generate")
    assert cli.run(job.Options, job.main, arguments) == 1
    assert capsys.readouterr().err == f"error: {said}; python -m jobs.generate --help lists all options\n"


def test_the_package_lists_its_commands():
    listed = subprocess.run([sys.executable, "-m", "jobs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [line.split()[2] for line in listed.stdout.splitlines()] == [f"jobs.{name}" for name in COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_stopped_says_whether_it_continues(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", stop)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.delitem(sys.modules, f"jobs.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{name}", run_name="__main__")
    assert ended.value.code == 130
    told = f"; the same command continues from {CONTINUE[name]}" if name in CONTINUE else ""
    assert capsys.readouterr().err == f"stopped by Ctrl-C{told}\n"


def free_ports(count: int) -> list[int]:
    """Ports outside the range from which Ray's workers take theirs."""
    found: list[int] = []
    for port in range(20_100 + os.getpid() % 5_000, 30_000):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A Ray cluster of two CPUs with a dashboard: the address that jobs are submitted to, and its folder."""
    gcs, dashboard, *others = free_ports(6)
    names = (
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
        "metrics-export-port",
        "ray-client-server-port",
    )
    # Not below the tests' folder: the paths of Ray's sockets may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-")
    # The python of a job is that of the cluster's PATH.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    log = Path(folder, "start.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"]
            + [f"--dashboard-port={dashboard}", "--include-dashboard=true", f"--temp-dir={folder}"]
            + [f"--{name}={port}" for name, port in zip(names, others, strict=True)]
            + ["--object-store-memory=100000000", "--disable-usage-stats"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while not accepts_jobs(dashboard):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}", Path(folder)
    finally:
        end_session(process)
        shutil.rmtree(folder, ignore_errors=True)


def accepts_jobs(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End `ray start --block` and with it the processes of its cluster, and of no other."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    finally:
        kill_session(process.pid)
    wait_for_session_end(process.pid)


@pytest.mark.timeout(240)
def test_a_submitted_job_generates_a_complete_dataset(
    cluster: tuple[str, Path], tiny_weights: Path, tmp_path: Path
) -> None:
    address, folder = cluster
    out = tmp_path / "splats"
    submit = [RAY, "job", "submit", "--address", address, "--runtime-env", RUNTIME_ENV, "--working-dir", "."]
    entrypoint = ["python", "-m", "jobs.generate", "--out", str(out), "--weights", str(tiny_weights)]
    entrypoint += ["--count", "10", "--shard-size", "4", "--steps", "2", "--workers", "2"]
    submitted = subprocess.run(
        [*submit, "--", *entrypoint], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    told = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, told
    assert "succeeded" in told
    assert "10 cats in 3 shards" in told
    assert sorted(pq.read_table(out / "data").column("index").to_pylist()) == list(range(10))
    assert json.loads((out / "summary.json").read_text())["pictures"] == 10

    (uploaded,) = folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {path.name for path in uploaded.iterdir()}
    assert {"jobs", "models", "pipeline"} <= names
    assert not names & {".git", ".venv", "tests", "docs", "out"}
    assert (uploaded / "models/pretrained").exists() == (ROOT / "models/pretrained").exists()
    code = sum(path.stat().st_size for path in uploaded.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    assert code < 2**20
