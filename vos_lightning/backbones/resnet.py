"""ResNet as a feature pyramid."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from vos_lightning.backbones.base import StemBackbone
from vos_lightning.backbones.normalization import Norm, replace_batch_norm
from vos_lightning.io.pretrained import read_pretrained
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD
from vos_lightning.structures import FeaturePyramid

Block = Literal["basic", "bottleneck"]
Stage = Literal["layer3", "layer4"]
TrainFrom = Literal["stem", "layer1", "layer2", "layer3", "layer4"]
ResNetWeights = Literal["IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT", "MASK_RCNN_COCO_V1"]
"""Members of ``torchvision.models.ResNet50_Weights`` (``ResNet18_Weights`` has no V2), or the trunk of torchvision's Mask R-CNN
(ResNet-50, trained on COCO)."""
_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_PUBLISHED: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
_DETECTORS: dict[str, WeightsEnum] = {"MASK_RCNN_COCO_V1": MaskRCNN_ResNet50_FPN_Weights.COCO_V1}
_DETECTOR_TRUNK = "backbone.body."


class ResNetPyramid(StemBackbone):
    """ResNet with features at strides 4 (``layer1``), 8 (``layer2``) and 16 (``layer3``, or ``layer4`` without its stride).

    ``layer4`` would have stride 32, so its stride is removed and all its blocks but the first are dilated by 2 (DeepLab). Layers
    and parameter names are torchvision's, so its checkpoints fit by name; there is no classifier. The backbone itself subtracts
    the mean and divides by the standard deviation of ImageNet. The defaults are those of PMVOS; ``last="layer3",
    train_from="stem", norm="frozen_statistics"`` is the trunk of STM and STCN.

    Args:
        block: ``bottleneck`` (ResNet-50, 101) or ``basic`` (ResNet-18, 34).
        blocks: numbers of blocks of the four layer groups; the last is not used with ``last="layer3"``.
        width: number of channels of the stem; 64 except in tests.
        last: the layer group whose output is ``s16``.
        weights: name of the torchvision weights (``"IMAGENET1K_V1"``), see :func:`read_pretrained`; None for torchvision's random
            initialisation. ``MASK_RCNN_COCO_V1`` is the trunk of a detector and needs ``norm="frozen"`` or
            ``"frozen_statistics"``.
        train_from: the first layer group that is trained; earlier ones keep parameters and statistics. None trains nothing.
        norm: normalisation of the trained layer groups. ``batch`` is ordinary batch normalisation; ``frozen`` keeps statistics
            and affine parameters, ``frozen_statistics`` the statistics only; ``instance`` replaces all batch normalisation by
            instance normalisation, for training from scratch.
        conv_bias: give every convolution a bias that starts at zero and is trained with its weight (STCN's value encoder).

    Raises:
        ValueError: weights are unknown, or asked for a size that has none.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; stride on the 3 x 3 convolution.
    """

    def __init__(
        self,
        block: Block = "bottleneck",
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        last: Stage = "layer4",
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        train_from: TrainFrom | None = "layer4",
        norm: Norm = "batch",
        conv_bias: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("block", block, get_args(Block)),
            ("last", last, get_args(Stage)),
            ("train_from", train_from, (*get_args(TrainFrom), None)),
            ("norm", norm, get_args(Norm)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if weights in _DETECTORS and not norm.startswith("frozen"):
            raise ValueError(f"weights {weights!r} were trained with frozen batch normalisation; set norm to 'frozen_statistics'")
        if norm == "instance" and weights is not None:
            raise ValueError(f"weights {weights!r} were trained with batch normalisation; set norm to 'batch' or 'frozen'")
        self.norm: Norm = norm
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        kind = _BLOCKS[block]
        channels = [width] + [width * 2**n * kind.expansion for n in range(4)]
        self.layer1 = _stage(kind, channels[0], width, blocks[0], stride=1)
        self.layer2 = _stage(kind, channels[1], 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(kind, channels[2], 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(kind, channels[3], 8 * width, blocks[3], stride=1, dilation=2) if last == "layer4" else None
        self.channels = (channels[1], channels[2], channels[4 if last == "layer4" else 3])
        """Channels of the pyramid, fine to coarse."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            self._load(weights, block, tuple(blocks), width)
        if conv_bias:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if norm == "instance":
            replace_batch_norm(self)
        self._set_statistics(IMAGENET_MEAN, IMAGENET_STD)

        stages: list[list[nn.Module]] = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3]]
        if self.layer4 is not None:
            stages.append([self.layer4])
        first = len(stages) if train_from is None else get_args(TrainFrom).index(train_from)
        fixed = [module for stage in stages[:first] for module in stage]
        for module in fixed:
            module.requires_grad_(False)
        frozen_norms = self.modules() if norm.startswith("frozen") else (m for part in fixed for m in part.modules())
        self._freeze([module for module in frozen_norms if isinstance(module, nn.BatchNorm2d)])
        self.train(self.training)

    def pyramid(self, stem: Float[Tensor, "B C H2 W2"]) -> FeaturePyramid:
        """Features after a ReLU, with ``self.channels`` channels, from the output of the first convolution."""
        s4 = self.fine(stem)
        s8 = self.layer2(s4)
        s16 = self.layer3(s8)
        return FeaturePyramid(s4=s4, s8=s8, s16=s16 if self.layer4 is None else self.layer4(s16))

    def fine(self, stem: Float[Tensor, "B C H2 W2"]) -> Float[Tensor, "B C4 H4 W4"]:
        """From the output of the first convolution to stride 4."""
        return self.layer1(self.maxpool(self.relu(self.bn1(stem))))

    @torch.no_grad()
    def start_smooth(self, gain: float = 0.1) -> None:
        """Scale what every block adds to its input, by the weights of the block's last normalisation.

        Random features then follow the shallow path and change smoothly from frame to frame. The affinities of an untrained
        network then tell regions apart, which those of 13 random blocks at full strength hardly do.

        Reference: Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, with a gain of 0.
        """
        for module in self.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                last_norm(module).weight *= gain

    def _load(self, weights: str, block: Block, blocks: tuple[int, ...], width: int) -> None:
        name = _PUBLISHED.get((block, blocks)) if width == 64 else None
        if name is None:
            raise ValueError(f"weights {weights!r} are for {tuple(_PUBLISHED.values())}; set weights to None for another size")
        if weights in _DETECTORS:
            if name != "resnet50":
                raise ValueError(f"weights {weights!r} are of a resnet50, not of a {name}")
            self._load_detector(weights)
            return
        members = get_model_weights(name).__members__
        if weights not in members:
            raise ValueError(f"weights of {name} must be one of {tuple(members)} or None, not {weights!r}")
        source = read_pretrained(members[weights])
        if source is not None:
            own = self.state_dict()
            self.load_state_dict({key: value for key, value in source.items() if key in own})

    def _load_detector(self, weights: str) -> None:
        source = read_pretrained(_DETECTORS[weights])
        if source is None:
            return
        own = self.state_dict()
        # The detector's batch normalisation is frozen, so it has no counter of batches.
        loaded = {key: source[_DETECTOR_TRUNK + key] for key in own if not key.endswith("num_batches_tracked")}
        self.load_state_dict({**own, **loaded})


def last_norm(block: BasicBlock | Bottleneck) -> Any:
    """The normalisation of the branch that a block adds to its input."""
    return block.bn3 if isinstance(block, Bottleneck) else block.bn2


def _stage(
    kind: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int, count: int, stride: int, dilation: int = 1
) -> nn.Sequential:
    """One layer group of torchvision's ResNet. ``BasicBlock`` cannot be dilated."""
    out_channels = planes * kind.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
    # As in torchvision, the block whose stride was removed is not dilated.
    layers = [kind(in_channels, planes, stride, downsample)]
    layers += [kind(out_channels, planes, dilation=dilation) for _ in range(1, count)]
    return nn.Sequential(*layers)
