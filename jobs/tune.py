"""Learn how few calls of given weights are best made: pictures almost as good as by many, in a fraction of the time.

    python -m jobs.tune --calls 4 --minutes 10 --lpips lpips_vgg16.safetensors --out fast.safetensors
    python -m jobs.generate --weights fast.safetensors --out out/fast --count 10000

The weights stay as they are; what is learned is when the calls are made, what each sees, and a hint to each. On one
device, a GPU or this machine's CPUs; needs no Ray.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from jobs.cli import check_numbers, counted, run, torch_device
from models import checkpoint
from models.errors import UserError
from models.few_calls import MOST_CALLS
from models.perceptual import load_lpips
from models.resemblance import RECENT
from models.sampler import Sampling
from models.tuning import Judges, first_calls, known_calls
from pipeline.datasets.indices import LARGEST
from pipeline.execution.memory import keep_freed
from pipeline.execution.threads import cores
from pipeline.storage.store import Store, using
from pipeline.training.judging import resemblance
from pipeline.training.training_set import load
from pipeline.training.tuning import make_pairs, tune

# Learning that begins with calls that the weights know goes more slowly. The pictures of sixteen begun from a student's
# four became less like photographs all the same, in a minute on a GPU; why is not known.
REFINING = 0.1


@dataclass(frozen=True)
class Options:
    """Which weights, how many calls, and for how long."""

    out: str
    """File (a path or fsspec URL) for the weights with what was learned; may be that of --weights."""

    calls: int
    """Network calls to make a picture in. What was learned of other numbers is kept beside it."""

    minutes: float
    """How long to learn, after the pictures to learn from are made."""

    weights: str = str(checkpoint.PRETRAINED)
    """Weights from jobs.train, a path or fsspec URL; the bundled ones if not given. Where they know as many calls,
    learning begins with these; of a student's weights with those it makes, and further ones between them, which count
    for nothing at first."""

    lpips: str | None = None
    """File of perceptual weights; without it pictures are compared by their mean square alone, and become softer."""

    photos: str | None = None
    """Folder (or fsspec URL) that jobs.prepare made: aim at the statistics of these photographs as well as at the
    pictures of many calls. Needs --lpips."""

    teacher_steps: int | None = None
    """Calls of deis, on the schedule early, that make the pictures to learn from. If not given, these are made by as
    many calls as the weights were trained for: of a student by its few, unless so many are learned without --photos."""

    pairs: int = 2048
    """Pictures to learn from."""

    batch: int | None = None
    """Pictures a step, at most --pairs; 128 on a GPU and 16 on CPUs if not given, or 512 and 64 with --photos:
    statistics need more."""

    at_once: int | None = None
    """So many of them are in memory, where each takes 20 to 60 MB a call; 128 on a GPU and 16 on CPUs if not given."""

    rate: float | None = None
    """Factor on the learning rates; 1 if not given, or 0.1 where learning begins with calls that the weights know."""

    seed: int = 0
    """Seed of the noise; pictures that jobs.generate makes are of other noise."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu or gpu."""

    default: bool = True
    """Let jobs.generate make so many calls with these weights unless told otherwise."""

    def __post_init__(self) -> None:
        check_numbers(self, "calls", least=1, most=MOST_CALLS)
        check_numbers(self, "minutes", "rate")
        check_numbers(self, "batch", "pairs", least=2)
        check_numbers(self, "at_once", least=1)
        if self.photos is not None and self.lpips is None:
            raise UserError("--photos needs --lpips, the file of the network that looks at them")
        check_numbers(self, "teacher_steps", least=1, most=1000)
        check_numbers(self, "seed", least=0, most=LARGEST)
        if not self.out.rpartition("/")[2].endswith(".safetensors"):
            raise UserError(f"--out {self.out}: give a file whose name ends with .safetensors")
        torch_device(self.device)


def main(options: Options) -> None:
    """Make the pictures to learn from, learn, write."""
    data = checkpoint.read(options.weights)
    denoiser = checkpoint.parse(data, options.weights)
    device = torch_device(options.device)
    lpips = load_lpips(options.lpips).to(device) if options.lpips is not None else None
    if lpips is None:
        print("no --lpips file: learning from the mean square alone; pictures will be softer")
    folder, _, name = options.out.rpartition("/")
    store = Store(folder or ("/" if options.out.startswith("/") else "."))
    with using(store):
        store.exists(name)  # a place that cannot be reached is said before anything is learned
    if device == "cpu":
        keep_freed()
        torch.set_num_threads(cores())
    usual = {"cpu": 16, "cuda": 128}[device]
    at_once = options.at_once or usual
    batch = min(options.batch or (usual if options.photos is None else 4 * usual), options.pairs)
    distilled = checkpoint.distilled(data, options.weights)
    sampling = teacher(options, data, distilled)
    few = first_calls(denoiser, options.calls, distilled)
    usual_rate = 1.0 if known_calls(denoiser, options.calls, distilled) is None else REFINING
    denoiser.to(device)
    pairs = make_pairs(denoiser, sampling, seed=options.seed, count=options.pairs, batch=4 * at_once)
    judges = Judges(
        lpips,
        # Pictures come again after all pairs; a judge must have forgotten them.
        resemblance(
            load(options.photos, heldout=False, detail=None).small,
            lpips,
            device=device,
            remembered=min(RECENT, options.pairs - batch),
        )
        if lpips and options.photos is not None
        else None,
    )
    few = tune(
        denoiser,
        few,
        pairs,
        minutes=options.minutes,
        batch=batch,
        at_once=at_once,
        judges=judges,
        rate=options.rate or usual_rate,
    )
    with using(store):
        store.write(name, checkpoint.with_few_calls(data, options.weights, few, default=options.default))
    print(f"{counted(options.calls, 'call')}, with the weights they are for: {options.out}")


def teacher(options: Options, data: bytes, distilled: int) -> Sampling:
    """How the pictures to learn from are made of the weights `data`, which were `distilled` for so many calls."""
    said = checkpoint.sampling(data, options.weights, many=True)
    if options.teacher_steps is not None:
        return Sampling(steps=options.teacher_steps)
    if 0 < distilled < options.calls and options.photos is None:
        raise UserError(
            f"--calls {options.calls}: these weights make their pictures in {distilled}, and more calls have nothing"
            " to learn from these; give --photos, or --teacher-steps"
        )
    of_few = distilled > 0 and (distilled != options.calls or options.photos is not None)
    return checkpoint.sampling(data, options.weights) if of_few else said


if __name__ == "__main__":
    sys.exit(run(Options, main))
