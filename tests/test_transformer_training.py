"""The fused kernels of training against autograd through the plain backbone: on the device if there is one."""

import pytest
import torch
from test_transformer_triton import DEVICE, HALF, make_backbone, numbers

from models import transformer_training
from models.transformer import PatchTransformer, time_features

# Relative L2 of each gradient, those below 0.5 as if they were that: of one token, attention's
# scales have none. Products of float32 numbers are rounded to TensorFloat-32 on the device.
AGREES = {torch.float32: 1e-5 if DEVICE == "cpu" else 5e-3, HALF: 5e-3 if DEVICE == "cpu" else 5e-2}


def gradients(
    backbone: PatchTransformer, tokens: torch.Tensor, t: torch.Tensor, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """What the backbone answers, and the gradients of a weighted sum of it: of all parameters, tokens and times.

    By the kernels, with products in `dtype`, or without them.
    """
    tokens, t = tokens.clone().requires_grad_(), t.clone().requires_grad_()
    backbone.zero_grad()
    if dtype is None:
        answer = backbone(tokens, t)
    else:
        conditioning = backbone.time(time_features(t))
        modulation = backbone.modulation(conditioning).unflatten(-1, (6, -1))
        last = backbone.last_modulation(conditioning).unflatten(-1, (2, -1))
        answer = transformer_training.run(backbone, tokens, modulation, last, dtype)
        assert answer.dtype == torch.float32
    (answer * numbers(*answer.shape, seed=5)).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    return found | {"tokens": tokens.grad, "t": t.grad, "answer": answer.detach()}


# One head and several, tokens that fill a tile and not, widths of a power of 2 and not, rows that fill a pass and not.
@pytest.mark.parametrize("dtype", list(AGREES))
@pytest.mark.parametrize(
    ("batch", "rows", "columns", "width", "heads"),
    [(3, 2, 3, 64, 2), (2, 8, 8, 192, 3), (1, 1, 1, 128, 1), (2, 5, 3, 64, 1)],
)
def test_answers_and_all_gradients(batch, rows, columns, width, heads, dtype):
    backbone = make_backbone(rows, columns, width, heads)
    assert transformer_training.supports(backbone)
    tokens, t = numbers(batch, rows * columns, 64), torch.linspace(0.1, 0.9, batch, device=DEVICE)
    expected, got = gradients(backbone, tokens, t, None), gradients(backbone, tokens, t, dtype)
    wrong = {
        name: float((got[name] - value).norm() / value.norm().clamp(min=0.5))
        for name, value in expected.items()
        if not (got[name] - value).norm() <= AGREES[dtype] * value.norm().clamp(min=0.5)
    }
    assert not wrong


def test_no_pictures_give_no_gradients():
    found = gradients(make_backbone(), numbers(0, 6, 64), torch.zeros(0, device=DEVICE), torch.float32)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found.values())


@pytest.mark.skipif(DEVICE == "cpu", reason="the kernels are for CUDA")
def test_training_uses_the_kernels_where_it_is_told_to(monkeypatch):
    backbone, tokens = make_backbone(), numbers(3, 6, 64)
    t = torch.full((3,), 0.5, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        expected = gradients(backbone, tokens, t, None)
        assert backbone.train_fused()
        got = gradients(backbone, tokens, t, None)
        monkeypatch.setattr(transformer_training, "run", lambda *_: tokens)
        assert backbone(tokens, t) is tokens
    for name, value in expected.items():
        assert (got[name] - value).norm() <= AGREES[HALF] * value.norm().clamp(min=0.5), name


def test_what_is_left_to_torch():
    assert transformer_training.supports(make_backbone(8, 8, 384, 6))
    assert not transformer_training.supports(make_backbone(8, 9))
    backbone = make_backbone()
    backbone.set_dropout(0.1)
    assert not transformer_training.supports(backbone)
