import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests.tolerances import assert_close
from vos_lightning.backbones.densenet import DenseNetPyramid
from vos_lightning.io import pretrained

SMALL = {"growth_rate": 4, "block_config": (2, 3, 2), "num_init_features": 8, "weights": None}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_and_channels_of_densenet121():
    backbone = DenseNetPyramid(weights=None)
    assert count(backbone) == 4_267_392
    parts = {name: count(module) for name, module in backbone.named_children()}
    assert {name: size for name, size in parts.items() if size} == {
        "conv0": 9_408,
        "norm0": 128,
        "denseblock1": 335_040,
        "transition1": 33_280,
        "denseblock2": 919_680,
        "transition2": 132_096,
        "denseblock3": 2_837_760,
    }
    assert backbone.channels == (256, 512, 1024)


def test_names_and_levels_are_torchvisions():
    torch.manual_seed(0)
    source = torchvision.models.densenet121(weights=None).eval()
    wanted = {name.removeprefix("features."): value for name, value in source.state_dict().items()}
    backbone = DenseNetPyramid(weights=None).eval()
    own = backbone.state_dict()
    assert set(own) <= set(wanted)
    backbone.load_state_dict({name: wanted[name] for name in own})

    image = torch.rand(1, 3, 32, 64)
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    levels = {}
    for name, layer in source.features.named_children():
        x = layer(x)
        levels[name] = x.clone()  # torchvision's ReLU works in place
    pyramid = backbone(image)
    for feature, name in ((pyramid.s4, "denseblock1"), (pyramid.s8, "denseblock2"), (pyramid.s16, "denseblock3")):
        assert_close(feature, levels[name])
    assert (pyramid.s16 < 0).any(), "raw block outputs, not rectified"


def test_pretrained_weights_come_from_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "published_hash", lambda _: "")  # the file holds random numbers
    torch.manual_seed(0)
    state = torchvision.models.densenet121(weights=None).state_dict()
    # The published file still has the dots that module names have lost since, and no batch counters.
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / "densenet121-a639ec97.pth")

    own = DenseNetPyramid(weights="IMAGENET1K_V1").state_dict()
    for name, value in own.items():
        assert torch.equal(value, state[f"features.{name}"]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**SMALL, "weights": "IMAGENET1K_V1"}, "set weights to None"),
        ({"weights": "IMAGENET1K_V1", "norm": "instance"}, "set norm to"),
    ],
)
def test_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseNetPyramid(**arguments)


def test_small_variants():
    backbone = DenseNetPyramid(**SMALL)
    pyramid = backbone(torch.rand(2, 3, 64, 96))
    assert pyramid.s4.shape == (2, backbone.channels[0], 16, 24)
    assert pyramid.s8.shape == (2, backbone.channels[1], 8, 12)
    assert pyramid.s16.shape == (2, backbone.channels[2], 4, 6)


def test_frozen_normalisation_stays_through_training():
    backbone = DenseNetPyramid(**SMALL)
    image = torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    in_training = backbone(image)
    in_training.s16.sum().backward()
    assert torch.equal(in_training.s16, backbone.train().eval()(image).s16)
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name]), name
    backbone.train()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == ("norm" in name), name
        assert parameter.requires_grad == ("norm" not in name), name


def test_batch_normalisation_learns_statistics():
    backbone = DenseNetPyramid(**SMALL, norm="batch")
    before = backbone.norm0.running_mean.clone()
    backbone(torch.rand(2, 3, 32, 32)).s16.sum().backward()
    assert not torch.equal(backbone.norm0.running_mean, before)
    assert all(parameter.grad is not None for parameter in backbone.parameters())
