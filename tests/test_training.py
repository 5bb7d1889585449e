"""Training under Ray Train: a real run on photographs, killed and continued; and what jobs.train refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import kill_session, ray_workers, stop, wait_for_session_end
from ray.train import ControllerError

from jobs import cli, generate
from jobs import train as job
from models import checkpoint
from models.noise import white_noise
from models.sampler import sample
from pipeline.photographs.prepared import RECORD
from pipeline.training import distributed

ROOT = Path(__file__).parents[1]
STEPS, REPORT, SAVE = 24, 4, 12
# With photographs of 256 pixels as the large ones, one of the two ranks has none of them in its batches.
TINY = ["--workers", "2", "--batch", "4", "--detail", "256", "--learning-rate", "0.06"]
TINY += ["--width", "48", "--blocks", "2", "--heads", "2"]
OFTEN = ["--report-every", str(REPORT), "--save-every", str(SAVE)]


def arguments(photos: str, out: Path, *more: str) -> list[str]:
    return ["--photos", photos, "--out", str(out), "--steps", str(STEPS), *TINY, *OFTEN, *more]


def command(*args: str) -> int:
    return cli.run(job.Options, job.main, list(args))


def first_checkpoint(out: Path, process: subprocess.Popen) -> Path:
    """Wait until Ray counts a checkpoint, and return its folder."""
    deadline = time.monotonic() + 150
    while not (out / "checkpoint_manager_snapshot.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return min(out.glob("checkpoint_2*"))


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        pytest.param(signal.SIGTERM, 143, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "Ctrl-C", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(400)
def test_two_workers_learn_and_continue_after_a_signal(
    ray_cluster, prepared_cats, tmp_path, capsys, number, code, name
):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *arguments(prepared_cats, out)],
        cwd=ROOT,
        start_new_session=True,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        before = json.loads((first_checkpoint(out, process) / "history.json").read_text())
        if name:
            _, errors = stop(process, number)
            told = "the same command continues from the last checkpoint, if there is one"
            assert errors == f"stopped by {name}; {told}\n"
        else:
            os.killpg(process.pid, number)
    finally:
        kill_session(process.pid)
        process.wait()
    assert process.returncode == code
    wait_for_session_end(process.pid)
    assert before[-1]["step"] == SAVE

    assert command(*arguments(prepared_cats, out)) == 0
    assert f"trained {STEPS} steps" in capsys.readouterr().out
    history = json.loads((out / "history.json").read_text())
    # The times are in the entries: what was trained before is there as it was, not trained again.
    assert history[: len(before)] == before
    assert [entry["step"] for entry in history] == list(range(REPORT, STEPS + 1, REPORT))
    assert {"velocity", "detail", "norm"} < history[-1].keys()
    assert history[-1]["minutes"] > before[-1]["minutes"]

    first, last = (sum(entry["loss"] for entry in part) / 3 for part in (history[:3], history[-3:]))
    assert last < 0.8 * first  # 0.6 when this was written

    denoiser = checkpoint.load(out / "weights.safetensors")
    assert denoiser.config.width == 48
    field = sample(denoiser, white_noise(0, [0, 1], *denoiser.size), steps=2, solver="euler")
    pictures = denoiser.draw(field, 64, 64)
    assert pictures.isfinite().all()
    assert pictures.std() > 0.05
    assert {path.name for path in (out / "sheets").iterdir()} == {
        f"step-{step:07d}.png" for step in range(SAVE, STEPS + 1, SAVE)
    }
    for folder in out.glob("checkpoint_2*"):
        assert not [path for path in folder.iterdir() if path.is_dir()]

    kept = (out / "weights.safetensors").read_bytes()
    assert command(*arguments(prepared_cats, out, "--width", "56")) == 1
    output = capsys.readouterr()
    assert "model.width was 48, now 56; give another --out" in output.err
    assert output.err.count("\n") == 1
    assert (out / "weights.safetensors").read_bytes() == kept


@pytest.mark.timeout(300)
def test_a_student_of_weights_and_photographs_is_generated_from(
    ray_cluster, prepared_cats, vgg_file, tiny_weights, tmp_path
):
    given = ["--photos", prepared_cats, "--lpips", str(vgg_file), "--weights", str(tiny_weights), "--distil", "3"]
    budget = ["--steps", "2", "--batch", "4", "--at-once", "2", "--report-every", "1", "--detail", "128"]
    assert command(*given, *budget, "--out", str(tmp_path / "run")) == 0
    history = json.loads((tmp_path / "run/history.json").read_text())
    assert all(entry["photographs"] > 0 and entry["detail_photographs"] > 0 for entry in history)
    weights = tmp_path / "run/weights.safetensors"
    plan = generate.make_plan(generate.Options(out="", count=4), weights.read_bytes())
    assert (plan.solver, plan.steps) == ("learned", 3)
    student, teacher = checkpoint.load(weights), checkpoint.load(tiny_weights)
    assert not torch.equal(student.head.weight, teacher.head.weight)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_continued(ray_cluster, prepared_cats, tmp_path, capsys):
    out = tmp_path / "run"
    assert command(*arguments(prepared_cats, out)) == 0
    _, newer = sorted(out.glob("checkpoint_2*"))
    state = (newer / "state.safetensors").read_bytes()
    (newer / "state.safetensors").write_bytes(state[:-1000])
    capsys.readouterr()
    assert command(*arguments(prepared_cats, out, "--steps", str(STEPS + SAVE))) == 0
    output = capsys.readouterr()
    assert f"the checkpoint {newer} is damaged (" in output.out
    assert f"trained {STEPS + SAVE} steps" in output.out
    history = [entry["step"] for entry in json.loads((out / "history.json").read_text())]
    assert history == list(range(REPORT, STEPS + SAVE + 1, REPORT))

    for folder in out.glob("checkpoint_2*"):
        (folder / "state.json").write_text("{")
    assert command(*arguments(prepared_cats, out, "--steps", str(STEPS + 2 * SAVE))) == 1
    output = capsys.readouterr()
    assert output.err == f"error: every checkpoint in {out} is damaged: train into another --out\n"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_with_another_number_of_workers(ray_cluster, prepared_cats, tmp_path, capsys):
    out = tmp_path / "run"
    for rounds, workers in enumerate(("2", "1", "2"), 1):
        steps = rounds * SAVE
        assert command(*arguments(prepared_cats, out, "--steps", str(steps), "--workers", workers)) == 0
        assert f"trained {steps} steps" in capsys.readouterr().out
        history = [entry["step"] for entry in json.loads((out / "history.json").read_text())]
        assert history == list(range(REPORT, steps + 1, REPORT))


@pytest.mark.slow
def test_a_place_that_refuses_checkpoints_is_said_in_one_line(ray_cluster, prepared_cats, tmp_path, capsys):
    out = tmp_path / "run"
    distributed.claim(str(out))
    (out / "sheets").touch()  # where a folder belongs: refuses root too, whom permissions do not stop
    assert command(*arguments(prepared_cats, out)) == 1
    output = capsys.readouterr()
    fault = f"File exists: '{out}/sheets'"
    assert output.out.count("a worker failed: ") == distributed.RETRIES + 1
    assert fault in output.err
    assert output.err.endswith("; the same command continues from the last checkpoint\n")
    assert output.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_and_a_machine_that_die_cost_no_step(cluster, prepared_cats, tmp_path):
    out, steps = tmp_path / "run", 96
    for _ in range(2):
        leaves = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *arguments(prepared_cats, out, "--steps", str(steps))],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen = last_sheet(out, process, after="")
        os.kill(ray_workers("RayTrainWorker").pop(), signal.SIGKILL)
        seen = last_sheet(out, process, after=seen)
        cluster.remove_node(leaves, allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        told, errors = process.communicate(timeout=250)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert f"trained {steps} steps" in told
    history = [entry["step"] for entry in json.loads((out / "history.json").read_text())]
    assert history == list(range(REPORT, steps + 1, REPORT))
    assert checkpoint.load(out / "weights.safetensors").config.width == 48


def last_sheet(out: Path, process: subprocess.Popen, after: str) -> str:
    """Wait for a checkpoint's sheet later than `after`, and for Ray to count the checkpoint; the sheet's name."""
    deadline = time.monotonic() + 200
    while (last := max((path.name for path in out.glob("sheets/step-*.png")), default="")) <= after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first_checkpoint(out, process)
    return last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--photos", "nowhere"], "nowhere holds no prepared set; make one: python -m jobs.prepare"),
        (["--lpips", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--kernel", "magic"], "unknown kernel 'magic'; known: gaussian, sharp, wavelet"),
        (["--steps", "0"], "--steps 0"),
        (["--workers", "3"], "--batch 4 is not a multiple of --workers 3"),
        (["--width", "50"], "--width 50 is not a multiple of 4 times --heads 2"),
        (["--detail", "100"], "--detail 100"),
        (["--seed", "-1"], "--seed -1"),
        (["--distil", "4"], "--photos with --distil needs --lpips"),
        (["--distil", "65"], "--distil 65: give a number from 0 to 64"),
        (["--at-once", "0"], "--at-once 0"),
        (["--fused", "--dropout", "0.1"], "--fused knows neither --dropout nor --registers"),
        (["--registers", "-1"], "--registers -1: give a number from 0 to 256"),
        (["--splats-per-patch", "257"], "--splats-per-patch 257: give a number from 1 to 256"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--save-every", "0"], "--save-every"),
        (["--out", "/dev/null/x"], "cannot use /dev/null/x"),
        (["--out", "/dev/null"], "cannot use /dev/null: "),
        (["--out", "memory://x"], "memory:// lives in one process"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(prepared_cats, tmp_path, capsys, options, message):
    assert command(*arguments(prepared_cats, tmp_path / "out"), *options) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_in_a_folder_without_a_run_are_not_overwritten(prepared_cats, tiny_weights, tmp_path, capsys):
    mine = tmp_path / "weights.safetensors"
    mine.write_bytes(tiny_weights.read_bytes())
    assert command(*arguments(prepared_cats, tmp_path), "--weights", str(mine)) == 1
    assert "holds weights.safetensors but no training run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert mine.read_bytes() == tiny_weights.read_bytes()


def test_memory_that_is_too_small_is_one_line():
    said = distributed.explain(
        ControllerError(RuntimeError("killed due to the node running low on memory")), None, None
    )
    assert said == "this machine's memory is too small: give a smaller --at-once, or fewer --workers"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (512, 1)),
        ({"batch": 4096}, (4096, 1)),
        ({"batch": 4096, "at_once": 1000}, (4095, 5)),
        ({"distil": 4}, (1536, 6)),
        ({"distil": 4, "workers": 4}, (1536, 2)),
        ({"distil": 1, "workers": 5}, (1535, 1)),
        ({"distil": 64, "batch": 7, "at_once": 3}, (6, 3)),
    ],
)
def test_a_step_sees_what_was_asked_for_in_pieces_that_fit(given, expected):
    options = job.Options(out="", photos="prepared", lpips="vgg", steps=1, **given)
    assert job.pictures(options, gpus=True) == expected


def test_how_long_to_train_must_be_said(prepared_cats, tmp_path, capsys):
    assert command("--photos", prepared_cats, "--out", str(tmp_path / "out")) == 1
    assert "give --steps or --minutes" in capsys.readouterr().err


def test_a_prepared_set_of_a_later_format_is_refused(prepared_cats, tmp_path, capsys):
    record = json.loads(Path(prepared_cats, RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"format": 99}))
    assert command(*arguments(str(tmp_path), tmp_path / "out")) == 1
    assert "has format 99" in capsys.readouterr().err
