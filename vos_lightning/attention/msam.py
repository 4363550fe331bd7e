"""Motion-aware spatial attention: the motion since the previous frame, and a gate that emphasises it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.matching.local_window import (
    Confidence,
    OutOfFrame,
    local_similarity,
    match_confidence,
    soft_displacement,
)
from vos_lightning.matching.similarity import l2_normalize

MotionNorm = Literal["none", "group"]

MOTION_KERNELS = (7, 1, 3, 1, 3, 1, 3, 1)
MOTION_CHANNELS = (3, 16, 16, 32, 32, 32, 64)
"""Kernel sizes of the motion network, and output channels of all its layers but the last (Table 1)."""


@dataclass(frozen=True)
class MotionOptions:
    r"""Options of the motion layer.

    Attributes:
        window: side of the search window in the previous frame, in cells, odd.
        uncertainty: form of the uncertainty map, see :func:`match_confidence`; None leaves the map out. ``maximum`` is equation
            2, which is high where the match is sure, although the caption of Figure 6 gives moving regions a high uncertainty.
        sign: sign of the cosines in the softmax, see :func:`match_weights`.
        temperature: temperature of the softmax, positive.
        learn_temperature: train the logarithm of the temperature, which starts at ``temperature``.
        normalize: divide the displacement by ``window // 2``.
        out_of_frame: how offsets that leave the frame are treated, see :func:`match_weights`.
        reduced_channels: number of channels of the compared features; in the paper, a quarter of the 1024 semantic channels.
        separate_reduction: reduce the features of the previous frame by a separate layer.
        norm: ``group`` puts a group normalisation of one group after every layer of the motion network but the last.

    Raises:
        ValueError: a value is unknown or out of range.

    Reference: MUNet (Sun et al.) section 3.2; the paper prints ``sign=-1``, no temperature and no normalisation, and
    says nothing of the border, where ``zero`` is the plain reading.
    """

    window: int = 25
    uncertainty: Confidence | None = "maximum"
    sign: Literal[-1, 1] = 1
    temperature: float = 0.02
    learn_temperature: bool = False
    normalize: bool = True
    out_of_frame: OutOfFrame = "mean"
    reduced_channels: int = 256
    separate_reduction: bool = False
    norm: MotionNorm = "none"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("uncertainty", self.uncertainty, (*get_args(Confidence), None)),
            ("sign", self.sign, (-1, 1)),
            ("out_of_frame", self.out_of_frame, get_args(OutOfFrame)),
            ("norm", self.norm, get_args(MotionNorm)),
        ):
            if value not in allowed:
                raise ValueError(f"motion.{name} must be one of {allowed}, not {value!r}")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"motion.window must be an odd number of cells, not {self.window}")
        if self.temperature <= 0:
            raise ValueError(f"motion.temperature must be positive, not {self.temperature}")


class MotionLayer(nn.Module):
    r"""Motion-uncertainty layer: where each pixel came from and how certain that is, as a feature.

    The cosines :math:`C(u, x)` between the reduced features of this frame and of a window in the previous one give a displacement
    (the mean offset under a softmax of :math:`\pm C / \tau`) and an uncertainty map (:math:`\max_u C(u, x)`). A small network
    turns these three channels into as many as the semantic feature has.

    Args:
        in_channels: number of channels of the semantic feature, and of the result.
        options: options of the motion layer.

    Reference: MUNet (Sun et al.) section 3.2 and Table 1.
    """

    def __init__(self, in_channels: int, options: MotionOptions) -> None:
        super().__init__()
        self.options = options
        self.reduction = nn.Conv2d(in_channels, options.reduced_channels, 1)
        self.earlier_reduction = nn.Conv2d(in_channels, options.reduced_channels, 1) if options.separate_reduction else None
        log_temperature = torch.tensor(math.log(options.temperature))
        self.log_temperature = nn.Parameter(log_temperature) if options.learn_temperature else None
        widths = (2 if options.uncertainty is None else 3, *MOTION_CHANNELS, in_channels)
        layers: list[nn.Module] = []
        for (narrow, wide), kernel in zip(itertools.pairwise(widths), MOTION_KERNELS, strict=True):
            layers.append(nn.Conv2d(narrow, wide, kernel, padding=kernel // 2))
            if options.norm == "group":
                layers.append(nn.GroupNorm(1, wide))
            layers.append(nn.ReLU(inplace=True))
        # The last layer is linear.
        self.network = nn.Sequential(*layers[: -2 if options.norm == "group" else -1])

    @property
    def temperature(self) -> float | Tensor:
        """Temperature of the softmax."""
        return self.options.temperature if self.log_temperature is None else self.log_temperature.exp()

    def reduce(self, semantic: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B CM h w"], Float[Tensor, "B CM h w"]]:
        """Reduced features of unit length, for a frame as the current one and as the previous one."""
        current = l2_normalize(self.reduction(semantic))
        if self.earlier_reduction is None:
            return current, current
        return current, l2_normalize(self.earlier_reduction(semantic))

    def forward(
        self, current: Float[Tensor, "B CM h w"], earlier: Float[Tensor, "B CM h w"]
    ) -> tuple[Float[Tensor, "B C h w"], dict[str, Tensor]]:
        """Motion feature from the reduced features of two frames, with displacement and uncertainty by name."""
        form, tau = self.options, self.temperature
        volume = local_similarity(current, earlier, form.window, "dot")
        maps = {"displacement": soft_displacement(volume, form.sign, tau, form.normalize, form.out_of_frame)}
        if form.uncertainty is not None:
            maps["uncertainty"] = match_confidence(volume, form.uncertainty, form.sign, tau, form.out_of_frame)
        return self.network(torch.cat(list(maps.values()), dim=1)), maps


class MSAM(nn.Module):
    r"""Motion-aware spatial attention module: a motion feature gives each pixel one gate over all semantic channels.

    .. math:: F_{out} = F_s \odot \sigma(\mathrm{conv}_{1 \times 1}(F_m)) + F_s

    Args:
        channels: number of channels of the motion feature.

    Reference: MUNet (Sun et al.) equation 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, 1, 1)

    def forward(
        self, semantic: Float[Tensor, "B C h w"], motion: Float[Tensor, "B CM h w"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B 1 h w"]]:
        """The emphasised feature, of the same shape, and the gate in (0, 1)."""
        attention = torch.sigmoid(self.gate(motion))
        return semantic * attention + semantic, attention
