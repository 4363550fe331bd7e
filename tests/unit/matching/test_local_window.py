import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.oracles import local_window as oracle
from tests.tolerances import assert_close
from vos_lightning.matching import local_window
from vos_lightning.matching.local_window import (
    best_match,
    expected_offset,
    inside_frame,
    local_similarity,
    match_confidence,
    match_weights,
    soft_displacement,
    window_offsets,
)

SIZES = [(5, 7, 3), (4, 3, 9), (6, 5, 4)]
"""Height, width, window: one inside the frame, one that covers it from everywhere, an even one."""
MEASURES = ["cosine", "dot", "l2"]


def features(height: int, width: int, batch: int = 2, channels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    query, previous = torch.randn(2, batch, channels, height, width, dtype=torch.float64)
    return query, previous


@pytest.fixture(params=[2**20, 40], ids=["one band", "many bands"])
def band(request, monkeypatch):
    monkeypatch.setattr(local_window, "MAX_ELEMENTS", request.param)


# Cost volume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
@pytest.mark.parametrize("measure", MEASURES)
def test_volume_is_the_formula(height, width, window, measure, band):
    query, previous = features(height, width)
    volume = local_similarity(query, previous, window, measure)
    inside = inside_frame(window, height, width)
    assert volume.shape == (2, window**2, height, width)
    for b in range(2):
        expected = oracle.cost_volume(query[b], previous[b], window, measure)
        for (x, y), costs in expected.items():
            for o, offset in enumerate(oracle.offsets(window)):
                assert bool(inside[o, y, x]) == (offset in costs)
                assert float(volume[b, o, y, x]) == pytest.approx(costs.get(offset, 0.0), abs=1e-9)


def test_order_of_offsets():
    assert window_offsets(4).tolist() == [list(offset) for offset in oracle.offsets(4)]
    assert window_offsets(3).tolist()[:4] == [[-1, -1], [0, -1], [1, -1], [-1, 0]]


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_do_not_depend_on_the_bands(measure, monkeypatch):
    query, previous = features(6, 5)
    weights = torch.randn(2, 25, 6, 5, dtype=torch.float64)
    gradients = []
    for elements in (2**20, 1):
        monkeypatch.setattr(local_window, "MAX_ELEMENTS", elements)
        leaves = [query.clone().requires_grad_(), previous.clone().requires_grad_()]
        (local_similarity(leaves[0], leaves[1], 5, measure) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for whole, banded in zip(*gradients, strict=True):
        assert_close(banded, whole)


def test_volume_passes_gradcheck():
    query, previous = features(2, 3, batch=1, channels=2)
    function = lambda q, p: soft_displacement(local_similarity(q, p, 3), temperature=0.5)  # noqa: E731
    assert torch.autograd.gradcheck(function, (query.requires_grad_(), previous.requires_grad_()))


@pytest.mark.parametrize("window", [1, 2, 3, 9, 25])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 30, 54), (2, 5, 7), (1, 1, 9), (3, 40, 1), (1, 12, 1), (4, 64, 64)])
def test_a_band_has_as_many_rows_as_fit(batch, height, width, window, monkeypatch):
    """With each row, the similarities to all rows in reach; one row is taken in any case."""
    for elements in (1, 40, 1000, 20_001, 2**20):
        monkeypatch.setattr(local_window, "MAX_ELEMENTS", elements)
        fitting = [r for r in range(1, 2000) if r * min(r + window - 1, height) * batch * width**2 <= elements]
        found = local_window._band_rows(batch, height, width, window)
        assert min(found, height) == min(max(fitting, default=1), height)


def test_half_precision_is_computed_in_float32():
    query, previous = torch.randn(2, 1, 8, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        volume = local_similarity(query, previous, 3)
    assert_close(volume, local_similarity(query, previous, 3))


def test_a_window_needs_a_cell():
    with pytest.raises(ValueError, match="at least 1"):
        local_similarity(*torch.randn(2, 1, 2, 3, 3), 0)


class PeakMemory(TorchDispatchMode):
    """Most bytes that tensors made inside the block hold at one time, without those of the arguments."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def _release(self, pointer, size):
        self.now -= size
        self.seen.discard(pointer)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                pointer, size = storage.data_ptr(), storage.nbytes()
                if pointer not in self.seen and pointer not in known:
                    self.seen.add(pointer)
                    self.now += size
                    weakref.finalize(storage, self._release, pointer, size)
                    self.peak = max(self.peak, self.now)
        return result


@pytest.mark.parametrize(("height", "width"), [(30, 54), (45, 80)], ids=["480x854", "720x1280"])
def test_memory_stays_near_the_size_of_the_volume(height, width):
    query, previous = torch.randn(2, 1, 256, height, width)
    with torch.no_grad(), PeakMemory() as memory:
        volume = local_similarity(query, previous, 25)
        soft_displacement(volume)
    size = volume.numel() * 4
    assert size <= memory.peak
    # The normalised features, one band of similarities and its indices (of 8 bytes), and a few copies of the volume. A copy of
    # the features for every offset would be 256 volumes.
    assert memory.peak < 4 * size + 2 * 256 * height * width * 4 + 4 * 4 * local_window.MAX_ELEMENTS


# Displacement and confidence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
@pytest.mark.parametrize("out_of_frame", ["mean", "mask", "zero"])
@pytest.mark.parametrize(("sign", "temperature"), [(1, 0.1), (-1, 1.0)])
def test_displacement_and_confidence_are_the_formulas(height, width, window, out_of_frame, sign, temperature):
    query, previous = features(height, width, batch=1)
    volume = local_similarity(query, previous, window)
    moved = soft_displacement(volume, sign, temperature, False, out_of_frame)
    scaled = soft_displacement(volume, sign, temperature, True, out_of_frame)
    best = match_confidence(volume, "maximum", sign, temperature, out_of_frame)
    peak = match_confidence(volume, "softmax_peak", sign, temperature, out_of_frame)
    assert_close(scaled, moved / (window // 2))
    assert_close(match_confidence(volume, "one_minus_maximum", sign, temperature, out_of_frame), 1 - best)
    for (x, y), costs in oracle.cost_volume(query[0], previous[0], window, "cosine").items():
        u, v = oracle.displacement(costs, window, sign, temperature, out_of_frame)
        assert moved[0, :, y, x].tolist() == pytest.approx([u, v], abs=1e-9)
        assert float(best[0, 0, y, x]) == pytest.approx(oracle.maximum(costs, window, out_of_frame), abs=1e-9)
        weights = oracle.weights(costs, window, sign, temperature, out_of_frame)
        assert float(peak[0, 0, y, x]) == pytest.approx(max(weights.values()), abs=1e-9)


@pytest.mark.parametrize("out_of_frame", ["zero", "mask", "mean"])
def test_the_best_of_bad_matches(out_of_frame):
    """All cosines are negative; where the frame ends, 0 is the best of the window only if what lies outside counts as 0."""
    query = torch.rand(2, 4, 5, 6, dtype=torch.float64)
    previous = -torch.rand(2, 4, 5, 6, dtype=torch.float64)
    found = match_confidence(local_similarity(query, previous, 3), out_of_frame=out_of_frame)
    for b in range(2):
        for (x, y), costs in oracle.cost_volume(query[b], previous[b], 3, "cosine").items():
            assert float(found[b, 0, y, x]) == pytest.approx(oracle.maximum(costs, 3, out_of_frame), abs=1e-9)
    assert found[:, :, 1:-1, 1:-1].max() < 0
    assert bool((found[:, :, 0] == 0).all()) == (out_of_frame == "zero")


def test_a_displacement_and_its_peak_have_the_same_temperature():
    volume = local_similarity(*features(5, 7), 3)
    assert torch.equal(match_confidence(volume, "softmax_peak"), match_weights(volume, 1, 0.02).amax(dim=1, keepdim=True))
    assert torch.equal(soft_displacement(volume, normalize=False), expected_offset(match_weights(volume, 1, 0.02)))


def test_what_is_left_out_is_a_softmax_of_similarities_and_a_distance_in_windows():
    volume = local_similarity(*features(5, 7), 3)
    assert torch.equal(match_weights(volume), match_weights(volume, 1, 1.0, "mean"))
    assert torch.equal(soft_displacement(volume), soft_displacement(volume, 1, 0.02, True, "mean"))
    wide = local_similarity(*features(5, 7), 5)
    assert_close(2 * soft_displacement(wide), soft_displacement(wide, normalize=False))


def test_displacement_finds_a_shift():
    """At a low temperature, what moved is found; with the printed sign and temperature it is not."""
    torch.manual_seed(0)
    previous = torch.randn(1, 64, 12, 12)
    query = previous.roll((-2, 3), (2, 3))  # this frame at (x, y) shows what was at (x - 3, y + 2)
    volume = local_similarity(query, previous, 9)
    middle = (slice(None), slice(None), slice(4, 8), slice(4, 8))
    found = soft_displacement(volume, 1, 0.05, normalize=False)[middle]
    expected = torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1).expand_as(found)
    assert (found - expected).abs().max() < 0.05
    literal = soft_displacement(volume, -1, 1.0, normalize=False)[middle]
    assert literal.abs().max() < 1
    assert match_confidence(volume)[0, 0, 4:8, 4:8].min() > 0.999


def rectified(height: int, width: int) -> torch.Tensor:
    """Features as behind a rectification, of unit length: unrelated cells have cosines of about 0.75."""
    positive = torch.rand(4, 256, height, width, generator=torch.Generator().manual_seed(0))
    return F.normalize(positive, dim=1)


@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_what_stands_still_does_not_move_at_the_border_either(temperature):
    """Two identical frames: a corner, whose window lies on one side, is no further off than the middle of the frame.

    With ``mask``, the same corner is 3.3 cells off at temperature 0.05 and 6 at 1.
    """
    frame = rectified(30, 54)
    moved = soft_displacement(local_similarity(frame, frame, 25, "dot"), temperature=temperature, normalize=False)
    assert moved.abs().mean(dim=0).amax() < 0.25
    corners = moved[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.abs().amax() < 0.25


def test_the_default_temperature_finds_a_shift_of_rectified_features():
    """Also where the window leaves the frame; at 0.05 the mean error is above 4 cells."""
    world = rectified(34, 59)
    previous, query = world[:, :, :30, :54], world[:, :, 4:, 5:]  # this frame shows at (x, y) what was at (x + 5, y + 4)
    moved = soft_displacement(local_similarity(query, previous, 25, "dot"), normalize=False)[:, :, :26, :49]
    error = (moved - torch.tensor([5.0, 4.0]).view(1, 2, 1, 1)).norm(dim=1)
    assert error.mean() < 0.05
    assert error.max() < 0.5


def test_temperature_may_be_learned():
    temperature = torch.tensor(0.1, requires_grad=True)
    soft_displacement(local_similarity(*torch.randn(2, 1, 4, 5, 5), 3), temperature=temperature).square().sum().backward()
    assert temperature.grad is not None
    assert temperature.grad.isfinite()
    assert temperature.grad != 0


def test_weights_sum_to_one_and_masks_are_zero():
    volume = local_similarity(*torch.randn(2, 1, 4, 5, 6), 5)
    weights = match_weights(volume, 1, 0.05, "mask")
    assert_close(weights.sum(dim=1), torch.ones(1, 5, 6))
    assert weights[0][~inside_frame(5, 5, 6)].eq(0).all()
    one = F.one_hot(torch.full((1, 2, 2), 7), 25).movedim(-1, 1).float()
    assert_close(expected_offset(one)[0, :, 0, 0], torch.tensor([0.0, -1.0]))


def test_a_sign_is_one_or_minus_one():
    with pytest.raises(ValueError, match="sign must be 1 or -1"):
        match_weights(torch.zeros(1, 9, 2, 2), sign=2)


# Tracking -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("exclusion_radius", [0, 1])
def test_best_match_is_the_best_two_of_the_window(height, width, window, measure, exclusion_radius):
    query, other = features(height, width, batch=1)
    match = best_match(query, other, window, measure, exclusion_radius)
    for (x, y), costs in oracle.cost_volume(query[0], other[0], window, measure).items():
        (u, v), best, second = oracle.two_best(costs, exclusion_radius)
        assert int(match.index[0, y, x]) == (y + v) * width + x + u
        assert float(match.best[0, y, x]) == pytest.approx(best, abs=1e-9)
        assert float(match.second[0, y, x]) == pytest.approx(second, abs=1e-9)


def test_a_pixel_that_looks_like_all_others_stays():
    flat = torch.ones(1, 3, 4, 5)
    match = best_match(flat, flat, 9)
    assert torch.equal(match.index, torch.arange(20).view(1, 4, 5))


def test_a_single_cell_has_no_runner_up():
    cell = torch.ones(1, 3, 1, 1)
    assert best_match(cell, cell, 9).second.eq(-math.inf).all()
