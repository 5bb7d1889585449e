"""Few calls that are learned: what every solver can be written as, what learning gains, and how weights carry it."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
import safetensors.torch as safetensors
import torch
from conftest import make_lively, make_weights

from jobs import cli, generate, tune
from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig
from models.errors import UserError
from models.noise import white_noise
from models.sampler import SOLVERS, Sampling, rollout, sample
from models.tuning import Judges, Tuner, first_calls, wanted, written_out
from pipeline.training.tuning import make_pairs
from pipeline.training.tuning import tune as learn

CONFIG = DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=32, blocks=2, heads=2)
LEARNED = {"solver": "learned", "schedule": "learned"}


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return make_lively(CONFIG)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_written_out_makes_the_same_steps(denoiser, solver):
    sampling = Sampling(solver, "early", 5)
    denoiser.few_calls = {5: written_out(sampling, CONFIG.width)}
    start = white_noise(1, range(3), *denoiser.size)
    by_formula = list(rollout(denoiser, start, **asdict(sampling)))
    by_numbers = list(rollout(denoiser, start, steps=5, **LEARNED))
    for a, b in zip(by_formula, by_numbers, strict=True):
        assert a.t == pytest.approx(b.t)
        for one, other in ((a.noisy, b.noisy), (a.field, b.field), (a.after, b.after)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("known", "calls"), [(2, 3), (3, 3), (3, 4), (3, 8)])
def test_calls_added_to_a_students_change_no_picture_until_they_learn(denoiser, known, calls):
    generator = torch.Generator().manual_seed(known)
    written = written_out(Sampling(steps=known), CONFIG.width)
    denoiser.few_calls = {known: replace(written, hints=torch.randn(written.hints.shape, generator=generator))}
    denoiser.few_calls[calls] = few = first_calls(denoiser, calls, known)
    few.check()
    assert len(few) == calls
    assert few.times[0] == 0
    assert bool((few.times.diff() >= 0).all())
    start = white_noise(1, range(3), *denoiser.size)
    before, after = (wanted(denoiser, Sampling(**LEARNED, steps=n), start) for n in (known, calls))
    torch.testing.assert_close(after, before)
    if calls == known:
        return
    tuner = Tuner(few, "cpu")
    tuner.step(denoiser, start, before.flip(0), Judges(), progress=0.5)
    learned = tuner.tunable.learned()
    added = few.mix[-1] == 0
    assert bool((learned.mix[-1][:-1] != 0)[added[:-1]].all())


def test_learned_calls_come_nearer_to_many_calls_and_hints_are_part_of_it(denoiser):
    few = written_out(Sampling(steps=2), CONFIG.width)
    start, fresh = white_noise(2, range(32), *denoiser.size), white_noise(3, range(16), *denoiser.size)
    pictures, expected = (wanted(denoiser, Sampling(), z) for z in (start, fresh))
    tuner = Tuner(few, "cpu")
    losses = [sum(tuner.step(denoiser, start, pictures, Judges(), progress=i / 100).values()) for i in range(100)]
    assert losses[-1] < losses[0]
    learned = tuner.tunable.learned()
    without = replace(learned, hints=torch.zeros_like(learned.hints))

    def distance(calls) -> float:
        denoiser.few_calls = {2: calls}
        return float((wanted(denoiser, Sampling(**LEARNED, steps=2), fresh) - expected).square().mean())

    assert distance(learned) < 0.8 * distance(few)  # of noise that it did not learn from
    assert distance(learned) < distance(without)


@pytest.mark.parametrize(("rate", "better"), [(1.0, True), (300.0, False)])
def test_what_is_learned_is_kept_if_it_is_better(denoiser, capsys, rate, better):
    few = written_out(Sampling(steps=2), CONFIG.width)
    pairs = make_pairs(denoiser, Sampling(), seed=0, count=16, batch=16)
    seconds = count(step=2.0)
    kept = learn(
        denoiser, few, pairs, minutes=1, batch=16, at_once=8, judges=Judges(), rate=rate, clock=lambda: next(seconds)
    )
    assert (kept is not few) == better
    assert ("is no better" in capsys.readouterr().out) != better
    assert (Judges().loss(denoiser, kept, *pairs) < Judges().loss(denoiser, few, *pairs)) == better


def test_weights_carry_what_was_learned_and_are_sampled_by_it(tiny_weights: Path, tmp_path: Path, capsys):
    out = tmp_path / "fast.safetensors"
    options = ["--calls", "3", "--minutes", "0.02", "--pairs", "4", "--batch", "2", "--device", "cpu"]
    assert cli.run(tune.Options, tune.main, ["--weights", str(tiny_weights), "--out", str(out), *options]) == 0
    assert "3 calls, with the weights they are for: " in capsys.readouterr().out
    again = [*options[2:], "--calls", "2", "--weights", str(out), "--out", str(out), "--no-default"]
    assert cli.run(tune.Options, tune.main, again) == 0
    data = out.read_bytes()
    before, after = checkpoint.load(tiny_weights), checkpoint.parse(data, "fast")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert sorted(after.few_calls) == [2, 3]
    assert checkpoint.sampling(data, "fast") == Sampling("learned", "learned", 3)

    def planned(**chosen) -> tuple[str, str, int]:
        plan = generate.make_plan(generate.Options(out="", count=4, **chosen), data)
        return plan.solver, plan.schedule, plan.steps

    assert planned() == ("learned", "learned", 3)
    assert planned(steps=2) == ("learned", "learned", 2)
    assert planned(steps=5) == ("deis", "early", 5)
    assert planned(steps=2, solver="euler") == ("euler", "early", 2)
    assert planned(solver="deis") == ("deis", "early", 16)
    assert planned(schedule="uniform") == ("deis", "uniform", 16)
    with pytest.raises(UserError, match="learned to make 2, 3 calls, not 5"):
        planned(steps=5, solver="learned")
    with pytest.raises(UserError, match="--schedule early: the solver learned has times of its own"):
        planned(schedule="early", solver="learned")

    def taught(data: bytes, calls: int, **chosen) -> Sampling:
        options = tune.Options(out="x.safetensors", calls=calls, minutes=1, device="cpu", **chosen)
        return tune.teacher(options, data, checkpoint.distilled(data, "the weights"))

    student = checkpoint.dump(after.state_dict(), after.config, precision="float32", about={"recipe": {"distil": 3}})
    student = checkpoint.with_few_calls(student, "student", after.few_calls[3], default=True)
    own = Sampling("learned", "learned", 3)
    assert taught(data, 2) == taught(data, 3) == taught(student, 3) == Sampling()
    assert taught(student, 2) == taught(student, 3, photos="prepared", lpips="vgg") == own
    assert taught(student, 2, teacher_steps=8) == taught(student, 5, teacher_steps=8) == Sampling(steps=8)
    assert taught(student, 5, photos="prepared", lpips="vgg") == own
    with pytest.raises(UserError, match="make their pictures in 3, and more calls have nothing to learn from these"):
        taught(student, 5)

    z = white_noise(0, range(2), *after.size)
    assert not torch.equal(sample(after, z, steps=3, **LEARNED), sample(after, z, **asdict(Sampling(steps=3))))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--calls", "0"], "--calls 0: give a number from 1 to 64"),
        (["--minutes", "0"], "--minutes 0"),
        (["--out", "fast.pt"], "give a file whose name ends with .safetensors"),
        (["--photos", "prepared"], "--photos needs --lpips"),
        (["--weights", "no.safetensors"], "no weights at no.safetensors"),
        (["--device", "gpu"], "PyTorch sees no GPU here"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, capsys, options, said):
    given = {"--out": str(tmp_path / "fast.safetensors"), "--calls": "2", "--minutes": "1", options[0]: options[1]}
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.run(tune.Options, tune.main, [word for pair in given.items() for word in pair]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"times": torch.tensor([0.0, 1.0])}, "from 0 to below 1"),
        ({"noise": torch.tensor([1.0, float("nan")])}, "not all finite"),
        ({"mix": torch.zeros(2, 3)}, "tensors of the shapes"),
        ({"hints": torch.zeros(2, 8)}, "another width than 32"),
    ],
)
def test_damaged_few_calls_are_named(change, said):
    data, few = make_weights(CONFIG), vars(written_out(Sampling(steps=2), CONFIG.width)) | change
    tensors = safetensors.load(data) | {f"few_calls.2.{name}": few[name].contiguous() for name in few}
    damaged = safetensors.save(tensors, metadata=checkpoint.read_header(data, "here"))
    with pytest.raises(UserError, match=said):
        checkpoint.parse(damaged, "here")


def test_what_is_learned_is_the_same_in_pieces_as_at_once(denoiser):
    few = written_out(Sampling(steps=2), CONFIG.width)
    z = white_noise(2, range(6), *denoiser.size)
    x = wanted(denoiser, Sampling(), z)
    moved = []
    for at_once in (2, 6):
        tuner = Tuner(few, "cpu")
        tuner.step(denoiser, z, x, Judges(), progress=0.3, at_once=at_once)
        moved.append([p.grad.clone() for p in tuner.tunable.parameters()])
    for in_pieces, whole in zip(*moved, strict=True):
        torch.testing.assert_close(in_pieces, whole, rtol=1e-3, atol=1e-6)
        assert whole.norm() > 0
