import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.double import double_precision
from tests.oracles import munet as oracle
from tests.oracles import segmentation_losses
from tests.tolerances import assert_close
from vos_lightning.attention.msam import MSAM, MotionOptions
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.matching.local_window import local_similarity
from vos_lightning.modules.munet import MUNetModule
from vos_lightning.modules.optimisation import Optimisation
from vos_lightning.networks import stm
from vos_lightning.networks.munet import MUNet
from vos_lightning.networks.stm import Entry
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth
from vos_lightning.propagation.step import Propagation, StepOutput, advance, unroll
from vos_lightning.structures import ClipBatch, FrameInput, Given

SMALL = {"key_channels": 6, "value_channels": 8, "decoder_channels": 8, "blocks": (1, 1, 1), "width": 4}
MOTION = {"window": 5, "reduced_channels": 6}
SIZE = (48, 64)


def build(**arguments) -> MUNet:
    """A small network; the options of the motion are arguments like the others, and ``motion=None`` is the baseline."""
    options = {name: arguments.pop(name) for name in list(arguments) if name in MotionOptions.__dataclass_fields__}
    motion = arguments.pop("motion", MotionOptions(**{**MOTION, **options}))
    return MUNet.published(None, motion=motion, **{**SMALL, **arguments})


def small(**arguments) -> MUNet:
    torch.manual_seed(0)
    network = build(**arguments).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        # Untrained convolutions of three channels leave almost nothing of the motion: what is wrong with it would not show.
        elif name.startswith("motion.network") and parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    return network


def boxes(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(1, len(corners), *SIZE)
    for n, (top, left, bottom, right) in enumerate(corners):
        masks[0, n, top:bottom, left:right] = 1
    return masks


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Parameters -----------------------------------------------------------------------------------------------------------


def test_parameter_counts():
    with torch.device("meta"):
        network = MUNet.published(None)
        shared = MUNet.published(None, shared_projection=True)
        baseline = MUNet.published(None, motion=None)
    assert count(network) == 39_284_591
    assert count(network.motion.reduction) == 262_400
    layers = [layer for layer in network.motion.network if isinstance(layer, nn.Conv2d)]
    assert [count(layer) for layer in layers] == [444, 64, 2_320, 544, 9_248, 1_056, 18_496, 66_560]
    assert [layer.kernel_size[0] for layer in layers] == [7, 1, 3, 1, 3, 1, 3, 1]
    assert count(network.motion.network) == 98_732
    assert count(network.attention) == 1_025
    assert count(shared) == 33_385_711
    # STM without the convolution of the other objects' masks.
    assert count(baseline) == 38_925_570 - 64 * 7 * 7
    assert all(p.requires_grad for p in network.parameters())


def test_published_weights_go_into_both_encoders(monkeypatch):
    seen = []

    def random_trunk(weights, **options):
        seen.append(weights)
        return ResNetPyramid(weights=None, **options)

    monkeypatch.setattr(stm, "ResNetPyramid", random_trunk)
    with torch.device("meta"):
        MUNet.published("MASK_RCNN_COCO_V1")
        MUNet.published()
    assert seen == ["MASK_RCNN_COCO_V1"] * 2 + ["IMAGENET1K_V1"] * 2


@pytest.mark.parametrize(
    ("arguments", "first", "attention"),
    [
        ({}, 3, True),
        ({"uncertainty": None}, 2, True),
        ({"fusion": "addition"}, 3, False),
    ],
)
def test_ablation_rows_have_their_layers(arguments, first, attention):
    network = small(**arguments)
    assert network.motion.network[0].in_channels == first
    assert isinstance(network.attention, MSAM) == attention
    assert small(motion=None).motion is None


def test_switches_have_their_parameters():
    learned = small(learn_temperature=True).motion
    assert learned.log_temperature.requires_grad
    assert_close(learned.temperature.detach(), torch.tensor(0.02))
    assert count(small(separate_reduction=True)) - count(small()) == count(small().motion.reduction)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in small(norm="group").motion.network) == 7
    assert small(others="clamped").stm.memory_encoder.mask_conv.in_channels == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 4}, "odd number of cells"),
        ({"temperature": 0.0}, "must be positive"),
        ({"top_k": 0}, "at least 1"),
        ({"store_motion": True, "motion": None}, "store_motion needs motion"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


# Attention and motion -------------------------------------------------------------------------------------------------


def test_motion_aware_attention_is_equation_3():
    block = MSAM(5)
    semantic, motion = torch.randn(1, 7, 3, 4), torch.randn(1, 5, 3, 4)
    with torch.no_grad():
        out, gate = block(semantic, motion)
        assert_close(out, oracle.attend(semantic, motion, block.gate))
        assert_close(gate, torch.sigmoid(oracle.conv(motion, block.gate)))


@pytest.mark.parametrize(("sign", "tau", "normalize", "out"), [(1, 0.02, True, "mean"), (-1, 1.0, False, "zero")])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"uncertainty": None},
        {"uncertainty": "one_minus_maximum"},
        {"uncertainty": "softmax_peak"},
        {"separate_reduction": True, "norm": "group"},
        {"learn_temperature": True},
    ],
    ids=["plain", "no uncertainty", "one minus", "peak", "separate, group", "learned"],
)
def test_motion_layer_is_the_paper(sign, tau, normalize, out, arguments):
    network = small(sign=sign, temperature=tau, normalize=normalize, out_of_frame=out, **arguments)
    layer = network.motion
    if layer.log_temperature is not None:
        tau = 3 * tau
        layer.log_temperature.data += math.log(3)
    for norm in (each for each in layer.network if isinstance(each, nn.GroupNorm)):
        nn.init.uniform_(norm.weight, 0.5, 2)
    semantic, before = torch.rand(2, 1, layer.reduction.in_channels, 4, 6)
    with torch.no_grad():
        feature, maps = layer(layer.reduce(semantic)[0], layer.reduce(before)[1])
        reductions = (layer.reduction, layer.earlier_reduction or layer.reduction)
        reduced = [oracle.conv(x, way)[0] for x, way in zip((semantic, before), reductions, strict=True)]
        expected = oracle.motion_maps(*reduced, 5, sign, tau, normalize, out, layer.options.uncertainty)
        assert_close(torch.cat(list(maps.values()), dim=1)[0], expected)
        assert_close(feature, oracle.motion_network(expected, layer.network))


def test_reductions_may_differ():
    network = small(separate_reduction=True)
    with torch.no_grad():
        features = network.encode(FrameInput(torch.rand(1, 3, *SIZE)))
    assert not torch.equal(features.current, features.earlier)
    shared = small().encode(FrameInput(torch.rand(1, 3, *SIZE)))
    assert shared.current is shared.earlier


# Network --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "motion"),
    [
        ({}, (1, 0.02, True, "mean")),
        (
            {"sign": -1, "temperature": 1.0, "normalize": False, "out_of_frame": "zero"},
            (-1, 1.0, False, "zero"),
        ),
        ({"fusion": "addition", "shared_projection": True}, (1, 0.02, True, "mean")),
        ({"motion": None}, (1, 0.02, True, "mean")),
        ({"store_motion": True, "separate_reduction": True}, (1, 0.02, True, "mean")),
        ({"store_motion": True, "fusion": "addition"}, (1, 0.02, True, "mean")),
    ],
    ids=["default", "paper", "addition", "baseline", "stored", "stored, addition"],
)
def test_network_is_the_paper_object_by_object(arguments, motion):
    """Four frames, two objects, the second from frame 2 on; the memory has frames 0, 3 (every third), 2 (given), previous."""
    network = small(**arguments)
    frames = torch.rand(5, 3, *SIZE)
    masks = boxes((8, 8, 30, 30), (20, 30, 44, 60))
    given = {
        0: Given(masks * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([[True, False]])),
        2: Given(masks * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), torch.tensor([[False, True]])),
    }
    options = dict(zip(("sign", "tau", "normalize", "out"), motion, strict=True))
    with torch.no_grad():
        outputs = unroll(network, Propagation(EveryKth(3, include_previous=True), "product"), frames[None], given)
        expected = oracle.propagate(network, frames, {0: {1: masks[0, 0]}, 2: {2: masks[0, 1]}}, 3, window=5, **options)
    assert set(expected) == {(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (4, 2)}
    for (t, n), probability in expected.items():
        if t != 2:  # the output of a frame with annotations shows them
            assert_close(outputs[t].probabilities[0, n], probability)
    assert outputs[4].probabilities[0, 1:].std(dim=(1, 2)).min() > 1e-3


def test_outputs_to_look_at():
    network = small()
    frames = torch.rand(1, 2, 3, *SIZE)
    with torch.no_grad():
        first, second = unroll(
            network,
            Propagation(AnnotatedOnly(), "product"),
            frames,
            {0: Given(boxes((8, 8, 30, 30)), torch.tensor([[True]]))},
        )
        features = [network.encode(FrameInput(frames[:, t])) for t in range(2)]
    assert first.aux == {}
    assert {name: tuple(value.shape) for name, value in second.aux.items()} == {
        "displacement": (1, 2, 3, 4), "uncertainty": (1, 1, 3, 4), "attention": (1, 1, 3, 4),
    }  # fmt: skip
    volume = local_similarity(features[1].current, features[0].earlier, 5, "dot")
    assert_close(second.aux["uncertainty"][:, 0], volume.amax(dim=1))
    assert second.aux["displacement"].abs().max() <= 1
    assert set(small(uncertainty=None, fusion="addition").motion(features[0].current, features[0].earlier)[1]) == {"displacement"}


def test_stored_features_may_know_the_motion():
    frames = torch.rand(1, 3, 3, *SIZE)
    given = {0: Given(boxes((8, 8, 30, 30), (20, 30, 44, 60)), torch.tensor([[True, True]]))}
    networks = [small(store_motion=store) for store in (False, True)]
    with torch.no_grad():
        plain, stored = (unroll(n, Propagation(All(), "product"), frames, given) for n in networks)
    # The first frame has no motion; the second is remembered with it.
    assert_close(stored[1].probabilities, plain[1].probabilities)
    assert not torch.allclose(stored[2].probabilities, plain[2].probabilities, atol=1e-5)


def test_top_k_is_for_evaluation():
    frames = torch.rand(1, 2, 3, *SIZE)
    given = {0: Given(boxes((8, 8, 30, 30)), torch.tensor([[True]]))}
    propagation = Propagation(AnnotatedOnly(), "product")

    def run(network: MUNet) -> torch.Tensor:
        with torch.no_grad():
            return unroll(network, propagation, frames, given)[1].probabilities

    everything, few = small(), small(top_k=2)
    assert not torch.allclose(run(few), run(everything), atol=1e-5)
    assert_close(run(few.train()), run(everything.train()))


# Module ---------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    module = MUNetModule(small())
    assert module.optimisation == Optimisation("adamw", learning_rate=2e-5, weight_decay=0.5)
    assert (module.hardest_fraction, module.iou_weight) == (0.4, 1.0)
    assert module.train_propagation.policy == AnnotatedOnly("add")
    assert module.eval_propagation.policy == EveryKth(5, include_previous=True)
    assert module.eval_propagation.aggregation == "product"
    assert MUNetModule(small(), train_memory="recurrent").train_propagation.policy == All()
    module._trainer = SimpleNamespace(max_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_training_encodes_the_reference_frame_only():
    network = small()
    calls = []
    network.stm.memory_encoder.register_forward_hook(lambda *_: calls.append(1))
    module = MUNetModule(network)
    unroll(
        network, module.train_propagation, torch.rand(1, 4, 3, *SIZE), {0: Given(boxes((8, 8, 30, 30)), torch.tensor([[True]]))}
    )
    assert len(calls) == 1


@pytest.fixture
def in_double_precision():
    with double_precision():
        yield


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize("arguments", [{}, {"separate_reduction": True}, {"motion": None}, {"fusion": "addition"}])
def test_queries_of_a_clip_are_one_batch(arguments):
    """Frames that read the first one alone: outputs and gradients are those of frame after frame, in one call of the decoder."""
    network = small(**arguments)
    frames = torch.rand(2, 5, 3, *SIZE)
    masks = torch.cat([boxes((8, 8, 30, 30), (20, 30, 44, 60)), boxes((0, 20, 20, 50), (0, 0, 0, 0))])
    given = {0: Given(masks, torch.tensor([[True, True], [True, False]]))}
    propagation = MUNetModule(network).train_propagation

    def in_turn():
        outputs, state = [], None
        for t in range(5):
            output, state = advance(network, propagation, state, FrameInput(frames[:, t]), given.get(t))
            outputs.append(output)
        return outputs

    calls = []
    network.stm.decoder.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for outputs in (in_turn(), unroll(network, propagation, frames, given)):
        weights = torch.rand(5, *outputs[0].logits.shape, generator=torch.Generator().manual_seed(0))
        network.zero_grad()
        sum((w * o.logits).sum() for w, o in zip(weights[1:], outputs[1:], strict=True)).backward()
        found.append((outputs, [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    assert len(calls) == 4 + 1
    (expected, slopes), (actual, own) = found
    assert [o.aux.keys() for o in actual] == [o.aux.keys() for o in expected]
    for one, other in zip(actual, expected, strict=True):
        assert_close(one.logits, other.logits)
        assert_close(one.probabilities, other.probabilities)
        assert torch.equal(one.introduced, other.introduced)
        for name in one.aux:
            assert_close(one.aux[name], other.aux[name])
    assert len(own) == len(slopes) == sum(1 for p in network.parameters() if p.requires_grad)
    for one, other in zip(own, slopes, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("memory", "late"), [("recurrent", False), ("truth", False), ("reference", True)])
def test_frames_that_depend_on_each_other_are_no_batch(memory, late):
    network = small()
    calls = []
    network.stm.decoder.register_forward_hook(lambda *_: calls.append(1))
    masks = boxes((8, 8, 30, 30), (20, 30, 44, 60))
    given = {0: Given(masks, torch.tensor([[True, not late]]))} | (
        {2: Given(masks, torch.tensor([[False, True]]))} if late else {}
    )
    module = MUNetModule(network, train_memory=memory)
    unroll(network, module.train_propagation, torch.rand(1, 4, 3, *SIZE), given)
    assert len(calls) == 3


def test_training_may_remember_the_truth():
    """What the third frame reads of the second is the annotation, as if the object was given there too."""
    label_maps = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    for t in range(3):
        label_maps[0, t, 8 + 4 * t : 30 + 4 * t, 8:30] = 1
    batch = ClipBatch(torch.rand(1, 3, 3, *SIZE), label_maps, torch.tensor([[True]]), ("one",), torch.arange(3)[None])
    module = MUNetModule(small(), train_memory="truth")
    remembered = module.remembered_masks(batch)
    assert remembered is not None
    assert MUNetModule(small(), train_memory="recurrent").remembered_masks(batch) is None
    everywhere = {t: Given(remembered[:, t], torch.tensor([[True]])) for t in range(2)}
    with torch.no_grad():
        expected = unroll(module.network, module.train_propagation, batch.frames, everywhere)
        first = {0: everywhere[0]}
        actual, own = (unroll(module.network, module.train_propagation, batch.frames, first, None, m) for m in (remembered, None))
    assert_close(actual[2].logits, expected[2].logits)
    assert_close(actual[1].logits, own[1].logits)
    assert not torch.allclose(actual[2].logits, own[2].logits, atol=1e-3)


@pytest.mark.parametrize("loss", ["bootstrapped+iou", "binary_bootstrapped+iou"])
def test_clip_loss_is_the_mean_over_frames(loss):
    module = MUNetModule(small(), loss=loss, iou_weight=0.5)
    labels = torch.randint(0, 3, (2, 3, 6, 7), dtype=torch.uint8)
    logits = torch.randn(2, 3, 3, 6, 7)
    # The second object of the first clip was never given: its pixels do not count.
    introduced = torch.tensor([[True, False], [True, True]])
    outputs = [StepOutput(logits[:, t], logits[:, t].softmax(dim=1), introduced) for t in range(3)]
    batch = ClipBatch(
        torch.rand(2, 3, 3, 6, 7), labels, torch.ones(2, 2, dtype=torch.bool), ("a", "b"), torch.zeros(2, 3, dtype=torch.int64)
    )
    losses = module.clip_loss(outputs, batch)
    pixel = overlap = 0.0
    for b, objects in enumerate(([1], [1, 2])):
        for t in (1, 2):
            probabilities, label = logits[b, t].softmax(dim=0), labels[b, t].clone()
            if b == 0:
                label[label == 2] = 255
            if loss == "bootstrapped+iou":
                pixel += segmentation_losses.bootstrapped(probabilities, label, 0.4) / 4
            else:
                pixel += segmentation_losses.bootstrapped_binary(probabilities, label, objects, 0.4) / 4
            overlap += segmentation_losses.mask_iou(probabilities, label, objects) / 4
    assert float(losses["bootstrapped"]) == pytest.approx(pixel, rel=1e-4)
    assert float(losses["mask_iou"]) == pytest.approx(overlap, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(pixel + 0.5 * overlap, rel=1e-4)


@pytest.mark.parametrize("loss", ["bootstrapped+iou", "binary_bootstrapped+iou", "cross_entropy"])
def test_a_clip_without_an_object_does_not_count(loss):
    module = MUNetModule(small(), loss=loss)
    logits, labels = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 2, 6, 7), dtype=torch.uint8)
    frames, indices = torch.rand(2, 2, 3, 6, 7), torch.zeros(2, 2, dtype=torch.int64)

    def found(introduced, clips):
        output = StepOutput(logits[:clips], logits[:clips].softmax(dim=1), torch.tensor(introduced))
        valid = torch.ones(clips, 2, dtype=torch.bool)
        batch = ClipBatch(frames[:clips], labels[:clips], valid, ("a", "b")[:clips], indices[:clips])
        return module.clip_loss([output, output], batch)

    alone, both = found([[True, True]], 1), found([[True, True], [False, False]], 2)
    for name, value in alone.items():
        assert_close(both[name], value)


def test_cross_entropy_is_the_baseline():
    module = MUNetModule(small(), loss="cross_entropy")
    logits = torch.randn(1, 2, 6, 7)
    output = StepOutput(logits, logits.softmax(dim=1), torch.tensor([[True]]))
    labels = torch.randint(0, 2, (1, 2, 6, 7), dtype=torch.uint8)
    batch = ClipBatch(torch.rand(1, 2, 3, 6, 7), labels, torch.tensor([[True]]), ("a",), torch.zeros(1, 2, dtype=torch.int64))
    losses = module.clip_loss([output, output], batch)
    assert set(losses) == {"loss"}
    assert_close(losses["loss"], nn.functional.cross_entropy(logits, labels[:, 1].long()))


# Training from scratch ------------------------------------------------------------------------------------------------


def test_a_copier_start_writes_masks_into_the_values():
    """Channel 0 holds the mask and channel 1 its complement; keys hardly feel it and match those of the same frame."""

    def memorize() -> Entry:
        entry, _ = network.memorize(features, masks, None, torch.tensor([[True]]), keep=True)
        assert entry is not None
        return entry

    def agreement(key: torch.Tensor) -> float:
        query, _ = network.stm.query_projection(features.pyramid.s16)
        return F.cosine_similarity(key[0, 0].flatten(1), query[0].flatten(1), dim=0).mean().item()

    arguments = {**SMALL, "norm": "instance", "width": 32}
    network = MUNet.published(None, **arguments, normalize_features=True, copier_start=True).eval()
    masks = torch.zeros(1, 1, 160, 160)
    masks[..., 48:112, 48:112] = 1
    with torch.no_grad():
        features = network.encode(FrameInput(torch.rand(1, 3, 160, 160)))
        entry = memorize()
    own, rest = entry.value[0, 0, :2]
    assert own[4:6, 4:6].min() > 0.9
    assert own[:2].abs().max() < 0.1
    assert rest[4:6, 4:6].abs().max() < 0.1
    assert rest[:2, :8].min() > 0.9
    nn.init.kaiming_uniform_(network.stm.memory_encoder.mask_conv.weight.data[2:])
    assert agreement(entry.key) > agreement(memorize().key) + 0.1
    with pytest.raises(ValueError, match="set shared_projection to False"):
        build(shared_projection=True, copier_start=True)
