"""Few calls: what was learned about how one denoiser makes its pictures in n calls.

Every solver of `sampler` is linear in the noise and in the pictures that the network answered. Before call i the state
is

    z_i = noise_i z_0 + sum_{j < i} mix_ij x_j,        which the network sees at the time t_i,

and x of the last call is the result. Times and coefficients that follow from a formula suit many calls; for few, these
few dozen numbers are better learned for the network at hand ("Bespoke non-stationary solvers", Shaul et al., 2024).
Each call has a hint besides: a vector added to the network's conditioning, by which it can tell which call it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from models.errors import UserError

MOST_CALLS = 64


@dataclass(frozen=True)
class FewCalls:
    """How n calls are made."""

    times: Tensor  # [n], from 0 to below 1
    noise: Tensor  # [n]
    mix: Tensor  # [n, n]; what is below the diagonal counts
    hints: Tensor  # [n, D], D being the network's width

    def check(self) -> None:
        """UserError for tensors that cannot say it. Waits for their device."""
        n = self.times.numel()
        shapes = [tuple(tensor.shape) for tensor in vars(self).values()]
        if not 1 <= n <= MOST_CALLS or shapes[:3] != [(n,), (n,), (n, n)] or shapes[3][:-1] != (n,):
            raise UserError(f"few calls have tensors of the shapes {shapes}")
        if not all(bool(tensor.isfinite().all()) for tensor in vars(self).values()):
            raise UserError(f"what is said of {n} calls is not all finite numbers")
        if not bool(((self.times >= 0) & (self.times < 1)).all()):
            raise UserError(f"of {n} calls some are at times that are not from 0 to below 1")

    def __len__(self) -> int:
        return len(self.times)

    def state(self, z: Tensor, answers: Sequence[Tensor]) -> Tensor:
        """What the call after so many `answers` sees, all [B, 3, Y, X]; `z` is the noise."""
        i = len(answers)
        state = self.noise[i] * z
        for weight, answer in zip(self.mix[i], answers, strict=False):
            state = state + weight * answer
        return state


def named(few: FewCalls) -> dict[str, Tensor]:
    """The tensors of few calls, by names like 4.times."""
    return {f"{len(few)}.{name}": tensor for name, tensor in vars(few).items()}


def parse(tensors: Mapping[str, Tensor], width: int) -> dict[int, FewCalls]:
    """Few calls by their number, which `named` took apart, for a network of that width; UserError for others."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parts.setdefault(number, {})[name] = tensor.float()
    try:
        made = {int(number): FewCalls(**of_number) for number, of_number in parts.items()}
        for few in made.values():
            few.check()
    except (TypeError, ValueError) as error:
        raise UserError(f"few calls are not what they should be: {error}") from None
    if wrong := [n for n, few in made.items() if len(few) != n or few.hints.shape[1] != width]:
        raise UserError(f"few calls named {wrong[0]} are not that many, or for another width than {width}")
    return made
