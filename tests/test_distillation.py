"""Distillation: a student learns to make in a few calls what its teacher makes in many."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import make_lively

from jobs import generate
from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig
from models.distillation import Teacher, distillation_loss, student_sampling
from models.errors import UserError
from models.losses import Objective
from models.sampler import Sampling, noise, sample

CONFIG = DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=32, blocks=2, heads=2)


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return make_lively(CONFIG)


def result(denoiser: Denoiser, start: torch.Tensor, **sampling) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.draw(sample(denoiser, start, **sampling), *denoiser.size)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher):
    """Sampled as its student is, a teacher makes the same pictures; every term of the loss is nothing then."""
    alike = Teacher(teacher, student_sampling(2))
    eps = noise(0, range(3), *teacher.size)
    objective = Objective(depth=0.0)
    terms = distillation_loss(teacher, teacher, alike, eps, calls=2, objective=objective, pixels=24)
    assert {name: float(value) for name, value in terms.items()} == {"velocity": 0.0, "detail": 0.0, "loss": 0.0}
    other = Teacher(teacher, Sampling())
    terms = distillation_loss(teacher, teacher, other, eps, calls=2, objective=objective, pixels=24)
    made = [result(teacher, eps, **dataclasses.asdict(how)) for how in (student_sampling(2), Sampling())]
    apart = (made[0] - made[1]).square().mean()
    torch.testing.assert_close(terms["velocity"], apart)
    assert "detail" not in distillation_loss(teacher, teacher, other, eps, calls=2, objective=objective, pixels=None)


def test_gradients_reach_every_call_of_the_student(teacher):
    """A later call sees what an earlier one made, and is learnt together with it."""
    pushes = []

    def student(z, t):
        field = teacher(z, t)
        pushes.append(torch.zeros_like(field, requires_grad=True))
        return field + pushes[-1]

    eps = noise(0, range(2), *teacher.size)
    tutor = Teacher(teacher, Sampling())
    terms = distillation_loss(student, teacher, tutor, eps, calls=4, objective=Objective(), pixels=16)
    gradients = torch.autograd.grad(terms["loss"], pushes)
    assert len(gradients) == 4
    assert all(gradient.norm() > 0 for gradient in gradients)


def test_a_student_comes_nearer_to_its_teacher_than_the_teacher_in_as_few_calls(teacher):
    torch.manual_seed(0)
    tutor = Teacher(teacher, Sampling(steps=8))
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(20):
        eps = torch.randn(4, 3, *teacher.size)
        terms = distillation_loss(student, student, tutor, eps, calls=2, objective=Objective(), pixels=16)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    start = noise(5, range(8), *teacher.size)
    whole = result(teacher, start, **dataclasses.asdict(tutor.sampling))
    own = dataclasses.asdict(student_sampling(2))
    distance = [(result(model, start, **own) - whole).square().mean() for model in (student.eval(), teacher)]
    assert distance[0] < 0.7 * distance[1]


def test_weights_say_how_they_are_sampled_and_options_overrule():
    about = {"sampling": dataclasses.asdict(student_sampling(4))}
    data = checkpoint.dump(Denoiser(CONFIG).state_dict(), CONFIG, precision="float16", about=about)
    plan = generate.make_plan(generate.Options(out="", count=4), data)
    assert (plan.solver, plan.schedule, plan.steps) == ("euler", "distilled", 4)
    plan = generate.make_plan(generate.Options(out="", count=4, steps=8, solver="deis", schedule="early"), data)
    assert (plan.solver, plan.schedule, plan.steps) == ("deis", "early", 8)
    with pytest.raises(UserError, match="learned to make 4 calls, not 8: leave out --steps"):
        generate.make_plan(generate.Options(out="", count=4, steps=8), data)
    with pytest.raises(UserError, match="1, 2, 4, 8 or 16 calls, not 3"):
        generate.make_plan(generate.Options(out="", count=4, steps=3, schedule="distilled"), data)
