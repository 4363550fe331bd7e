"""Video of a high dynamic range, in the colours of an ordinary one.

The networks and all files that are written know 8 bits of BT.709. What a PQ or HLG video shows on a display is computed, made
darker where an ordinary display ends, and stored again:

1. Code values become light: PQ by the curve of SMPTE ST 2084; HLG by that of ARIB STD-B67 and the system gamma of BT.2100 for a
   display of 1000 cd/m2.
2. The light is divided by 203 cd/m2, the white of a sheet of paper in HDR (BT.2408).
3. Primaries of BT.2020 become those of BT.709; what lies outside is cut off at 0.
4. The largest of the three channels goes through a Möbius curve: below 0.3 it stays, and 1000 cd/m2 become 1. The other two are
   scaled with it, so that hues stay.
5. The light is stored for a display of BT.1886, with the exponent 1 / 2.4.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import UInt8, UInt16

CURVES = {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers of the transfer curves of HDR video."""
PEAK = 1000.0
"""Light in cd/m2 that becomes the brightest white; what is brighter is cut off."""
WHITE = 203.0
"""Light in cd/m2 of a white surface."""
KNEE = 0.3
"""Share of the light of a white surface up to which nothing is made darker."""
TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], dtype=np.float32
)
"""Linear light of BT.2020 primaries to those of BT.709 (BT.2087)."""
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
_STEPS = 1 << 14
_ROWS = 128


def light_of_pq(code: np.ndarray) -> np.ndarray:
    """Light in cd/m2 of code values from 0 to 1 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.power(code, 1 / m2)
    return np.asarray(10000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1))


def scene_of_hlg(code: np.ndarray) -> np.ndarray:
    """Light of the scene from 0 to 1 of code values from 0 to 1 (ARIB STD-B67)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.asarray(np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12))


def darker(light: np.ndarray) -> np.ndarray:
    """Möbius curve from light relative to a white surface to 0 to 1; it goes on straight below :data:`KNEE`."""
    peak, j = PEAK / WHITE, KNEE
    a = -(j * j) * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    bent = (b * b + 2 * b * j + j * j) / (b - a) * (light + a) / (light + b)
    return np.asarray(np.where(light <= j, light, np.minimum(bent, 1.0)))


def to_ordinary(codes: UInt16[np.ndarray, "H W 3"], curve: str) -> UInt8[np.ndarray, "H W 3"]:
    """An HDR picture in 8 bits of BT.709.

    Args:
        codes: RGB code values of BT.2020, full range.
        curve: ``PQ`` or ``HLG``.
    """
    result = np.empty(codes.shape, np.uint8)
    for top in range(0, codes.shape[0], _ROWS):  # in strips, which stay in the cache of the processor
        result[top : top + _ROWS] = _strip(codes[top : top + _ROWS], curve)
    return result


def _strip(codes: UInt16[np.ndarray, "h W 3"], curve: str) -> UInt8[np.ndarray, "h W 3"]:
    light = _light_of_codes(curve)[codes]
    if curve == "HLG":
        # The system gamma is 1.2: a display makes bright parts of the scene brighter by the power 0.2 of their luminance.
        light *= np.power(np.maximum(light @ _LUMINANCE, 1e-9), 0.2)[..., None] * (PEAK / WHITE)
    light = np.maximum(light @ TO_BT709.T, 0.0)
    largest = np.maximum(light.max(axis=-1), 1e-6)
    light *= (darker(largest) / largest)[..., None]
    return _codes_of_light()[(np.sqrt(np.clip(light, 0.0, 1.0)) * _STEPS + 0.5).astype(np.uint16)]


@functools.cache
def _light_of_codes(curve: str) -> np.ndarray:
    """Light of every 16-bit code value: relative to a white surface for PQ, of the scene for HLG."""
    code = np.arange(1 << 16) / ((1 << 16) - 1)
    light = light_of_pq(code) / WHITE if curve == "PQ" else scene_of_hlg(code)
    return light.astype(np.float32)


@functools.cache
def _codes_of_light() -> np.ndarray:
    """8-bit code values of light, by its square root, so that dark parts have enough steps."""
    return np.asarray(np.rint(255 * np.power(np.arange(_STEPS + 1) / _STEPS, 2 / 2.4)), np.uint8)
