import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.emvos import decode
from tests.tolerances import assert_close
from vos_lightning.decoders.deconv import DeconvDecoder, FusionBlock, transposed_convolution
from vos_lightning.structures import FeaturePyramid

CHANNELS = (6, 5, 7)


def with_biases(module: nn.Module) -> nn.Module:
    """Biases start at zero, which would hide that one is forgotten."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return module


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def pyramid(batch: int = 2) -> FeaturePyramid:
    torch.manual_seed(0)
    s4, s8, s16 = CHANNELS
    return FeaturePyramid(torch.randn(batch, s4, 8, 12), torch.randn(batch, s8, 4, 6), torch.randn(batch, s16, 2, 3))


def test_parameter_counts():
    decoder = DeconvDecoder((256, 512, 1024), map_channels=10)
    assert count(decoder) == 4_463_177
    table = {
        "stage16": (262_400, 613_120, 722_113, 8_194),
        "stage8": (131_328, 594_688, 722_113, 8_194),
        "stage4": (65_792, 594_688, 722_113, 18_434),
    }
    for name, parts in table.items():
        stage = getattr(decoder, name)
        assert tuple(count(part) for part in (stage.lateral, stage.blend, stage.attention, stage.deconv)) == parts
    assert decoder.stage16.blend.weight.shape == (256, 266, 3, 3)
    assert DeconvDecoder((256, 512, 1024), map_channels=6).stage16.blend.in_channels == 262


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_objects_in_the_batch_equal_one_concatenation_each(memory_format):
    features = pyramid()
    decoder = with_biases(DeconvDecoder(CHANNELS, map_channels=10, channels=8)).to(memory_format=memory_format)
    maps = torch.randn(2, 3, 10, 2, 3)
    logits = decoder(features.to(memory_format=memory_format), maps)
    assert logits.shape == (2, 3, 2, 32, 48)
    for b in range(2):
        one = FeaturePyramid(features.s4[b : b + 1], features.s8[b : b + 1], features.s16[b : b + 1])
        for n in range(3):
            expected = decode(one, maps[b : b + 1, n, :8], maps[b : b + 1, n, 8:], decoder)[0]
            assert_close(logits[b, n], expected)


def test_no_objects():
    assert DeconvDecoder(CHANNELS, 10, 8)(pyramid(), torch.zeros(2, 0, 10, 2, 3)).shape == (2, 0, 2, 32, 48)


def test_every_parameter_gets_a_gradient():
    decoder = DeconvDecoder(CHANNELS, 10, 8)
    decoder(pyramid(), torch.randn(2, 3, 10, 2, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def test_initialisation_is_kaiming_uniform_with_zero_bias():
    torch.manual_seed(0)
    decoder = DeconvDecoder((256, 512, 1024), map_channels=10)
    # Uniform in +-sqrt(6 / fan_in); torch counts the output channels of a transposed convolution as its fan-in.
    for layer, fan_in in ((decoder.stage16.blend, 266 * 9), (decoder.stage4.deconv, 2 * 36), (decoder.stage8.lateral, 512)):
        bound = (6 / fan_in) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.abs().max() > 0.99 * bound
    assert all((layer.bias == 0).all() for layer in decoder.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))


def test_a_stage_fits_other_decoders():
    """PMVOS: 256 lateral and 128 fused channels, no attention, the last scale keeps its size."""
    torch.manual_seed(0)
    stage = FusionBlock(12, 14, lateral_channels=10, blend_channels=6, attention=None, kernel=3, stride=1, padding=1)
    feature, maps = torch.randn(1, 12, 4, 5), torch.randn(1, 2, 14, 4, 5)
    fused = stage(feature, maps)
    for n in range(2):
        x = F.relu(stage.blend(torch.cat([F.relu(stage.lateral(feature)), maps[:, n]], dim=1)))
        assert_close(fused[:, n], stage.deconv(x))
    assert fused.shape == (1, 2, 2, 4, 5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (6, 4, 1), (3, 1, 1), (2, 2, 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolution_is_the_librarys(kernel, stride, padding, bias):
    layer = nn.ConvTranspose2d(5, 2, kernel, stride, padding, bias=bias)
    x = torch.randn(3, 5, 4, 6).to(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = transposed_convolution(x, layer), layer(x)
    assert_close(ours, theirs)
    upstream = torch.randn_like(theirs)
    wanted = torch.autograd.grad(theirs, (x, *layer.parameters()), upstream)
    for actual, expected in zip(torch.autograd.grad(ours, (x, *layer.parameters()), upstream), wanted, strict=True):
        assert_close(actual, expected)
