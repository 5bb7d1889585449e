"""Fixtures that many tests share: one local Ray cluster, tiny weights."""

import os

# Before Ray is imported anywhere: its tokens would outlive the tests in the user's home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray for the whole session, on 2 CPUs; the pipeline finds this process connected and uses it."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=128 * 2**20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Weights of a tiny untrained denoiser whose pictures differ."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(make_weights(DenoiserConfig(width=32, blocks=2, heads=2)))
    return path


def make_weights(config: DenoiserConfig, seed: int = 0) -> bytes:
    """Random weights, the head's too: as initialised it is zero and would draw every picture alike."""
    torch.manual_seed(seed)
    denoiser = Denoiser(config)
    with torch.no_grad():
        denoiser.head.weight.normal_(std=0.05)
    return checkpoint.dump(denoiser.state_dict(), config, precision="float32", about={})
