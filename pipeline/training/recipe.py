"""What to train and for how long: the frozen description that a run's checkpoints carry."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.denoiser import DenoiserConfig
from models.losses import Objective
from models.sampler import DEFAULT_SAMPLING, LEARNED, Sampling

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class Recipe:
    """What decides what training computes, beside how long it goes on.

    A field that comes later, here or in its parts, has as its default what was done before it: so runs that were begun
    without it go on.
    """

    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    objective: Objective = field(default_factory=Objective)
    batch: int = 512  # pictures a step, over all ranks
    optimizer: str = "adamw"  # one of OPTIMIZERS, see `optimizers`
    learning_rate: float = 6e-4
    warmup: int = 400  # steps
    decay: float = 0.4  # last part of training over which the learning rate falls linearly to 0
    weight_decay: float = 0.01
    augment: float = 0.15  # chance of each part of the augmentation, see `augmentation`
    dropout: float = 0.0  # share of the hidden layers that a step leaves out
    clip: float = 1.0  # largest norm of the gradient
    ema_widths: tuple[float, ...] = (0.05, 0.1)  # of the averages of the weights, as parts of the training so far
    pieces: int = 1  # a rank's pictures of a step are seen in so many pieces, one after the other, to save memory
    distil: int = 0  # calls of a student to distil from the weights to start from; 0: train on photographs
    resemblance: int = 0  # EDITION of `models.resemblance` that a student learns from as well; 0: none
    start: str | None = None  # fingerprint of the weights that training started from
    photographs: str | None = None  # fingerprint of the prepared set; None for sets and runs of before 0.7.0
    detail: int = 256  # photographs of at least this side supervise at high resolution too; 0 for none
    detail_pixels: int = 128  # side at which splats are drawn against high-resolution photographs
    lpips: bool = True  # whether the perceptual terms are on
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        """How the trained weights want to be sampled."""
        return Sampling(LEARNED, LEARNED, self.distil) if self.distil else DEFAULT_SAMPLING


@dataclass(frozen=True)
class Budget:
    """How long to train: until the first of the two is reached, and how often to report and to save, at the latest."""

    steps: int | None = None
    minutes: float | None = None
    report_every: int = 50
    save_every: int = 2000
    save_minutes: float = 10.0

    def progress(self, step: int, seconds: float) -> float:
        """Part done, 0 to 1, the larger of the two."""
        parts = [step / self.steps] if self.steps else []
        parts += [seconds / (60.0 * self.minutes)] if self.minutes else []
        return min(1.0, max(parts))


@dataclass(frozen=True)
class Run:
    """One training run as the user asked for it."""

    photos: str | None  # None where a student learns from its teacher alone
    out: str
    recipe: Recipe
    budget: Budget
    workers: int = 1
    lpips: str | None = None
    weights: str | None = None  # to start from
    fused: bool = False  # see `trainer.train`


def rate_share(recipe: Recipe, step: int, progress: float) -> float:
    """What part of its peak a learning rate has: linear warm-up, 1, linear decay to 0 over the last of the budget."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    fall = min(1.0, (1.0 - progress) / recipe.decay) if recipe.decay else 1.0
    return rise * max(fall, 0.0)
