"""What moves the weights: AdamW; or Muon the matrices of the blocks, and AdamW everything else.

Muon (Jordan et al., 2024) moves a matrix by its momentum made orthogonal. Its steps are scaled to have the root mean
square of AdamW's (Liu et al., "Muon is scalable for LLM training", 2025), so both take one learning rate. Layers that
share a matrix, like queries, keys and values, are one to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.distillation import Student
from models.errors import check_name
from models.tuning import RATES
from pipeline.training.recipe import OPTIMIZERS, Recipe

# How calls are made is learned at the rates of jobs.tune at this learning rate of the weights, and in proportion to it.
TUNED = 2e-4


class Optimizers:
    """Those of a recipe, which together move all parameters of a model that learn."""

    def __init__(self, model: nn.Module, recipe: Recipe, *, fused: bool) -> None:
        """`fused`: in one kernel, on CUDA."""
        check_name("optimizer", recipe.optimizer, OPTIMIZERS)
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if name.startswith("calls."):
                continue
            orthogonal = recipe.optimizer == "muon" and ".blocks." in name and name.endswith(".weight")
            (matrices if orthogonal else others).append(parameter)
        # "rate" is the peak of a group's learning rate.
        groups: list[dict[str, Any]] = [{"params": others, "rate": recipe.learning_rate}]
        if isinstance(model, Student):
            share = recipe.learning_rate / TUNED
            groups += [
                {"params": [parameter], "rate": share * RATES[name], "weight_decay": 0.0}
                for name, parameter in model.calls.named_parameters()
                if parameter.requires_grad
            ]
        decay = recipe.weight_decay
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=decay, fused=fused)
        ]
        if matrices:
            group = {"params": matrices, "rate": recipe.learning_rate}
            self._all.append(torch.optim.Muon([group], weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        self._owners = {p: one for one in self._all for group in one.param_groups for p in group["params"]}

    def step(self, share: float) -> None:
        """Move all parameters by their gradients, which are gone then, at so much of the peak learning rates."""
        for one in self._all:
            for group in one.param_groups:
                group["lr"] = group["rate"] * share
            one.step()
            one.zero_grad(set_to_none=True)

    def state(self, parameter: Tensor) -> Mapping[str, Tensor]:
        """What is remembered of a parameter from step to step, by name."""
        owner = self._owners.get(parameter)
        return owner.state[parameter] if owner is not None else {}

    def restore(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Set what `state` has; KeyError for a parameter that does not learn."""
        self._owners[parameter].state[parameter][name] = value.to(parameter.device)
