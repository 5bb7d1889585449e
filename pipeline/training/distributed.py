"""Data-parallel training under Ray Train: the driver of `worker`.

    OUT/checkpoint_.../   state and weights, the last KEPT of them, managed by Ray Train
    OUT/sheets/           the same 24 noises as cats, at every checkpoint
    OUT/weights.safetensors, OUT/history.json     the averaged weights, and what was reported, of the last checkpoint
    OUT/weights-0.1.safetensors     the same averaged over longer, for every further width of the recipe
    OUT/README.md         says this

Running again with the same OUT continues from the last checkpoint there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import CheckpointConfig, ControllerError, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.errors import UserError
from pipeline.storage.store import Store, occupied, using
from pipeline.training.board import Board, show
from pipeline.training.recipe import Run
from pipeline.training.worker import work

KEPT = 2
RETRIES = 3  # of the whole group of workers, when one of them dies
WAITS = 15  # of a minute each, over the whole run, for machines with room for the group
README = """A training run of splatcats. `weights.safetensors` holds the averaged weights of the last checkpoint, for
`python -m jobs.generate --weights`, `weights-0.1.safetensors` an average over a longer time, 0.1 of the training;
`history.json` what was reported; `sheets/` the same noises as cats at every checkpoint. The folders `checkpoint_...`
are what the same command continues from.
"""
SIGN = README.partition(".")[0].encode()  # by which a run is known


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
        work,
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
    """Make the folder of a run, or find it. UserError where it cannot be written to, or has other files and no run."""
    store = Store(out)
    with using(store):
        found = store.entries()
        if not found:
            store.write("README.md", README.encode())
            return
        ours = "README.md" in found and store.read("README.md").startswith(SIGN)
        if not ours and not any(name.startswith("checkpoint_") for name in found):
            raise occupied(store, found, " but no training run")


def explain(error: TrainingFailedError, settings: Run, fault: str | None) -> str | None:
    """What ended training, where that is no bug of ours: in one line, with a remedy. `fault` is a worker's OSError."""
    if "low on memory" in str(error):
        return "this machine's memory is too small: give a smaller --at-once, or fewer --workers"
    if isinstance(error, ControllerError):
        if "StartupTimeout" not in type(error.controller_failure).__name__:
            return None
        return (
            f"the cluster had no room for {settings.workers} workers in {WAITS} minutes: give fewer --workers, or"
            " machines"
        )
    text = str(error)
    if "OutOfMemoryError" in text:
        return "the GPU's memory is too small: give a smaller --at-once"
    if "ActorDiedError" in text or "ActorUnavailableError" in text:
        return f"a worker died {RETRIES + 1} times (killed, its machine gone, or out of memory)"
    return f"a worker failed {RETRIES + 1} times: {fault}" if fault else None
