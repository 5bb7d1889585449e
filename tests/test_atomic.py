"""Killed or failing at any point of write and commit, a run leaves what the next one completes to the same bytes."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_plan import PICTURES, PLAN

from jobs.cli import describe
from models.errors import UserError
from models.splats import PARAMETERS
from pipeline.datasets import plan_file, records
from pipeline.datasets.plan import GenerationPlan, Plan, RenderPlan, file_name
from pipeline.datasets.splat_dataset import to_table, write_table
from pipeline.execution.production import commit
from pipeline.storage import atomic
from pipeline.storage.store import Store

FIELDS = {k: v for k, v in PLAN.to_dict().items() if k not in ("format_version", "kind")}
SPLATS = GenerationPlan(**{**FIELDS, "count": 9, "shard_size": 3, "rows": 2, "columns": 2})


def run(plan: Plan, root: Path | str) -> None:
    """What a driver and its workers do between them, in one process, with numbers in place of a model."""
    store = Store(str(root))
    plan_file.check(store, plan)
    store.remove_orphans()
    done = {record.shard for record in records.committed(store)}
    plan_file.claim(store, plan)
    for shard in plan.shards():
        if shard.id in done:
            continue
        random = np.random.default_rng(shard.id)
        if isinstance(plan, GenerationPlan):
            field = random.normal(size=(len(shard.indices), 2, 2, 16, len(PARAMETERS))).astype(np.float16)
            with store.create(plan.data(shard)) as output:
                write_table(to_table(plan, shard.indices, field), output.file)
            size, sha256 = output.bytes, output.sha256
        else:
            assert isinstance(plan, RenderPlan)
            names = [f"{shard.name}/{file_name(index, plan.extension)}" for index in shard.indices]
            for name in names:
                store.write(name, random.bytes(5000))
            size, sha256 = store.measure(names)
        commit(store, shard, plan.data(shard), size, sha256, started=0.0, device="cpu")
    store.write("summary.json", b"{}\n")


def contents(root: Path) -> dict[str, bytes]:
    """Every file, temporary ones too, without the records, which hold times."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(p.relative_to(root)): b"" if p.parent.name == "_stats" else p.read_bytes() for p in paths}


def forked(work: Callable[[], None]) -> int:
    """Do `work` in a child process; its status as of os.waitpid."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except (OSError, UserError) as error:
            print(describe(error), file=sys.stderr, flush=True)
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


def kill_at(event: int) -> None:
    """Kill this process by SIGKILL at the n-th call or return, of Python or C, within the project's code."""
    left = event

    def count(frame, kind: str, argument: object) -> None:
        nonlocal left
        if "/pipeline/" in frame.f_code.co_filename:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def limit_files(size: int, action: signal.Handlers) -> None:
    """Let no file grow beyond `size` bytes: the write that would is the end of the process, or an OSError."""
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fuzz(text: str) -> None:
    """Kill at random points, run again, compare with clean runs."""
    root, seeds = Path(text), range(50)
    clean = {}
    for plan in (SPLATS, PICTURES):
        run(plan, root / f"clean-{plan.kind}")
        clean[plan.kind] = contents(root / f"clean-{plan.kind}")
    ends = {signal.SIGKILL: 0, signal.SIGXFSZ: 0, 0: 0}
    for seed in seeds:
        chance = random.Random(seed)
        plan, out = (SPLATS, PICTURES)[seed % 2], root / f"seed-{seed}"
        for _ in range(chance.choice([1, 1, 2])):  # the run after it may be killed too
            if chance.random() < 0.7:
                kill = partial(kill_at, int(10 ** chance.uniform(1, 3.7)))
            else:
                kill = partial(limit_files, chance.randrange(1, 6000), signal.SIG_DFL)
            status = forked(lambda kill=kill, plan=plan, out=out: (kill(), run(plan, out)))
            ends[os.WTERMSIG(status)] += 1
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, (seed, status)
            for name, data in contents(out).items():  # nothing torn under its final name at any time
                assert name.endswith(".tmp") or data == clean[plan.kind][name], (seed, name)
        run(plan, out)
        assert contents(out) == clean[plan.kind], seed
    assert min(ends[signal.SIGKILL], ends[signal.SIGXFSZ]) > len(seeds) / 8, ends


def fresh(function: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
    """Call a function of this module in a fresh interpreter, which may fork as it has no threads; what it said."""
    tests = Path(__file__).parent
    call = f"import test_atomic; test_atomic.{function}({', '.join(map(repr, map(str, arguments)))})"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", call],
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_killed_at_random_points_of_write_and_commit(tmp_path):
    fresh("fuzz", tmp_path)


def fail_to_write(plan: Plan, root: Path, prepare: Callable[[], object]) -> None:
    """A run that must end with an OSError, in a child process, and leave whole files only."""
    status = forked(lambda: (prepare(), run(plan, root)))
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 1
    assert not [name for name in contents(root) if name.endswith(".tmp")]


def fill_disk(text: str) -> None:
    """In a mount namespace of its own: too small a disk, then one that may not be written to, then a good one."""
    root = Path(text)
    for plan in (SPLATS, PICTURES):
        run(plan, root / f"clean-{plan.kind}")
        whole, out = contents(root / f"clean-{plan.kind}"), root / f"full-{plan.kind}"
        out.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", out], check=True)
        fail_to_write(plan, out, lambda: None)
        assert 2 < len(contents(out)) < len(whole)
        subprocess.run(["mount", "-o", "remount,size=1m,ro", out], check=True)
        fail_to_write(plan, out, lambda: None)
        subprocess.run(["mount", "-o", "remount,rw", out], check=True)
        run(plan, out)
        assert contents(out) == whole


def test_a_disk_that_is_full_or_read_only_is_named_and_the_next_run_completes(tmp_path):
    own_mounts = ("unshare", "--map-root-user", "--mount")
    if subprocess.run([*own_mounts, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    said = fresh("fill_disk", tmp_path, prefix=own_mounts)
    for kind in ("splats", "pictures"):
        assert f"No space left on device: {tmp_path}/full-{kind}/" in said
        assert f"Read-only file system: {tmp_path}/full-{kind}/" in said
    assert "Traceback" not in said


def lose_permission(text: str) -> None:
    """As somebody who may not write to a folder any more."""
    root = Path(text)
    root.chmod(0o777)
    if not os.getuid():
        os.setuid(65534)
    run(SPLATS, root / "clean")
    out = root / "out"
    plan_file.claim(Store(str(out)), SPLATS)
    (out / "data").mkdir()
    (out / "data").chmod(0o555)
    fail_to_write(SPLATS, out, lambda: None)
    (out / "data").chmod(0o755)
    fail_to_write(SPLATS, out, lambda: limit_files(3000, signal.SIG_IGN))  # a quota, more or less
    run(SPLATS, out)
    assert contents(out) == contents(root / "clean")


def test_lost_permission_and_a_limit_of_size_are_named_and_the_next_run_completes():
    with tempfile.TemporaryDirectory() as folder:
        said = fresh("lose_permission", folder)
        assert f"Permission denied: {folder}/out/data" in said
        assert f"File too large: {folder}/out/data/shard-00000.parquet" in said
        assert "Traceback" not in said


def test_the_temporary_file_of_a_run_at_work_is_left_alone(tmp_path):
    first, second = Store(str(tmp_path)), Store(str(tmp_path))
    with first.create("data/shard-00000.parquet") as output:
        output.file.write(b"cat")
        assert second.remove_orphans() == 0
    assert first.read("data/shard-00000.parquet") == b"cat"


def race(text: str) -> None:
    """Sixteen drivers with two plans claim one place at once; prints the plans that were let in."""
    gate = Path(text) / "gate"
    os.mkfifo(gate)
    children = []
    for number in range(16):
        plan = dataclasses.replace(SPLATS, seed=number % 2)
        child = os.fork()
        if not child:
            with gate.open("rb") as waiting:
                waiting.read()
            try:
                plan_file.claim(Store(f"{text}/set"), plan)
                os.write(1, f"{plan.seed}\n".encode())  # whole, whoever else writes
            except UserError as error:
                if "seed is" not in str(error):
                    os._exit(1)
            os._exit(0)
        children.append(child)
    with gate.open("wb"):  # opens once a reader is there; all are let go when it closes
        time.sleep(0.3)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def test_of_drivers_with_different_plans_one_plan_wins_the_place(tmp_path):
    let_in = set(fresh("race", tmp_path).split())
    assert len(let_in) == 1
    assert plan_file.load(Store(f"{tmp_path}/set"), GenerationPlan).seed == int(let_in.pop())
    assert os.listdir(tmp_path / "set") == ["plan.json"]


def upload_and_die(folder: str) -> None:
    """Be killed while a file waits to go to an object store."""
    tempfile.tempdir = folder
    with atomic.spool(".parquet") as file:
        file.write(b"cat")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_process_killed_at_an_upload_left_goes_at_the_next_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert os.WTERMSIG(forked(lambda: upload_and_die(str(tmp_path)))) == signal.SIGKILL
    (orphan,) = tmp_path.iterdir()
    assert orphan.suffix == ".parquet"
    with atomic.spool(".json") as mine, atomic.spool(".png"):
        assert not orphan.exists()
        assert os.path.exists(mine.name)  # that of a process at work stays
    assert list(tmp_path.iterdir()) == []
