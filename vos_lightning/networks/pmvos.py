"""PMVOS: pixel-level matching-based video object segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.attention.dual import DualAttention
from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.normalization import Norm, instance_norm
from vos_lightning.backbones.resnet import ResNetPyramid, ResNetWeights, TrainFrom
from vos_lightning.decoders.crvos import CRVOSDecoder
from vos_lightning.decoders.deconv import initialize
from vos_lightning.encoders.projection import start_isometric
from vos_lightning.mask_ops import by_objects, pool_to_stride
from vos_lightning.matching.medial import MedialForm, medial_match, medial_template, update_template
from vos_lightning.matching.similarity import dot, l2_normalize
from vos_lightning.matching.surjective import surjective_match
from vos_lightning.propagation.memory import Bank, Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Matching = Literal["global", "global+local", "global+local+medial"]


@dataclass(frozen=True)
class Features:
    """Features of a frame, independent of masks and objects."""

    pyramid: FeaturePyramid
    key: Float[Tensor, "B CK h w"]
    """Key of unit length."""


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    key: Float[Tensor, "B CK *cells"]
    masks: Float[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    """Foreground of every object, averaged over the pixels of a cell, in [0, 1]."""


@dataclass(frozen=True)
class Carry:
    """State that is folded over time."""

    templates: Float[Tensor, "B N 2 CK"] = per_object()  # noqa: RUF009
    """Medial templates of (background, foreground)."""
    started: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Objects that have a template; the template of the others starts with the next frame."""


class PMVOS(VOSNetwork[Features, Entry, Carry | None]):
    """PMVOS: Pixel-Level Matching-Based Video Object Segmentation.

    Suhwan Cho, Heansung Lee, Sungmin Woo, Sungjun Jang, Sangyoun Lee; arXiv 2009.08855, 2020.

    Every pixel of the query frame is scored against the reference frame (global), the previous frame (local) and templates that
    average a class over its pixels and over time (medial). Self-attention over the score maps relates pixels and maps to each
    other. The maps and the previous mask are decoded at three scales.

    Deviations. Objects that appear later, which the released code ignores, get their own reference frame and template, both with
    the given mask. The score of a class that is absent from some reference pixel is floored at 0 (the masks multiply the raw
    cosine, as published); with several reference frames this always holds. Keys are normalised with a guard against zero, where
    the released code gives NaN. The key of a frame, its similarity rows and the part of a fusion that sees only its features are
    computed once for all objects, where the released code repeats them.

    Args:
        backbone: encoder of frames; in the paper a dilated ResNet-50. The paper does not say which layer groups are trained; the
            released code freezes all before ``layer4`` and leaves its batch normalisation in training mode.
        matching: which score maps the decoder sees: rows I, II and III (with ``attention`` IV) of Table 1.
        attention: dual self-attention over the score maps, which doubles their number.
        medial: templates as the paper defines them, or as the released code computes them, see :func:`medial_template`.
        medial_rate: rate of the moving average of the templates.
        key_channels: number of channels of the matching space.
        lateral_channels: number of channels of the decoder's reduced features, see :class:`CRVOSDecoder`.
        decoder_channels: number of channels of the decoder's fused features, see :class:`CRVOSDecoder`.
        normalize_fusion: instance-normalise the features that the key and the decoder read, see :class:`FusionBlock`.
        isometric_start: initialise keys as rotations of the features, see :func:`start_isometric`.
        copier_start: initialise the decoder to copy the previous mask, corrected by what the score maps say, see
            :meth:`CRVOSDecoder.start_as_copier`.
        mask_evidence: log-odds that a copier start gives to a cell that lies wholly inside the previous mask.
        score_evidence: log-odds that it gives to a score of 1 for the foreground and 0 for the background, for each kind of
            matching.

    The last five are not in the paper: they are for training without pretrained weights, and for short trainings with them.

    Raises:
        ValueError: an argument is unknown, or arguments contradict each other.
    """

    training_arguments = VOSNetwork.training_arguments | {"isometric_start", "copier_start", "mask_evidence", "score_evidence"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        matching: Matching = "global+local+medial",
        attention: bool = True,
        medial: MedialForm = "paper",
        medial_rate: float = 0.1,
        key_channels: int = 512,
        lateral_channels: int = 256,
        decoder_channels: int = 128,
        normalize_fusion: bool = False,
        isometric_start: bool = False,
        copier_start: bool = False,
        mask_evidence: float = 4.0,
        score_evidence: float = 2.0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("matching", matching, get_args(Matching)), ("medial", medial, get_args(MedialForm))):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        self.kinds = tuple(matching.split("+"))
        self.medial: MedialForm = medial
        self.medial_rate = medial_rate
        self.backbone = backbone
        s16 = self.backbone.channels[-1]
        self.key_norm = instance_norm(s16) if normalize_fusion else nn.Identity()
        self.key = nn.Conv2d(s16, key_channels, 1)
        initialize(self.key)
        if isometric_start:
            start_isometric(self.key)
        self.attention = DualAttention(len(self.kinds)) if attention else nn.Identity()
        # Score maps of two classes, then the previous mask of two classes.
        copies = 2 if attention else 1
        num_scores = 2 * len(self.kinds) * copies
        self.decoder = CRVOSDecoder(
            self.backbone.channels, num_scores + 2, lateral_channels, decoder_channels, normalize=normalize_fusion
        )
        if copier_start:
            # The maps of the background come first. Attention starts as the identity, so every map occurs twice.
            of_scores = [-score_evidence / copies, score_evidence / copies]
            weights_of_maps = [weight for weight in of_scores for _ in range(num_scores // 2)] + [-mask_evidence, mask_evidence]
            self.decoder.start_as_copier(dict(enumerate(weights_of_maps)))

    @classmethod
    def published(
        cls,
        weights: ResNetWeights | None = "IMAGENET1K_V1",
        train_from: TrainFrom | None = "layer4",
        norm: Norm = "batch",
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        **options: Any,
    ) -> PMVOS:
        """The network on a dilated ResNet-50, as published.

        Args:
            weights: pretrained weights, see :class:`ResNetPyramid`; None for a random initialisation.
            train_from: first layer group that is trained.
            norm: normalisation of the trained layer groups.
            blocks: numbers of blocks of the four layer groups; other than ResNet-50's only without ``weights``.
            width: number of channels of the stem; other than 64 only without ``weights``.
            options: further arguments of the constructor.
        """
        return cls(ResNetPyramid(blocks=blocks, width=width, weights=weights, train_from=train_from, norm=norm), **options)

    @classmethod
    def small(cls) -> PMVOS:
        """A random network with about 57 thousand parameters, whose objects differ clearly from each other."""
        widths: dict[str, Any] = {"key_channels": 8, "lateral_channels": 8, "decoder_channels": 8}
        return cls.published(None, blocks=(1, 1, 1, 2), width=4, copier_start=True, **widths)

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid and key of a frame."""
        pyramid = self.backbone(frame.image)
        return Features(pyramid, l2_normalize(self.key(self.key_norm(pyramid.s16))))

    def segment(
        self, features: Features, memory: Memory[Entry, Carry | None]
    ) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Match the query frame to the reference frames, the previous frame and the templates, and decode.

        ``aux["scores"]``, ``(B, N, 2, maps, h, w)``, holds the score maps of (background, foreground) in the order of ``kinds``;
        ``aux["attended"]``, ``(B, N, 2, maps or 2 * maps, h, w)``, holds the maps after attention: first spatial, then channel
        attention.
        """
        assert memory.previous is not None
        query = features.key.flatten(2)
        masks = memory.previous.latest.entry.masks
        with record_function("vos/match"):
            maps = [self._surjective(memory.reference, query)]
            if "local" in self.kinds:
                maps.append(self._surjective(memory.previous, query))
            if memory.carry is not None:
                maps.append(medial_match(memory.carry.templates, query))
            scores = torch.stack(maps, dim=3).unflatten(-1, masks.shape[-2:])  # (B, N, 2, maps, h, w)
        with record_function("vos/attention"):
            # Background and foreground share the attention.
            attended = by_objects(self._attend, 8.0 * scores[:, 0].numel() * scores.element_size(), scores)
        with record_function("vos/decode"):
            maps_of_object = torch.cat([attended.flatten(2, 3), torch.stack([1 - masks, masks], dim=2)], dim=2)
            logits = self.decoder(features.pyramid, maps_of_object).float()
        return logits[:, :, 1] - logits[:, :, 0], {"scores": scores, "attended": attended}

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, Carry | None] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,  # noqa: ARG002
    ) -> tuple[Entry, Carry | None]:
        """Keep the key and the masks at stride 16, and fold both into the templates."""
        pooled = pool_to_stride(masks, self.stride)
        entry = Entry(features.key, pooled)
        if "medial" not in self.kinds:
            return entry, None
        templates = medial_template(features.key, pooled, self.medial)
        if memory is not None:
            assert memory.carry is not None
            # Templates of objects that are not introduced yet are overwritten with every frame and never read.
            templates = update_template(memory.carry.templates, templates, ~memory.carry.started, self.medial_rate)
        return entry, Carry(templates, introduced)

    def forget(self, carry: Carry | None, which: Bool[Tensor, "B N"]) -> Carry | None:
        """Restart the templates of objects that are annotated anew."""
        return None if carry is None else Carry(carry.templates, carry.started & ~which)

    def _attend(self, scores: Float[Tensor, "B N 2 maps h w"]) -> Tensor:
        attended: Tensor = self.attention(scores.flatten(0, 2)).unflatten(0, scores.shape[:3])
        return attended

    @staticmethod
    def _surjective(seen: Bank[Entry], query: Float[Tensor, "B CK Q"]) -> Float[Tensor, "B N 2 Q"]:
        return surjective_match(dot(seen.entry.key, query), seen.entry.masks, seen.readable)
