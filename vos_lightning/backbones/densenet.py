"""DenseNet as a feature pyramid."""

from __future__ import annotations

import re
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import DenseNet, DenseNet121_Weights

from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.normalization import Norm, replace_batch_norm
from vos_lightning.io.pretrained import read_pretrained
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD
from vos_lightning.structures import FeaturePyramid

Weights = Literal["IMAGENET1K_V1", "DEFAULT"]
"""Members of ``torchvision.models.DenseNet121_Weights``."""
_DENSENET121 = (32, (6, 12, 24), 64)
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)(?=\.)")


class DenseNetPyramid(Backbone):
    """DenseNet-121 up to its third dense block: the raw outputs of the dense blocks at strides 4, 8 and 16.

    The outputs are taken before the batch normalisation and ReLU of the transition that follows. Layers and parameter names are
    torchvision's (``features.*`` without the prefix), so its checkpoints fit by name. The backbone itself subtracts the mean and
    divides by the standard deviation of ImageNet.

    Args:
        growth_rate: number of channels that every dense layer adds.
        block_config: number of layers of the three dense blocks.
        num_init_features: number of channels of the stem.
        weights: name of a member of ``torchvision.models.DenseNet121_Weights`` (``"IMAGENET1K_V1"``), see
            :func:`read_pretrained`; None for torchvision's random initialisation.
        norm: ``frozen`` keeps statistics and affine parameters of all batch normalisation as they are, in training too;
            ``frozen_statistics`` keeps the statistics only; ``batch`` is ordinary batch normalisation; ``instance`` replaces it
            by instance normalisation, for training from scratch with few clips a batch, where running statistics do not describe
            a single frame.

    Raises:
        ValueError: weights are unknown, or asked for a size that is not DenseNet-121's.

    Reference: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: tuple[int, int, int] = (6, 12, 24),
        num_init_features: int = 64,
        weights: Weights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen",
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {get_args(Norm)}, not {norm!r}")
        if norm == "instance" and weights is not None:
            raise ValueError(f"weights {weights!r} were trained with batch normalisation; set norm to 'frozen' or 'batch'")
        self.norm: Norm = norm
        size = (growth_rate, tuple(block_config), num_init_features)
        if weights is not None and size != _DENSENET121:
            raise ValueError(f"weights {weights!r} are DenseNet-121's; set weights to None for another size")
        if weights is not None and weights not in DenseNet121_Weights.__members__:
            raise ValueError(f"weights must be one of {tuple(DenseNet121_Weights.__members__)} or None, not {weights!r}")
        layers = DenseNet(growth_rate, (*block_config, 0), num_init_features, num_classes=1).features
        self.conv0, self.norm0, self.relu0, self.pool0 = layers.conv0, layers.norm0, layers.relu0, layers.pool0
        self.denseblock1, self.transition1 = layers.denseblock1, layers.transition1
        self.denseblock2, self.transition2 = layers.denseblock2, layers.transition2
        self.denseblock3 = layers.denseblock3
        s4 = num_init_features + block_config[0] * growth_rate
        s8 = s4 // 2 + block_config[1] * growth_rate
        s16 = s8 // 2 + block_config[2] * growth_rate
        self.channels = (s4, s8, s16)
        """Channels of the pyramid, fine to coarse."""
        if weights is not None:
            self._load(DenseNet121_Weights[weights])
        self._set_statistics(IMAGENET_MEAN, IMAGENET_STD)
        if norm == "instance":
            replace_batch_norm(self)
        self._freeze(self._batch_norms() if norm in ("frozen", "frozen_statistics") else [])
        self.train(self.training)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> FeaturePyramid:
        """Encode RGB images in [0, 1]; ``H`` and ``W`` are multiples of 16.

        Returns:
            Features with ``self.channels`` channels, without normalisation and ReLU.
        """
        x = self.pool0(self.relu0(self.norm0(self.conv0(self._normalized(image)))))
        s4 = self.denseblock1(x)
        s8 = self.denseblock2(self.transition1(s4))
        s16 = self.denseblock3(self.transition2(s8))
        return FeaturePyramid(s4=s4, s8=s8, s16=s16)

    def _load(self, weights: DenseNet121_Weights) -> None:
        source = read_pretrained(weights)
        if source is None:
            return
        # The published file uses module names with dots, which PyTorch no longer allows: `norm.1` is now `norm1`.
        renamed = {_OLD_NAME.sub(r"\1\2", key.removeprefix("features.")): value for key, value in source.items()}
        own = self.state_dict()
        self.load_state_dict({key: value for key, value in renamed.items() if key in own})

    def _batch_norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
