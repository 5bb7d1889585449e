"""What is asked of a cluster of a given size."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import session_of

from jobs import cli, generate, render
from models.errors import UserError
from pipeline.execution.cluster import Cluster

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_all_workers_fit_on_this_machine_at_once(workers):
    share = Cluster(local=True, cpus=2, gpus=0).cpu_share(workers, threads=1)
    assert 0 < share <= 1
    assert workers * share <= 2


def test_a_joined_cluster_is_asked_for_what_the_work_takes():
    assert Cluster(local=False, cpus=2, gpus=0).cpu_share(8, threads=4) == 4


def test_gpus_are_taken_where_there_are_some_and_may_be_demanded():
    assert Cluster(local=True, cpus=2, gpus=1).has_gpu("auto")
    assert not Cluster(local=True, cpus=2, gpus=1).has_gpu("cpu")
    assert not Cluster(local=True, cpus=2, gpus=0).has_gpu("auto")
    with pytest.raises(UserError, match="--device gpu: this machine has no GPU"):
        Cluster(local=True, cpus=2, gpus=0).has_gpu("gpu")


def test_more_workers_than_gpus_are_refused_here_and_may_wait_in_a_cluster():
    Cluster(local=True, cpus=2, gpus=2).require_gpus(2)
    Cluster(local=False, cpus=2, gpus=1).require_gpus(4)
    with pytest.raises(UserError, match="--workers 4 need a GPU each; this machine has 1"):
        Cluster(local=True, cpus=2, gpus=1).require_gpus(4)


def test_a_part_of_a_gpu_lies_on_one_gpu():
    machine = Cluster(local=True, cpus=2, gpus=2)
    for share, room in ((1.0, 2), (0.5, 4), (0.4, 4), (0.3333, 6), (0.25, 8), (0.1, 20), (0.6, 2)):
        machine.require_gpus(room, share)
        with pytest.raises(UserError, match=f"--workers {room + 1} need .* GPU each; this machine has 2"):
            machine.require_gpus(room + 1, share)


@pytest.mark.parametrize("job", [generate, render])
def test_a_part_of_a_gpu_that_ray_cannot_give_is_refused(job, capsys):
    needed = ["--out", "out", *(["--count", "1"] if job is generate else ["--splats", "in"])]
    for share in ("0", "-1", "1.5", "0.00001", "0.33333", "nan"):
        assert cli.run(job.Options, job.main, [*needed, "--gpus-per-worker", share]) == 1
        error = capsys.readouterr().err
        assert f"--gpus-per-worker {float(share)}: give 0.01 to 1" in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_as_many_actors_are_placed_as_there_are_parts_of_gpus(cluster):
    # GPUs by name alone: Ray places by what a node says that it has. On two of them 0.4 of a GPU fits four times.
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80 * 2**20)
    code = "import time, jobs, ray\nfrom pipeline.execution.cluster import connect\n"
    code += "with connect() as cluster:\n"
    code += (
        "    room, actor = cluster.capacity(None, num_gpus=0.4)(), ray.remote(num_cpus=0, num_gpus=0.4)(Exception)\n"
    )
    code += "    actors = [actor.remote() for _ in range(room + 1)]\n"
    code += "    up, waiting = ray.wait([a.__ray_ready__.remote() for a in actors], num_returns=room, timeout=60)\n"
    code += "    more, _ = ray.wait(waiting, timeout=2)\n"
    code += "    print(room, len(up), len(more))"
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["4", "4", "0"], done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265"])
def test_an_address_without_a_cluster_is_named_in_one_line(tiny_weights, tmp_path, address):
    # A process of its own, since this one may be connected to the cluster that other tests share.
    command = [sys.executable, "-m", "jobs.generate", "--out", str(tmp_path / "out"), "--count", "1"]
    done = subprocess.run(
        [*command, "--weights", str(tiny_weights)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"RAY_ADDRESS={address} " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_private_ray_listens_to_this_machine_alone():
    # A process of its own, as a command starts it; its session's sockets are those of its Ray.
    code = "import jobs, sys; from pipeline.execution.cluster import connect\n"
    code += "with connect(): print('up', flush=True); sys.stdin.read()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ENABLE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"up\n"
        addresses = listening_addresses(process.pid)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    # Little-endian words in hexadecimal: 127.0.0.1, and the same within IPv6.
    assert len(addresses) > 0
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


def listening_addresses(session: int) -> set[str]:
    """The addresses at which the processes of a session listen, as the kernel writes them."""
    sockets = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and session_of(entry) == session:
            for descriptor in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *others = line.split()
            if state == "0A" and f"socket:[{others[5]}]" in sockets:
                found.add(local.split(":")[0])
    return found
