"""Distillation: a student learns to make in a few calls what its teacher makes in many, or what photographs show."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import make_lively

from models.denoiser import Denoiser, DenoiserConfig
from models.distillation import Student, Teacher, distillation_loss
from models.few_calls import FewCalls
from models.losses import Objective
from models.noise import white_noise
from models.resemblance import Likeness, Resemblance, cut
from models.sampler import Sampling, sample
from models.tuning import first_calls
from models.vgg import load_vgg

CONFIG = DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=32, blocks=2, heads=2)


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return make_lively(CONFIG)


def begin(teacher: Denoiser, calls: int) -> Student:
    return Student(copy.deepcopy(teacher).requires_grad_(True), first_calls(teacher, calls))


def pictures(denoiser: Denoiser, start: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.draw(sample(denoiser, start, **dataclasses.asdict(sampling)), *denoiser.size)


def learned(calls: int) -> Sampling:
    return Sampling("learned", "learned", calls)


def test_a_student_begins_as_its_teacher_in_as_few_calls_and_with_what_is_known_of_them(teacher):
    eps = white_noise(0, range(3), *teacher.size)
    objective = Objective(depth=0.0)
    for calls in (1, 2):
        student = begin(teacher, calls)
        alike, other = Teacher(teacher, Sampling(steps=calls)), Teacher(teacher, Sampling())
        terms = distillation_loss(student, student.denoiser, alike, eps, objective=objective, pixels=24)
        assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(
            {"velocity": 0.0, "detail": 0.0, "loss": 0.0}, abs=1e-9
        )
        terms = distillation_loss(student, student.denoiser, other, eps, objective=objective, pixels=None)
        assert terms.keys() == {"velocity", "loss"}
        apart = pictures(student.finished(), eps, learned(calls)) - pictures(teacher, eps, Sampling())
        torch.testing.assert_close(terms["velocity"], apart.square().mean(), rtol=1e-3, atol=1e-9)
    known = copy.deepcopy(teacher)
    few = FewCalls(
        torch.tensor([0.0, 0.3]), torch.tensor([1.0, 0.5]), torch.eye(2).roll(1, 0).tril(-1), torch.ones(2, 32)
    )
    known.few_calls = {2: few}
    for name, tensor in vars(begin(known, 2).calls.learned()).items():
        torch.testing.assert_close(tensor, getattr(few, name))


@pytest.mark.parametrize("calls", [1, 3])
def test_gradients_reach_the_weights_through_every_call_and_how_calls_are_made(teacher, calls):
    student = begin(teacher, calls)
    eps = white_noise(0, range(2), *teacher.size)
    tutor = Teacher(teacher, Sampling())
    terms = distillation_loss(student, student.denoiser, tutor, eps, objective=Objective(), pixels=16)
    terms["loss"].backward()
    assert all(p.grad.norm() > 0 for p in student.denoiser.parameters())
    assert (student.calls.hints.grad.norm(dim=1) > 0).all()
    for name in ("times", "noise", "mix"):
        p = getattr(student.calls, name)
        assert p.grad is None if calls == 1 else p.grad.norm() > 0


def test_a_student_comes_nearer_to_its_teacher_than_the_teacher_in_as_few_calls(teacher):
    torch.manual_seed(0)
    tutor, student = Teacher(teacher, Sampling(steps=8)), begin(teacher, 2).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(40):
        eps = torch.randn(8, 3, *teacher.size)
        terms = distillation_loss(student, student.denoiser, tutor, eps, objective=Objective(), pixels=16)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    start = white_noise(5, range(8), *teacher.size)
    whole = pictures(teacher, start, tutor.sampling)
    made = pictures(student.eval().finished(), start, learned(2)), pictures(teacher, start, Sampling(steps=2))
    distance = [float((each - whole).square().mean()) for each in made]
    assert distance[0] < 0.7 * distance[1]


def test_a_student_that_sees_photographs_becomes_more_like_them_than_its_teacher(teacher, vgg_file):
    torch.manual_seed(0)
    tutor, student = Teacher(teacher, Sampling(steps=2)), begin(teacher, 2).train()
    like_its_own = pictures(teacher, white_noise(6, range(300), *teacher.size), tutor.sampling)
    photographs = 0.8 * like_its_own + 0.1
    judge = Resemblance(load_vgg(str(vgg_file)), photographs.split(100), enlarged=(1,))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(15):
        eps = torch.randn(6, 3, *teacher.size)
        terms = distillation_loss(
            student, student.denoiser, tutor, eps, objective=Objective(), pixels=None, likeness=Likeness(judge)
        )
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    start = white_noise(5, range(16), *teacher.size)
    made = [pictures(teacher, start, tutor.sampling), pictures(student.eval().finished(), start, learned(2))]
    far = [float(Resemblance(judge.trunk, photographs.split(100), enlarged=(1,))(each)) for each in made]
    assert far[1] < 0.8 * far[0]


def test_windows_of_what_a_student_draws_large_are_judged_in_detail(teacher, vgg_file):
    student, tutor = begin(teacher, 1).train(), Teacher(teacher, Sampling(steps=1))
    eps, places = white_noise(6, range(4), *teacher.size), torch.rand(4, 2)
    with torch.no_grad():
        large = teacher.draw(tutor.make(eps), 40, 40).clamp(-1.0, 1.0)
    photographs = 0.8 * cut(large.repeat(4, 1, 1, 1), torch.rand(16, 2), *teacher.size) + 0.1
    judges = [Resemblance(load_vgg(str(vgg_file)), [photographs], enlarged=(1,), quarters=False) for _ in range(2)]
    terms = distillation_loss(
        student,
        student.denoiser,
        tutor,
        eps,
        objective=Objective(photographs=0.0, detail_photographs=0.5, depth=0.0),
        pixels=None,
        likeness=Likeness(copy.copy(judges[0]), judges[0], 40),
        places=places,
    )
    expected = 0.5 * judges[1](cut(large, places, *teacher.size))
    torch.testing.assert_close(terms["detail_photographs"].detach(), expected.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(terms["loss"], terms["detail_photographs"] + terms["velocity"])
    (slope,) = torch.autograd.grad(terms["detail_photographs"], student.denoiser.head.weight)
    assert slope.norm() > 0
