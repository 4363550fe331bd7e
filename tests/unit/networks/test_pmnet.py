"""PMNet as a whole. Points, trajectories and losses by themselves are in ``tests/unit/matching/test_points.py``."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.clips import given_at, random_clip
from tests.oracles import pmnet as oracle
from tests.pmnet import MEMORY, SIZE, SMALL, run, small
from tests.tolerances import assert_close
from vos_lightning.decoders import point_refinement
from vos_lightning.decoders.point_refinement import PointSampling
from vos_lightning.matching.points import strided_grid
from vos_lightning.matching.trajectories import AdaptiveMatching
from vos_lightning.networks import pmnet
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation, advance, encode
from vos_lightning.structures import FrameInput

# The network ----------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_stcn_and_of_points():
    with torch.device("meta"):
        network, base = PMNet.published(None), STCN.published(None)
    assert sum(p.numel() for p in network.parameters()) == 55_774_854
    own = {name: value.shape for name, value in network.state_dict().items()}
    inherited = {name: shape for name, shape in own.items() if not name.startswith(("detector.", "refiner."))}
    assert inherited == {f"stcn.{name}": value.shape for name, value in base.state_dict().items()}


def test_without_points_and_adaptive_matching_it_is_stcn():
    network = small(sampling=PointSampling(source="none"), adaptive=None)
    base = STCN.published(None, **SMALL).eval()
    base.load_state_dict(network.stcn.state_dict())
    for ours, theirs in zip(run(network)[2], run(base)[2], strict=True):
        assert_close(ours.logits, theirs.logits)


@pytest.mark.parametrize("top_k_order", ["after", "before"])
def test_a_wide_gaussian_reads_as_stcn(top_k_order):
    options = AdaptiveMatching(smallest_sigma=1e4, largest_sigma=1e4, top_k_order=top_k_order)
    network = small(sampling=PointSampling(source="none"), adaptive=options, top_k=5)
    plain = small(sampling=PointSampling(source="none"), adaptive=None, top_k=5)
    for ours, theirs in zip(run(network)[2], run(plain)[2], strict=True):
        assert_close(ours.probabilities, theirs.probabilities)


@pytest.mark.parametrize(
    ("form", "window", "similarity"), [("exponential", 3, "l2"), ("inverse_distance", 4, "l2"), ("cosine", 3, "cosine")]
)
def test_trajectories_of_all_remembered_frames(form, window, similarity):
    network = small(adaptive=AdaptiveMatching(window=window, beta=6.0, spread_form=form), similarity=similarity)
    frames, _, outputs = run(network, length=6)
    with torch.no_grad():
        keys = [encode(network, FrameInput(frames[:, t])).features.key[0] for t in range(6)]
    # Frame 5 reads the frames 0, 2 and 4.
    for part, first in enumerate((0, 2, 4)):
        positions, spreads = oracle.track(keys[first:], window, 6.0, form)
        cells = slice(part * 20, part * 20 + 20)
        assert outputs[5].aux["positions"][0, cells].tolist() == positions
        assert_close(outputs[5].aux["spreads"][0, cells], torch.tensor(spreads))


def test_frames_that_the_bank_forgets_are_no_longer_followed():
    network = small()
    frames, labels = random_clip(1, 7, 1, SIZE)
    propagation, state = Propagation(EveryKth(2, max_frames=1), "product"), None
    with torch.no_grad():
        for t in range(7):
            given = given_at(labels, 0, [1], 1) if t == 0 else None
            output, state = advance(network, propagation, state, FrameInput(frames[:, t]), given)
    assert [frame.t for frame in state.memory.bank.frames] == [0, 6]
    # What the bank forgot in this frame goes with the next one.
    assert set(state.memory.carry.tracking.frames) == {0, 4, 6}
    assert output.aux["positions"].shape[1] == 2 * 20


def test_points_are_the_most_uncertain_cells_of_a_box_around_the_first_mask():
    """Masks of a few cells, so that the boxes are a part of the map; an untrained decoder fills all of it."""
    network = small(sampling=PointSampling(fraction=0.3))
    first = torch.full((1, 2, 16, 20), -2.0)
    first[0, 0, 3:9, 2:7], first[0, 1, 12, 19] = 1.0, 1.0
    network.stcn.decoder.predict = lambda _: first
    _, _, outputs = run(network)
    for output in outputs[1:]:
        aux = output.aux
        changed = aux["refined"] != aux["coarse"]
        chosen = torch.zeros_like(changed).flatten(2).scatter(2, aux["points"], aux["points_valid"]).view_as(changed)
        assert torch.equal(changed, chosen)
        assert_close(
            aux["refined"].flatten(2).gather(2, aux["points"])[aux["points_valid"]], aux["point_logits"][aux["points_valid"]]
        )
        # 6 x 5 cells and one more on every side, of which a box holds 8 x 7 = 56; one cell.
        for n, number in enumerate((17, 1)):
            points = aux["points"][0, n][aux["points_valid"][0, n]].tolist()
            region = oracle.box(first[0, n] > 0, 1.2)
            assert len(region) < 16 * 20 / 4
            assert points == oracle.sample(aux["uncertainty"][0, n], region, number)
            assert {divmod(point, 20) for point in points} <= region


@pytest.mark.parametrize("write_back", ["replace", "add", "replace_pixels"])
def test_how_refined_logits_come_into_the_mask(write_back):
    network = small(write_back=write_back)
    frames, labels = random_clip(1, 2, 1, SIZE)
    state = None
    with torch.no_grad():
        _, state = advance(network, MEMORY, None, FrameInput(frames[:, 0]), given_at(labels, 0, [1], 1))
        logits, aux = network.segment(encode(network, FrameInput(frames[:, 1])).features, state.memory)
    assert aux["points_valid"].any()
    old = F.interpolate(aux["coarse"], scale_factor=4, mode="bilinear")
    expected = old.clone() if write_back == "replace_pixels" else aux["coarse"].clone()
    for k in range(aux["points"].shape[2]):
        y, x = divmod(int(aux["points"][0, 0, k]), 20)
        value = aux["point_logits"][0, 0, k]
        if write_back == "replace_pixels":
            expected[0, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = value
        else:
            expected[0, 0, y, x] = value + (aux["coarse"][0, 0, y, x] if write_back == "add" else 0)
    assert_close(logits, expected if write_back == "replace_pixels" else F.interpolate(expected, scale_factor=4, mode="bilinear"))


def test_all_points_and_no_points():
    everything, nothing = small(sampling=PointSampling(source="all")), small(sampling=PointSampling(source="none"))
    assert run(everything)[2][1].aux["points_valid"].sum() == 2 * 16 * 20
    outputs = run(nothing)[2]
    assert "points" not in outputs[1].aux
    undecided = small(sampling=PointSampling(source="probabilities", empty_mask="whole_frame"))
    undecided.stcn.decoder.predictor.bias.data.fill_(-1e3)
    output = run(undecided)[2][1]
    assert output.aux["points_valid"].sum(dim=2).tolist() == [[64, 64]]
    assert "uncertainty" not in output.aux


def test_an_empty_mask_is_left_alone():
    network = small()
    network.stcn.decoder.predictor.bias.data.fill_(-1e3)
    aux = run(network)[2][2].aux
    assert aux["points"].shape[2] == 0
    assert torch.equal(aux["refined"], aux["coarse"])


def test_values_are_encoded_for_remembered_frames_and_fine_features_for_all():
    network = small()
    calls = {"fine": 0, "fine_and_value": 0}

    def counting(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    for name in calls:
        setattr(network.stcn.value_encoder, name, counting(name, getattr(network.stcn.value_encoder, name)))
    run(network, length=5)
    assert calls == {"fine": 2, "fine_and_value": 3}
    calls.update(fine=0, fine_and_value=0)
    run(network.with_points_from("none"), length=5)
    assert calls == {"fine": 0, "fine_and_value": 3}


def test_a_frame_is_tracked_and_prepared_once_and_asked_for_its_points_once(monkeypatch):
    """Whatever the number of chunks; and the device is waited for once, for how many points there are."""
    network = small(chunk_bytes=1)
    frames, labels = random_clip(1, 4, 2, SIZE)
    with torch.no_grad():
        state = _state_after(network, frames, {0: given_at(labels, 0, [1, 2], 2)}, 3)
        state.memory.bank.readers  # noqa: B018  asks once for a bank, which this frame finds unchanged
        calls = Counter()

        def counting(name, function):
            def call(*arguments, **options):
                calls[name] += 1
                return function(*arguments, **options)

            return call

        for owner, name in (
            (pmnet, "best_match"), (point_refinement, "point_memory"), (point_refinement, "match_points"),
            *((torch.Tensor, name) for name in ("tolist", "item", "__bool__", "__int__", "__float__")),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, counting(name, getattr(owner, name)))
        output, _ = advance(network, MEMORY, state, FrameInput(frames[:, 3]))
    number = output.aux["points"].shape[2]
    assert calls == {"best_match": 1, "point_memory": 1, "match_points": number, "tolist": 1}


def test_the_first_frame_of_a_late_object_is_its_own():
    network = small(grid_while_previous=False)
    frames, labels = random_clip(1, 4, 2, SIZE)
    given = {0: given_at(labels, 0, [1], 2), 2: given_at(labels, 2, [2], 2)}
    state, carries = None, []
    with torch.no_grad():
        for t in range(4):
            _, state = advance(network, MEMORY, state, FrameInput(frames[:, t]), given.get(t))
            carries.append(state.memory.carry.fine)
    grids = [strided_grid(carry.previous, 2) for carry in carries]
    for field in ("key", "value"):
        kept = getattr(carries[3].grid, field)
        assert torch.equal(kept[:, 0], getattr(grids[0], field)[:, 0])
        assert torch.equal(kept[:, 1], getattr(grids[2], field)[:, 1])
    assert [carry.fresh.tolist() for carry in carries] == [[[True, False]], [[False, False]], [[False, True]], [[False, False]]]
    # The second frame reads its window only, where the grid is of the same frame.
    network.refinement = replace(network.refinement, grid_while_previous=True)
    with torch.no_grad():
        both, _ = advance(network, MEMORY, _state_after(network, frames, given, 1), FrameInput(frames[:, 1]))
        network.refinement = replace(network.refinement, grid_while_previous=False)
        window, _ = advance(network, MEMORY, _state_after(network, frames, given, 1), FrameInput(frames[:, 1]))
    assert torch.equal(both.aux["points"], window.aux["points"])
    assert not torch.allclose(both.aux["point_logits"][:, 0], window.aux["point_logits"][:, 0])


def _state_after(network, frames, given, number):
    state = None
    for t in range(number):
        _, state = advance(network, MEMORY, state, FrameInput(frames[:, t]), given.get(t))
    return state


# What options of the parts do inside of the network ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "scale", "stride"),
    [
        ({}, "l2", 8**-0.5, 2),
        ({"share_key": True}, "l2", 8**-0.5, 2),
        ({"relu_decoded": True}, "l2", 8**-0.5, 2),
        ({"grid_stride": 3, "chunk_bytes": 1}, "l2", 8**-0.5, 3),
        ({"similarity": "dot"}, "dot", 8**-0.5, 2),
        ({"similarity": "cosine", "cosine_scale": 10.0}, "cosine", 10.0, 2),
    ],
)
def test_a_point_says_what_the_formulas_say(arguments, kind, scale, stride):
    """Sections 3.2.2 and 3.2.3 from the features of three frames on: the first is read on a grid, the second in windows."""
    network = small(**arguments)
    decoded = []
    predict = network.stcn.decoder.predict
    network.stcn.decoder.predict = lambda x: decoded.append(x) or predict(x)
    frames, labels = random_clip(1, 3, 2, SIZE)
    state, maps = None, []
    with torch.no_grad():
        for t in range(3):
            given = given_at(labels, 0, [1, 2], 2) if t == 0 else None
            output, state = advance(network, MEMORY, state, FrameInput(frames[:, t]), given)
            maps.append(state.memory.carry.fine.previous)
        *earlier, now = (encode(network, FrameInput(frames[:, t])).features.pyramid.s4[0].flatten(1) for t in range(3))
        refiner = network.refiner
        of_memory = refiner.query_key if arguments.get("share_key") else refiner.memory_key
        for n in range(2):
            both = []
            for features, seen in zip(earlier, maps, strict=False):
                keys = of_memory(features.t()).t()
                values = refiner.fusion(torch.cat([features, seen.own[0, n].flatten(1)]).t()).t()
                both.append((keys.unflatten(1, (16, 20)), values.unflatten(1, (16, 20))))
            points = output.aux["points"][0, n][output.aux["points_valid"][0, n]]
            for k in range(0, len(points), 8):
                x, cell = now[:, points[k]], int(points[k])
                read = oracle.read_point(refiner.query_key(x), cell, both[0], both[1], 5, stride, kind, scale)
                before = decoded[-1][0, n].flatten(1)[:, cell]
                before = before.clamp_min(0) if arguments.get("relu_decoded") else before
                expected = refiner.prediction(refiner.aggregation(torch.cat([read, refiner.query_value(x)])) + before)
                assert_close(output.aux["point_logits"][0, n, k], expected[0])
    assert decoded[-1].min() < 0  # so that a ReLU matters


@pytest.mark.parametrize("form", ["ratio", "margin"])
@pytest.mark.parametrize("base", ["box", "mask"])
def test_points_of_probabilities_are_the_most_uncertain_ones(form, base):
    network = small(sampling=PointSampling(source="probabilities", probability_form=form, count_base=base, fraction=0.3))
    first = torch.full((1, 2, 16, 20), -4.0)
    first[0, 0, 3:9, 2:7], first[0, 1, 8:12, 5:10] = 1.0, 1.0
    first += torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).clamp(-0.9, 0.9)
    network.stcn.decoder.predict = lambda _: first
    aux = run(network, length=2)[2][1].aux
    score = oracle.afb_uncertainty(first[0]) if form == "ratio" else -(first[0].double().sigmoid() - 0.5).abs()
    for n, number in enumerate({"box": (17, 8), "mask": (9, 6)}[base]):  # 0.3 of 8 x 7 and 4 x 7, or of 6 x 5 and 4 x 5 cells
        of_object = score if form == "ratio" else score[n]
        points = aux["points"][0, n][aux["points_valid"][0, n]].tolist()
        assert points == oracle.sample(of_object, oracle.box(first[0, n] > 0, 1.2), number)


@pytest.mark.parametrize(
    ("arguments", "kind", "scale"),
    [
        ({"adaptive": AdaptiveMatching(window=4, beta=3.0), "top_k": None}, "l2", 8**-0.5),
        ({"adaptive": AdaptiveMatching(window=8, beta=3.0, spread_is="variance", exclusion_radius=1), "top_k": 7}, "l2", 8**-0.5),
        ({"adaptive": AdaptiveMatching(window=3, beta=3.0), "similarity": "dot", "top_k": 7}, "dot", 8**-0.5),
        ({"adaptive": AdaptiveMatching(window=3), "similarity": "cosine", "cosine_scale": 10.0, "top_k": 7}, "cosine", 10.0),
    ],
)
def test_the_memory_is_read_near_where_its_pixels_have_moved(arguments, kind, scale):
    """Equations 6 to 9 for the fourth frame, which reads the first and the third one."""
    network = small(**arguments)
    readouts = []
    of_frame = network.stcn.decoder.of_frame

    def watched(*shared):
        refine = of_frame(*shared)
        return lambda readout: readouts.append(readout) or refine(readout)

    network.stcn.decoder.of_frame = watched
    frames, labels = random_clip(1, 4, 2, SIZE)
    with torch.no_grad():
        state = _state_after(network, frames, {0: given_at(labels, 0, [1, 2], 2)}, 3)
        bank = state.memory.bank
        advance(network, MEMORY, state, FrameInput(frames[:, 3]))
        keys = [encode(network, FrameInput(frames[:, t])).features.key[0] for t in range(4)]
    assert [frame.t for frame in bank.frames] == [0, 2]
    options, positions, sigmas = arguments["adaptive"], [], []
    for first in (0, 2):
        followed = oracle.track(keys[first:], options.window, options.beta, "exponential", kind, scale, options.exclusion_radius)
        positions += followed[0]
        sigmas += [max(spread**0.5 if options.spread_is == "variance" else spread, 1.0) for spread in followed[1]]
    assert len(set(sigmas)) > 2
    for n in range(2):
        memory = (torch.cat([keys[0], keys[2]], dim=1).flatten(1), bank.entry.value[0, n], positions, sigmas)
        expected = oracle.weighted_read(*memory, keys[3].flatten(1), 5, arguments["top_k"], "after", kind, scale)
        assert_close(readouts[-1][0, n].flatten(1), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adaptive": AdaptiveMatching(spread_form="inverse_distance"), "similarity": "dot"}, "set stcn.similarity"),
        ({"grid_stride": 0}, "grid_stride"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_network_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
    with pytest.raises(ValueError, match="box_factor"):
        PointSampling(box_factor=0.9)


def test_a_copier_start_refines_nothing_at_first():
    """Untrained points repeat what the untrained decoder says, but for what small weights add."""
    network = small(normalize_features=True, copier_start=True, sampling=PointSampling(source="all"))
    aux = run(network)[2][1].aux
    assert (aux["refined"] - aux["coarse"]).abs().mean() < 0.1 * aux["coarse"].std()
