"""EMVOS: pixel-level equalized matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.profiler import record_function

from vos_lightning.backbones.base import Backbone
from vos_lightning.backbones.densenet import DenseNetPyramid, Weights
from vos_lightning.backbones.normalization import Norm, instance_norm
from vos_lightning.decoders.deconv import DeconvDecoder, initialize
from vos_lightning.encoders.projection import start_isometric
from vos_lightning.mask_ops import pool_to_stride
from vos_lightning.matching.bijective import RowFilter, filter_rows
from vos_lightning.matching.equalized import equalized_match
from vos_lightning.matching.similarity import dot, l2_normalize
from vos_lightning.matching.surjective import surjective_match
from vos_lightning.propagation.memory import Bank, Memory
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FeaturePyramid, FrameInput, per_object

Matching = Literal["surjective", "equalized", "surjective+equalized"]


@dataclass(frozen=True)
class Features:
    """Features of a frame, independent of masks and objects."""

    pyramid: FeaturePyramid
    cosine_key: Float[Tensor, "B CK h w"] | None
    """Key of unit length; None without surjective matching."""
    dot_key: Float[Tensor, "B CK h w"] | None
    """Key without normalisation; None without equalized matching."""


@dataclass(frozen=True)
class Entry:
    """A remembered frame; ``cells`` are ``h w``, or ``S`` where frames are stacked."""

    cosine_key: Float[Tensor, "B CK *cells"] | None
    dot_key: Float[Tensor, "B CK *cells"] | None
    masks: Float[Tensor, "B N *cells"] = per_object()  # noqa: RUF009
    """Foreground of every object, averaged over the pixels of a cell, in [0, 1]."""


class EMVOS(VOSNetwork[Features, Entry, None]):
    """Pixel-Level Equalized Matching for Video Object Segmentation.

    Suhwan Cho, Woo Jin Kim, MyeongAh Cho, Seunghoon Lee, Minhyeok Lee, Chaewon Park, Sangyoun Lee; arXiv 2209.03139, 2022.

    Every pixel of the query frame is scored against the annotated (reference) and the previous frame in two ways. Surjective
    matching takes the best memory pixel of either class. Equalized matching first gives every memory pixel the same total
    influence on the query frame, so that a pixel that resembles everything decides nothing. The eight score maps and the previous
    mask are decoded at three scales.

    Deviations. ``train_encoder=True`` is the paper (only batch normalisation is frozen); the released code runs the whole encoder
    without gradients in training too, which is ``train_encoder=False``. Keys are normalised with a guard against zero, where the
    released code gives NaN. What does not depend on the object (similarity rows, and the part of the decoder that sees the
    frame's features only) is computed once a frame for all objects: the same function in another order of summation.

    Args:
        backbone: encoder of frames; in the paper a DenseNet-121 with frozen batch normalisation.
        matching: which score maps the decoder sees; each kind gives four maps and has its own key.
        train_encoder: whether the backbone is trained.
        key_channels: number of channels of either key.
        decoder_channels: number of channels of the decoder at every scale.
        reference_filter: bijective filter of the similarity to the reference frames; it replaces surjective by bijective matching
            in evaluation mode only.
        previous_filter: bijective filter of the similarity to the previous frame.
        normalize_fusion: instance-normalise the features that keys and the decoder read, see :class:`FusionBlock`.
        equalized_scale: factor of the inner products before the softmax of equalized matching.
        isometric_start: initialise keys as rotations of the features, see :func:`start_isometric`.
        copier_start: initialise the decoder to copy the previous mask, corrected by what the score maps say, see
            :meth:`DeconvDecoder.start_as_copier`.
        mask_evidence: evidence that a copier start takes from a cell that lies wholly inside the previous mask; a quarter of it
            is left in the log-odds.
        score_evidence: the same for a score of 1 for the foreground and 0 for the background, for each pair of score maps. Scores
            of the two classes differ by little before training, so that matching needs large evidence to be heard.

    The last six are not in the paper. They are for training without pretrained weights, and for short trainings with them: from
    random features, the published network does not find the ten map channels among 256 feature channels of a larger scale.

    Raises:
        ValueError: arguments contradict each other.
    """

    training_arguments = VOSNetwork.training_arguments | {
        "isometric_start",
        "train_encoder",
        "copier_start",
        "mask_evidence",
        "score_evidence",
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        matching: Matching = "surjective+equalized",
        train_encoder: bool = True,
        key_channels: int = 512,
        decoder_channels: int = 256,
        reference_filter: RowFilter | None = None,
        previous_filter: RowFilter | None = None,
        normalize_fusion: bool = False,
        equalized_scale: float = 1.0,
        isometric_start: bool = False,
        copier_start: bool = False,
        mask_evidence: float = 4.0,
        score_evidence: float = 4.0,
    ) -> None:
        super().__init__()
        if matching not in get_args(Matching):
            raise ValueError(f"matching must be one of {get_args(Matching)}, not {matching!r}")
        kinds = matching.split("+")
        if "surjective" not in kinds and (reference_filter or previous_filter):
            raise ValueError("reference_filter and previous_filter replace surjective matching; set matching to include it")
        if backbone.norm != "frozen" and not train_encoder:
            raise ValueError("an encoder that is not trained needs backbone.norm 'frozen'")
        self.train_encoder = train_encoder
        self.reference_filter = reference_filter
        self.previous_filter = previous_filter
        self.backbone = backbone
        if not train_encoder:
            self.backbone.requires_grad_(False)
        s16 = self.backbone.channels[-1]
        self.equalized_scale = equalized_scale
        self.key_norm = instance_norm(s16) if normalize_fusion else nn.Identity()
        self.cosine_key = nn.Conv2d(s16, key_channels, 1) if "surjective" in kinds else None
        self.dot_key = nn.Conv2d(s16, key_channels, 1) if "equalized" in kinds else None
        for key in (self.cosine_key, self.dot_key):
            if key is not None:
                initialize(key)
                if isometric_start:
                    start_isometric(key)
        # Two frames and two classes for each kind of matching, then the previous mask of both classes.
        self.score_names = tuple(
            f"{kind} {frame} {side}" for kind in kinds for frame in ("global", "local") for side in ("background", "foreground")
        )
        num_scores = len(self.score_names)
        self.decoder = DeconvDecoder(self.backbone.channels, num_scores + 2, decoder_channels, normalize=normalize_fusion)
        if copier_start:
            weights_of_maps = [score_evidence] * (num_scores // 2) + [mask_evidence]
            self.decoder.start_as_copier({2 * i + k: (2 * k - 1) * w for i, w in enumerate(weights_of_maps) for k in (0, 1)})

    @classmethod
    def published(
        cls,
        weights: Weights | None = "IMAGENET1K_V1",
        norm: Norm = "frozen",
        growth_rate: int = 32,
        block_config: tuple[int, int, int] = (6, 12, 24),
        num_init_features: int = 64,
        **options: Any,
    ) -> EMVOS:
        """The network on a DenseNet-121, as published.

        Args:
            weights: pretrained weights, see :class:`DenseNetPyramid`; None for a random initialisation.
            norm: normalisation of the backbone.
            growth_rate: number of channels that a layer adds. This and the next two arguments may differ from DenseNet-121's only
                without ``weights``.
            block_config: numbers of layers of the three blocks.
            num_init_features: number of channels of the stem.
            options: further arguments of the constructor.
        """
        return cls(DenseNetPyramid(growth_rate, block_config, num_init_features, weights, norm), **options)

    @classmethod
    def small(cls) -> EMVOS:
        """A random network with about 13 thousand parameters."""
        size: dict[str, Any] = {"growth_rate": 4, "block_config": (1, 2, 2), "num_init_features": 8}
        return cls.published(None, key_channels=8, decoder_channels=8, **size)

    def encode(self, frame: FrameInput) -> Features:
        """Pyramid and keys of a frame."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            pyramid = self.backbone(frame.image)
        matched = self.key_norm(pyramid.s16)
        return Features(
            pyramid,
            cosine_key=None if self.cosine_key is None else l2_normalize(self.cosine_key(matched)),
            dot_key=None if self.dot_key is None else self.dot_key(matched).float(),
        )

    def segment(self, features: Features, memory: Memory[Entry, None]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Match the query frame to the reference and the previous frame, and decode.

        ``aux["scores"]``, ``(B, N, M, h, w)``, holds the score maps in the order of ``score_names``.
        """
        assert memory.previous is not None
        reference, previous = memory.reference, memory.previous
        maps: list[Tensor] = []
        with record_function("vos/match"):
            if features.cosine_key is not None:
                maps.append(self._surjective(reference, features.cosine_key, self.reference_filter))
                maps.append(self._surjective(previous, features.cosine_key, self.previous_filter))
            if features.dot_key is not None:
                maps.append(self._equalized(reference, features.dot_key))
                maps.append(self._equalized(previous, features.dot_key))
            masks = previous.latest.entry.masks
            scores = torch.cat(maps, dim=2).unflatten(-1, masks.shape[-2:])
        with record_function("vos/decode"):
            logits = self.decoder(features.pyramid, torch.cat([scores, torch.stack([1 - masks, masks], dim=2)], dim=2)).float()
        return logits[:, :, 1] - logits[:, :, 0], {"scores": scores}

    def memorize(
        self,
        features: Features,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[Entry, None] | None,  # noqa: ARG002
        introduced: Bool[Tensor, "B N"],  # noqa: ARG002
        keep: bool,  # noqa: ARG002
    ) -> tuple[Entry, None]:
        """Keep the keys and the masks at stride 16."""
        return Entry(features.cosine_key, features.dot_key, pool_to_stride(masks, self.stride)), None

    def _surjective(
        self, seen: Bank[Entry], query_key: Float[Tensor, "B CK h w"], row_filter: RowFilter | None
    ) -> Float[Tensor, "B N 2 Q"]:
        assert seen.entry.cosine_key is not None
        similarity = dot(seen.entry.cosine_key, query_key.flatten(2)).add_(1).div_(2)
        if not self.training:
            height, width = query_key.shape[2:]
            similarity = filter_rows(similarity, row_filter, (height, width), self.stride)
        return surjective_match(similarity, seen.entry.masks, seen.readable)

    def _equalized(self, seen: Bank[Entry], query_key: Float[Tensor, "B CK h w"]) -> Float[Tensor, "B N 2 Q"]:
        assert seen.entry.dot_key is not None
        similarity = dot(seen.entry.dot_key, query_key.flatten(2))
        return equalized_match(similarity, seen.entry.masks, seen.readable, self.equalized_scale)
