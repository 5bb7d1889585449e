"""Several ranks of training, by gloo, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from test_trainer import CPU, RECIPE, Reports

from models.distillation import Teacher
from models.errors import UserError
from models.sampler import Sampling
from pipeline.training.batches import Pictures
from pipeline.training.keeper import validate
from pipeline.training.recipe import Budget
from pipeline.training.state import State
from pipeline.training.trainer import train
from pipeline.training.training_set import TrainingSet
from pipeline.training.worker import agreed


def one_rank(rank: int, ranks: int, photographs: TrainingSet, folder: Path) -> None:
    """Train as one of some ranks, then distil what came of it, and leave the loss and the weights in files."""
    if ranks > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    recipe = dataclasses.replace(RECIPE, batch=8, learning_rate=0.01, warmup=1)
    state, pictures, outlet = State.new(recipe, CPU), Pictures(photographs, CPU), Reports(folder / "kept")
    train(state, recipe, Budget(steps=30), pictures, outlet=outlet, work=folder, rank=rank, ranks=ranks)
    loss = validate(state, recipe, pictures, torch.from_numpy(photographs.small))["heldout"]

    recipe = dataclasses.replace(recipe, batch=4, pieces=2, distil=2)
    student, teacher = State.new(recipe, CPU, state.averages[0]), Teacher(state.averages[0], Sampling(steps=2))
    outlet = Reports(folder / "student")
    train(student, recipe, Budget(steps=2), teacher, outlet=outlet, work=folder, rank=rank, ranks=ranks)
    save_file(state.model.state_dict(), folder / f"rank-{rank}.safetensors", {"loss": str(loss)})
    save_file(student.model.state_dict(), folder / f"student-{rank}.safetensors")


def test_two_ranks_learn_what_one_learns_from_batches_of_the_same_size(
    photographs: TrainingSet, tmp_path: Path
) -> None:
    loss = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        arguments = ranks, photographs, folder
        torch.multiprocessing.spawn(one_rank, arguments, nprocs=ranks) if ranks > 1 else one_rank(0, *arguments)
        with safe_open(folder / "rank-0.safetensors", "pt") as file:
            loss[ranks] = float(file.metadata()["loss"])
    assert loss[1] < 0.3  # 0.16 when this was written, from 0.68; other seeds differ by 3 %
    assert loss[2] == pytest.approx(loss[1], rel=0.08)
    for name in ("rank", "student"):
        first, second = ((folder / f"{name}-{rank}.safetensors").read_bytes() for rank in (0, 1))
        assert first == second


def one_fails(number: int) -> None:
    with agreed(2):
        if number == 1:
            raise UserError("only one rank knows")


def one_of_two(number: int, rendezvous: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    with pytest.raises(UserError, match="only one rank knows"):
        one_fails(number)


def test_a_mistake_that_one_rank_meets_ends_all_of_them(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "rendezvous"),), nprocs=2)
