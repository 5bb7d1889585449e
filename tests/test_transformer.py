"""The backbone's registers."""

import torch

from models.transformer import PatchTransformer


def test_registers_are_heard_without_a_place_and_say_nothing_themselves():
    torch.manual_seed(0)
    backbone = PatchTransformer(rows=2, columns=3, inputs=12, width=32, blocks=2, heads=2, registers=3)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "modulation" in name or "offset" in name or name == "registers":
                parameter += 0.5 * torch.randn_like(parameter)
    tokens, t = torch.randn(2, 6, 12), torch.tensor([0.2, 0.7])
    answer = backbone(tokens, t)
    assert answer.shape == (2, 6, 32)
    answer.square().sum().backward()
    assert backbone.registers.grad.abs().min() > 0
    with torch.no_grad():
        backbone.registers.copy_(backbone.registers[[2, 0, 1]])
        torch.testing.assert_close(backbone(tokens, t), answer)
        backbone.registers[0] += 1.0
        assert (backbone(tokens, t) - answer).abs().max() > 1e-2
