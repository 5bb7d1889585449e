"""Noise that never changes, and solvers against a differential equation whose solution is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import make_weights
from torch import Tensor

from models import checkpoint
from models.denoiser import DenoiserConfig
from models.errors import UserError
from models.noise import white_noise
from models.sampler import SCHEDULES, SOLVERS, Denoise, Step, rollout, sample

# For data of independent normal numbers, mean MEAN and deviation spread, the best prediction of x is known, and so is
# where the exact path from eps ends: at MEAN + spread * eps.
MEAN = 0.3


def spread() -> Tensor:
    return torch.linspace(0.2, 1.0, 3 * 4 * 4, dtype=torch.float64).view(1, 3, 4, 4)


def normal_data(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
    variance = t**2 * spread() ** 2 + (1 - t) ** 2
    x = MEAN + t * spread() ** 2 / variance * (z - t * MEAN)
    return x, x


def start(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(name: str, denoise: Denoise, steps: int, schedule: str = "uniform") -> list[Step]:
    return list(SOLVERS[name](denoise, start(), SCHEDULES[schedule], steps))


def error(name: str, steps: int, schedule: str) -> float:
    """Root mean square distance of the last state that was denoised from the exact path at its time."""
    last = run(name, normal_data, steps, schedule)[-1]
    exact = last.t * MEAN + ((last.t * spread()) ** 2 + (1 - last.t) ** 2).sqrt() * start()
    return (last.noisy - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 16])
def test_solvers_make_the_calls_asked_for_and_reach_a_constant_answer(name: str, steps: int) -> None:
    target = torch.full((1, 3, 4, 4), 0.25, dtype=torch.float64)
    seen: list[float] = []

    def constant(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        seen.append(t)
        # On the straight way from the noise to the target at every call.
        torch.testing.assert_close(z, (1 - t) * start() + t * target)
        return target.expand_as(z), target.expand_as(z)

    made = run(name, constant, steps)
    assert [step.t for step in made] == seen
    assert len(seen) == steps
    assert seen[0] == 0.0
    assert all(0 <= t < 1 for t in seen)
    torch.testing.assert_close(made[-1].field, target.expand_as(start()))
    assert torch.equal(made[0].noisy, start())


def test_every_solver_converges_to_the_exact_path() -> None:
    for name, schedule in itertools.product(SOLVERS, ("uniform", "early")):
        errors = [error(name, steps, schedule) for steps in (16, 64, 256)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2], (name, schedule)
        assert errors[2] < 5e-3, (name, schedule)


def test_multistep_solvers_at_16_calls_are_closer_than_euler_to_a_fine_rollout() -> None:
    fine = run("euler", normal_data, 2000)[-1].field
    distance = {name: (run(name, normal_data, 16)[-1].field - fine).square().mean().sqrt().item() for name in SOLVERS}
    assert distance["deis"] < 0.2 * distance["euler"]
    assert distance["dpmpp2m"] < 0.2 * distance["euler"]


def test_a_rollout_leaves_no_gradients_and_ends_as_sample_does() -> None:
    denoiser = checkpoint.parse(make_weights(DenoiserConfig(width=32, blocks=2, heads=2)), "here").requires_grad_(True)
    drawn = white_noise(0, [0, 1], *denoiser.size)
    steps = list(rollout(denoiser, drawn, steps=3, solver="dpmpp2m"))
    assert [step.noisy.shape for step in steps] == [(2, 3, 64, 64)] * 3
    assert torch.equal(steps[-1].field, sample(denoiser, drawn, steps=3, solver="dpmpp2m"))
    assert not any(step.field.requires_grad for step in steps)
    assert torch.is_grad_enabled()


def test_unknown_solvers_and_no_steps_are_refused() -> None:
    denoiser = checkpoint.parse(make_weights(DenoiserConfig(width=32, blocks=2, heads=2)), "here")
    with pytest.raises(UserError, match="unknown solver 'magic'; known: deis, dpmpp2m, euler, heun"):
        sample(denoiser, white_noise(0, [0], 64, 64), steps=2, solver="magic")
    with pytest.raises(UserError, match="steps 0 is not possible"):
        sample(denoiser, white_noise(0, [0], 64, 64), steps=0, solver="euler")
