"""The fused kernels of the backbone against its plain forward: on the device if there is one, else interpreted."""
# ruff: noqa: E402 - the interpreter is chosen before anything imports Triton

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when kernels are declared, so before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="the fused kernels need Triton (Linux)")

from models import transformer_triton
from models.transformer import PatchTransformer, modulate, rms_norm, rotary_table, rotate, time_features

# What halves the traffic: the interpreter multiplies the bits of bfloat16 as integers, so there float16 stands for it.
HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
# Largest difference, in units of the expected values' root mean square. Products of float32 numbers are rounded to
# TensorFloat-32 on the device.
EXACT = 2e-5 if DEVICE == "cpu" else 3e-2
ROUNDED = {torch.float32: EXACT, HALF: 5e-3 if DEVICE == "cpu" else 4e-2}
DTYPES = list(ROUNDED)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def make_backbone(rows: int = 2, columns: int = 3, width: int = 64, heads: int = 2) -> PatchTransformer:
    """Random weights everywhere: as initialised, modulation is zero and every block the identity."""
    torch.manual_seed(1)
    backbone = PatchTransformer(rows=rows, columns=columns, inputs=64, width=width, blocks=2, heads=heads)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == 6:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in (backbone.modulation, backbone.last_modulation):
            layer.weight.normal_(std=0.1)
    return backbone.to(DEVICE)


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    if got.numel():
        scale = expected.float().square().mean().sqrt()
        assert (got.float() - expected.float()).abs().max() <= ROUNDED[dtype] * scale


def run(backbone: PatchTransformer, tokens: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As the backbone calls the kernels, whatever the device."""
    conditioning = backbone.time(time_features(t))
    modulation = backbone.modulation(conditioning).unflatten(-1, (6, -1))
    last = backbone.last_modulation(conditioning).unflatten(-1, (2, -1))
    return transformer_triton.run(backbone, tokens, modulation, last, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "rows", "columns"), [(0, 2, 3), (1, 2, 3), (3, 2, 3), (1, 8, 8)])
def test_the_whole_backbone(batch, rows, columns, dtype):
    backbone = make_backbone(rows, columns)
    tokens, t = numbers(batch, rows * columns, 64), torch.linspace(0.1, 0.9, batch, device=DEVICE)
    with torch.inference_mode():
        assert transformer_triton.supports(backbone)
        got = run(backbone, tokens, t, dtype)
        assert got.dtype == torch.float32
        assert_close(got, backbone(tokens, t), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "width", "heads"), [(2, 3, 64, 2), (1, 80, 192, 3), (1, 1, 128, 1)])
def test_attention(rows, columns, width, heads, dtype):
    block = make_backbone(rows, columns, width, heads).blocks[0]
    tokens, head_width = rows * columns, width // heads
    qkv = numbers(2 * tokens, 3 * width).to(dtype)
    cos, sin = (table.to(DEVICE) for table in rotary_table(rows, columns, head_width))
    with torch.inference_mode():
        query, key, value = qkv.float().view(2, tokens, 3, heads, head_width).permute(2, 0, 3, 1, 4)
        query = rotate(rms_norm(query) * block.query_scale, cos, sin)
        key = rotate(rms_norm(key) * block.key_scale, cos, sin)
        share = torch.softmax(query @ key.transpose(2, 3) / head_width**0.5, dim=-1)
        expected = (share @ value).transpose(1, 2).reshape(2 * tokens, width)
        assert_close(transformer_triton.attend(qkv, *block.scales, cos, sin), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "hidden"), [(5, 192), (130, 128)])
def test_gated_hidden_layer(count, hidden, dtype):
    source, weight = numbers(count, 64).to(dtype), numbers(2 * hidden, 64, seed=1).to(dtype) / 8
    gate, up = (source.float() @ weight.float().T).chunk(2, dim=-1)
    assert_close(transformer_triton.swiglu(source, weight), torch.nn.functional.silu(gate) * up, dtype)


# One picture a tile of rows, two or several; rows of a power of 2 and not; the last tile whole and not.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(6, 64), (64, 192), (8, 256), (5, 384)])
def test_a_layer_joins_the_stream(tokens, width, dtype):
    batch = 3
    layer = numbers(batch, tokens, width).to(dtype)
    modulation, offset = numbers(batch, 6, width, seed=2), numbers(6, width, seed=3)
    x, normal = numbers(batch, tokens, width, seed=4), layer.new_zeros(batch * tokens, width)
    shift, scale, gate = (modulation + offset)[:, 3:, None].unbind(1)
    for gated in (True, False):
        expected = x + gate * layer.float() if gated else layer.float() + offset[5]
        stream = x.clone().flatten(0, 1)
        gate_parts = modulation[:, 5] if gated else None, offset[5]
        norm = modulation[:, 3], offset[3]
        transformer_triton.join(layer.flatten(0, 1), stream, normal, tokens, gate_parts, norm)
        assert_close(stream, expected.flatten(0, 1), torch.float32)
        assert_close(normal, modulate(expected, shift, scale).flatten(0, 1), dtype)


def test_shapes_that_are_left_to_torch():
    assert transformer_triton.supports(make_backbone(8, 8, 384, 6))
    assert not transformer_triton.supports(make_backbone(17, 16))
    assert not transformer_triton.supports(make_backbone(heads=4))
    assert not transformer_triton.supports(make_backbone(width=1088, heads=17))
    shape = {"rows": 2, "columns": 3, "inputs": 64, "width": 64, "blocks": 1, "heads": 2}
    assert not transformer_triton.supports(PatchTransformer(**shape, registers=1))


@pytest.mark.skipif(DEVICE == "cpu", reason="on CPUs everything is left to torch")
def test_training_and_products_in_float32_are_left_to_torch(monkeypatch):
    backbone = make_backbone()
    monkeypatch.setattr(transformer_triton, "run", None)
    tokens, t = numbers(1, 6, 64), torch.ones(1, device=DEVICE)
    assert backbone(tokens, t).requires_grad
    with torch.inference_mode():
        assert torch.isfinite(backbone(tokens, t)).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="the kernels are for CUDA")
def test_sampling_uses_the_kernels(monkeypatch):
    backbone = make_backbone()
    tokens, t = numbers(3, 6, 64), torch.full((3,), 0.5, device=DEVICE)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        got = backbone(tokens, t)
        monkeypatch.setattr(transformer_triton, "supports", lambda _: False)
        assert_close(got, backbone(tokens, t), HALF)
        assert torch.equal(got, run(backbone, tokens, t, HALF))
