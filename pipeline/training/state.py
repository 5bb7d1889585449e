"""What a training checkpoint holds, and how it is written and read: safetensors and JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import checkpoint
from models.denoiser import Denoiser
from models.distillation import Student
from models.errors import UserError, one_line
from models.sampler import DEFAULT_SAMPLING
from models.tuning import first_calls
from pipeline.training.augmentation import AugmentedDenoiser
from pipeline.training.optimizers import Optimizers
from pipeline.training.recipe import Recipe


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not there, or not whole."""


@dataclass
class State:
    """What a checkpoint holds."""

    model: AugmentedDenoiser | Student
    # Of its weights, one for each of the recipe's widths: which is best shows afterwards.
    averages: list[Denoiser | Student]
    optimizers: Optimizers
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def new(recipe: Recipe, device: torch.device, start: Denoiser | None = None) -> State:
        """Seeded weights, the same on every rank, or those of `start`."""
        torch.manual_seed(recipe.seed)
        denoiser = Denoiser(recipe.model)
        if start is not None:
            denoiser.load_state_dict(start.state_dict())
        model: AugmentedDenoiser | Student
        if recipe.distil:
            assert start is not None
            model = Student(denoiser, first_calls(start, recipe.distil)).to(device)
        else:
            model = AugmentedDenoiser(denoiser).to(device)
        averages = [copy.deepcopy(sampled(model)).requires_grad_(False).eval() for _ in recipe.ema_widths]
        denoiser.backbone.set_dropout(recipe.dropout)
        return State(model, averages, Optimizers(model, recipe, fused=device.type == "cuda"))

    @property
    def denoisers(self) -> list[Denoiser]:
        """The averages as what makes pictures."""
        return [average.finished() if isinstance(average, Student) else average for average in self.averages]

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write state.safetensors, state.json, history.json and the averaged weights, see `weights_name`."""
        tensors = {
            f"{name}.{key}": p for name, module in self.modules().items() for key, p in module.state_dict().items()
        }
        for name, p in self.model.named_parameters():
            for key, value in self.optimizers.state(p).items():
                tensors[f"optimizer.{key}.{name}"] = value
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "state.safetensors")
        about = {"step": self.step, "seconds": self.seconds, "recipe": asdict(recipe), "history": self.history}
        (folder / "state.json").write_text(json.dumps(about))
        brief: dict[str, Any] = {
            "step": self.step,
            "pictures": self.step * recipe.batch,
            "minutes": self.seconds / 60.0,
        }
        brief |= {"recipe": asdict(recipe), "sampling": asdict(DEFAULT_SAMPLING)}
        for width, denoiser in zip(recipe.ema_widths, self.denoisers, strict=True):
            about, name = {**brief, "ema_width": width}, weights_name(recipe, width)
            weights = checkpoint.dump(denoiser.state_dict(), recipe.model, precision="float16", about=about)
            for few in denoiser.few_calls.values():
                weights = checkpoint.with_few_calls(weights, name, few, default=True)
            (folder / name).write_bytes(weights)
        (folder / "history.json").write_text(json.dumps(self.history))

    def restore(self, folder: Path, recipe: Recipe) -> None:
        """Read what `save` wrote. Raises UserError where the recipe differs, naming the fields.

        Raises DamagedCheckpoint, with the state as it was, for files that cannot be read.
        """
        try:
            about = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / "state.safetensors")
        except (FileNotFoundError, ValueError, SafetensorError) as error:
            raise DamagedCheckpoint(one_line(error)) from None
        before, ours = (flat(json.loads(json.dumps(asdict(one)))) for one in (Recipe(), recipe))
        theirs = before | flat(about["recipe"])
        theirs["pieces"] = ours["pieces"]  # which, like the number of ranks, is a matter of the machines at hand
        theirs.pop("every_mean", None)  # what 0.7.0 called its edition of the judge
        known = theirs.pop("photographs"), ours.pop("photographs")
        if all(known) and known[0] != known[1]:
            raise UserError(
                "--photos is not the set that the run in --out was begun with; give another --out"
                " (--weights goes on from what that run learned)"
            )
        judges = theirs["resemblance"], ours["resemblance"]
        if all(judges) and judges[0] != judges[1]:
            raise UserError(
                "the student in --out was judged by photographs as an earlier version does it; give another --out"
                " (--weights goes on from what that run learned)"
            )
        changed = [
            f"{key} was {theirs.get(key)}, now {ours.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if theirs.get(key) != ours.get(key)
        ]
        if changed:
            raise UserError(f"the run in --out has another recipe: {'; '.join(changed)}; give another --out")
        self.step, self.seconds, self.history = about["step"], about["seconds"], about["history"]
        for name, module in self.modules().items():
            start = f"{name}."
            module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        parameters = dict(self.model.named_parameters())
        for path, tensor in tensors.items():
            part, _, place = path.partition(".")
            if part == "optimizer":
                key, _, name = place.partition(".")
                self.optimizers.restore(parameters[name], key, tensor)

    def modules(self) -> dict[str, torch.nn.Module]:
        """What has weights, by name."""
        return {"model": self.model} | {f"average{i}": average for i, average in enumerate(self.averages)}

    def update_averages(self, widths: Sequence[float]) -> None:
        """Power-function averages (Karras et al., "EDM2", 2024): a width stays a fixed part of the training so far."""
        current: list[Tensor] = list(sampled(self.model).parameters())
        for width, average in zip(widths, self.averages, strict=True):
            # Equation 126 there: the relative width s of exponent g satisfies s^2 = (g + 1) / ((g + 2)^2 (g + 3)).
            beta = (1.0 - 1.0 / self.step) ** (average_exponent(width) + 1.0)
            with torch.no_grad():
                averaged: list[Tensor] = list(average.parameters())
                torch._foreach_lerp_(averaged, current, 1.0 - beta)


def sampled(model: AugmentedDenoiser | Student) -> Denoiser | Student:
    """What of a model in training makes pictures: labels of augmentation are for training alone."""
    return model if isinstance(model, Student) else model.denoiser


def weights_name(recipe: Recipe, width: float) -> str:
    """The file of one average: weights.safetensors for the recipe's first width, weights-0.1.safetensors for others."""
    return "weights.safetensors" if width == recipe.ema_widths[0] else f"weights-{width:g}.safetensors"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys like model.width."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


@cache
def average_exponent(width: float) -> float:
    """Solve (g + 1) / ((g + 2)^2 (g + 3)) = width^2 for g >= 0 by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        g = 0.5 * (low + high)
        low, high = (g, high) if (g + 1) / ((g + 2) ** 2 * (g + 3)) > width**2 else (low, g)
    return low
