"""Weights on disk: one safetensors file whose header holds the model's shape as JSON; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from models import few_calls
from models.denoiser import Denoiser, DenoiserConfig
from models.errors import UserError, check_name, one_line
from models.few_calls import FewCalls
from models.sampler import LEARNED, SCHEDULES, SOLVERS, Sampling

PRETRAINED = Path(__file__).parent / "pretrained" / "cats64.safetensors"
FORMAT = "splatcats-weights/1"
PRECISIONS = ("float32", "float16", "int8")
# With the precision int8 the matrices of the blocks, nearly all there is, are that, and everything else float16. Their
# scales are beside them under this suffix, one for so many inputs of an output: with one for all, a few large numbers
# would make the steps of all others as large.
SCALE_SUFFIX = ".scale"
BLOCKS = "backbone.blocks."
GROUP = 32
# What was learned of few calls is stored under this prefix, in float32.
FEW_CALLS = "few_calls."


def dump(state: dict[str, Tensor], config: DenoiserConfig, *, precision: str, about: dict[str, Any]) -> bytes:
    """Serialise weights; `about` is free JSON for the reader (recipe, data, steps). Deterministic."""
    assert precision in PRECISIONS
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().float().contiguous()
        if precision == "int8" and name.startswith(BLOCKS) and name.endswith(".weight"):  # not the few offsets
            tensors[name], tensors[name + SCALE_SUFFIX] = quantise(tensor)
        else:
            tensors[name] = tensor if precision == "float32" else tensor.half()
    header = {"format": FORMAT, "config": json.dumps(asdict(config)), "about": json.dumps(about)}
    return with_sorted_metadata(save_tensors(tensors, metadata=header))


def with_sorted_metadata(data: bytes) -> bytes:
    """The same safetensors file with its metadata in the order of names: the library writes any order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix [out, in] to int8 with scales [out, groups], float16: a group's numbers are int8 * scale."""
    rows, columns = matrix.shape
    grouped = matrix.view(rows, columns // GROUP if columns % GROUP == 0 else 1, -1)
    scale = (grouped.abs().amax(dim=2) / 127.0).clamp(min=1e-7).half()
    levels = (grouped / scale.float()[:, :, None]).round().clamp(-127.0, 127.0)
    return levels.to(torch.int8).view(rows, columns), scale


def restore(levels: Tensor, scale: Tensor) -> Tensor:
    """The matrix that `quantise` made these of, rounded; older files have one scale [out] for each output."""
    grouped = levels.float().view(len(levels), scale[0].numel(), -1)
    return (grouped * scale.float().view(len(levels), -1, 1)).view(levels.shape)


def parse(data: bytes, name: str) -> Denoiser:
    """Rebuild the float32 denoiser, in evaluation mode, from `dump`'s bytes. `name` is what errors call the file."""
    header = read_header(data, name)
    try:
        config = DenoiserConfig(**json.loads(header["config"]))
        tensors = load_tensors(data)
        named = {key: tensors.pop(key) for key in list(tensors) if key.startswith(FEW_CALLS)}
        few = few_calls.parse({key.removeprefix(FEW_CALLS): named[key] for key in named}, config.width)
        state = {
            key: restore(tensor, tensors[key + SCALE_SUFFIX]) if tensor.dtype == torch.int8 else tensor.float()
            for key, tensor in tensors.items()
            if not key.endswith(SCALE_SUFFIX)
        }
    except (UserError, SafetensorError, TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"weights {name} cannot be read: {one_line(error)}; give a file made by jobs.train") from None
    with torch.device("meta"):  # shapes alone: a header may ask for more than memory holds
        expected = {key: tensor.shape for key, tensor in Denoiser(config).state_dict().items()}
    wrong = [key for key in sorted(expected.keys() | state.keys()) if key not in state or key not in expected]
    wrong += [key for key in sorted(expected.keys() & state.keys()) if state[key].shape != expected[key]]
    if wrong:
        raise UserError(
            f"weights {name} do not fit the model their header describes: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}; give a file made by jobs.train"
        )
    denoiser = Denoiser(config)
    denoiser.load_state_dict(state)
    denoiser.few_calls = few
    return denoiser.eval().requires_grad_(False)


def with_few_calls(data: bytes, name: str, learned: FewCalls, *, default: bool) -> bytes:
    """Serialised weights with what was learned of few calls beside what they have; by `default` they are sampled so."""
    learned.check()
    header, tensors = read_header(data, name), load_tensors(data)
    tensors |= {FEW_CALLS + key: tensor.contiguous() for key, tensor in few_calls.named(learned).items()}
    if default:
        with _as_user_error(name):
            header["about"] = json.dumps(json.loads(header["about"]) | {"calls": len(learned)})
    return with_sorted_metadata(save_tensors(tensors, metadata=header))


def read_header(data: bytes, name: str) -> dict[str, str]:
    """The JSON header of serialised weights. Raises UserError where it is not one of ours."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"weights {name} are not a safetensors file; give one made by jobs.train") from None
    if header.get("format") != FORMAT:
        found = header.get("format", "nothing")
        raise UserError(
            f"weights {name} name {found!r} as their format, not {FORMAT!r}; give a file made by jobs.train"
        )
    return header


def learned_calls(data: bytes, name: str) -> set[int]:
    """The numbers of calls that serialised weights have learned to make, by the names of their tensors alone."""
    read_header(data, name)  # that it is one
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    numbers = {key.removeprefix(FEW_CALLS).partition(".")[0] for key in header if key.startswith(FEW_CALLS)}
    return {int(number) for number in numbers if number.isdecimal()}


def sampling(data: bytes, name: str, *, many: bool = False) -> Sampling:
    """How serialised weights want to be sampled; the default where they do not say. Raises UserError.

    `many`: as they were trained to be, whatever was learned of few calls.
    """
    with _as_user_error(name):
        about = json.loads(read_header(data, name)["about"])
        said = Sampling(**about.get("sampling", {}))
        check_name("solver", said.solver, SOLVERS)
        check_name("schedule", said.schedule, SCHEDULES)
        if "calls" in about and not many:
            said = Sampling(LEARNED, LEARNED, about["calls"])
    if type(said.steps) is not int or said.steps < 1:
        raise UserError(f"weights {name} ask for {said.steps!r} calls; give a file made by jobs.train, or --steps")
    return said


def distilled(data: bytes, name: str) -> int:
    """The calls that serialised weights were distilled for; 0 for weights of no student. Raises UserError."""
    with _as_user_error(name):
        calls = json.loads(read_header(data, name)["about"]).get("recipe", {}).get("distil", 0)
    return calls if type(calls) is int else 0


@contextlib.contextmanager
def _as_user_error(name: str) -> Iterator[None]:
    """Within the block what a header lacks, or says in another form, is a UserError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"weights {name} cannot be read: {error}; give a file made by jobs.train") from None


def read(url: str | Path) -> bytes:
    """The bytes of a weights file at a path or fsspec URL. Raises UserError when it cannot be read."""
    try:
        with fsspec.open(str(url), "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"no weights at {url}; give --weights a file made by jobs.train") from None
    except Exception as error:  # each remote file system has its own kinds
        raise UserError(f"weights {url} cannot be opened: {one_line(error)}") from None


def load(url: str | Path) -> Denoiser:
    """Read a denoiser from a path or fsspec URL. Raises UserError naming what is wrong with the file."""
    return parse(read(url), str(url))


def fingerprint(data: bytes) -> str:
    """sha256 of serialised weights, in hexadecimal: what a plan records."""
    return hashlib.sha256(data).hexdigest()
