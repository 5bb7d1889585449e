"""Weights files: what comes back, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from models import checkpoint
from models.denoiser import Denoiser, DenoiserConfig
from models.errors import UserError

CONFIG = DenoiserConfig(width=64, blocks=1, heads=2, splats_per_patch=4, kernel="sharp")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Denoiser(CONFIG).state_dict().items()}


def dumped(state: dict[str, torch.Tensor], precision: str = "float32") -> bytes:
    return checkpoint.dump(state, CONFIG, precision=precision, about={"step": 7, "data": "cats"})


def altered(data: bytes, **metadata: str) -> bytes:
    """The same file with other entries in its header."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_float32_comes_back_exactly_ready_to_sample(state, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(dumped(state))
    denoiser = checkpoint.load(path)
    assert denoiser.config == CONFIG
    assert not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    # The same weights give the same bytes, hence the same fingerprint.
    assert checkpoint.fingerprint(dumped(state)) == checkpoint.fingerprint(checkpoint.read(path.as_uri()))


def test_a_shape_that_says_nothing_of_registers_has_none(state):
    data = dumped(state)
    config = json.loads(checkpoint.read_header(data, "w")["config"])
    assert config.pop("registers") == 0
    assert checkpoint.parse(altered(data, config=json.dumps(config)), "w").config == CONFIG
    with_some = DenoiserConfig(**config, registers=2)
    again = checkpoint.parse(
        checkpoint.dump(Denoiser(with_some).state_dict(), with_some, precision="int8", about={}), "w"
    )
    assert again.config == with_some
    assert again.backbone.registers.shape == (2, 64)


def test_float16_comes_back_rounded_in_half_the_bytes(state):
    data = dumped(state, "float16")
    for name, tensor in checkpoint.parse(data, "w").state_dict().items():
        assert torch.equal(tensor, state[name].half().float()), name
    assert len(data) < 0.55 * len(dumped(state))


def test_int8_comes_back_within_half_a_step_of_each_group(state):
    name = "backbone.blocks.0.down.weight"
    odd = state[name].clone()
    odd[0] = 0.0
    odd[1, :32] *= 1e-3  # small numbers beside large ones keep a scale of their own
    state = state | {name: odd}
    data = dumped(state, "int8")
    restored = checkpoint.parse(data, "w").state_dict()
    matrices = 0
    for name, tensor in state.items():
        if load(data)[name].dtype == torch.int8:
            matrices += 1
            groups, found = (each.view(len(tensor), -1, 32) for each in (tensor, restored[name]))
            step = groups.abs().amax(dim=2, keepdim=True) / 127
            assert bool(((found - groups).abs() <= 0.502 * step + 1e-7).all()), name
        else:
            assert torch.equal(restored[name], tensor.half().float()), name
    assert matrices == 4  # of the one block
    assert len(data) < 0.45 * len(dumped(state))


def test_int8_of_older_files_has_one_scale_an_output(state):
    tensors = load(dumped(state))
    matrix = tensors["head.weight"]
    scale = matrix.abs().amax(dim=1) / 127
    levels = (matrix / scale[:, None]).round()
    older = tensors | {"head.weight": levels.to(torch.int8), "head.weight.scale": scale}
    with_header = save(older, metadata=checkpoint.read_header(dumped(state), "w"))
    restored = checkpoint.parse(with_header, "w").state_dict()["head.weight"]
    torch.testing.assert_close(restored, levels * scale[:, None])


def test_the_header_tells_shape_and_origin_to_any_reader(state, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(dumped(state))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "splatcats-weights/1"
    assert DenoiserConfig(**json.loads(header["config"])) == CONFIG
    assert json.loads(header["about"]) == {"step": 7, "data": "cats"}


def refusals(state: dict[str, torch.Tensor]) -> dict[str, tuple[bytes, str]]:
    """What a file may hold instead of good weights, and a part of the line that says so."""
    good = dumped(state)
    other = json.dumps({**json.loads(checkpoint.read_header(good, "w")["config"]), "width": 32})
    foreign = json.dumps({"layers": 3})
    unknown = json.dumps({**json.loads(checkpoint.read_header(good, "w")["config"]), "kernel": "magic"})
    odd = json.dumps({**json.loads(checkpoint.read_header(good, "w")["config"]), "heads": 3})
    lacking = dumped({name: tensor for name, tensor in state.items() if name != "head.bias"})
    rounded = dumped(state, "int8")
    scale = "backbone.blocks.0.down.weight.scale"
    scales = load(rounded)[scale]
    unscaled = {name: tensor for name, tensor in load(rounded).items() if name != scale}
    few, fewer, single = (
        save({**load(rounded), scale: part.clone()}, checkpoint.read_header(rounded, "w"))
        for part in (scales[:-1], scales[:, :-1], scales[0])
    )
    return {
        "empty": (b"", "not a safetensors file"),
        "another kind of file": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        "a header that is no object": (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        "truncated in the header": (good[:200], "not a safetensors file"),
        "truncated in the tensors": (good[:-100], "cannot be read"),
        "safetensors of others": (save({"x": torch.zeros(1)}), "name 'nothing' as their format"),
        "a later format": (altered(good, format="splatcats-weights/2"), "name 'splatcats-weights/2' as their format"),
        "a model of another shape": (altered(good, config=other), "do not fit the model"),
        "a model of another kind": (altered(good, config=foreign), "cannot be read"),
        "an unknown kernel": (altered(good, config=unknown), "unknown kernel 'magic'"),
        "heads that do not divide the width": (altered(good, config=odd), "cannot be read"),
        "a missing tensor": (lacking, "1 tensors differ, the first is head.bias"),
        "int8 without its scales": (
            save(unscaled, checkpoint.read_header(rounded, "w")),
            f"cannot be read: '{scale}'",
        ),
        "int8 with too few scales": (few, "cannot be read"),
        "int8 with too few scales an output": (fewer, "cannot be read"),
        "int8 with one number for scales": (single, "cannot be read"),
        "one tensor more": (dumped(state | {"extra": torch.zeros(1)}), "1 tensors differ, the first is extra"),
    }


def test_what_is_not_good_weights_is_refused_in_one_line_that_names_the_file(state, tmp_path):
    path = tmp_path / "w.safetensors"
    for kind, (data, message) in refusals(state).items():
        path.write_bytes(data)
        with pytest.raises(UserError) as refused:
            checkpoint.load(path)
        text = str(refused.value)
        assert message in text, kind
        assert str(path) in text, kind
        assert "\n" not in text, kind


def test_files_that_cannot_be_opened_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=f"no weights at {tmp_path}/none.safetensors; give --weights"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=f"weights {tmp_path} cannot be opened"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="weights nonsense://x cannot be opened"):
        checkpoint.load("nonsense://x")
