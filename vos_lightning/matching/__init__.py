"""Matching mathematics: pure functions without parameters or state."""

from vos_lightning.matching.bijective import GaussianKernel, RowFilter, TopK, filter_rows, gaussian_kernel, top_k
from vos_lightning.matching.equalized import equalized_match
from vos_lightning.matching.local_window import (
    LocalMatch,
    best_match,
    expected_offset,
    inside_frame,
    local_similarity,
    match_confidence,
    match_weights,
    soft_displacement,
    window_offsets,
)
from vos_lightning.matching.medial import MedialForm, medial_match, medial_template, update_template
from vos_lightning.matching.readout import read_memory
from vos_lightning.matching.similarity import Similarity, cosine, dot, l2_normalize, memory_logits, negative_squared_l2
from vos_lightning.matching.surjective import surjective_match

__all__ = [
    "dot",
    "cosine",
    "l2_normalize",
    "negative_squared_l2",
    "Similarity",
    "memory_logits",
    "read_memory",
    "surjective_match",
    "equalized_match",
    "MedialForm",
    "medial_template",
    "update_template",
    "medial_match",
    "RowFilter",
    "GaussianKernel",
    "TopK",
    "filter_rows",
    "gaussian_kernel",
    "top_k",
    "window_offsets",
    "inside_frame",
    "local_similarity",
    "match_weights",
    "expected_offset",
    "soft_displacement",
    "match_confidence",
    "LocalMatch",
    "best_match",
]
