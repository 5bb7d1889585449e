"""Ray: join the cluster that is there, or start a small local one.

Inside a Ray job, or with RAY_ADDRESS set, the running cluster is joined and its size left alone. Without, a private
cluster on this machine is started and stopped again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from models.errors import UserError, check_name, one_line
from pipeline.execution.signals import own_signals

# Only weights and small records pass through the object store: pictures and splats are written where they are made.
OBJECT_STORE_BYTES = 256 * 2**20
DEVICES = ("auto", "cpu", "gpu", "cuda")  # the last two are the same
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Cluster:
    """What the cluster has now. `local`: it is this machine alone, so its size is all there will ever be."""

    local: bool
    cpus: float
    gpus: float

    def cpu_share(self, workers: int, threads: int) -> float:
        """The CPUs one of `workers` processes asks for: `threads`, but less where all could not run otherwise."""
        if not self.local:
            return threads
        return min(threads, int(self.cpus / workers * 10_000) / 10_000)  # Ray counts in ten-thousandths

    def capacity(self, workers: int | None, *, num_cpus: float = 0.0, num_gpus: float = 0.0) -> Callable[[], int]:
        """A function that says how many processes that need so much to run at once now: `workers`, if that is given.

        Otherwise as many as there is room for on the machines that are up when it is asked, looked at every
        LOOK_SECONDS, and at least one. A fixed number may wait for machines that an autoscaler adds on demand.
        """
        found, looked = workers or 0, -math.inf

        def room() -> int:
            nonlocal found, looked
            if workers is None and time.monotonic() - looked > LOOK_SECONDS:
                machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                found, looked = max(1, sum(_fit(m, num_cpus, num_gpus) for m in machines)), time.monotonic()
            return found

        return room

    def cpus_per_gpu(self) -> int:
        """The CPUs there are for each GPU, on the machine that has the fewest; 1 while none has a GPU."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return min((int(m.get("CPU", 1) / m["GPU"]) for m in machines if m.get("GPU")), default=1)

    def has_gpu(self, device: str) -> bool:
        """Whether work is to run on GPUs, for `device` of DEVICES; UserError if it must and cannot."""
        check_name("device", device, DEVICES)
        if device == "auto":
            return self.gpus > 0
        if device != "cpu" and self.local and not self.gpus:
            raise UserError(f"--device {device}: this machine has no GPU that Ray can see; use --device cpu")
        return device != "cpu"

    def gpu_room(self, share: float) -> int:
        """How many processes with `share` of a GPU each have room on the GPUs that there are now."""
        return _fit({"GPU": self.gpus}, 0.0, share)

    def demand(
        self, use_gpu: bool, workers: int | None, *, gpus: float, cpus: int = 1, threads: int = 1
    ) -> dict[str, float]:
        """What each of `workers` processes, or of as many as there is room for, asks Ray for.

        `gpus` of a GPU and `cpus` beside it, or on CPUs `threads`. UserError as `require_gpus`.
        """
        if not use_gpu:
            return {"num_cpus": self.cpu_share(workers or 1, threads)}
        self.require_gpus(workers or 1, gpus)
        # Ray would take a CPU for each anyway, and of a machine with fewer CPUs use but some of the GPUs.
        return {"num_cpus": self.cpu_share(workers or self.gpu_room(gpus), cpus), "num_gpus": gpus}

    def require_gpus(self, workers: int, share: float = 1.0) -> None:
        """Raise UserError where `workers` processes with `share` of a GPU each would wait for GPUs that never come."""
        if self.local and workers > self.gpu_room(share):
            each = "a GPU each" if share == 1.0 else f"{share:g} of a GPU each"
            raise UserError(f"--workers {workers} need {each}; this machine has {self.gpus:.0f}")


def check_gpu_share(share: float) -> None:
    """Raise UserError for a --gpus-per-worker that Ray cannot give."""
    if not 0.01 <= share <= 1.0 or share != round(share, 4):  # Ray counts in ten-thousandths
        raise UserError(f"--gpus-per-worker {share}: give 0.01 to 1, with at most four decimals")


@contextlib.contextmanager
def connect(*, cpus: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """Within the block Ray is up: joined, started, or left as it was if this process is connected already.

    `cpus` and `gpus`: how many of this machine's a Ray that is started here has; all if None.
    """
    local = not os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield _describe(local)
        return
    try:
        with own_signals():
            if local:
                _start_local(cpus, gpus)
            else:
                _join()
        yield _describe(local)
    finally:
        ray.shutdown()


def _fit(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many processes that need so many CPUs, and a GPU or a part of one, fit on an empty machine."""
    rooms = []
    if cpus:
        rooms.append(int(machine.get("CPU", 0.0) / cpus + 1e-6))
    if gpus:  # a process has its part on one GPU: what two have left over makes no third place
        rooms.append(int(machine.get("GPU", 0.0)) * int(1.0 / gpus + 1e-6))
    return min(rooms)


def _start_local(cpus: int | None, gpus: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray announces a future change of how it hides GPUs from processes that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _join() -> None:
    # A Ray job has its working directory on every node. Otherwise send this code, so that nodes need no installation;
    # weights travel by themselves.
    packages = Path(__file__).parents[2]
    environment = {
        "py_modules": [str(packages / name) for name in ("models", "pipeline", "jobs")],
        "excludes": ["*.safetensors", "__pycache__"],
    }
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    address = os.environ["RAY_ADDRESS"]
    try:
        _knock(address)
        ray.init(logging_level=logging.WARNING, runtime_env=None if in_job else environment)
    except OSError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it, or unset it") from None
    except ValueError as error:  # the address for submitting jobs, most likely
        reason = one_line(error)
        raise UserError(f"cannot use RAY_ADDRESS={address} ({reason}): give HOST:PORT, or unset it") from None


def _knock(address: str) -> None:
    """Raise an OSError at once if nobody listens at HOST:PORT; Ray itself tries for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/]+):([0-9]+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _describe(local: bool) -> Cluster:
    resources = ray.cluster_resources()
    return Cluster(local, resources.get("CPU", 0.0), resources.get("GPU", 0.0))
