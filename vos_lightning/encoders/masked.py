"""Encoder of a frame together with the mask of an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.backbones.base import Backbone, StemBackbone
from vos_lightning.backbones.normalization import CarrierNorm
from vos_lightning.backbones.residual import hand_through, merge_objects
from vos_lightning.backbones.resnet import ResNetPyramid, last_norm
from vos_lightning.encoders.projection import KeyValueProjection
from vos_lightning.mask_ops import by_objects

OtherObjects = Literal["sum", "clamped", "inverse"]
"""What the second mask channel of an object holds: the sum of the other objects' masks (``sum``, STCN), that sum clamped to
[0, 1] (``clamped``, STM), or one minus the object's own mask (``inverse``, AFB-URR)."""
MaskInit = Literal["default", "orthogonal"]
CARRIERS = 2
"""Number of channels that a copier start gives to the mask and its complement, in this order."""


class MaskedEncoder(nn.Module):
    """Encodes a frame and its masks to features at stride 16, separately for every object.

    The first convolution sees the mask channels beside the colours. A convolution of several inputs is the sum of convolutions,
    so the part of the colours is computed once a frame for all objects, separately from the part of the masks.

    Weights of an encoder with one mask channel can be loaded into one with two: the second channel then gets new orthogonal
    weights (STCN, from the training on still images to that on videos).

    Args:
        trunk: encoder of the frame, which can be entered after its first convolution. The part of that convolution that sees the
            masks is added here and starts with random weights.
        others: content of the second mask channel, see :data:`OtherObjects`; None for the object's own mask alone.
        mask_init: initialisation of the part of the masks: PyTorch's default for one convolution a channel (STM), or
            ``orthogonal`` over all channels (STCN).
        carry_masks: put the mask and its complement, averaged over cells, before the features at strides 4 and 16. Not in the
            papers: a pretrained trunk has no channels that could hold the mask, so a copier start needs them.

    Raises:
        ValueError: an argument is unknown, or ``trunk`` does not start with one convolution.

    Reference: STM (Oh et al., ICCV 2019) section 3.1; STCN (Cheng et al., NeurIPS 2021) section 3.1; released code.
    """

    training_arguments: ClassVar[frozenset[str]] = frozenset({"mask_init"})

    def __init__(
        self,
        trunk: StemBackbone,
        others: OtherObjects | None = "clamped",
        mask_init: MaskInit = "default",
        carry_masks: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("others", others, (*get_args(OtherObjects), None)),
            ("mask_init", mask_init, get_args(MaskInit)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        first = trunk.conv1
        if first is None:
            raise ValueError("a mask encoder needs a trunk that starts with one convolution, to which masks can be added")
        self.others = others
        self.carry_masks = carry_masks
        self.trunk = trunk
        s4, s8, s16 = trunk.channels
        carried = CARRIERS if carry_masks else 0
        self.channels = (s4 + carried, s8, s16 + carried)
        """Numbers of channels at strides 4, 8 (which nothing reads) and 16."""
        # The same kind of convolution as the trunk's, as some pad in their own way.
        geometry: Any = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
        self.mask_conv = type(first)(1 if others is None else 2, first.out_channels, **geometry, bias=False)
        if mask_init == "orthogonal":
            nn.init.orthogonal_(self.mask_conv.weight)
        else:
            # PyTorch's default bound counts the inputs of a layer. Every mask channel has its own convolution, so it is one
            # channel here.
            for channel in self.mask_conv.weight.split(1, dim=1):
                nn.init.kaiming_uniform_(channel, a=5**0.5)
        self.register_load_state_dict_pre_hook(_add_mask_channel)

    def forward(self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N C16 h w"]:
        """Features at stride 16 of every object.

        Args:
            image: RGB in [0, 1].
            masks: soft masks of all objects.
        """
        encode = self.of_frame(image)
        coarse: Tensor = by_objects(lambda *part: encode(*part)[1], self.bytes_of_one(image), masks, self.mask_channels(masks))
        return coarse

    def fine_and_coarse(
        self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"]
    ) -> tuple[Float[Tensor, "B N C4 H4 W4"], Float[Tensor, "B N C16 h w"]]:
        """Features at strides 4 and 16 of every object."""
        fine, coarse = by_objects(self.of_frame(image), self.bytes_of_one(image), masks, self.mask_channels(masks))
        return fine, coarse

    def fine(self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N C4 H4 W4"]:
        """Features at stride 4 of every object; nothing later is computed."""
        once = self.trunk.stem(image)

        def encode(own: Tensor, channels: Tensor) -> Tensor:
            return self._carrying(self.trunk.fine(self._stem(once, channels)), own, 4)

        fine: Tensor = by_objects(encode, self.bytes_of_one(image), masks, self.mask_channels(masks))
        return fine

    def of_frame(self, image: Float[Tensor, "B 3 H W"]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Compute what all objects share.

        Returns:
            A function from the masks of objects and their :meth:`mask_channels` to their features at strides 4 and 16.
        """
        once = self.trunk.stem(image)

        def encode(own: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
            pyramid = self.trunk.pyramid(self._stem(once, channels))
            return self._carrying(pyramid.s4, own, 4), self._carrying(pyramid.s16, own, 16)

        return encode

    def bytes_of_one(self, image: Float[Tensor, "B 3 H W"]) -> float:
        """About how many bytes one object takes: some six tensors as large as that after the first convolution, at stride 2."""
        return 6.0 * self.mask_conv.out_channels * image[:, 0].numel() * image.element_size() / 4

    def _stem(self, once: Float[Tensor, "B C H1 W1"], channels: Float[Tensor, "B N E H W"]) -> Float[Tensor, "R C H1 W1"]:
        each = self.mask_conv(channels.flatten(0, 1)).unflatten(0, channels.shape[:2])
        return merge_objects(each + once.unsqueeze(1))

    def _carrying(self, features: Float[Tensor, "R C h w"], masks: Float[Tensor, "B N H W"], stride: int) -> Tensor:
        """The features of every object, after the mask and its complement if they are carried."""
        if self.carry_masks:
            own = F.avg_pool2d(masks.to(features.dtype), stride).flatten(0, 1).unsqueeze(1)
            features = torch.cat([own, 1 - own, features], dim=1)
        return features.unflatten(0, masks.shape[:2])

    def mask_channels(self, masks: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N E H W"]:
        """What the first convolution sees of the mask of every object, and of the others."""
        own = masks.unsqueeze(2)
        if self.others is None:
            return own
        second = 1 - own if self.others == "inverse" else own.sum(dim=1, keepdim=True) - own
        return torch.cat([own, second.clamp(0, 1) if self.others == "clamped" else second], dim=2)

    @torch.no_grad()
    def start_as_copier(self) -> None:
        """Initialise so that the first two channels of all features are the mask and its complement, at every stride.

        The other channels start as if there were no mask, so that keys made of them match those of the frame alone. Instance
        normalisation leaves out the first two channels.

        Raises:
            ValueError: the trunk is no ResNet, and ``carry_masks`` is not set.
        """
        self.mask_conv.weight[:] = 0
        if self.carry_masks:
            return
        if not isinstance(self.trunk, ResNetPyramid):
            raise ValueError("copier_start needs a mask encoder on a ResNet, or one with carry_masks")
        trunk: Any = self.trunk
        trunk.conv1.weight[:CARRIERS] = 0
        self.mask_conv.weight[:CARRIERS, 0] = 1 / self.mask_conv.weight[0, 0].numel()
        self._free_carriers(trunk, "bn1")
        trunk.bn1.weight[:CARRIERS] = trunk.bn1.weight.new_tensor([1, -1])
        trunk.bn1.bias[:CARRIERS] = trunk.bn1.bias.new_tensor([0, 1])
        for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
            for block in stage:
                last = last_norm(block)
                last.weight[:CARRIERS] = 0
                last.bias[:CARRIERS] = 0
                if block.downsample is not None:
                    hand_through(block.downsample[0], CARRIERS)
                    self._free_carriers(block.downsample, "1")

    @staticmethod
    def _free_carriers(parent: nn.Module, name: str) -> None:
        norm = getattr(parent, name)
        if isinstance(norm, nn.GroupNorm):
            setattr(parent, name, CarrierNorm(norm.num_channels, CARRIERS))


def start_alike(of_memory: nn.Conv2d, of_query: nn.Conv2d) -> None:
    """Initialise a projection of the memory with the weights of the query's; it does not read the masks that features carry."""
    carried = of_memory.in_channels - of_query.in_channels
    of_memory.load_state_dict({**of_query.state_dict(), "weight": F.pad(of_query.weight, (0, 0, 0, 0, carried, 0))})


def start_as_copiers(
    query_encoder: Backbone,
    query_projection: KeyValueProjection,
    memory_encoder: MaskedEncoder,
    memory_projection: KeyValueProjection | None,
) -> None:
    """Initialise separate encoders of query and memory with equal weights, and values of the memory that hold the masks.

    Args:
        query_encoder: encoder of the query.
        query_projection: its keys and values.
        memory_encoder: encoder of the memory, whose trunk is like the query's encoder.
        memory_projection: its keys and values.

    Raises:
        ValueError: the memory has no separate projection, or the two encoders differ in kind or size.
    """
    if memory_projection is None:
        raise ValueError("copier_start needs a projection of the memory's own: set shared_projection to False")
    query_encoder.start_smooth()
    try:
        memory_encoder.trunk.load_state_dict(query_encoder.state_dict())
    except RuntimeError as error:
        raise ValueError("copier_start needs encoders of one kind and size for the query and for the memory") from error
    memory_encoder.start_as_copier()
    query_projection.start_as_matcher()
    start_alike(memory_projection.key, query_projection.key)
    start_alike(memory_projection.value, query_projection.value)
    hand_through(memory_projection.value, CARRIERS)


def _add_mask_channel(encoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(encoder, MaskedEncoder)
    key, own = f"{prefix}mask_conv.weight", encoder.mask_conv.weight
    given = state.get(key)
    if isinstance(given, Tensor) and given.shape == own[:, :1].shape != own.shape:
        added = nn.init.orthogonal_(torch.empty_like(given))
        state[key] = torch.cat([given, added], dim=1)
