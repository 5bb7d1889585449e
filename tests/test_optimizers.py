"""What moves which weights, and how far."""

import dataclasses

import torch
from conftest import make_lively

from models.denoiser import DenoiserConfig
from pipeline.training.optimizers import Optimizers
from pipeline.training.recipe import Recipe

RECIPE = Recipe(
    model=DenoiserConfig(splats_per_patch=4, width=16, blocks=2, heads=2), learning_rate=0.01, weight_decay=0.0
)


def moved(optimizer: str) -> dict[str, torch.Tensor]:
    """How a first step moves the parameters of a model, given some gradients."""
    model = make_lively(RECIPE.model).requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.linspace(0.2, 1.0, parameter.shape[-1])
    Optimizers(model, dataclasses.replace(RECIPE, optimizer=optimizer), fused=False).step(0.5)
    assert all(parameter.grad is None for parameter in model.parameters())
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def test_muon_moves_the_matrices_of_the_blocks_evenly_and_leaves_the_rest_to_adamw():
    adamw, muon = moved("adamw"), moved("muon")
    matrices = {name for name in muon if ".blocks." in name and name.endswith(".weight")}
    assert len(matrices) == 2 * 4
    for name, step in muon.items():
        if name not in matrices:
            assert torch.equal(step, adamw[name]), name
            continue
        # Every direction is moved about as far, whatever its gradient: 0.2 in root mean square at a rate of 1.
        scale = torch.linalg.svdvals(step) / (0.5 * 0.01 * 0.2 * max(step.shape) ** 0.5)
        assert 0.6 < scale.min() <= scale.max() < 1.3, name
