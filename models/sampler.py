"""Un-lerp: solvers that turn noise into a cat.

With z_t = t x + (1 - t) eps and a denoiser that predicts x from z_t, the probability-flow ODE is

    dz/dt = (x(z, t) - z) / (1 - t)            from t = 0 (noise) to t = 1 (clean),

whose exact solution over [s, t], with x(.) known along the way, is

    z_t = (1 - t) (z_s / (1 - s) + integral_s^t x(r) / (1 - r)^2 dr).

The first-order solver holds x constant, which is the plain un-lerp; the multistep ones extrapolate x from earlier
calls. Every solver is one short generator over the times of a schedule.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.errors import UserError, check_name
from models.few_calls import FewCalls

# Chosen by Frechet distance of the bundled weights, see pretrained/tried.md, "Patch borders".
EARLY_EXPONENT = 2.0
# Time of the last call of the schedule `early`, whose x is the result.
EARLY_LAST = 0.80


@dataclass(frozen=True)
class Step:
    """One network call of a rollout."""

    t: float
    noisy: Tensor  # [B, 3, Y, X], the state the network saw
    field: Tensor  # [B, H, W, K, P], the splats it answered
    after: Tensor  # [B, 3, Y, X], the state that follows; after the last call its x


@dataclass(frozen=True)
class Sampling:
    """How a rollout is made; weights say in their header which suits them."""

    solver: str = "deis"
    schedule: str = "early"
    steps: int = 16  # network calls


DEFAULT_SAMPLING = Sampling()

# (noisy, t) -> (splat field, the same drawn at the model's resolution: x)
Denoise = Callable[[Tensor, float], tuple[Tensor, Tensor]]
# The same, and a hint [D] for the call.
HintedDenoise = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]
# The times 0 = t_0 < ... < t_n = 1 of n intervals.
Schedule = Callable[[int], list[float]]
# Takes the noise, a schedule, and how many calls to make.
Solver = Callable[[Denoise, Tensor, Schedule, int], Iterator[Step]]


def unlerp(z: Tensor, x: Tensor, s: float, t: float) -> Tensor:
    """Move from time s to t towards x: the exact step for a constant x."""
    return z + (x - z) * ((t - s) / (1.0 - s))


def uniform(intervals: int) -> list[float]:
    """0 = t_0 < ... < t_n = 1, evenly spaced."""
    return [i / intervals for i in range(intervals + 1)]


def early(intervals: int) -> list[float]:
    """Denser near the noise, where the prediction of x moves most, and done where x is as sharp as it gets.

    t_i = EARLY_LAST (i / (n - 1))^EARLY_EXPONENT for i < n, t_n = 1.
    """
    last = max(intervals - 1, 1)
    return [EARLY_LAST * (i / last) ** EARLY_EXPONENT for i in range(intervals)] + [1.0]


SCHEDULES: dict[str, Schedule] = {"uniform": uniform, "early": early}


def euler(denoise: Denoise, z: Tensor, schedule: Schedule, calls: int) -> Iterator[Step]:
    """The plain un-lerp, first order."""
    for s, t in itertools.pairwise(schedule(calls)):
        field, x = denoise(z, s)
        after = unlerp(z, x, s, t)
        yield Step(s, z, field, after)
        z = after


def heun(denoise: Denoise, z: Tensor, schedule: Schedule, calls: int) -> Iterator[Step]:
    """Second order (Karras et al., "EDM", 2022, algorithm 1): two calls an interval, and one in the last.

    Of an even number of calls one is left over: then the first interval too takes one, and is first order.
    """
    for s, t in itertools.pairwise(schedule(calls // 2 + 1)):
        field, x = denoise(z, s)
        after = unlerp(z, x, s, t)
        yield Step(s, z, field, after)
        if t < 1.0 and not (s == 0.0 and calls % 2 == 0):
            guess = after
            field, corrected = denoise(guess, t)
            slope = 0.5 * ((x - z) / (1.0 - s) + (corrected - guess) / (1.0 - t))
            after = z + (t - s) * slope
            yield Step(t, guess, field, after)
        z = after


def dpmpp2m(denoise: Denoise, z: Tensor, schedule: Schedule, calls: int) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al., 2022): x extrapolated linearly in lambda = log(t / (1 - t))."""
    before: tuple[float, Tensor] | None = None
    for s, t in itertools.pairwise(schedule(calls)):
        field, x = denoise(z, s)
        towards = x
        # lambda is infinite at both ends: first order there, as in the paper's lower-order start and finish.
        if before is not None and before[0] > 0.0 and t < 1.0:
            r = (logit(s) - logit(before[0])) / (logit(t) - logit(s))
            towards = x + (x - before[1]) / (2.0 * r)
        before = (s, x)
        after = unlerp(z, towards, s, t)
        yield Step(s, z, field, after)
        z = after


def deis(denoise: Denoise, z: Tensor, schedule: Schedule, calls: int, order: int = 2) -> Iterator[Step]:
    """DEIS, tAB form (Zhang and Chen, 2023): x extrapolated by a polynomial in t through the last `order` calls."""
    history: list[tuple[float, Tensor]] = []
    for s, t in itertools.pairwise(schedule(calls)):
        field, x = denoise(z, s)
        history = [*history, (s, x)][-order:]
        coefficients = adams_coefficients([time for time, _ in history], s, t)
        towards = sum((c * past for c, (_, past) in zip(coefficients, history, strict=True)), torch.zeros_like(z))
        after = z * ((1.0 - t) / (1.0 - s)) + towards
        yield Step(s, z, field, after)
        z = after


def adams_coefficients(nodes: Sequence[float], s: float, t: float) -> list[float]:
    """Integrals over [s, t] of (1 - t) / (1 - r)^2 times each Lagrange polynomial through `nodes`.

    In the limit t = 1 the weight is a point mass at 1, which the last step would extrapolate to; no later call
    corrects it, so the last step takes the newest x alone.
    """
    if t >= 1.0:
        return [0.0] * (len(nodes) - 1) + [1.0]
    points, weights = np.polynomial.legendre.leggauss(16)
    r = 0.5 * (t - s) * points + 0.5 * (t + s)
    density = 0.5 * (t - s) * weights * (1.0 - t) / (1.0 - r) ** 2
    coefficients = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        lagrange = np.prod([(r - other) / (node - other) for other in others], axis=0) if others else np.ones_like(r)
        coefficients.append(float(np.sum(density * lagrange)))
    return coefficients


def logit(t: float) -> float:
    """Logarithm of the odds, half the log signal-to-noise ratio of z_t."""
    return math.log(t / (1.0 - t))


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "dpmpp2m": dpmpp2m, "deis": deis}
# The name, as a solver and as a schedule, of the few calls that were learned for a denoiser.
LEARNED = "learned"


def follow(denoise: HintedDenoise, z: Tensor, few: FewCalls) -> Iterator[Step]:
    """Few calls as they were learned, from noise z."""
    answers: list[Tensor] = []
    state = z
    for t, hint in zip(few.times.tolist(), few.hints, strict=True):
        field, x = denoise(state, t, hint)
        answers.append(x)
        after = few.state(z, answers) if len(answers) < len(few) else x
        yield Step(t, state, field, after)
        state = after


def rollout(denoiser: Denoiser, noise: Tensor, *, steps: int, solver: str, schedule: str = "early") -> Iterator[Step]:
    """Denoise [B, 3, Y, X] step by step, by `steps` network calls; the last step's field is the result.

    No gradients; memory is that of one call, whatever their number. UserError for an unknown solver or schedule.
    """
    if steps < 1:
        raise UserError(f"steps {steps} is not possible; give at least 1 network call")

    def denoise(z: Tensor, t: float, hint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hints = None if hint is None else hint.to(z).expand(len(z), -1)
        field = denoiser(z, z.new_full((len(z),), t), hints)
        return field, denoiser.draw(field, *denoiser.size)

    if solver == schedule == LEARNED:
        check_learned(denoiser.few_calls, steps)
        made = follow(denoise, noise, denoiser.few_calls[steps])
    else:
        check_name("solver", solver, SOLVERS)
        check_name("schedule", schedule, SCHEDULES)
        made = SOLVERS[solver](denoise, noise, SCHEDULES[schedule], steps)
    while True:
        with torch.inference_mode():
            step = next(made, None)
        if step is None:
            return
        yield step


def check_learned(known: Collection[int], calls: int) -> None:
    """Raise UserError unless weights that have learned to make so many calls as are `known` have learned `calls`."""
    if calls not in known:
        numbers = ", ".join(map(str, sorted(known))) or "no number of"
        raise UserError(
            f"the weights have learned to make {numbers} calls, not {calls}; give another solver or --steps"
        )


def sample(denoiser: Denoiser, noise: Tensor, *, steps: int, solver: str, schedule: str = "early") -> Tensor:
    """The splat field [B, H, W, K, P] that a rollout ends with."""
    return deque(rollout(denoiser, noise, steps=steps, solver=solver, schedule=schedule), maxlen=1)[0].field
