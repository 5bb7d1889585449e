"""The training objective and LPIPS."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.denoiser import Denoiser, DenoiserConfig
from models.errors import UserError
from models.losses import TERMS, Objective, draw_times, training_loss, velocity_loss
from models.perceptual import Lpips, load_lpips

CPU = torch.device("cpu")
TINY = DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=16, blocks=1, heads=2)


@pytest.fixture(scope="module")
def lpips(vgg_file: Path) -> Lpips:
    return load_lpips(str(vgg_file))


def batch(count: int, many: int = 0) -> dict[str, Tensor]:
    """Random pictures of 16 pixels, `many` of them at 32 too, at stratified times."""
    generator = torch.Generator().manual_seed(0)
    groups = [draw_times(Objective(), n, generator, CPU) for n in (many, count - many)]
    pictures = {"clean": torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1, "t": torch.cat(groups)}
    if many:
        pictures["detailed"] = torch.rand(many, 3, 32, 32, generator=generator) * 2 - 1
    return pictures | {"noise": torch.randn(count, 3, 16, 16, generator=generator)}


def denoiser() -> Denoiser:
    """Tiny, and with every layer at work: as initialised, zeros stop the gradients of most."""
    torch.manual_seed(0)
    model = Denoiser(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def test_all_terms_are_finite_add_up_and_reach_every_parameter(lpips: Lpips) -> None:
    model = denoiser()
    terms = training_loss(model, model, **batch(6, 3), objective=Objective(), lpips=lpips)
    assert set(terms) == set(TERMS) - {"photographs", "detail_photographs"}  # which only students learn from
    assert all(0 < term.item() < 100 for term in terms.values())
    torch.testing.assert_close(terms["loss"], sum(term for name, term in terms.items() if name != "loss"))
    for name in terms:
        terms[name].backward(retain_graph=True)
        for parameter_name, parameter in model.named_parameters():
            assert parameter.grad is not None, (name, parameter_name)
            assert 0 < parameter.grad.abs().max() < torch.inf, (name, parameter_name)
        model.zero_grad()


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_without_large_pictures_or_gated_times_has_no_such_terms(lpips: Lpips, count: int) -> None:
    model = denoiser()
    terms = training_loss(model, model, **batch(count), objective=Objective(), lpips=lpips)
    assert set(terms) == {"loss", "velocity", "perceptual", "depth"}
    assert (terms["perceptual"] == 0) == (Objective().gated(count) == 0)
    terms["loss"].backward()
    assert set(training_loss(model, model, **batch(count), objective=Objective())) == {"loss", "velocity", "depth"}


def test_velocity_weighting_is_the_squared_error_of_the_velocity_up_to_its_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    x, clean, noise = torch.randn(3, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 0.9, 0.99], dtype=torch.float64)
    mix = t[:, None, None, None]
    noisy = mix * clean + (1 - mix) * noise
    predicted, true = (x - noisy) / (1 - mix), clean - noise
    expected = (predicted - true).square().mean(dim=(1, 2, 3))
    expected[3] *= (0.01 / 0.05) ** 2
    torch.testing.assert_close(velocity_loss(x, clean, t, Objective()), expected)


def test_times_are_stratified_and_the_gate_keeps_those_certainly_above_it() -> None:
    objective, generator = Objective(), torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 64, 512):
        times = torch.stack([draw_times(objective, count, generator, CPU) for _ in range(300)])
        assert bool((times.diff(dim=1) <= 0).all())
        assert 0 < times.min() < times.max() < 1
        kept = objective.gated(count)
        assert bool((times[:, :kept] > objective.perceptual_gate).all())
        # One more would sometimes lie below the gate.
        assert kept < count
        assert times[:, kept].min() < objective.perceptual_gate
    normal = torch.logit(times.double())
    assert normal.mean().item() == pytest.approx(objective.time_mean, abs=0.01)
    assert normal.std().item() == pytest.approx(objective.time_spread, abs=0.02)


def test_the_perceptual_term_looks_at_gated_pictures_of_both_groups_alone(lpips: Lpips) -> None:
    """Moving the clean picture of one that is not gated leaves the term; of a gated one, changes it."""
    model, objective, pictures = denoiser(), Objective(), batch(8, 4)
    kept = objective.gated(4)
    assert 0 < kept < 4

    def term(changed: int | None) -> float:
        clean = pictures["clean"].clone()
        if changed is not None:
            clean[changed] = -clean[changed]
        # The prediction must not move with it: noise is made up so that the network sees the same.
        mix = pictures["t"][:, None, None, None]
        noise = pictures["noise"] + mix / (1 - mix) * (pictures["clean"] - clean)
        terms = training_loss(
            model, model, **pictures | {"clean": clean, "noise": noise}, objective=objective, lpips=lpips
        )
        return terms["perceptual"].item()

    plain = term(None)
    moved = [abs(term(i) - plain) > 1e-3 * plain for i in range(8)]
    assert moved == [i % 4 < kept for i in range(8)]


def test_the_detailed_pictures_are_drawn_in_their_region() -> None:
    model, pictures = denoiser(), batch(2, 2)
    with torch.no_grad():
        mix = pictures["t"][:, None, None, None]
        field = model(mix * pictures["clean"] + (1 - mix) * pictures["noise"], pictures["t"])
        region = (0.25, 0.0, 0.75, 0.5)
        pictures["detailed"] = model.draw(field, 64, 64)[:, :, :32, 16:48]
        here = training_loss(model, model, **pictures, objective=Objective(), region=region)["detail"]
        elsewhere = training_loss(model, model, **pictures, objective=Objective())["detail"]
        doubled = dataclasses.replace(Objective(), detail=2.0)
        twice = training_loss(model, model, **pictures, objective=doubled)["detail"]
    assert here < 1e-8
    assert elsewhere > 1e-3
    torch.testing.assert_close(twice, 2 * elsewhere)


@pytest.mark.parametrize("name", ["time_mean", "detail", "depth", "time_spread"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_schedules_are_finite(name: str, value: float) -> None:
    with pytest.raises(UserError, match="finite"):
        Objective(**{name: value})


def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise(lpips: Lpips) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    noise = torch.randn(image.shape, generator=generator)
    distances = torch.stack([lpips(image + amount * noise, image) for amount in (0.0, 0.05, 0.2, 0.5)])
    assert distances.shape == (4, 2)
    assert bool((distances[0] == 0).all())
    assert bool((distances.diff(dim=0) > 0).all())


def test_lpips_sends_gradients_to_the_picture_alone(lpips: Lpips) -> None:
    image, target = torch.rand(2, 1, 3, 16, 16).unbind()
    image.requires_grad_()
    target.requires_grad_()
    lpips(image, target).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_lpips_files_that_lack_heads_are_named(vgg_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    save_file({name: tensor for name, tensor in vgg_weights.items() if name != "lin3.weight"}, path)
    with pytest.raises(UserError, match=rf"{path} lack lin3\.weight; the README"):
        load_lpips(str(path))
    save_file(vgg_weights | {"lin0.weight": torch.zeros(1, 3, 1, 1)}, path)
    with pytest.raises(UserError, match=rf"{path}: lin0\.weight has 3 numbers, not 64"):
        load_lpips(str(path))
