import pytest
import torch
from torch import nn

from tests.oracles.emvos import cbam as oracle
from tests.tolerances import assert_close
from vos_lightning.attention.cbam import CBAM


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_default_equals_the_oracle():
    torch.manual_seed(0)
    block, x = CBAM(12), torch.randn(2, 12, 5, 7)
    assert_close(block(x), oracle(x, block))


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({}, 722_113),
        (
            {
                "entry_conv": False,
                "reduction": 16,
                "spatial_hidden": None,
                "spatial_kernel": 7,
                "spatial_pools": ("max", "mean"),
            },
            2 * 256 * 16 + 16 + 256 + 2 * 49 + 1,
        ),
    ],
    ids=["emvos", "original"],
)
def test_parameter_counts(arguments, parameters):
    assert count(CBAM(256, **arguments)) == parameters


def test_original_form_equals_the_formula():
    torch.manual_seed(0)
    block = CBAM(32, entry_conv=False, reduction=16, spatial_hidden=None, spatial_kernel=7, spatial_pools=("max", "mean"))
    x = torch.randn(2, 32, 9, 8)
    first, second = block.channel_gate[0], block.channel_gate[2]

    def mlp(v: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(nn.functional.linear(v, first.weight[:, :, 0, 0], first.bias))
        return nn.functional.linear(hidden, second.weight[:, :, 0, 0], second.bias)

    gated = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[:, :, None, None]
    pooled = torch.stack([gated.amax(1), gated.mean(1)], dim=1)
    assert_close(block(x), gated * torch.sigmoid(block.spatial_gate[0](pooled)))
    assert len(block.spatial_gate) == 1


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    block = CBAM(8)
    block(torch.randn(2, 8, 4, 4)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in block.parameters())
