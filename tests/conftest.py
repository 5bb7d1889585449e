"""What many tests share: one local Ray cluster, an object store, tiny weights, photographs, random VGG16."""

import os

# Before Ray is imported anywhere: its tokens would outlive the tests in the user's home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs/__init__.py does
# As the commands do, but whichever module imports Ray first: no Ray of the tests listens to other machines.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray Train looks after its workers every two seconds otherwise, and every run of the tests would wait for that.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import torch
from object_store import S3, serving
from PIL import Image
from safetensors.torch import save_file

from jobs import cli, generate, render
from models import checkpoint, sampler
from models.denoiser import Denoiser, DenoiserConfig
from models.noise import white_noise
from models.perceptual import random_weights
from pipeline.photographs.preparation import prepare
from pipeline.training.training_set import TrainingSet, load


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
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def cluster():
    """A Ray cluster of several nodes on this machine, for commands that join it by RAY_ADDRESS.

    The head has no CPU for work; nodes are added and removed by the test.
    """
    from ray.cluster_utils import Cluster

    os.environ.pop("RAY_ADDRESS", None)
    # A node that is gone is taken for dead after 3 s; Ray's own settings wait for half a minute.
    settings = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        | {"_system_config": settings},
    )
    yield found
    found.shutdown()


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


def make_lively(config: DenoiserConfig) -> Denoiser:
    """A denoiser of random weights whose answers depend on what it sees, when, and on what hint."""
    made = checkpoint.parse(make_weights(config), "here")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "modulation" in name or "offset" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="session")
def stored_cats(ray_cluster, tiny_weights, tmp_path_factory):
    """A function: the dataset of 230 generated cats stored with a precision, in two shards."""

    @functools.cache
    def folder(precision: str) -> Path:
        out = tmp_path_factory.mktemp(precision) / "splats"
        options = ["--out", str(out), "--weights", str(tiny_weights), "--count", "230", "--steps", "1"]
        options += ["--shard-size", "150", "--precision", precision]
        assert cli.run(generate.Options, generate.main, options) == 0
        return out

    return folder


@pytest.fixture(scope="session")
def cat_fields():
    """A function: the float32 splat fields of the first so many cats of the bundled weights, in a few calls each."""
    denoiser = checkpoint.load(checkpoint.PRETRAINED)
    made = torch.empty(0)

    def fields(count: int) -> torch.Tensor:
        nonlocal made
        if len(made) < count:
            noise = white_noise(0, range(len(made), count), *denoiser.size)
            parts = [sampler.sample(denoiser, part, steps=4, solver="deis") for part in noise.split(16)]
            made = torch.cat([made, *parts]) if len(made) else torch.cat(parts)
        return made[:count]

    return fields


@pytest.fixture(scope="session")
def splats(ray_cluster, tiny_weights, tmp_path_factory) -> Path:
    """A dataset of 20 pictures in 5 shards, with the rollouts of two."""
    out = tmp_path_factory.mktemp("source") / "splats"
    options = ["--out", str(out), "--weights", str(tiny_weights), "--count", "20", "--steps", "2", "--shard-size", "4"]
    assert cli.run(generate.Options, generate.main, [*options, "--keep-rollout", "3,9"]) == 0
    return out


@pytest.fixture(scope="session")
def few_splats(ray_cluster, tiny_weights, tmp_path_factory) -> Path:
    """14 pictures in 4 shards."""
    out = tmp_path_factory.mktemp("few") / "splats"
    assert make_few(out, tiny_weights) == 0
    return out


@pytest.fixture(scope="session")
def few_pictures(few_splats, tmp_path_factory) -> dict[str, Path]:
    """The first 6 of them drawn as WebP in shards of 2, in both forms."""
    root = tmp_path_factory.mktemp("pictures")
    for form in ("files", "parquet"):
        assert draw_few(few_splats, root / form, form) == 0
    return {form: root / form for form in ("files", "parquet")}


def make_few(out: Path, weights: Path) -> int:
    """The command that makes them."""
    options = {"out": out, "weights": weights, "count": 14, "shard-size": 4, "batch-size": 3, "steps": 2}
    return cli.run(generate.Options, generate.main, [f"--{name}={value}" for name, value in options.items()])


def draw_few(splats: Path, out: Path, form: str) -> int:
    """The command that draws them."""
    options = {"splats": splats, "out": out, "format": form, "size": 16, "indices": "0-5", "shard-size": 2}
    options["encoding"] = "webp"
    return cli.run(render.Options, render.main, [f"--{name}={value}" for name, value in options.items()])


@pytest.fixture(scope="session")
def prepared_cats(tmp_path_factory) -> str:
    """The prepared set of the photographs in tests/photos: nine to train on, some of more than 128 pixels."""
    out = tmp_path_factory.mktemp("cats") / "prepared"
    prepare([str(Path(__file__).parent / "photos")], str(out))
    return str(out)


@pytest.fixture(scope="session")
def photographs(prepared_cats) -> TrainingSet:
    """Nine photographs, five of them large."""
    loaded = load(prepared_cats, heldout=False, detail=128)
    return dataclasses.replace(loaded, large=loaded.large[::2], large_rows=loaded.large_rows[::2])


@pytest.fixture(scope="session")
def many_photographs(tmp_path_factory) -> Path:
    """A folder of 160 photographs of 128 pixels, windows of those in tests/photos."""
    folder = tmp_path_factory.mktemp("many")
    photographs = [Image.open(path) for path in sorted((Path(__file__).parent / "photos").glob("*.jpg"))]
    generator = np.random.default_rng(0)
    for number in range(160):
        photograph = photographs[number % len(photographs)]
        side = int(generator.integers(64, 128))
        x, y = (int(generator.integers(0, photograph.width - side + 1)) for _ in range(2))
        photograph.resize((128, 128), box=(x, y, x + side, y + side)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def vgg_weights() -> dict[str, torch.Tensor]:
    """VGG16 and the heads of LPIPS in the right layout, random."""
    return {name: tensor.half() for name, tensor in random_weights(torch.Generator().manual_seed(0)).items()}


@pytest.fixture(scope="session")
def vgg_file(vgg_weights, tmp_path_factory) -> Path:
    """The same as a file: what --lpips takes."""
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(vgg_weights, path)
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[S3]:
    """The tests' own S3, which this process's environment names, and that of all it starts."""
    with serving() as application:
        yield application


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    """The same, without faults to begin with."""
    server.faults, server.hit = [], []
    yield server
    server.faults = []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients that wait a second for an answer: what a user sets in FSSPEC_S3."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}})
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def files(root: Path) -> dict[str, bytes]:
    """What is below a folder, by name, but records, summaries and cards, which hold times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "_stats" and path.name not in ("summary.json", "README.md")
    }


def data_bytes(root: Path) -> dict[str, bytes]:
    """The shards of a dataset, by name."""
    return {path.name: path.read_bytes() for path in sorted((root / "data").iterdir())}
