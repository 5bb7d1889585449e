"""The training loop of one rank."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_lively

from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig
from models.distillation import Teacher
from models.errors import UserError
from models.noise import white_noise
from models.resemblance import EDITION
from models.sampler import Sampling, sample
from pipeline.training import trainer
from pipeline.training.augmentation import LABELS
from pipeline.training.batches import Pictures
from pipeline.training.recipe import Budget, Recipe, rate_share
from pipeline.training.state import DamagedCheckpoint, State
from pipeline.training.trainer import train
from pipeline.training.training_set import TrainingSet

CPU = torch.device("cpu")
RECIPE = Recipe(
    model=DenoiserConfig(splats_per_patch=4, width=16, blocks=1, heads=2),
    batch=2,
    learning_rate=0.1,
    lpips=False,
    detail_pixels=64,
)
MUON = dataclasses.replace(RECIPE, optimizer="muon")
STUDENT = dataclasses.replace(RECIPE, distil=2, pieces=2, learning_rate=1e-3, warmup=1)


class Reports:
    """Keeps what a run reports, and a copy of every checkpoint; can do something at an event."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: list[dict[str, float]] = []
        self.kept: list[str] = []
        self.after: dict[str, Callable[[], None]] = {}

    def tell(self, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)

    def keep(self, folder: Path, step: int) -> Path:
        return shutil.copytree(folder, self.folder / f"step-{step}")

    def report(self, metrics: dict[str, float], kept: Path | None) -> None:
        if kept is not None:
            self.kept.append(kept.name)
        for event in (f"report {metrics['step']:.0f}", f"kept {kept.name if kept else None}"):
            if event in self.after:
                self.after.pop(event)()


class Interrupted(Exception):
    pass


def begin(recipe: Recipe) -> State:
    return State.new(recipe, CPU, make_lively(recipe.model) if recipe.distil else None)


def run(
    photographs: TrainingSet,
    reports: Reports,
    work: Path,
    budget: Budget,
    state: State | None = None,
    recipe: Recipe = RECIPE,
) -> State:
    state = state or begin(recipe)
    work.mkdir()
    teacher = Teacher(make_lively(recipe.model), Sampling(steps=4))
    source = teacher if recipe.distil else Pictures(photographs, CPU)
    train(state, recipe, budget, source, outlet=reports, work=work)
    return state


def test_slow_steps_are_reported_one_by_one(
    photographs: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the minutes of a run are looked at, and users see that it lives."""
    monkeypatch.setattr(trainer, "PATIENCE", 0.0)
    reports = Reports(tmp_path)
    run(photographs, reports, tmp_path / "work", Budget(steps=3, report_every=1000))
    assert [int(metrics["step"]) for metrics in reports.metrics] == [1, 2, 3]


def test_checkpoints_are_made_by_the_clock_too(photographs: TrainingSet, tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    run(photographs, reports, tmp_path / "work", Budget(steps=3, report_every=1, save_every=1000, save_minutes=0.0))
    assert reports.kept == ["step-1", "step-2", "step-3"]


@pytest.mark.parametrize("recipe", [RECIPE, STUDENT, MUON], ids=["photographs", "student", "muon"])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    photographs: TrainingSet, tmp_path: Path, recipe: Recipe
) -> None:
    budget = Budget(steps=6, report_every=2, save_every=3)
    whole = Reports(tmp_path / "whole")
    run(photographs, whole, tmp_path / "a", budget, recipe=recipe)
    assert [int(metrics["step"]) for metrics in whole.metrics] == [2, 3, 4, 6]

    first = Reports(tmp_path / "parts")

    def interrupt() -> None:
        raise Interrupted

    first.after["kept step-3"] = interrupt
    with pytest.raises(Interrupted):
        run(photographs, first, tmp_path / "b", budget, recipe=recipe)
    torch.manual_seed(99)
    state = begin(recipe)
    state.restore(tmp_path / "parts/step-3", recipe)
    assert state.step == 3
    run(photographs, Reports(tmp_path / "rest"), tmp_path / "c", budget, state, recipe)

    for name in ("state.safetensors", "sheet.png"):
        assert (tmp_path / "rest/step-6" / name).read_bytes() == (tmp_path / "whole/step-6" / name).read_bytes()
    histories = [json.loads((tmp_path / kind / "step-6/history.json").read_text()) for kind in ("whole", "rest")]
    assert [[entry["loss"] for entry in history] for history in histories] == [[m["loss"] for m in histories[0]]] * 2
    # Steps did something: the weights moved, and the average lags behind them.
    start, moved = (s.model.denoiser.head.weight for s in (begin(recipe), state))
    assert (moved - start).abs().max() > 1e-4
    assert (moved - state.denoisers[0].head.weight).abs().max() > 1e-6


def test_a_checkpoint_holds_nothing_but_its_files(photographs: TrainingSet, tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    run(photographs, reports, tmp_path / "work", Budget(steps=1))
    names = {path.name for path in (tmp_path / "step-1").iterdir()}
    assert names == {
        "state.json",
        "state.safetensors",
        "weights.safetensors",
        "weights-0.1.safetensors",
        "history.json",
        "sheet.png",
    }
    weights = (tmp_path / "step-1/weights.safetensors").read_bytes()
    about = json.loads(checkpoint.read_header(weights, "here")["about"])
    assert (about["step"], about["pictures"], about["recipe"]["learning_rate"]) == (1, 2, 0.1)


@pytest.mark.parametrize("recipe", [RECIPE, STUDENT], ids=["photographs", "student"])
def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_checkpoint_good(
    photographs: TrainingSet, tmp_path: Path, recipe: Recipe
) -> None:
    reports = Reports(tmp_path)
    state = begin(recipe)

    def poison() -> None:
        with torch.no_grad():
            state.model.denoiser.head.bias[0] = math.nan

    reports.after["report 2"] = poison
    with pytest.raises(UserError, match=r"not finite between steps 2 and 4.*--learning-rate"):
        run(photographs, reports, tmp_path / "work", Budget(steps=8, report_every=2, save_every=2), state, recipe)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-2"]
    denoiser = checkpoint.load(tmp_path / "step-2/weights.safetensors")
    assert sample(denoiser, white_noise(0, [0], *denoiser.size), steps=2, solver="euler").isfinite().all()
    again = begin(recipe)
    again.restore(tmp_path / "step-2", recipe)
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


def test_training_goes_on_while_a_checkpoint_is_stored(photographs: TrainingSet, tmp_path: Path) -> None:
    later = threading.Event()

    class Slow(Reports):
        def tell(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 3:
                later.set()

        def keep(self, folder: Path, step: int) -> Path:
            assert step > 2 or later.wait(60)
            return super().keep(folder, step)

    reports = Slow(tmp_path)
    trained = run(photographs, reports, tmp_path / "work", Budget(steps=5, report_every=1, save_every=2))
    assert reports.kept == ["step-2", "step-4", "step-5"]
    # What was stored is the state at its step, though training was further by then.
    state = State.new(RECIPE, CPU)
    state.restore(tmp_path / "step-2", RECIPE)
    assert (state.step, len(state.history)) == (2, 2)
    assert (state.model.denoiser.head.weight - trained.model.denoiser.head.weight).abs().max() > 1e-3
    assert not list((tmp_path / "work").iterdir())


def test_dropout_is_for_training_alone() -> None:
    state = State.new(dataclasses.replace(RECIPE, dropout=0.5), CPU, start=nonzero())
    noisy, t = torch.randn(2, 3, 64, 64), torch.tensor([0.3, 0.7])
    trained = [state.model(noisy, t, torch.zeros(2, LABELS)) for _ in range(2)]
    assert (trained[0] - trained[1]).abs().max() > 1e-3
    kept = [state.averages[0](noisy, t) for _ in range(2)]
    assert torch.equal(*kept)
    torch.testing.assert_close(kept[0], nonzero()(noisy, t))


def nonzero() -> Denoiser:
    """A model whose every layer is at work: as initialised, zeros switch most of them off."""
    torch.manual_seed(0)
    denoiser = Denoiser(RECIPE.model)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return denoiser


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are kernels for CUDA")
def test_kernels_that_are_not_there_are_not_left_out_in_silence(photographs: TrainingSet, tmp_path: Path) -> None:
    pictures, budget, reports = Pictures(photographs, CPU), Budget(steps=1), Reports(tmp_path)
    with pytest.raises(UserError, match="--fused: there are no kernels for this shape of model on this device"):
        train(begin(RECIPE), RECIPE, budget, pictures, outlet=reports, work=tmp_path, fused=True)
    assert not reports.metrics


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are for CUDA")
def test_fused_training_learns_what_compiled_training_does(
    photographs: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DenoiserConfig(splats_per_patch=4, width=64, blocks=2, heads=2)
    recipe = dataclasses.replace(RECIPE, model=model, batch=64, learning_rate=1e-3, warmup=1)
    from models import transformer_training

    launched = []
    run = transformer_training.run
    monkeypatch.setattr(transformer_training, "run", lambda *given: launched.append(given) or run(*given))
    losses = []
    for fused in (False, True):
        state, reports = State.new(recipe, torch.device("cuda")), Reports(tmp_path / str(fused))
        work = tmp_path / f"work-{fused}"
        work.mkdir()
        pictures = Pictures(photographs, torch.device("cuda"))
        train(state, recipe, Budget(steps=8, report_every=1), pictures, outlet=reports, work=work, fused=fused)
        losses.append([metrics["loss"] for metrics in reports.metrics])
        assert bool(launched) == fused
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    state = State.new(RECIPE, CPU)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizers.step(1.0)
    state.save(tmp_path, RECIPE)
    wider = Recipe(**vars(RECIPE) | {"model": DenoiserConfig(splats_per_patch=4, width=32, blocks=1, heads=2)})
    with pytest.raises(UserError, match=r"another recipe: model\.width was 16, now 32; give another --out"):
        State.new(wider, CPU).restore(tmp_path, wider)
    # Begun before a part of the recipe existed: continued as it was, refused if that part is wanted now.
    about = json.loads((tmp_path / "state.json").read_text())
    del about["recipe"]["dropout"], about["recipe"]["optimizer"], about["recipe"]["model"]["registers"]
    (tmp_path / "state.json").write_text(json.dumps(about))
    State.new(RECIPE, CPU).restore(tmp_path, RECIPE)
    other = dataclasses.replace(RECIPE, dropout=0.5)
    with pytest.raises(UserError, match=r"another recipe: dropout was 0\.0, now 0\.5"):
        State.new(other, CPU).restore(tmp_path, other)
    # What 0.7.0 said of judging is read; students that were judged otherwise are refused.
    about["recipe"] |= {"resemblance": False, "every_mean": False}
    (tmp_path / "state.json").write_text(json.dumps(about))
    State.new(RECIPE, CPU).restore(tmp_path, RECIPE)
    about["recipe"] |= {"resemblance": True, "every_mean": True}
    (tmp_path / "state.json").write_text(json.dumps(about))
    other = dataclasses.replace(RECIPE, resemblance=EDITION)
    with pytest.raises(UserError, match="judged by photographs as an earlier version does it; give another --out"):
        State.new(other, CPU).restore(tmp_path, other)
    state.save(tmp_path, RECIPE)
    # Photographs of old runs are not known.
    first, others = (dataclasses.replace(RECIPE, photographs=name) for name in ("first", "others"))
    State.new(first, CPU).restore(tmp_path, first)
    state.save(tmp_path, first)
    with pytest.raises(
        UserError, match="--photos is not the set that the run in --out was begun with; give another --out"
    ):
        State.new(others, CPU).restore(tmp_path, others)
    state.save(tmp_path, RECIPE)
    # In how many pieces a step is seen may change, as the number of workers may.
    State.new(RECIPE, CPU).restore(tmp_path, dataclasses.replace(RECIPE, pieces=2))


def test_a_damaged_checkpoint_is_told_from_a_good_one_and_changes_nothing(
    photographs: TrainingSet, tmp_path: Path
) -> None:
    run(photographs, Reports(tmp_path), tmp_path / "work", Budget(steps=1, save_every=1))
    folder = tmp_path / "step-1"
    whole = (folder / "state.safetensors").read_bytes()
    state = State.new(RECIPE, CPU)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for damage in (whole[:-100], whole[:50], b""):
        (folder / "state.safetensors").write_bytes(damage)
        with pytest.raises(DamagedCheckpoint):
            state.restore(folder, RECIPE)
    (folder / "state.safetensors").write_bytes(whole)
    about = (folder / "state.json").read_text()
    (folder / "state.json").write_text(about[:-10])
    with pytest.raises(DamagedCheckpoint):
        state.restore(folder, RECIPE)
    assert state.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    (folder / "state.json").write_text(about)
    state.restore(folder, RECIPE)
    assert state.step == 1


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    recipe = Recipe(warmup=10, decay=0.5)
    rates = [rate_share(recipe, step, Budget(steps=100).progress(step, 0.0)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == pytest.approx([1.0] * 42)
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0
    # The first of two limits counts.
    assert Budget(steps=100, minutes=1.0).progress(10, 45.0) == pytest.approx(0.75)
