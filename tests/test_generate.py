"""What jobs.generate refuses, and what it says beforehand."""

import pytest
from conftest import make_weights
from test_generation import arguments, command

from models.denoiser import DenoiserConfig


def test_a_dry_run_prints_the_size_and_writes_nothing(tiny_weights, tmp_path, capsys):
    assert command(*arguments(tmp_path / "none", tiny_weights, "--dry-run", count=1_000_000)) == 0
    told = capsys.readouterr().out
    assert "250,000 shards of up to 4 pictures, 1,000,000 pictures" in told
    assert "about 16,998.4 MB, assuming 16.6 bytes a splat, 1,024 splats a picture" in told
    assert "about 0.0084 GPU-hours, assuming 66,000 network calls a second" in told
    assert not (tmp_path / "none").exists()
    (tmp_path / "notes.txt").touch()
    assert command(*arguments(tmp_path, tiny_weights, "--dry-run")) == 1
    assert "holds notes.txt but no plan.json" in capsys.readouterr().err


def test_calls_that_weights_were_not_trained_for_are_made_with_a_word_of_caution(tmp_path, capsys):
    def told(*options: str) -> str:
        assert command("--out", str(tmp_path / "none"), "--count", "1", "--dry-run", *options) == 0
        return capsys.readouterr().out

    assert told("--steps", "16").startswith("these weights were trained for 4 network calls a picture; 16 of deis")
    assert told("--solver", "euler", "--steps", "4").startswith("these weights were trained for 4 network calls")
    assert "were trained for" not in told() + told("--steps", "4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "-1"], "--count -1"),
        (["--count", "0"], "--count 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--steps", "0"], "--steps 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--shard-size", "1" + "0" * 20], "give a number from 1 to"),
        (["--solver", "magic"], "unknown solver 'magic'; known: deis, dpmpp2m, euler, heun"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--precision", "int4"], "unknown precision 'int4'; known: compact, float16"),
        (["--rollout", "0-22"], "--count 22 makes the pictures 0-21"),
        (["--rollout", "a-b"], "cannot read the indices 'a-b'"),
        (["--keep-rollout", "22"], "--keep-rollout 22: --count 22 makes the pictures 0-21"),
        (["--between", "1,2"], "--count and --between do not go together"),
        (["--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["--out", "nonsense://x"], "cannot use nonsense://x"),
        (["--out", "/dev/null/x"], "cannot use /dev/null/x"),
        (["--out", "/dev/null"], "/dev/null is no folder"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(tiny_weights, tmp_path, capsys, options, message):
    assert command(*arguments(tmp_path / "out", tiny_weights), *options) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --count, the number of pictures, or --between"),
        (["--between", "3,3"], "--between 3,3: give two different indices"),
        (["--between", "3-4"], "--between 3-4: give two different indices"),
        (["--between", "3,99999999999999999999"], "give indices of up to 18 digits"),
        (["--between", "3,4", "--frames", "1"], "--frames 1"),
        (["--between", "3,4", "--frames", "5", "--rollout", "5"], "--frames 5 makes the pictures 0-4"),
        (["--between", "3,4", "--rollout", "48"], "--frames 48 makes the pictures 0-47"),
        (["--count", "2", "--frames", "5"], "--frames 5 goes with --between"),
    ],
)
def test_mistakes_about_morphs(tmp_path, capsys, options, message):
    assert command("--out", str(tmp_path / "out"), *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_shape_are_refused(tmp_path, capsys):
    weights = tmp_path / "odd.safetensors"
    data = make_weights(DenoiserConfig(width=32, blocks=2, heads=2))
    weights.write_bytes(data.replace(b'\\"width\\": 32', b'\\"width\\": 64'))
    assert command(*arguments(tmp_path / "out", weights)) == 1
    assert "do not fit the model" in capsys.readouterr().err
    weights.write_bytes(data[:-100])
    assert command(*arguments(tmp_path / "out", weights)) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
