"""The trunk of torchvision's Mask R-CNN as initialisation."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from tests.tolerances import assert_close
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.io import pretrained
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def detector(monkeypatch, tmp_path) -> nn.Module:
    """The layout of torchvision's detector with random parameters, instead of a download."""
    trunk = resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
    for name, value in trunk.named_buffers():
        # As in the published file, some variances are far below the usual epsilon.
        value.uniform_(1e-6, 1.0) if name.endswith("running_var") else value.normal_(std=0.3)
    del trunk.fc
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.body = trunk
    detector.head = nn.Linear(2, 2)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = pretrained.published_path(MaskRCNN_ResNet50_FPN_Weights.COCO_V1)
    path.parent.mkdir(parents=True)
    torch.save(detector.state_dict(), path)
    monkeypatch.setattr(pretrained, "published_hash", lambda _: "")
    return detector


def test_features_are_the_detectors(detector):
    network = ResNetPyramid(last="layer3", weights="MASK_RCNN_COCO_V1", train_from="stem", norm="frozen_statistics")
    image = torch.rand(1, 3, 32, 48)
    x = (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    body = detector.backbone.body
    with torch.no_grad():
        s4 = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(x)))))
        s16 = body.layer3(body.layer2(s4))
        pyramid = network(image)
    assert s16.std() > 0
    # Features of random layers grow: the table of tolerances is for values around 1.
    assert_close(pyramid.s4 / s4.std(), s4 / s4.std())
    assert_close(pyramid.s16 / s16.std(), s16 / s16.std())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "batch"}, "set norm to 'frozen_statistics'"),
        ({"norm": "frozen", "blocks": (3, 4, 23, 3)}, "of a resnet50"),
        ({"norm": "frozen", "width": 8}, "set weights to None"),
    ],
)
def test_what_it_is_not_for_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNetPyramid(weights="MASK_RCNN_COCO_V1", **arguments)
