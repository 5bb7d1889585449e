"""Learning few calls: when to call a denoiser, what to show it and what hint to give, so that few end where many do.

The denoiser itself stays as it is, so a few thousand pictures are enough, and minutes.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser
from models.few_calls import FewCalls
from models.sampler import SCHEDULES, SOLVERS, Sampling, follow, sample

# Adam's step for each; times are learned as logits.
RATES = {"times": 0.03, "noise": 0.008, "mix": 0.008, "hints": 0.003}
MEAN_SQUARE_WEIGHT = 2.0  # beside LPIPS
SHOWN = 1.1  # colours beyond -1 to 1 are not seen; so far beyond, they are not compared


def written_out(sampling: Sampling, width: int) -> FewCalls:
    """A solver of `sampler` as few calls without hints: its coefficients are what it makes of unit vectors."""
    basis = torch.eye(sampling.steps + 1, dtype=torch.float64)
    answers = iter(basis[1:])

    def answer(z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return z, next(answers)

    steps = list(SOLVERS[sampling.solver](answer, basis[0], SCHEDULES[sampling.schedule], sampling.steps))
    seen = torch.stack([step.noisy for step in steps]).float()
    times = torch.tensor([step.t for step in steps])
    return FewCalls(times, seen[:, 0], seen[:, 1:], torch.zeros(sampling.steps, width))


class Tunable(nn.Module):
    """Few calls as parameters. The first is made at time 0 and sees the noise, whatever is learned."""

    def __init__(self, few: FewCalls) -> None:
        super().__init__()
        self.times = nn.Parameter(torch.logit(few.times[1:], eps=1e-4))
        self.noise = nn.Parameter(few.noise[1:].clone())
        self.mix = nn.Parameter(few.mix[1:].clone())
        self.hints = nn.Parameter(few.hints.clone())

    def forward(self) -> FewCalls:
        """The few calls, through which gradients flow."""
        first = self.times.new_zeros(1)
        return FewCalls(
            torch.cat([first, self.times.sigmoid()]),
            torch.cat([first + 1.0, self.noise]),
            torch.cat([torch.zeros_like(self.hints[:1, :1]).expand(1, len(self.hints)), self.mix]).tril(-1),
            self.hints,
        )

    def learned(self) -> FewCalls:
        """What was learned so far, on the CPU."""
        with torch.no_grad():
            few = self()
        return FewCalls(**{name: tensor.cpu().clone() for name, tensor in vars(few).items()})


def wanted(denoiser: Denoiser, sampling: Sampling, noise: Tensor) -> Tensor:
    """The pictures [B, 3, Y, X], as a screen shows them, that `sampling` makes of `noise`."""
    with torch.no_grad():
        return denoiser.draw(sample(denoiser, noise, **asdict(sampling)), *denoiser.size).clamp(-1.0, 1.0).clone()


def tuning_loss(
    denoiser: Denoiser, few: FewCalls, noise: Tensor, pictures: Tensor, lpips: nn.Module | None
) -> dict[str, Tensor]:
    """How far what few calls make of `noise` is from `pictures`, all [B, 3, Y, X]: scalars by name, and "loss".

    LPIPS is what differs to an eye; without it the mean square alone is left.
    """

    def denoise(z: Tensor, t: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        field = denoiser(z, t.expand(len(z)), hint.expand(len(z), -1))
        return field, denoiser.draw(field, *denoiser.size)

    *_, last = follow(denoise, noise, few)
    shown = last.after.clamp(-SHOWN, SHOWN)
    terms = {"mean square": (shown - pictures).square().mean()}
    terms["loss"] = MEAN_SQUARE_WEIGHT * terms["mean square"]
    if lpips is not None:
        terms["LPIPS"] = lpips(shown, pictures).mean()
        terms["loss"] = terms["loss"] + terms["LPIPS"]
    return terms


class Tuner:
    """Adam on few calls, a group of parameters each with its own rate and its gradient kept at a norm of at most 1."""

    def __init__(self, few: FewCalls, device: torch.device | str) -> None:
        self.tunable = Tunable(few).to(device)
        groups = [{"params": [p], "rate": RATES[name]} for name, p in self.tunable.named_parameters()]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.85, 0.98))

    def step(
        self, denoiser: Denoiser, noise: Tensor, pictures: Tensor, lpips: nn.Module | None, *, progress: float
    ) -> dict[str, Tensor]:
        """Learn from a batch, see `tuning_loss`; `progress` is from 0 to 1."""
        terms = tuning_loss(denoiser, self.tunable(), noise, pictures, lpips)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        # Rates rise over a tenth of the way, as Adam's first steps are as long as any, and fall over the second half.
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, 10.0 * progress, 2.0 * (1.0 - progress))
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}
