"""The benchmark on a CPU: what it compares with draws the same pictures; a run leaves a table and figures."""

import dataclasses
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from jobs import benchmark, cli
from models import checkpoint, sampler
from models.losses import picture_loss
from models.rasterize import rasterize
from models.splats import random_field
from pipeline.benchmark import bench, cases, press, storage, training
from pipeline.benchmark.baseline import eager_draw


def test_the_baseline_draws_what_the_rasterizer_draws():
    # Inside one patch far from its borders the windows, which the baseline has not, are 1 for the home patch alone.
    field = random_field(torch.Generator().manual_seed(0), 2, 3, 2, 16)
    field[..., :2] = 0.5
    field[..., 2:4] = 6.0
    field[..., 4] = 0.0
    drawn, eager = rasterize(field, 48, 32), eager_draw(field, 48, 32)
    assert drawn.shape == eager.shape
    inside = (slice(None), slice(None), slice(22, 26), slice(6, 10))
    torch.testing.assert_close(drawn[inside], eager[inside], atol=1e-3, rtol=0)


def test_a_run_measures_what_it_was_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.cases, "SIZES", {64: (1, 1)})
    monkeypatch.setattr(benchmark.cases, "BACKWARD_SIZES", (64,))
    out = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--out", str(out), "--only", "draw", "draw-backward"]
    assert cli.run(benchmark.Options, benchmark.main, arguments) == 0
    report = json.loads(out.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert [row["name"] for row in report["rows"]] == ["draw 64 px x 1", "draw 64 px x 1, backward"]
    assert all(row["rate"] > 0 and row["baseline"] > 0 and row["repeats"] >= 1 for row in report["rows"])
    table = capsys.readouterr().out
    assert table.count("| draw 64 px x 1 | ") == 2  # once as it was measured, once in the table


def test_training_with_lpips_looks_at_every_picture_and_at_48_of_512_in_detail():
    seen = []
    model = SimpleNamespace(
        size=(8, 8), draw=lambda field, height, width, *_: torch.zeros(len(field), 3, height, width)
    )
    objective, clean = training.OBJECTIVE, torch.zeros(512, 3, 8, 8)
    picture_loss(
        torch.zeros(512, 1, 1, 1, 9),
        clean,
        model,
        clean,
        torch.full((512,), 0.5),
        gated=objective.gated,
        objective=objective,
        detailed=torch.zeros(192, 3, 16, 16),
        lpips=lambda drawn, _: seen.append(drawn.shape[::2]) or drawn.mean(dim=(1, 2, 3)),
    )
    assert seen == [(512, 8), (48, 16)]


def test_storing_is_measured_beside_rollouts_of_as_many_pictures_at_once(tiny_weights, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tiny_weights)
    monkeypatch.setitem(bench.ROLLOUT, "cpu", (2, 1))
    monkeypatch.setattr(cases, "SOLVERS", ("deis",))
    batches = []
    sample = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *given, **how: batches.append(len(given[1])) or sample(*given, **how))
    measured = bench.Bench("cpu", baselines=False)
    cases.rollout(measured)
    measured.rows = [dataclasses.replace(measured.rows[0], baseline=1.0, repeats=2)]
    storage.generate(measured)
    assert set(batches) == {2}
    rollout, files, stored = measured.rows
    assert stored.rate < files.rate  # whose work is part of it
    assert stored.note == f"{stored.rate / rollout.rate:.0%} of the bare rollout"
    assert stored.baseline is None  # that of the rollout stores nothing
    assert ["±" in bench.line(row) for row in (rollout, stored)] == [True, False]  # one repeat has no spread


def test_the_press_is_measured_beside_its_encoders(capsys, monkeypatch):
    monkeypatch.setattr(press, "SIDE", 64)
    monkeypatch.setattr(press, "RUNS", (("png", "files", 1),))
    monkeypatch.setattr(press, "EXTENTS", {"cpu": press.Extent(2, 1, 0.2)})
    assert cli.run(benchmark.Options, benchmark.main, ["--device", "cpu", "--only", "press"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"PNG 64 px: pipeline (.*?) pictures/s, encoders alone (.*?), share (\d+)%", said)
    pipeline, encoders, share = (float(number.replace(",", "")) for number in found.groups())
    assert 0 < pipeline < encoders
    assert share == pytest.approx(100 * pipeline / encoders, abs=2)


def test_it_needs_no_ray():
    script = "import sys; sys.modules['ray'] = None; from jobs import benchmark; print(list(benchmark.GROUPS))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "press" in out.stdout


def test_mistakes_get_one_line(capsys):
    mistakes = [(["--only", "speed"], "speed"), (["--device", "tpu"], "tpu"), (["--out", "/nowhere/x"], "no folder")]
    if not torch.cuda.is_available():
        mistakes += [(["--device", "cuda"], "no GPU"), (["--only", "tune-forward"], "needs a GPU")]
    for arguments, named in mistakes:
        assert cli.run(benchmark.Options, benchmark.main, arguments) == 1
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
