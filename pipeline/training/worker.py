"""One rank of a training run, as a worker of Ray Train: gathers what `trainer` needs, and stores what it yields."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import train as ray_train
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device

from models import checkpoint
from models.distillation import Teacher
from models.errors import UserError, one_line
from models.perceptual import load_lpips
from models.resemblance import RECENT
from pipeline.storage.store import Store
from pipeline.training.batches import Pictures, spread
from pipeline.training.board import progress_line
from pipeline.training.judging import likeness
from pipeline.training.recipe import Recipe, Run
from pipeline.training.state import DamagedCheckpoint, State, weights_name
from pipeline.training.trainer import train
from pipeline.training.training_set import check, load

HELDOUT = 512  # photographs whose loss is measured at every checkpoint
HOST_SHARE = 0.5  # part of a machine's memory that photographs may take; more of them are mapped from files


def work(config: Mapping[str, Any]) -> None:
    """One rank: gather what `train` needs, and tell Ray what it reports."""
    settings, store, board = config["settings"], config["store"], config["board"]
    context = ray_train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    else:
        torch.cuda.set_device(device)

    try:
        with agreed(ranks):
            perceptual = load_lpips(settings.lpips).to(device) if settings.lpips else None
            start = heldout = judge = None
            if settings.weights is not None:
                data = checkpoint.read(settings.weights)
                start = checkpoint.parse(data, settings.weights)
            state = State.new(settings.recipe, device, start)
            for note in resume(state, settings.recipe, ranks):
                if rank == 0:
                    board.post.remote(note)
            source: Pictures | Teacher
            beside = context.get_local_world_size()
            if settings.recipe.distil:
                assert start is not None
                assert settings.weights is not None
                # Photographs are something to learn even from one's own calls. Without them, more of these must be.
                many = not settings.recipe.resemblance
                source = Teacher(start.to(device), checkpoint.sampling(data, settings.weights, many=many))
                if settings.recipe.resemblance:
                    assert settings.photos is not None
                    assert perceptual is not None
                    detail = settings.recipe.detail if settings.recipe.objective.detail_photographs else None
                    seen = load(settings.photos, heldout=False, detail=detail, memory_bytes=host_bytes(beside))
                    judge = likeness(seen, perceptual, device, remembered=RECENT // ranks)
                    if detail and judge.windows is None and rank == 0:
                        few = f"{len(seen.large)} photographs of {detail} px to train on are too few to show detail"
                        board.post.remote(f"{few}: learning from photographs at the model's size alone")
                    del seen
            else:
                source, heldout = photographs(settings, device, rank, ranks, beside)
        with tempfile.TemporaryDirectory() as folder:
            train(
                state,
                settings.recipe,
                settings.budget,
                source,
                outlet=Reporter(settings.recipe, store, board),
                work=Path(folder),
                heldout=heldout,
                perceptual=perceptual,
                likeness=judge,
                rank=rank,
                ranks=ranks,
                fused=settings.fused,
            )
    except UserError as error:
        # A mistake is not a fault to be retried: end every rank in good order and let the driver say it.
        ray.get(board.stop.remote(str(error)))
    except OSError as error:  # a store that does not answer, a full disk: may pass, and Ray Train tries again
        ray.get(board.fail.remote(one_line(error)))
        raise


@dataclass(frozen=True)
class Reporter:
    """The outlet of training: lines to the board, checkpoints to the store, both known to Ray Train."""

    recipe: Recipe
    store: Store
    board: Any

    def tell(self, metrics: dict[str, float]) -> None:
        """A line on the board."""
        self.board.post.remote(progress_line(metrics))

    def keep(self, folder: Path, step: int) -> ray_train.Checkpoint:
        """Copy what a user looks at to stable names, and all of it to a folder of Ray Train's kind."""
        weights = [weights_name(self.recipe, width) for width in self.recipe.ema_widths]
        names = {name: name for name in ("history.json", *weights)} | {"sheet.png": f"sheets/step-{step:07d}.png"}
        for source, target in names.items():
            self.store.write(target, (folder / source).read_bytes())
        name = datetime.now().strftime("checkpoint_%Y-%m-%d_%H-%M-%S.%f")
        made = ray_train.Checkpoint.from_directory(str(folder))
        return ray_train.get_context().get_storage().persist_current_checkpoint(made, name)

    def report(self, metrics: dict[str, float], kept: ray_train.Checkpoint | None) -> None:
        """Meet the other ranks, and let Ray Train know of a checkpoint, which is in its place already."""
        ray_train.report(metrics, checkpoint=kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def photographs(
    settings: Run, device: torch.device, rank: int, ranks: int, beside: int
) -> tuple[Pictures, torch.Tensor | None]:
    """One rank's photographs, with `beside` ranks on this machine, and some of those held out, if there are any."""
    assert settings.photos is not None
    detail, memory = settings.recipe.detail or None, host_bytes(beside)
    seen = load(settings.photos, heldout=False, detail=detail, stripe=(rank, ranks), memory_bytes=memory)
    if not check(settings.photos)[2]["heldout"]:
        return Pictures(seen, device), None
    heldout = load(settings.photos, heldout=True, detail=None).small
    return Pictures(seen, device), spread(torch.from_numpy(heldout), HELDOUT)


def host_bytes(beside: int) -> int:
    """How much of this machine's memory the photographs of one of `beside` ranks may take."""
    return int(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / beside)


def resume(state: State, recipe: Recipe, ranks: int) -> Iterator[str]:
    """Restore the latest checkpoint of the run that every rank finds whole, if there is any; say which are not.

    To be called on every rank. Raises UserError if all are damaged, or made with another recipe.
    """
    kept = [reported.checkpoint for reported in ray_train.get_all_reported_checkpoints()]
    for last in reversed(kept):
        damage: str | None = None
        try:
            with last.as_directory() as folder:
                state.restore(Path(folder), recipe)
        except DamagedCheckpoint as error:
            damage = str(error)
        found = [of_one for of_one in gathered(damage, ranks) if of_one]
        if not found:
            return
        yield f"the checkpoint {last.path} is damaged ({found[0]}): continuing from the one before it"
    if kept:
        raise UserError(f"every checkpoint in {Path(kept[-1].path).parent} is damaged: train into another --out")


@contextmanager
def agreed(ranks: int) -> Iterator[None]:
    """A block that every rank enters; a UserError in one is raised in all, which would wait for that one for ever."""
    mistake: str | None = None
    try:
        yield
    except UserError as error:
        mistake = str(error)
    for found in gathered(mistake, ranks):
        if found:
            raise UserError(found)


def gathered(value: str | None, ranks: int) -> list[str | None]:
    """What each rank calls this with, on every rank."""
    values = [value] * ranks
    if ranks > 1:
        dist.all_gather_object(values, value)
    return values
