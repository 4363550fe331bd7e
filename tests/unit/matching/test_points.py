import dataclasses
import itertools
import math
from itertools import pairwise

import pytest
import torch

from tests.oracles import pmnet as oracle
from tests.tolerances import assert_close
from vos_lightning.decoders.point_refinement import PointRefinement, PointRefiner, UncertaintyDetector
from vos_lightning.losses.auxiliary import mean_over_objects, point_loss, uncertainty_loss
from vos_lightning.matching.local_window import LocalMatch, best_match
from vos_lightning.matching.points import (
    PointGrid,
    PointMap,
    Points,
    cells_table,
    enlarged_boxes,
    match_points,
    point_counts,
    point_memory,
    probability_uncertainty,
    sample_points,
    strided_grid,
    take_points,
    window_cells,
    write_points,
)
from vos_lightning.matching.trajectories import AdaptiveMatching, Trajectories, gaussian_keys, read_followed, step_spread

HEIGHT, WIDTH = 6, 8


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Sampling -------------------------------------------------------------------------------------------------------------


def test_probability_uncertainty_orders_cells_as_afb_urr_does():
    logits = torch.randn(2, 3, 4, 5) * 1.5
    ours = probability_uncertainty(logits, torch.ones(2, 3, dtype=torch.bool))
    for b in range(2):
        expected = oracle.afb_uncertainty(logits[b])
        assert torch.equal(ours[b, 0].flatten().argsort(), expected.flatten().argsort())
        # exp(1 - p1 / p2) of our p2 / p1.
        assert_close((1 - 1 / ours[b, 1].double()).exp().float(), expected.float())


def test_probability_uncertainty_ignores_objects_that_do_not_exist():
    logits = torch.randn(1, 2, 3, 3)
    valid = torch.tensor([[True, False]])
    assert_close(probability_uncertainty(logits, valid)[:, :1], probability_uncertainty(logits[:, :1], valid[:, :1]))


def test_margin_is_the_distance_from_one_half():
    logits = torch.randn(1, 2, 4, 4) * 3
    expected = 1 - 2 * (logits.sigmoid() - 0.5).abs()
    assert_close(probability_uncertainty(logits, torch.ones(1, 2, dtype=torch.bool), "margin"), expected)
    with pytest.raises((ValueError, TypeError)):
        probability_uncertainty(logits, torch.ones(1, 2, dtype=torch.bool), "entropy")


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.5])
def test_boxes_and_counts(factor):
    masks = torch.zeros(1, 5, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 0, 2:4, 1:6] = True  # five cells wide: 1.2 adds one on either side
    masks[0, 1, 0, 0] = masks[0, 1, 5, 7] = True  # corners
    masks[0, 2, 3, 4] = True  # one cell
    masks[0, 3, 1:5, 7] = True  # at the border
    regions = enlarged_boxes(masks, factor)
    for n in range(5):
        expected = oracle.box(masks[0, n], factor)
        assert {tuple(cell) for cell in regions[0, n].nonzero().tolist()} == expected
        area = len(expected)
        assert int(point_counts(regions, masks, 0.2)[0, n]) == (max(round(0.2 * area), 1) if area else 0)
        inside = int(masks[0, n].sum())
        assert int(point_counts(regions, masks, 0.5, "mask")[0, n]) == (max(round(0.5 * inside), 1) if inside else 0)


def test_all_cells_may_be_points_and_boxes_grow_by_a_fifth():
    masks = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 0, 2:4, 1:6] = True
    assert torch.equal(enlarged_boxes(masks), enlarged_boxes(masks, 1.2))
    assert not torch.equal(enlarged_boxes(masks), enlarged_boxes(masks, 2.0))
    assert point_counts(masks, masks, 1.0).tolist() == [[10]]
    assert torch.equal(point_counts(enlarged_boxes(masks), masks, 0.3), point_counts(enlarged_boxes(masks), masks, 0.3, "box"))


def test_nothing_is_uncertain_about_no_object():
    nothing, valid = torch.zeros(2, 0, 3, 4), torch.ones(2, 0, dtype=torch.bool)
    for form in ("ratio", "margin"):
        assert probability_uncertainty(nothing, valid, form).shape == (2, 0, 3, 4)


def test_what_is_written_takes_the_type_of_the_map():
    maps = torch.zeros(1, 1, 2, 2, dtype=torch.float16)
    points = Points(torch.tensor([[[1]]]), torch.tensor([[[True]]]), (1,))
    for how in ("replace", "add"):
        assert write_points(maps, points, torch.ones(1, 1, 1), how).dtype == torch.float16


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_counts_refuse_a_fraction_out_of_range(fraction):
    nothing = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="fraction"):
        point_counts(nothing, nothing, fraction)


def test_samples_are_the_largest_scores_in_order():
    # Few distinct values, so that ties occur.
    score = torch.randint(0, 6, (2, 3, HEIGHT, WIDTH)) / 5
    region = torch.rand(2, 3, HEIGHT, WIDTH) < 0.6
    region[1, 2] = False
    counts = torch.tensor([[5, 1, 9], [3, 12, 0]])
    points = sample_points(score, region, counts)
    assert points.index.shape == (2, 3, 12)
    for b in range(2):
        for n in range(3):
            cells = {tuple(cell) for cell in region[b, n].nonzero().tolist()}
            expected = oracle.sample(score[b, n], cells, int(counts[b, n]))
            assert points.index[b, n][points.valid[b, n]].tolist() == expected
            assert len(set(points.index[b, n].tolist())) == 12
    assert sample_points(score, region, torch.zeros_like(counts)).index.shape[2] == 0
    assert sample_points(score, region, torch.zeros_like(counts), at_least=2).valid.any().item() is False


def test_no_object_has_no_points():
    nothing = torch.zeros(2, 0, HEIGHT, WIDTH)
    points = sample_points(nothing, nothing > 0, torch.zeros(2, 0, dtype=torch.long))
    assert points.index.shape == points.valid.shape == (2, 0, 0)
    assert points.numbers == ()


def test_points_read_a_window_of_15_cells_by_default():
    key, shared, own = torch.randn(1, 4, 20, 20), torch.randn(1, 3, 20, 20), torch.randn(1, 1, 2, 20, 20)
    seen = PointMap(key, shared, own)
    memory = point_memory(strided_grid(seen, 5), seen, torch.tensor([0]))
    query, index = torch.randn(1, 6, 4), torch.tensor([[0, 19, 210, 211, 380, 399]])
    assert torch.equal(match_points(query, index, memory), match_points(query, index, memory, 15))


def test_values_of_both_frames_have_the_type_of_the_first():
    seen = PointMap(torch.randn(1, 4, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 1, 2, 4, 4))
    grid = strided_grid(seen, 2)
    memory = point_memory(PointGrid(grid.key, grid.value.bfloat16()), seen, torch.tensor([0]))
    assert {memory.grid_value.dtype, memory.shared.dtype, memory.own.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_of_a_point(dtype):
    """Keys of the window with the channel of their norm, and four numbers for every cell that is read."""
    seen = PointMap(
        *(torch.randn(1, *shape).to(dtype) for shape in ((5, HEIGHT, WIDTH), (4, HEIGHT, WIDTH), (2, 1, HEIGHT, WIDTH)))
    )
    memory = point_memory(strided_grid(seen, 2), seen, torch.arange(2))
    grid = (HEIGHT // 2) * (WIDTH // 2)
    channels = memory.key.shape[1]
    number = memory.key.element_size()
    assert memory.bytes_of_a_point(3) == number * (9 * channels + 4 * (grid + 9))
    assert memory.bytes_of_a_point(1) == number * (channels + 4 * (grid + 1))


def test_points_are_read_and_written_back():
    maps = torch.randn(2, 3, HEIGHT, WIDTH)
    before = maps.clone()
    points = sample_points(maps, torch.ones_like(maps, dtype=torch.bool), torch.tensor([[4, 2, 3], [0, 1, 4]]))
    values = torch.randn(points.index.shape)
    for how in ("replace", "add"):
        written = write_points(maps, points, values, how)
        expected = maps.clone()
        for b, n, k in points.valid.nonzero().tolist():
            y, x = divmod(int(points.index[b, n, k]), WIDTH)
            expected[b, n, y, x] = values[b, n, k] + (maps[b, n, y, x] if how == "add" else 0)
        assert torch.equal(written, expected)
    assert torch.equal(maps, before)
    table = cells_table(maps.unsqueeze(2))
    assert torch.equal(
        take_points(table, points.index[1, 2] + 5 * HEIGHT * WIDTH)[:, 0], maps[1, 2].flatten()[points.index[1, 2]]
    )


def test_a_channels_last_map_is_a_table_without_a_copy():
    maps = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    table = cells_table(maps)
    assert table.data_ptr() == maps.data_ptr()
    assert torch.equal(table[20 + 7], maps[1, :, 1, 2])


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_of_a_table_are_contiguous(batch):
    assert cells_table(torch.randn(batch, 3, 4, 5)).is_contiguous()


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_windows(window):
    cells, inside = window_cells(torch.tensor([0, 19, 47]), HEIGHT, WIDTH, window)
    for row, cell in enumerate((0, 19, 47)):
        y, x = divmod(cell, WIDTH)
        around = [(v - window // 2 + y, u - window // 2 + x) for v in range(window) for u in range(window)]
        assert inside[row].tolist() == [0 <= v < HEIGHT and 0 <= u < WIDTH for v, u in around]
        kept = [v * WIDTH + u for v, u in around if 0 <= v < HEIGHT and 0 <= u < WIDTH]
        assert cells[row][inside[row]].tolist() == kept


# Matching -------------------------------------------------------------------------------------------------------------


def memories(batch=2, num_objects=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return PointMap(
        torch.randn(batch, 4, HEIGHT, WIDTH, generator=generator),
        torch.randn(batch, 3, HEIGHT, WIDTH, generator=generator),
        torch.randn(batch, num_objects, 2, HEIGHT, WIDTH, generator=generator),
    )


@pytest.mark.parametrize("similarity", ["l2", "dot", "cosine"])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 3), (1, 1)])
def test_matching_is_the_formula(similarity, window, stride):
    first, previous = memories(seed=1), memories(seed=2)
    rows = torch.tensor([5, 0, 4])
    index = torch.tensor([[0, 47, 20, 13], [7, 40, 8, 1], [2, 19, 33, 46]])
    query = torch.randn(3, 4, 4)
    opened = torch.tensor([[True, True, True], [True, False, True]])
    seen = point_memory(strided_grid(first, stride), previous, rows, similarity, grid_open=opened)
    read = match_points(query, index, seen, window, similarity)
    scale = 1.0 if similarity == "cosine" else 0.5
    for r, row in enumerate(rows.tolist()):
        b, n = divmod(row, 3)
        frames = [(m.key[b], torch.cat([m.shared[b], m.own[b, n]])) for m in (first, previous)]
        for k in range(4):
            expected = oracle.read_point(
                query[r, k], int(index[r, k]), frames[0], frames[1], window, stride, similarity, scale, bool(opened[b, n])
            )
            assert_close(read[r, k], expected)


def test_gradients_of_the_matching():
    first, previous = (
        PointMap(*(torch.randn(*shape, 3, 3, dtype=torch.float64) for shape in ((1, 2), (1, 1), (1, 2, 1)))) for _ in range(2)
    )
    leaves = [tensor.requires_grad_() for m in (first, previous) for tensor in (m.key, m.shared, m.own)]
    query = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[3, 2], [4, 8]])

    def read(query, *tensors):
        grid, map_ = strided_grid(PointMap(*tensors[:3]), 2), PointMap(*tensors[3:])
        return match_points(query, index, point_memory(grid, map_, torch.tensor([1, 0])), window=3)

    assert torch.autograd.gradcheck(read, (query, *leaves), fast_mode=True)


def points_of(index, valid):
    return Points(torch.tensor(index)[None], torch.tensor(valid)[None], tuple(map(sum, valid)))


_OPTIONS = {field.name for field in dataclasses.fields(PointRefinement)}


def refiner(**arguments):
    """A small refiner; fields of its options are arguments like the others."""
    torch.manual_seed(0)
    defaults = {"aggregation": (7, 5), "prediction": (4,), "window": 3}
    options = {**defaults, **{name: arguments.pop(name) for name in list(arguments) if name in _OPTIONS}}
    return PointRefiner(3, 2, 5, 4, 6, PointRefinement(**options), **arguments)


def test_refined_logits_are_the_formula():
    """The fusion layer on the memory and then the weighted sum, as the paper has it."""
    network = refiner()
    features, decoded = torch.randn(1, 3, HEIGHT, WIDTH), torch.randn(1, 2, 5, HEIGHT, WIDTH)
    frames = [(torch.randn(1, 3, HEIGHT, WIDTH), torch.randn(1, 2, 2, HEIGHT, WIDTH)) for _ in range(2)]
    seen = [network.remember(*frame) for frame in frames]
    points = points_of([[3, 20, 0], [47, 8, 12]], [[True, True, False], [True, True, True]])
    with torch.no_grad():
        logits = network(points, features, decoded, strided_grid(seen[0], 2), seen[1])
    assert network.memory_key is not None
    for n in range(2):
        both = []
        for x, own in frames:
            keys = network.memory_key(x[0].flatten(1).t()).t().unflatten(1, (HEIGHT, WIDTH))
            values = network.fusion(torch.cat([x[0], own[0, n]]).flatten(1).t()).t().unflatten(1, (HEIGHT, WIDTH))
            both.append((keys.detach(), values.detach()))
        for k in range(int(points.valid[0, n].sum())):
            cell = int(points.index[0, n, k])
            x = features[0].flatten(1)[:, cell]
            read = oracle.read_point(network.query_key(x).detach(), cell, both[0], both[1], 3, 2, "l2", 0.5)
            joined = network.aggregation(torch.cat([read, network.query_value(x)])) + decoded[0, n].flatten(1)[:, cell]
            assert_close(logits[0, n, k], network.prediction(joined)[0].detach())


@pytest.mark.parametrize("chunk_bytes", [1, 2500, 2**26])
def test_chunks_and_recomputation_change_nothing(chunk_bytes):
    """A point of this size takes 516 bytes: one point of every object at a time, two of one or two objects, all of them."""
    results = []
    for arguments in ({"recompute": False}, {"chunk_bytes": chunk_bytes, "recompute": True}):
        network = refiner(**arguments)
        torch.manual_seed(1)
        features = torch.randn(2, 3, HEIGHT, WIDTH, requires_grad=True)
        decoded = torch.randn(2, 2, 5, HEIGHT, WIDTH)
        seen = network.remember(torch.randn(2, 3, HEIGHT, WIDTH), torch.randn(2, 2, 2, HEIGHT, WIDTH))
        score = torch.rand(2, 2, HEIGHT, WIDTH)
        points = sample_points(score, torch.ones_like(score, dtype=torch.bool), torch.tensor([[7, 0], [2, 4]]))
        logits = network(points, features, decoded, strided_grid(seen, 2), seen)
        (logits * points.valid).square().sum().backward()
        results.append((logits[points.valid], features.grad, *[p.grad for p in network.parameters()]))
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected)


def test_every_parameter_takes_part_even_without_a_point():
    network = refiner()
    features, decoded = torch.randn(1, 3, HEIGHT, WIDTH), torch.randn(1, 2, 5, HEIGHT, WIDTH)
    seen = network.remember(torch.randn(1, 3, HEIGHT, WIDTH), torch.randn(1, 2, 2, HEIGHT, WIDTH))
    nothing = torch.zeros(1, 2, HEIGHT, WIDTH, dtype=torch.bool)
    points = sample_points(torch.rand(1, 2, HEIGHT, WIDTH), nothing, torch.zeros(1, 2, dtype=torch.long), at_least=1)
    logits = network(points, features, decoded, strided_grid(seen, 2), seen)
    write_points(torch.randn(1, 2, HEIGHT, WIDTH), points, logits).sum().backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in network.parameters())


def test_parameters_of_the_modules():
    assert count(UncertaintyDetector()) == 158_081
    assert count(UncertaintyDetector((256, 256, 256))) == 141_697
    network = PointRefiner()
    assert count(network) == 1_182_593
    layers = (network.query_key, network.query_value, network.memory_key, network.fusion, network.aggregation, network.prediction)
    assert [count(layer) for layer in layers] == [16_448, 131_584, 16_448, 164_352, 721_920, 131_841]
    assert count(PointRefiner(options=PointRefinement(share_key=True))) == 1_182_593 - 16_448


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"aggregation": (7, 4)}, "aggregation must end"), ({"window": 0}, "window"), ({"chunk_bytes": 0}, "chunk_bytes")],
)
def test_refiner_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        refiner(**arguments)


@pytest.mark.parametrize("form", ["top_down", "top_down_3x3", "concatenated"])
def test_detector_stops_the_gradient(form):
    detector = UncertaintyDetector((6, 5, 4), 8, form)
    maps = [torch.randn(2, 3, c, 2 * s, 3 * s, requires_grad=True) for c, s in ((6, 1), (5, 2), (4, 4))]
    out = detector(*maps)
    assert out.shape == (2, 3, 8, 12)
    assert ((out > 0) & (out < 1)).all()
    out.sum().backward()
    assert all(m.grad is None for m in maps)
    assert all(p.grad is not None for p in detector.parameters())


@pytest.mark.parametrize("form", ["top_down", "top_down_3x3", "concatenated"])
@pytest.mark.parametrize(
    ("s16", "s8", "s4", "total"), [(2.0, 1.0, 0.5, 3.5), (2.0, -1.0, 0.5, 2.5), (-2.0, 1.0, -1.0, 1.0), (0.0, 0.0, 0.0, 0.0)]
)
def test_the_detector_adds_what_every_stride_says(s16, s8, s4, total, form):
    """Layers that hand their first channel on: what is negative at a stride does not count, and the rest is a logit."""
    detector = UncertaintyDetector((6, 5, 4), 8, form)
    for layer in detector.children():
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    if form == "concatenated":  # the first channel of every stride
        detector.merge4.weight.data[0, [8, 16], 1, 1] = 1.0
    maps = [torch.full((1, 2, c, 2 * s, 3 * s), value) for value, c, s in ((s16, 6, 1), (s8, 5, 2), (s4, 4, 4))]
    assert_close(detector(*maps).detach(), torch.full((1, 2, 8, 12), 1 / (1 + math.exp(-total))))
    # A cell of stride 16 is enlarged twice by two, bilinearly; or once by four.
    maps = [torch.zeros_like(m) for m in maps]
    maps[0][0, 0, 0, :, 0] = 1.0
    twice = [1.0, 0.9375, 0.8125, 0.625, 0.375, 0.1875, 0.0625, 0, 0, 0, 0, 0]
    once = [1.0, 1.0, 0.875, 0.625, 0.375, 0.125, 0, 0, 0, 0, 0, 0]
    row = torch.tensor(once if form == "concatenated" else twice)
    assert_close(detector(*maps)[0, 0].logit().detach(), row.expand(8, 12))


def test_top_down_detector_is_its_drawing():
    """Cell by cell, with weights that are large enough for every layer to matter."""
    detector = UncertaintyDetector((6, 5, 4), 8)
    for parameter in detector.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    maps = [torch.randn(1, 1, c, 2 * s, 3 * s) for c, s in ((6, 1), (5, 2), (4, 4))]

    def conv(x, layer):
        _, height, width = x.shape
        reach = layer.weight.shape[-1] // 2
        out = layer.bias[:, None, None].repeat(1, height, width)
        for y, column in itertools.product(range(height), range(width)):
            for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
                if 0 <= y + dy < height and 0 <= column + dx < width:
                    out[:, y, column] += layer.weight[:, :, dy + reach, dx + reach] @ x[:, y + dy, column + dx]
        return out

    def twice(x):
        """An even cell lies a quarter of a coarse cell before the centre of its own, an odd one a quarter behind."""
        _, height, width = x.shape
        out = torch.zeros(x.shape[0], 2 * height, 2 * width)
        for y, column in itertools.product(range(2 * height), range(2 * width)):
            near_y, near_x = y // 2, column // 2
            far_y = min(max(near_y + (1 if y % 2 else -1), 0), height - 1)
            far_x = min(max(near_x + (1 if column % 2 else -1), 0), width - 1)
            row, other = (0.75 * x[:, at, near_x] + 0.25 * x[:, at, far_x] for at in (near_y, far_y))
            out[:, y, column] = 0.75 * row + 0.25 * other
        return out

    with torch.no_grad():
        at16, at8, at4 = (
            conv(x[0, 0], lateral).clamp_min(0)
            for x, lateral in zip(maps, (detector.lateral16, detector.lateral8, detector.lateral4), strict=True)
        )
        at8 = conv(twice(at16) + at8, detector.merge8).clamp_min(0)
        at4 = conv(twice(at8) + at4, detector.merge4).clamp_min(0)
        expected = 1 / (1 + torch.exp(-conv(conv(at4, detector.hidden).clamp_min(0), detector.predictor)))
        found = detector(*maps)[0]
    assert found.std() > 0.05, "flat uncertainties would compare nothing"
    assert_close(found, expected)


# Trajectories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["exponential", "inverse_distance", "inverse_squared_distance", "cosine"])
@pytest.mark.parametrize("window", [3, 4])
def test_chained_tracking_is_the_formula(form, window):
    frames = [torch.rand(2, 4, 5, 6) + 0.1 for _ in range(4)]
    measure = "cosine" if form == "cosine" else "l2"
    state = Trajectories(torch.arange(30).expand(2, -1), torch.zeros(2, 30))
    for before, after in pairwise(frames):
        match = best_match(before, after, window, measure)
        state = state.follow(match.index.flatten(1), step_spread(match, 8.0, form, 0.5).flatten(1))
    for b in range(2):
        positions, spreads = oracle.track([frame[b] for frame in frames], window, 8.0, form)
        assert state.position[b].tolist() == positions
        assert_close(state.spread[b], torch.tensor(spreads))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("exponential", (6.02, 0.66, 0.66)),
        ("inverse_squared_distance", (6.55, 2.94, 6.55)),
        ("inverse_distance", (7.27, 5.29, 7.27)),
    ],
)
def test_spreads_of_known_distances(form, expected):
    best, second = torch.tensor([[[10.0, 10.0, 50.0]]]), torch.tensor([[[12.0, 20.0, 60.0]]])
    match = LocalMatch(torch.zeros(1, 1, 3, dtype=torch.long), -best, -second)
    spread = step_spread(match, 8.0, form)
    assert [round(float(value), 2) for value in spread.flatten()] == list(expected)


def test_spread_of_degenerate_matches():
    """No runner-up is certain; two perfect matches are not."""
    index = torch.zeros(1, 1, 2, dtype=torch.long)
    match = LocalMatch(index, torch.tensor([[[-1.0, 0.0]]]), torch.tensor([[[-math.inf, 0.0]]]))
    for form in ("exponential", "inverse_distance", "inverse_squared_distance", "cosine"):
        assert step_spread(match, 8.0, form)[0, 0, 1] == 8
    assert step_spread(match, 8.0, "exponential")[0, 0, 0] == 0


@pytest.mark.parametrize("similarity", ["l2", "dot", "cosine"])
@pytest.mark.parametrize(("top", "order"), [(None, "after"), (5, "after"), (5, "before")])
@pytest.mark.parametrize("few", [10, 3])
def test_weighted_read_is_the_formula(similarity, top, order, few):
    """Also where an object may read fewer memory pixels than are chosen."""
    height, width, size = 4, 5, 30
    positions, sigmas = torch.randint(0, 20, (1, size)), torch.rand(1, size) * 4
    keys, values, query = torch.randn(1, 4, size), torch.randn(1, 2, 3, size), torch.randn(1, 4, height, width)
    readable = torch.ones(1, 2, size, dtype=torch.bool)
    readable[0, 1, few:] = False
    options = AdaptiveMatching(smallest_sigma=1.0, largest_sigma=3.0, top_k_order=order)
    read = read_followed(
        keys, query, values, readable, Trajectories(positions, sigmas), options, similarity=similarity, scale=0.7, top_k=top
    )
    positions_now = Trajectories(positions, sigmas)
    plain = {"similarity": similarity, "top_k": top}
    default = read_followed(keys, query, values, readable, positions_now, options, **plain)
    assert torch.equal(default, read_followed(keys, query, values, readable, positions_now, options, scale=0.125, **plain))
    clamped = [min(max(value, 1.0), 3.0) for value in sigmas[0].tolist()]
    for n, seen in enumerate((slice(None), slice(few))):
        memory = (keys[0, :, seen], values[0, n, :, seen], positions[0, seen].tolist(), clamped[seen])
        assert_close(read[0, n], oracle.weighted_read(*memory, query[0].flatten(1), width, top, order, similarity, 0.7))


@pytest.mark.parametrize(("dtype", "height", "width"), [(torch.float32, 30, 54), (torch.float64, 45, 80)])
@pytest.mark.parametrize("spread_is", ["sigma", "variance"])
@pytest.mark.parametrize("normalized", [False, True])
def test_gaussian_keys_give_the_weight_at_video_size(dtype, height, width, spread_is, normalized):
    positions, spreads = torch.randint(0, height * width, (1, 100)), torch.rand(1, 100, dtype=dtype) * 8
    options = AdaptiveMatching(spread_is=spread_is, normalized=normalized)
    memory, query = gaussian_keys(Trajectories(positions, spreads), height, width, options)
    weights = (memory[0].t() @ query[0]).exp()
    sigma = spreads.double().sqrt().clamp(1, 8**0.5) if spread_is == "variance" else spreads.double().clamp(1, 8)
    y, x = positions[0].div(width, rounding_mode="floor"), positions[0] % width
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squared = (y[:, None] - v.flatten()) ** 2 + (x[:, None] - u.flatten()) ** 2
    expected = (-squared / (2 * sigma[0, :, None] ** 2)).exp()
    if normalized:  # but for 2 pi, which all pixels share
        expected = expected / sigma[0, :, None] ** 2
    assert_close(weights, expected.to(dtype))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_only_ratios_of_distances_do_not_depend_on_the_scale_of_keys(scale):
    first, second = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    plain, scaled = (best_match(factor * first, factor * second, 3, "l2") for factor in (1.0, scale))
    assert_close(step_spread(scaled, 8.0, "inverse_distance"), step_spread(plain, 8.0, "inverse_distance"))
    assert torch.allclose(step_spread(scaled, 8.0), step_spread(plain, 8.0)) == (scale == 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 1},
        {"beta": 0.0},
        {"smallest_sigma": 0.0},
        {"smallest_sigma": 3.0, "largest_sigma": 2.0},
        {"exclusion_radius": -1},
    ],
)
def test_adaptive_matching_refuses(arguments):
    with pytest.raises(ValueError, match="adaptive"):
        AdaptiveMatching(**arguments)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardest_by", ["predicted", "loss", "target"])
@pytest.mark.parametrize("ratio", [1.0, 0.4, 0.15])
def test_uncertainty_loss_is_the_formula(hardest_by, ratio):
    predicted, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    counted = torch.rand(2, 3, 4, 5) < 0.8
    counted[1, 0] = False
    loss = uncertainty_loss(predicted, target, counted, ratio, hardest_by)
    for b in range(2):
        each = [oracle.uncertainty_loss(predicted[b, n], target[b, n], counted[b, n], ratio, hardest_by) for n in range(3)]
        alive = [value for n, value in enumerate(each) if counted[b, n].any()]
        assert float(loss[b]) == pytest.approx(sum(alive) / len(alive), rel=1e-5)
    assert uncertainty_loss(predicted, target, torch.zeros_like(counted), ratio, hardest_by).eq(0).all()


def test_point_loss_is_the_mean_over_counted_points():
    logits, target = torch.randn(2, 2, 3), torch.randint(0, 2, (2, 2, 3)).float()
    counted = torch.tensor([[[True, True, False], [False, False, False]], [[True, False, False], [True, True, True]]])
    p = logits.sigmoid()
    each = -(target * p.log() + (1 - target) * (1 - p).log())
    expected = torch.stack([each[0, 0, :2].mean(), (each[1, 0, 0] + each[1, 1].mean()) / 2])
    assert_close(point_loss(logits, target, counted), expected)
    broken = torch.full((1, 1, 2), math.nan)
    assert mean_over_objects(broken, torch.zeros(1, 1, 2, dtype=torch.bool)).eq(0).all()


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_uncertainty_loss_refuses_a_ratio_out_of_range(ratio):
    maps = torch.rand(1, 1, 2, 2)
    with pytest.raises(ValueError, match="ratio"):
        uncertainty_loss(maps, maps, torch.ones(1, 1, 2, 2, dtype=torch.bool), ratio)
