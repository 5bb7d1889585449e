"""Distillation: targets are where the teacher goes, and a student learns to go there at once."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import make_weights

from jobs import generate
from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig
from models.distillation import distillation_loss, student_sampling, targets
from models.errors import UserError
from models.losses import Objective
from models.sampler import SCHEDULES, noise, rollout, sample, unlerp

CONFIG = DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=32, blocks=2, heads=2)


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    """Random weights whose answers depend on what they see and when."""
    made = checkpoint.parse(make_weights(CONFIG), "here")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "modulation" in name or "offset" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return made


def result(denoiser: Denoiser, start: torch.Tensor, **sampling) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.draw(sample(denoiser, start, **sampling), *denoiser.size)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_targets_are_where_the_teacher_goes(teacher, calls):
    start = noise(0, range(2), *teacher.size)
    with torch.no_grad():
        path = list(rollout(teacher, start, steps=16, solver="deis", schedule="early"))
    times, stride = SCHEDULES["distilled"](calls), 16 // calls
    # Grey and this noise lerp to the state of the path at the call before each segment.
    eps = torch.cat(
        [path[first].noisy / (1.0 - path[first].t) for first in (max(k * stride - 1, 0) for k in range(calls))]
    )
    t, states, wanted, field = targets(teacher, torch.zeros_like(eps), eps, calls)
    for k, (z, x) in enumerate(zip(states.split(2), wanted.split(2), strict=True)):
        assert t[2 * k].item() == pytest.approx(times[k])
        # That call alone goes without the history that the path has there.
        assert off(z, path[k * stride].noisy) < 0.02
        reached = path[(k + 1) * stride].noisy if k + 1 < calls else path[-1].after
        assert off(unlerp(z, x, times[k], times[k + 1]), reached) < 0.05
    assert off(field, path[-1].field) < 0.05


def off(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root mean square of the difference, in deviations of b."""
    return (a - b).square().mean().sqrt() / b.std()


def test_a_student_comes_nearer_to_its_teacher_than_the_teacher_in_as_few_calls(teacher):
    torch.manual_seed(0)
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(30):
        eps = torch.randn(8, 3, *teacher.size)
        terms = distillation_loss(
            student, student, teacher, torch.zeros_like(eps), eps, calls=2, objective=Objective(), pixels=16
        )
        assert set(terms) == {"loss", "velocity", "detail"}
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    start = noise(5, range(8), *teacher.size)
    whole = result(teacher, start, steps=16, solver="deis", schedule="early")
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
    with pytest.raises(UserError, match="1, 2, 4, 8 or 16 calls, not 3"):
        generate.make_plan(generate.Options(out="", count=4, steps=3), data)
