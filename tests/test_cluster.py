"""What is asked of a cluster of a given size."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import session_of

from models.errors import UserError
from pipeline.cluster import Cluster


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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265"])
def test_an_address_without_a_cluster_is_named_in_one_line(tiny_weights, tmp_path, address):
    # A process of its own, since this one may be connected to the cluster that other tests share.
    command = [sys.executable, "-m", "jobs.generate", "--out", str(tmp_path / "out"), "--count", "1"]
    done = subprocess.run(
        [*command, "--weights", str(tiny_weights)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"RAY_ADDRESS={address} " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_private_ray_listens_to_this_machine_alone():
    # A process of its own, as a command starts it; its session's sockets are those of its Ray.
    code = "import jobs, sys; from pipeline.cluster import connect\n"
    code += "with connect(): print('up', flush=True); sys.stdin.read()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ENABLE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
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
