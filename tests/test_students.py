"""Students in the training loop: what their weights know, and batches in pieces."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import make_lively
from test_trainer import STUDENT, Reports, run

from models import checkpoint
from models.noise import white_noise
from models.sampler import Sampling
from models.tuning import first_calls
from pipeline.training import trainer
from pipeline.training.recipe import Budget
from pipeline.training.training_set import TrainingSet


def test_weights_of_a_student_know_how_its_calls_are_made(photographs: TrainingSet, tmp_path: Path) -> None:
    run(photographs, Reports(tmp_path), tmp_path / "work", Budget(steps=2), recipe=STUDENT)
    data = (tmp_path / "step-2/weights.safetensors").read_bytes()
    assert checkpoint.sampling(data, "student") == Sampling("learned", "learned", 2)
    student, teacher = checkpoint.parse(data, "student"), make_lively(STUDENT.model)
    learned, began = student.few_calls[2], first_calls(teacher, 2)
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(vars(learned).values(), vars(began).values(), strict=True))
    assert (student.head.weight - teacher.head.weight).abs().max() > 1e-4


def test_a_batch_in_pieces_teaches_what_it_does_at_once(
    photographs: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = white_noise(0, range(4), 64, 64)
    moved = []
    for pieces in (1, 2):
        recipe = dataclasses.replace(STUDENT, batch=4, pieces=pieces, detail=0)

        def batch(recipe, device, step, piece, rank, ranks):
            return {"noise": everything.chunk(recipe.pieces)[piece]}

        monkeypatch.setattr(trainer, "make_noise_batch", batch)
        outlet = Reports(tmp_path / str(pieces))
        state = run(photographs, outlet, tmp_path / f"work-{pieces}", Budget(steps=1, report_every=1), recipe=recipe)
        moved.append({name: state.optimizers.state(p)["exp_avg"] for name, p in state.model.named_parameters()})
        moved[-1]["loss"] = torch.tensor(outlet.metrics[-1]["loss"])
    for name, whole in moved[0].items():
        assert whole.norm() > 0
        assert (moved[1][name] - whole).norm() < 1e-3 * whole.norm(), name
