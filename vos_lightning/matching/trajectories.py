"""Trajectories of memory pixels: where each of them is now, how certain that is, and how this guides matching.

A position is a cell ``row * w + column`` of an ``h x w`` map; the ``S`` memory pixels of several remembered frames are followed
at once, for all objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vos_lightning.matching.local_window import LocalMatch
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import Similarity, at_least_float32, memory_logits, memory_part, query_part

SpreadForm = Literal["exponential", "inverse_distance", "inverse_squared_distance", "cosine"]


SpreadIs = Literal["sigma", "variance"]
TopKOrder = Literal["after", "before"]


@dataclass(frozen=True)
class AdaptiveMatching:
    r"""Options that say how memory pixels are followed, and how far from their present place they may be matched.

    Attributes:
        window: side of the window in which a pixel is searched in the next frame, in cells.
        beta: largest spread in cells.
        spread_form: form of the spread, see :func:`step_spread`.
        spread_is: whether the spread is the standard deviation ``sigma`` of the Gaussian weights or their ``variance``.
        smallest_sigma: lower bound of the standard deviation, above 0.
        largest_sigma: upper bound of the standard deviation; None for ``beta`` (its square root with ``variance``).
        normalized: divide the Gaussian weights by :math:`2 \pi \sigma^2`, so that those of a memory pixel sum to 1 over the plane
            and uncertain pixels weigh less everywhere; otherwise every pixel weighs 1 at its place. Equation 8 says neither.
        exclusion_radius: radius around the best match in which nothing counts as second best, see
            :func:`vos_lightning.matching.local_window.best_match`.
        top_k_order: choose the ``top_k`` of the memory read by similarity and weight together (``after`` weighting) or by
            similarity alone (``before``).
    """

    window: int = 9
    beta: float = 8.0
    spread_form: SpreadForm = "exponential"
    spread_is: SpreadIs = "sigma"
    smallest_sigma: float = 1.0
    largest_sigma: float | None = None
    normalized: bool = False
    exclusion_radius: int = 0
    top_k_order: TopKOrder = "after"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("spread_form", self.spread_form, get_args(SpreadForm)),
            ("spread_is", self.spread_is, get_args(SpreadIs)),
            ("top_k_order", self.top_k_order, get_args(TopKOrder)),
        ):
            if value not in allowed:
                raise ValueError(f"adaptive.{name} must be one of {allowed}, not {value!r}")
        if self.window < 2 or self.beta <= 0 or self.exclusion_radius < 0:
            raise ValueError("adaptive.window must be at least 2, beta above 0 and exclusion_radius not negative")
        if not 0 < self.smallest_sigma <= self.sigma_bound:
            raise ValueError(f"adaptive.smallest_sigma must be in (0, {self.sigma_bound}], not {self.smallest_sigma}")

    @property
    def sigma_bound(self) -> float:
        """Largest standard deviation."""
        if self.largest_sigma is not None:
            return self.largest_sigma
        return self.beta if self.spread_is == "sigma" else self.beta**0.5


@dataclass(frozen=True)
class Trajectories:
    """State of followed memory pixels."""

    position: Int64[Tensor, "B S"]
    """Cell of each memory pixel in the present frame."""
    spread: Float[Tensor, "B S"]
    """The largest spread along the trajectory, in cells; a larger one is less certain."""

    def follow(self, step: Int64[Tensor, "B q"], spread: Float[Tensor, "B q"]) -> Trajectories:
        """Continue the trajectories to the next frame.

        Args:
            step: cell in the next frame for every cell of the present one.
            spread: spread of each of these steps.
        """
        return Trajectories(step.gather(1, self.position), torch.maximum(self.spread, spread.gather(1, self.position)))


def step_spread(
    match: LocalMatch, beta: float = 8.0, form: SpreadForm = "exponential", scale: float = 0.125
) -> Float[Tensor, "B h w"]:
    r"""Uncertainty of the best match of every cell, from its ratio to the second best.

    .. math:: \delta = \beta \exp(1 - s_1 / s_2)

    The formula needs positive similarities :math:`s`; with a (negative) distance it would call clear matches uncertain. With the
    distance :math:`d`, the similarity is: ``exponential`` :math:`s = \exp(-c\,d^2)`, the weights of the memory read before the
    softmax; ``inverse_distance`` :math:`1 / d`; ``inverse_squared_distance`` :math:`1 / d^2`; or ``cosine``, the cosine itself.

    Args:
        match: best matches by negative squared distance; with ``exponential`` also by inner product (:math:`s = \exp(c\,\langle
            x, y \rangle)`); with ``cosine`` by cosine.
        beta: largest spread in cells.
        form: form of the similarity, see above.
        scale: factor :math:`c` of the similarity.

    Returns:
        ``(B, h, w)`` in [0, beta].

    Raises:
        ValueError: ``form`` is unknown.

    Reference: PMNet equation 9.
    """
    if form not in get_args(SpreadForm):
        raise ValueError(f"form must be one of {get_args(SpreadForm)}, not {form!r}")
    tiny = 1e-6
    if form == "exponential":
        ratio = (scale * (match.best - match.second)).exp()
    elif form == "cosine":
        ratio = match.best.clamp_min(tiny) / match.second.clamp_min(tiny)
    else:
        ratio = (-match.second).clamp_min(tiny) / (-match.best).clamp_min(tiny)
        if form == "inverse_distance":
            ratio = ratio.sqrt()
    return beta * (1 - ratio.clamp_min(1.0)).exp()


def gaussian_keys(
    trajectories: Trajectories, height: int, width: int, options: AdaptiveMatching
) -> tuple[Float[Tensor, "B 4 S"], Float[Tensor, "1 4 Q"]]:
    r"""Vectors whose inner products are the logarithms of Gaussian weights.

    .. math:: \langle a_p, b_q \rangle = -\frac{\|q - p_Q\|^2}{2 \sigma_p^2} \; [\, - 2 \ln \sigma_p \text{ if normalized}]

    A memory read by inner products can take them as four more channels of its keys, and never builds a prior of ``S x Q``
    numbers. In float32, and in a map of 80 cells, weights near 1 are exact to about 1e-4.

    Args:
        trajectories: position and spread of each memory pixel.
        height: height of the query's map.
        width: width of the query's map.
        options: meaning of the spread, bounds of :math:`\sigma`, and whether the weights are normalised (but for a factor that
            all pixels share).

    Returns:
        Vectors of the memory pixels and of the query pixels, at least float32.

    Reference: PMNet equations 6 to 8.
    """
    # The inner products are small differences of large numbers.
    spread = at_least_float32(trajectories.spread)
    sigma = spread.sqrt() if options.spread_is == "variance" else spread
    precision = sigma.clamp(options.smallest_sigma, options.sigma_bound).square().reciprocal()
    # Positions are relative to the centre of the map: the products stay small, so that their sum stays precise.
    y = trajectories.position.div(width, rounding_mode="floor").to(sigma) - (height - 1) / 2
    x = (trajectories.position % width).to(sigma) - (width - 1) / 2
    constant = -0.5 * (x.square() + y.square()) * precision
    if options.normalized:
        constant = constant + precision.log()
    memory = torch.stack([x * precision, y * precision, -0.5 * precision, constant], dim=1)
    rows = (torch.arange(height, device=sigma.device).to(sigma) - (height - 1) / 2).repeat_interleave(width)
    columns = (torch.arange(width, device=sigma.device).to(sigma) - (width - 1) / 2).repeat(height)
    query = torch.stack([columns, rows, columns.square() + rows.square(), torch.ones_like(rows)])
    return memory, query[None]


def read_followed(
    memory_key: Float[Tensor, "B CK S"],
    query_key: Float[Tensor, "B CK h w"],
    values: Float[Tensor, "B N CV S"],
    readable: Bool[Tensor, "B R S"] | None,
    trajectories: Trajectories,
    options: AdaptiveMatching,
    *,
    similarity: Similarity = "l2",
    scale: float = 0.125,
    top_k: int | None = None,
) -> Float[Tensor, "B N CV Q"]:
    r"""Memory read in which every memory pixel is weighted by its distance from its present place.

    .. math:: r[q] = \sum_p v[p] \, \frac{W_{pq} \exp(c\,s[p, q])}{\sum_{p'} W_{p'q} \exp(c\,s[p', q])}, \quad
        W_{pq} = \exp\Big(-\frac{\|q - p_Q\|^2}{2 \sigma_p^2}\Big)

    The sum of the logarithms is one inner product of longer keys. One set of weights serves all objects.

    Args:
        memory_key: keys of the memory, see :func:`vos_lightning.matching.readout.read_memory`, as for all arguments up to
            ``readable``.
        query_key: keys of the query frame, not flattened.
        values: values of the memory.
        readable: the memory pixels that each object may read.
        trajectories: positions and spreads of the memory pixels in the query frame.
        options: options of the weights.
        similarity: similarity of the keys.
        scale: factor :math:`c` of the similarity.
        top_k: number of memory pixels that a query pixel reads; ``options.top_k_order`` says what ranks them.

    Reference: PMNet equations 6 to 8.
    """
    height, width = query_key.shape[-2:]
    gaussian, places = gaussian_keys(trajectories, height, width, options)
    query = query_key.flatten(2)
    if top_k is not None and options.top_k_order == "before":
        logits = memory_logits(memory_key, query, similarity, scale).unsqueeze(1)
        if readable is not None:
            logits = logits.masked_fill(~readable.unsqueeze(2), torch.finfo(logits.dtype).min)
        smallest = logits.topk(min(top_k, logits.shape[3]), dim=3).values[..., -1:]
        weights = memory_logits(gaussian, places.expand(len(gaussian), -1, -1), "dot", 1.0).unsqueeze(1)
        # Half of the lowest value, so that its sum with a similarity does not overflow.
        prior = torch.where(logits >= smallest, weights, torch.finfo(logits.dtype).min / 2)
        return read_memory(
            memory_key, query, values, readable, similarity=similarity, scale=scale, log_prior=prior.transpose(2, 3)
        )
    # The Gaussian weights are small differences of large numbers, so everything stays in single precision.
    with torch.autocast(query.device.type, enabled=False):
        keys = memory_part(memory_key.transpose(1, 2), similarity, scale).transpose(1, 2)
        own = query_part(query.transpose(1, 2), similarity).transpose(1, 2)
    return read_memory(
        torch.cat([keys, gaussian], dim=1),
        torch.cat([own, places.expand(len(own), -1, -1)], dim=1),
        values,
        readable,
        similarity="dot",
        scale=1.0,
        top_k=top_k,
    )
