"""Blocks of STM and STCN: encoders, projections, decoder."""

import pytest
import torch
from torch import nn

from tests.oracles import stcn as oracle
from tests.tolerances import assert_close
from vos_lightning.backbones.residual import ResidualBlock
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.decoders.refine import RefineDecoder
from vos_lightning.encoders.masked import MaskedEncoder
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.encoders.value import ValueEncoder
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD
from vos_lightning.structures import FeaturePyramid

SIZE = (32, 48)
STM_DECODER = {"channels": (256, 256, 256), "entry": "convolution", "refine_skip": True, "num_classes": 2}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomize(network: nn.Module) -> None:
    """Values where initialisation has zeros and ones, which would hide that one is forgotten."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def normalized(image: torch.Tensor) -> torch.Tensor:
    return (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def masked(block="basic", blocks=(1, 1, 1, 1), width=64, norm="frozen_statistics", conv_bias=False, **options):
    trunk = ResNetPyramid(block, blocks, width, "layer3", None, "stem", norm, conv_bias)
    return MaskedEncoder(trunk, **options)


def value_encoder(blocks=(2, 2, 2, 2), width=64, norm="frozen_statistics", others="sum", **options):
    trunk = masked("basic", blocks, width, norm, conv_bias=True, others=others, mask_init="orthogonal")
    return ValueEncoder(trunk, **options)


def test_parameter_counts():
    with torch.device("meta"):
        value = value_encoder()
        assert count(value) == 21_701_635
        assert count(value.trunk) == 2_791_296
        assert count(value.attention) == 33_411
        assert count(value_encoder(others=None)) == 21_701_635 - 3_136
        assert count(masked("bottleneck", (3, 4, 6, 3))) == 8_549_568
        assert count(KeyValueProjection(1024, 128, 512)) == 5_898_880
        decoder = RefineDecoder()
        assert count(decoder) == 18_880_257
        assert [count(x) for x in (decoder.entry, decoder.stage8, decoder.stage4, decoder.predictor)] == [
            11_798_016, 5_309_696, 1_770_240, 2_305,
        ]  # fmt: skip
        decoder = RefineDecoder(**STM_DECODER)
        assert count(decoder) == 10_034_946
        assert [count(x) for x in (decoder.entry, decoder.block16, decoder.stage8, decoder.stage4, decoder.predictor)] == [
            2_359_552, 1_180_160, 3_540_224, 2_950_400, 4_610,
        ]  # fmt: skip


def second_channel(masks: torch.Tensor, n: int, others: str) -> torch.Tensor:
    if others == "inverse":
        return 1 - masks[n]
    total = sum((mask for k, mask in enumerate(masks) if k != n), torch.zeros(SIZE))
    return total.clamp(0, 1) if others == "clamped" else total


@pytest.mark.parametrize("others", ["sum", "clamped", "inverse", None])
def test_masked_encoder_equals_one_convolution_of_all_channels(others):
    encoder = masked("bottleneck", width=4, others=others)
    randomize(encoder)
    image, masks = torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE)
    fine = encoder.fine(image, masks)
    actual = encoder(image, masks)
    for n in range(3):
        channels = [masks[0, n]] + ([] if others is None else [second_channel(masks[0], n, others)])
        s4, _, s16 = oracle.masked_encoder(normalized(image), channels, encoder)
        assert_close(fine[:, n], s4)
        assert_close(actual[:, n], s16)


def test_value_encoder_equals_concatenated_channels():
    encoder = value_encoder((1, 1, 2, 2), 4, shared_channels=16, value_channels=8, reduction=2)
    randomize(encoder)
    image, masks, shared = torch.rand(1, 3, *SIZE), torch.rand(1, 2, *SIZE), torch.randn(1, 16, 2, 3)
    actual = encoder(image, masks, shared)
    for n in range(2):
        assert_close(actual[:, n], oracle.value(normalized(image), [masks[0, n], masks[0, 1 - n]], shared, encoder))


@pytest.mark.parametrize("form", ["stcn", "stm"])
def test_decoder_equals_concatenated_channels(form):
    arguments = {"channels": (8, 6, 4)} if form == "stcn" else {**STM_DECODER, "channels": (6, 6, 6)}
    decoder = RefineDecoder((5, 6, 7), 8, 4, **arguments)
    randomize(decoder)
    pyramid = [torch.rand(1, 5, 8, 12), torch.rand(1, 6, 4, 6), torch.rand(1, 7, 2, 3)]
    read, query = torch.randn(1, 3, 8, 2, 3), torch.randn(1, 4, 2, 3)
    actual = decoder(FeaturePyramid(*pyramid), read, query)
    assert actual.shape == (1, 3, *SIZE)
    for n in range(3):
        expected = oracle.decode(pyramid, read[:, n], query, decoder)[0]
        if form == "stm":
            assert_close(actual[0, n].sigmoid(), expected.softmax(0)[1])
        else:
            assert_close(actual[0, n], expected[0])


def test_residual_block_is_preactivated_with_an_unactivated_shortcut():
    block = ResidualBlock(3, 4)
    x = torch.randn(2, 3, 5, 6)
    assert_close(block(x), oracle.residual(x, block))
    assert isinstance(ResidualBlock(4, 4).shortcut, nn.Identity)


def test_frozen_statistics_train_the_affine_parameters_only():
    encoder = masked(width=4, conv_bias=True).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(torch.rand(2, 3, *SIZE), torch.rand(2, 1, *SIZE)).square().mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(layer.bias is not None for layer in encoder.trunk.modules() if isinstance(layer, nn.Conv2d))


def test_initialisation_of_the_added_layers():
    weight = masked(mask_init="orthogonal").mask_conv.weight.flatten(1)
    assert_close(weight @ weight.t(), torch.eye(64))
    bound = masked().mask_conv.weight.abs().amax()
    assert 0.9 / 7 < bound <= 1 / 7  # PyTorch's default for one channel of 7 x 7
    key = KeyValueProjection(64, 8, 4, orthogonal_key=True).key
    flat = key.weight.flatten(1)
    assert_close(flat @ flat.t(), torch.eye(8))
    assert key.bias.eq(0).all()


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="set weights to None"):
        ResNetPyramid("basic", (2, 2, 2, 2), 8, "layer3")


def test_one_mask_channel_loads_into_two():
    one, two = (masked(width=8, others=others) for others in (None, "sum"))
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.mask_conv.weight[:, :1], one.mask_conv.weight)
    added = two.mask_conv.weight[:, 1].flatten(1)
    assert_close(added @ added.t(), torch.eye(8))
    with pytest.raises(RuntimeError, match="mask_conv"):
        one.load_state_dict(two.state_dict())


@pytest.mark.parametrize("norm", ["instance", "frozen_statistics"])
def test_copier_start_keeps_the_mask_in_two_channels(norm):
    encoder = value_encoder((2, 1, 2, 2), 8, shared_channels=16, value_channels=8, reduction=2, norm=norm)
    encoder.start_as_copier()
    masks = torch.zeros(1, 2, 160, 160)
    masks[0, 0, 32:112, 16:64] = 1
    masks[0, 1, 48:96, 96:144] = 1
    value = encoder(torch.rand(1, 3, 160, 160), masks, torch.randn(1, 16, 10, 10))
    for n, inside in enumerate(((slice(4, 6), 2), (4, slice(7, 8)))):
        assert_close(value[0, n, 0][inside], torch.ones_like(value[0, n, 0][inside]))
        assert value[0, n, 1][inside].abs().max() < 1e-5
        assert value[0, n, 0, 8:].eq(0).all()
        assert_close(value[0, n, 1, 8, 1:-1], torch.ones(8))


@pytest.mark.parametrize("form", ["stcn", "stm"])
def test_copier_start_enlarges_what_was_read(form):
    arguments = {"channels": (8, 8, 8)} if form == "stcn" else {**STM_DECODER, "channels": (8, 8, 8)}
    decoder = RefineDecoder((5, 6, 7), 8, 4, **arguments)
    decoder.start_as_copier(5.0)
    pyramid = FeaturePyramid(torch.randn(1, 5, 16, 24), torch.randn(1, 6, 8, 12), torch.randn(1, 7, 4, 6))
    read = torch.randn(1, 1, 8, 4, 6)
    read[:, :, 0], read[:, :, 1] = 0, 1
    read[..., 0, 1:3, 2:4], read[..., 1, 1:3, 2:4] = 1, 0
    logits = decoder(pyramid, read, torch.randn(1, 4, 4, 6))[0, 0]
    assert logits[28:36, 44:52].min() > 3
    assert logits[:8].max() < -3


def test_what_objects_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the objects are taken one after the other."""
    monkeypatch.setattr("vos_lightning.mask_ops.PART_BYTES", 1)
    decoder = RefineDecoder((8, 8, 8), 8, 8, (8, 8, 8), "convolution", refine_skip=True)
    trunk = ResNetPyramid(
        "basic", (1, 1, 1, 1), width=8, last="layer3", weights=None, train_from="stem", norm="frozen_statistics"
    )
    encoder = MaskedEncoder(trunk, "sum")
    calls: dict[str, int] = {}

    def count_calls(name: str, layer: nn.Module) -> None:
        calls[name] = 0

        def hook(*_: object) -> None:
            calls[name] += 1

        layer.register_forward_hook(hook)

    for name, layer in (
        ("skip8", decoder.stage8.skip), ("skip4", decoder.stage4.skip_block), ("block4", decoder.stage4.block),
        ("colours", encoder.trunk.conv1), ("layer1", encoder.trunk.layer1), ("masks", encoder.mask_conv),
    ):  # fmt: skip
        count_calls(name, layer)  # type: ignore[arg-type]
    pyramid = FeaturePyramid(torch.rand(1, 8, 16, 16), torch.rand(1, 8, 8, 8), torch.rand(1, 8, 4, 4))
    with torch.no_grad():
        decoder(pyramid, torch.rand(1, 5, 8, 4, 4), torch.rand(1, 8, 4, 4))
        encoder(torch.rand(1, 3, 32, 32), torch.rand(1, 5, 32, 32))
    assert calls == {"skip8": 1, "skip4": 1, "block4": 5, "colours": 1, "layer1": 5, "masks": 5}
