"""Data-parallel training under Ray Train: the shell around `pipeline.trainer`.

    OUT/checkpoint_.../   state and weights, the last KEPT of them, managed by Ray Train
    OUT/sheets/           the same 24 noises as cats, at every checkpoint
    OUT/weights.safetensors, OUT/history.json     the averaged weights, and what was reported, of the last checkpoint

Running again with the same OUT continues from the last checkpoint there.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import ray
import torch
from ray import train as ray_train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from models.errors import UserError
from pipeline.batches import Pictures
from pipeline.recipe import Budget, Recipe
from pipeline.trainer import train
from pipeline.training_set import load

KEPT = 2
RETRIES = 3  # of the whole group of workers, when one of them dies


@dataclass(frozen=True)
class Run:
    """One training run as the user asked for it."""

    photos: str
    out: str
    recipe: Recipe
    budget: Budget
    workers: int = 1
    detail: int = 256  # photographs of at least this side supervise at high resolution too; 0 for none
    lpips: str | None = None


def run(settings: Run, *, gpus: float, cpus_per_worker: float) -> dict[str, Any]:
    """Train on the connected cluster and return the last report. Raises UserError as `pipeline.trainer.train` does."""
    out = settings.out if "://" in settings.out else str(Path(settings.out).resolve())
    storage, _, name = out.rstrip("/").rpartition("/")
    actor: Any = ray.remote(Board)
    board = actor.options(num_cpus=0).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"settings": settings, "board": board},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus_per_worker} | ({"GPU": 1} if gpus > 0 else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
    )
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(_show, board)
        try:
            metrics = trainer.fit().metrics or {}
        finally:
            board.close.remote()
            shown.result()
    if "error" in metrics:
        raise UserError(metrics["error"])
    return metrics


class Board:
    """Lines that workers post and the driver shows: Ray Train's own log is too loud to read progress in."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.closed = False

    def post(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def close(self) -> None:
        """No more lines will come."""
        self.closed = True

    def take(self) -> tuple[list[str], bool]:
        """The lines since the last call, and whether they are the last."""
        lines, self.lines = self.lines, []
        return lines, self.closed


def _show(board: Any) -> None:
    closed = False
    while not closed:
        time.sleep(1.0)
        lines, closed = ray.get(board.take.remote())
        for line in lines:
            print(line, flush=True)


def _worker(config: Mapping[str, Any]) -> None:
    """One rank: gather what `train` needs, and tell Ray what it reports."""
    settings, board = config["settings"], config["board"]
    context = ray_train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))

    def report(metrics: dict[str, float], folder: Path | None) -> None:
        if rank == 0:
            board.post.remote(progress_line(metrics))
        if folder is not None:
            publish(settings.out, folder, int(metrics["step"]))
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(str(folder)) if folder else None)

    try:
        with tempfile.TemporaryDirectory() as scratch:
            photographs = load(settings.photos, heldout=False, detail=settings.detail or None, stripe=(rank, ranks))
            last = ray_train.get_checkpoint()
            resume = Path(last.to_directory(f"{scratch}/resume")) if last else None
            train(
                settings.recipe,
                settings.budget,
                Pictures(photographs, device),
                report=report,
                work=Path(scratch),
                lpips=Path(settings.lpips) if settings.lpips else None,
                resume=resume,
                rank=rank,
                ranks=ranks,
            )
    except UserError as error:
        # A mistake is not a fault to be retried: end every rank in good order and let the driver say it.
        ray_train.report({"error": str(error)})


def progress_line(metrics: Mapping[str, float]) -> str:
    """One plain line: where training is, how well and how fast it goes, and how long it will take."""
    terms = "  ".join(
        f"{name} {metrics[name]:.4f}" for name in ("loss", "velocity", "perceptual", "detail") if name in metrics
    )
    return (
        f"step {metrics['step']:,.0f}  {terms}  {metrics['pictures_per_second']:,.0f} pictures/s  "
        f"{metrics['minutes']:.1f} min  eta {metrics['eta_minutes']:.1f} min"
    )


def publish(out: str, folder: Path, step: int) -> None:
    """Copy what a user looks at out of a checkpoint folder to stable names under `out`."""
    fs, root = fsspec.url_to_fs(out)
    names = {
        "weights.safetensors": "weights.safetensors",
        "history.json": "history.json",
        "sheet.png": f"sheets/step-{step:07d}.png",
    }
    for source, target in names.items():
        fs.makedirs(f"{root}/{target}".rpartition("/")[0], exist_ok=True)
        fs.put_file(str(folder / source), f"{root}/{target}.part")
        fs.mv(f"{root}/{target}.part", f"{root}/{target}")
