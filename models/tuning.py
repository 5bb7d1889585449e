"""Learning few calls: when to call a denoiser, what to show it and what hint to give, so that few end where many do.

Where the denoiser itself stays as it is, a few thousand pictures are enough, and minutes; `distillation` has it learn
together with its calls.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser
from models.few_calls import FewCalls
from models.perceptual import Lpips
from models.resemblance import Resemblance
from models.sampler import SCHEDULES, SOLVERS, Sampling, sample

# Adam's step for each; times are learned as logits. That of the mix is for four calls or fewer: answers are much the
# same picture every time, so the steps of their weights add up.
RATES = {"times": 0.03, "noise": 0.008, "mix": 0.008, "hints": 0.003}
MIXED = 4
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


def first_calls(denoiser: Denoiser, calls: int, distilled: int = 0) -> FewCalls:
    """Where learning so many calls begins: what the denoiser knows of them, or else the default solver."""
    known = known_calls(denoiser, calls, distilled)
    return written_out(Sampling(steps=calls), denoiser.config.width) if known is None else known


def known_calls(denoiser: Denoiser, calls: int, distilled: int) -> FewCalls | None:
    """What the denoiser knows of so many calls, if anything.

    The weights of a student, `distilled` for fewer calls, are no good to a solver: there these are extended.
    """
    if calls in denoiser.few_calls:
        return denoiser.few_calls[calls]
    if 1 < distilled < calls and distilled in denoiser.few_calls:
        return extended(denoiser.few_calls[distilled], calls)
    return None


def extended(few: FewCalls, calls: int) -> FewCalls:
    """So many calls, no fewer than `few`, which are two or more, that make the same pictures.

    Those of `few` are among them, evenly, the last as the last. What the others are asked lies between what their
    neighbours are, and their answers have no weight yet.
    """
    places = torch.linspace(0, calls - 1, len(few)).round().long()
    along = torch.arange(calls)
    # The two of `few` that each call lies between, and how far on the way from one to the other.
    after = torch.searchsorted(places, along).clamp(min=1)
    before = after - 1
    way = (along - places[before]) / (places[after] - places[before])

    def between(values: Tensor) -> Tensor:
        return torch.lerp(values[before], values[after], way.view(-1, *[1] * (values.ndim - 1)))

    mix = torch.zeros(calls, calls)
    mix[:, places] = between(few.mix.tril(-1))
    return FewCalls(between(few.times), between(few.noise), mix, between(few.hints))


class Tunable(nn.Module):
    """Few calls as parameters. The first is made at time 0 and sees the noise, whatever is learned."""

    def __init__(self, few: FewCalls) -> None:
        super().__init__()
        several = len(few) > 1
        self.times = nn.Parameter(torch.logit(few.times[1:], eps=1e-4), requires_grad=several)
        self.noise = nn.Parameter(few.noise[1:].clone(), requires_grad=several)
        self.mix = nn.Parameter(few.mix[1:].clone(memory_format=torch.contiguous_format), requires_grad=several)
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


def finish(denoiser: Denoiser, few: FewCalls, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The splat fields that few calls make of `noise` [B, 3, Y, X], and the pictures, of the same shape, they are.

    Gradients flow through all calls; the host waits for none, as it does in `sampler.follow` to say their times.
    """
    answers: list[Tensor] = []
    for t, hint in zip(few.times, few.hints, strict=True):
        field = denoiser(few.state(noise, answers), t.expand(len(noise)), hint.expand(len(noise), -1))
        answers.append(denoiser.draw(field, *denoiser.size))
    return field, answers[-1]


@dataclass(frozen=True)
class Judges:
    """What tells how good pictures of few calls are, beside their mean square from those of many.

    LPIPS is what differs to an eye; without it pictures are softer. With `resemblance` they are drawn to photographs
    too, whatever those of many calls are like.
    """

    lpips: Lpips | None = None
    resemblance: Resemblance | None = None

    def differences(self, made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """How far pictures are from those wanted, [B, 3, Y, X] both, and from photographs: by name."""
        terms = {"mean square": MEAN_SQUARE_WEIGHT * (made - wanted).square().mean()}
        if self.lpips is not None:
            terms["LPIPS"] = self.lpips(made, wanted).mean()
        if self.resemblance is not None:
            terms["photographs"] = self.resemblance(made.clamp(-1.0, 1.0))
        return terms

    def loss(self, denoiser: Denoiser, few: FewCalls, noise: Tensor, wanted: Tensor, *, at_once: int = 128) -> float:
        """What few calls as they are differ by: of `noise`, from the pictures wanted of it, [B, 3, Y, X] both.

        `at_once` are made together, and all looked at; the judges remember none of them.
        """
        few = FewCalls(**{name: tensor.to(noise.device) for name, tensor in vars(few).items()})
        afresh = replace(self, resemblance=self.resemblance and self.resemblance.anew())
        with torch.no_grad():
            made = torch.cat([finish(denoiser, few, z)[1].clamp(-SHOWN, SHOWN) for z in noise.split(at_once)])
            return float(torch.stack(list(afresh.differences(made, wanted).values())).sum())


class Tuner:
    """Adam on few calls, a group of parameters each with its own rate and its gradient kept at a norm of at most 1."""

    def __init__(self, few: FewCalls, device: torch.device | str, rate: float = 1.0) -> None:
        """`rate`: how long steps are beside RATES."""
        self.tunable = Tunable(few).to(device)
        rates = {**RATES, "mix": RATES["mix"] * min(1.0, MIXED / len(few))}
        groups = [{"params": [p], "rate": rate * rates[name]} for name, p in self.tunable.named_parameters()]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.85, 0.98))

    def step(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        wanted: Tensor,
        judges: Judges,
        *,
        progress: float,
        at_once: int = 128,
    ) -> dict[str, Tensor]:
        """Learn from noise and the pictures wanted of it, [B, 3, Y, X], `at_once` of them in memory; terms by name.

        `progress` is from 0 to 1.
        """
        self.optimizer.zero_grad()
        terms: dict[str, Tensor] = {}
        for z, x in zip(noise.split(at_once), wanted.split(at_once), strict=True):
            made = finish(denoiser, self.tunable(), z)[1].clamp(-SHOWN, SHOWN)
            differences = judges.differences(made, x)
            share = len(z) / len(noise)
            (share * torch.stack(list(differences.values())).sum()).backward()
            for name, term in differences.items():
                terms[name] = terms.get(name, torch.zeros_like(term)) + share * term.detach()
        # Rates rise over a tenth of the way, as Adam's first steps are as long as any, and fall over the second half.
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, 10.0 * progress, 2.0 * (1.0 - progress))
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        return terms
