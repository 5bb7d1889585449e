"""Data-parallel training under Ray Train: the shell around `trainer`.

    OUT/checkpoint_.../   state and weights, the last KEPT of them, managed by Ray Train
    OUT/sheets/           the same 24 noises as cats, at every checkpoint
    OUT/weights.safetensors, OUT/history.json     the averaged weights, and what was reported, of the last checkpoint
    OUT/weights-0.1.safetensors     the same averaged over longer, for every further width of the recipe
    OUT/README.md         says this

Running again with the same OUT continues from the last checkpoint there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import train as ray_train
from ray.train import CheckpointConfig, ControllerError, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import FailureConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models import checkpoint
from models.distillation import Teacher
from models.errors import UserError, one_line
from models.perceptual import load_lpips
from pipeline.storage.store import Store, using
from pipeline.training.batches import Pictures
from pipeline.training.board import Board, progress_line, show
from pipeline.training.recipe import Budget, Recipe
from pipeline.training.state import DamagedCheckpoint, State, weights_name
from pipeline.training.trainer import train
from pipeline.training.training_set import check, load

KEPT = 2
RETRIES = 3  # of the whole group of workers, when one of them dies
WAITS = 15  # of a minute each, over the whole run, for machines with room for the group
HELDOUT = 512  # photographs whose loss is measured at every checkpoint
HOST_SHARE = 0.5  # part of a machine's memory that photographs may take; more of them are mapped from files
README = """A training run of splatcats. `weights.safetensors` holds the averaged weights of the last checkpoint, for
`python -m jobs.generate --weights`, `weights-0.1.safetensors` an average over a longer time, 0.1 of the training;
`history.json` what was reported; `sheets/` the same noises as cats at every checkpoint. The folders `checkpoint_...`
are what the same command continues from.
"""


@dataclass(frozen=True)
class Run:
    """One training run as the user asked for it."""

    photos: str | None  # None where a student learns from its teacher alone
    out: str
    recipe: Recipe
    budget: Budget
    workers: int = 1
    detail: int = 256  # photographs of at least this side supervise at high resolution too; 0 for none
    lpips: str | None = None
    weights: str | None = None  # to start from


def run(settings: Run, *, gpus: float, cpus_per_worker: float) -> dict[str, Any]:
    """Train on the connected cluster and return what the last checkpoint reported.

    Raises UserError for what the user can mend: photographs, perceptual weights, another recipe in `out`, a loss
    that is not finite, workers that keep dying, machines that do not come.
    """
    store = Store(settings.out)
    storage, _, name = store.url.rpartition("/")
    actor: Any = ray.remote(Board)
    # Beside the driver: on another machine it could die while training survives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = actor.options(num_cpus=0, scheduling_strategy=here).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"settings": settings, "store": store, "board": board},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus_per_worker} | ({"GPU": 1} if gpus > 0 else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage or "/",
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=WAITS),
        ),
    )
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(show, board)
        try:
            metrics = trainer.fit().metrics or {}
        except TrainingFailedError as error:
            reason = explain(error, settings, ray.get(board.fault.remote()))
            if reason is None:
                raise
            raise UserError(f"{reason}; the same command continues from the last checkpoint") from None
        except SystemExit:  # how Ray Train, which answers Ctrl-C itself, leaves `fit`
            raise KeyboardInterrupt from None
        finally:
            board.close.remote()
            shown.result()
    mistake = ray.get(board.mistake.remote())
    if mistake:
        raise UserError(mistake)
    return metrics


def claim(out: str) -> None:
    """Make the folder of a run, or find it. Raises UserError where it cannot be written to."""
    store = Store(out)
    with using(store):
        if not store.exists("README.md"):  # somebody's own, in a folder that was not meant for a run
            store.write("README.md", README.encode())


def _worker(config: Mapping[str, Any]) -> None:
    """One rank: gather what `train` needs, and tell Ray what it reports."""
    settings, store, board = config["settings"], config["store"], config["board"]
    context = ray_train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    else:
        torch.cuda.set_device(device)

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        if rank == 0:
            board.post.remote(progress_line(metrics))
        if folder is not None:
            publish(store, folder, settings.recipe, int(metrics["step"]))
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(str(folder)) if folder else None)

    try:
        with agreed(ranks):
            perceptual = load_lpips(settings.lpips).to(device) if settings.lpips else None
            start = teacher = heldout = None
            if settings.weights is not None:
                data = checkpoint.read(settings.weights)
                start = checkpoint.parse(data, settings.weights)
                teacher = Teacher(start, checkpoint.sampling(data, settings.weights))
            state = State.new(settings.recipe, device, start)
            for note in resume(state, settings.recipe):
                if rank == 0:
                    board.post.remote(note)
            source: Pictures | Teacher
            if settings.photos is not None:
                source, heldout = photographs(settings, device, rank, ranks, context.get_local_world_size())
            else:
                assert teacher is not None
                teacher.denoiser.to(device)
                source = teacher
        with tempfile.TemporaryDirectory() as work:
            train(
                state,
                settings.recipe,
                settings.budget,
                source,
                report=report,
                work=Path(work),
                heldout=heldout,
                perceptual=perceptual,
                rank=rank,
                ranks=ranks,
            )
    except UserError as error:
        # A mistake is not a fault to be retried: end every rank in good order and let the driver say it.
        ray.get(board.stop.remote(str(error)))
    except OSError as error:  # a store that does not answer, a full disk: may pass, and Ray Train tries again
        ray.get(board.fail.remote(one_line(error)))
        raise


def photographs(
    settings: Run, device: torch.device, rank: int, ranks: int, beside: int
) -> tuple[Pictures, torch.Tensor | None]:
    """One rank's photographs, with `beside` ranks on this machine, and some of those held out, if there are any."""
    assert settings.photos is not None
    memory = HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / beside
    detail = settings.detail or None
    seen = load(settings.photos, heldout=False, detail=detail, stripe=(rank, ranks), memory_bytes=int(memory))
    if not check(settings.photos)[2]["heldout"]:
        return Pictures(seen, device), None
    heldout = load(settings.photos, heldout=True, detail=None).small[:HELDOUT]
    return Pictures(seen, device), torch.from_numpy(heldout)


def resume(state: State, recipe: Recipe) -> Iterator[str]:
    """Restore the latest checkpoint of the run that is whole, if it has any; yield a line for each that is not.

    To be called on every rank. Raises UserError if all are damaged, or made with another recipe.
    """
    kept = [reported.checkpoint for reported in ray_train.get_all_reported_checkpoints()]
    for last in reversed(kept):
        try:
            with last.as_directory() as folder:
                return state.restore(Path(folder), recipe)
        except DamagedCheckpoint as damage:
            yield f"the checkpoint {last.path} is damaged ({damage}): continuing from the one before it"
    if kept:
        raise UserError(f"every checkpoint in {Path(kept[-1].path).parent} is damaged: train into another --out")
    return None


def explain(error: TrainingFailedError, settings: Run, fault: str | None) -> str | None:
    """What ended training, where that is no bug of ours: in one line, with a remedy. `fault` is a worker's OSError."""
    if isinstance(error, ControllerError):
        if "StartupTimeout" not in type(error.controller_failure).__name__:
            return None
        return (
            f"the cluster had no room for {settings.workers} workers in {WAITS} minutes: give fewer --workers, or"
            " machines"
        )
    text = str(error)
    if "OutOfMemoryError" in text:
        return "the GPU's memory is too small: give a smaller --batch and another --out, or more --workers"
    if "ActorDiedError" in text or "ActorUnavailableError" in text:
        return f"a worker died {RETRIES + 1} times (killed, its machine gone, or out of memory)"
    return f"a worker failed {RETRIES + 1} times: {fault}" if fault else None


@contextmanager
def agreed(ranks: int) -> Iterator[None]:
    """A block that every rank enters; a UserError in one is raised in all, which would wait for that one for ever."""
    mistake: str | None = None
    try:
        yield
    except UserError as error:
        mistake = str(error)
    mistakes = [mistake] * ranks
    if ranks > 1:
        dist.all_gather_object(mistakes, mistake)
    for mistake in mistakes:
        if mistake:
            raise UserError(mistake)


def publish(store: Store, folder: Path, recipe: Recipe, step: int) -> None:
    """Copy what a user looks at out of a checkpoint folder to stable names in `store`."""
    weights = [weights_name(recipe, width) for width in recipe.ema_widths]
    names = {name: name for name in ("history.json", *weights)} | {"sheet.png": f"sheets/step-{step:07d}.png"}
    for source, target in names.items():
        store.write(target, (folder / source).read_bytes())
