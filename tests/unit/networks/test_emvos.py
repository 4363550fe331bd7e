import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles import emvos as oracle
from tests.oracles.pmvos import aggregate
from tests.tolerances import assert_close
from vos_lightning.backbones.densenet import DenseNetPyramid
from vos_lightning.mask_ops import MAX_LOGIT
from vos_lightning.matching.bijective import GaussianKernel, TopK
from vos_lightning.networks import emvos
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.memory import Bank, Memory, MemoryFrame
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation, unroll
from vos_lightning.structures import FeaturePyramid, FrameInput, Given

SMALL = {
    "growth_rate": 4,
    "block_config": (2, 2, 3),
    "num_init_features": 8,
    "key_channels": 16,
    "decoder_channels": 8,
}
SIZE = (48, 64)
SURE = 8.0
KINDS = ("surjective", "equalized", "surjective+equalized")


def small(**arguments) -> EMVOS:
    torch.manual_seed(0)
    return EMVOS.published(None, **{**SMALL, **arguments})


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def boxes(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    """Binary masks ``(1, N, H, W)`` with one box an object."""
    masks = torch.zeros(1, len(corners), *SIZE)
    for n, (top, left, bottom, right) in enumerate(corners):
        masks[0, n, top:bottom, left:right] = 1
    return masks


def first_memory(network: EMVOS, image: torch.Tensor, masks: torch.Tensor, readable: torch.Tensor | None = None) -> Memory:
    if readable is None:
        readable = torch.ones(masks.shape[:2], dtype=torch.bool)
    entry, carry = network.memorize(network.encode(FrameInput(image)), masks, None, readable, keep=True)
    assert carry is None
    frame = MemoryFrame(entry, 0, readable, permanent=True)
    return Memory(bank=Bank((frame,)), previous=Bank((frame,)), carry=None)


@pytest.mark.parametrize("train_encoder", [True, False])
def test_parameter_counts(train_encoder):
    network = EMVOS.published(None, train_encoder=train_encoder)
    assert count(network) == 9_780_169
    assert count(network.backbone) == 4_267_392
    assert count(network.cosine_key) == count(network.dot_key) == 524_800
    assert count(network.decoder) == 4_463_177
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    norms = sum(count(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert trainable == (9_780_169 - norms if train_encoder else 5_512_777)


@pytest.mark.parametrize("matching", ["surjective", "equalized"])
def test_one_kind_of_matching_has_one_key_and_four_maps(matching):
    network = EMVOS.published(None, matching=matching)
    assert network.decoder.stage16.blend.in_channels == 262
    assert (network.cosine_key is None) == (matching == "equalized")
    assert (network.dot_key is None) == (matching == "surjective")


def test_key_projections_start_with_zero_bias():
    network = small()
    for layer in (network.cosine_key, network.dot_key):
        assert layer is not None
        assert (layer.bias == 0).all()
        bound = (6 / network.backbone.channels[-1]) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound


# Given masks in all their roles: a first frame with two objects, a third that appears where they are, one given again.
ROLES = boxes((5, 3, 30, 28), (20, 30, 47, 60), (8, 10, 40, 50), (12, 8, 40, 35))[0]
GIVEN = {0: {0: ROLES[0], 1: ROLES[1]}, 2: {2: ROLES[2]}, 3: {0: ROLES[3]}}


def decided() -> EMVOS:
    """Random, with predictions that are as sure as given masks: only these take a pixel from one."""
    network = small().eval()
    # Random features saturate the unscaled softmax; smaller dot keys make the equalized maps matter.
    network.dot_key.weight.data.mul_(0.1)
    for name, parameter in network.named_parameters():  # they start at zero, which would hide that one is forgotten
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    network.decoder.stage16.blend.weight.data[:, SMALL["decoder_channels"] :].mul_(10)  # score maps and masks
    network.decoder.stage4.deconv.weight.data.mul_(SURE)
    network.decoder.stage4.deconv.bias.data.mul_(SURE)
    return network


def given_frames(given: dict[int, dict[int, torch.Tensor]]) -> dict[int, Given]:
    masks = {t: torch.stack([objects.get(n, torch.zeros(SIZE)) for n in range(3)])[None] for t, objects in given.items()}
    return {t: Given(masks[t], torch.tensor([[n in given[t] for n in range(3)]])) for t in given}


@pytest.mark.parametrize("reannotation", ["replace", "add"])
@pytest.mark.parametrize("aggregation", ["minimum", "none"])
def test_given_masks_in_all_their_roles_equal_the_released_computation(reannotation, aggregation):
    network = decided()
    frames = torch.rand(6, 3, *SIZE)
    with torch.no_grad():
        expected = oracle.propagate(network, frames, GIVEN, aggregation == "minimum", reannotation == "add")
        outputs = unroll(
            network, Propagation(AnnotatedOnly(reannotation), aggregation, "join"), frames[None], given_frames(GIVEN)
        )
    compared = set()
    for (t, n), (background, foreground) in expected.items():
        if t not in GIVEN:  # what is shown there is the annotation
            logits = foreground - background
            logits = logits if aggregation == "none" else logits.clamp(-MAX_LOGIT, MAX_LOGIT)
            torch.testing.assert_close(outputs[t].logits[0, n + 1], logits, rtol=1e-5, atol=1e-4)
            compared.add((t, n))
    assert compared == {(1, 0), (1, 1), *((t, n) for t in (4, 5) for n in range(3))}
    # Other objects are sure of pixels of the late one, which keeps less than they have: else nothing could go wrong.
    others = torch.stack([expected[2, n][1] - expected[2, n][0] for n in range(2)]).amax(0)
    assert ((others > MAX_LOGIT) & (ROLES[2] > 0)).sum() > 50


def test_the_engine_computes_late_objects_as_the_released_code_does():
    network = decided()
    frames = torch.rand(6, 3, *SIZE)
    engine = InferenceEngine(network, Propagation(AnnotatedOnly(), "minimum", "join"))
    with torch.no_grad():
        expected = oracle.propagate(network, frames, GIVEN)
    for t, frame in enumerate(frames):
        prediction = engine.step(frame, {n + 1: mask.bool() for n, mask in GIVEN[t].items()} if t in GIVEN else None)
        if t not in GIVEN:
            pairs = {n: tuple(expected[t, n].softmax(0)) for n in range(len(prediction.object_ids))}
            assert_close(prediction.probabilities, torch.stack(list(aggregate(pairs).values())))


@pytest.mark.parametrize("matching", KINDS)
def test_shapes_for_batches_and_objects(matching):
    network = small(matching=matching).eval()
    image, query = torch.rand(2, 2, 3, *SIZE)
    masks = torch.rand(2, 3, *SIZE).round()
    memory = first_memory(network, image, masks)
    logits, _ = network.segment(network.encode(FrameInput(query)), memory)
    assert logits.shape == (2, 3, *SIZE)
    assert memory.bank.entry.masks.shape == (2, 3, 12)
    none = first_memory(network, image, masks[:, :0])
    assert network.segment(network.encode(FrameInput(query)), none)[0].shape == (2, 0, *SIZE)


@pytest.mark.parametrize("train_encoder", [True, False])
@pytest.mark.parametrize("matching", KINDS)
def test_trainable_parameters_get_gradients_and_frozen_ones_none(matching, train_encoder):
    network = small(matching=matching, train_encoder=train_encoder).train()
    if network.dot_key is not None:
        network.dot_key.weight.data.mul_(0.1)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    images = torch.rand(2, 1, 3, *SIZE)
    memory = first_memory(network, images[0], boxes((5, 3, 30, 28), (20, 30, 47, 60)))
    logits, _ = network.segment(network.encode(FrameInput(images[1])), memory)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        frozen = name.startswith("backbone") and (not train_encoder or "norm" in name)
        assert parameter.requires_grad != frozen, name
        if frozen:
            assert parameter.grad is None, name
        elif name == "decoder.stage4.deconv.bias":
            assert parameter.grad is not None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    for name, value in network.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_gradient_flows_through_masks_and_remembered_keys():
    network = small().train()
    network.dot_key.weight.data.mul_(0.1)
    image, query = torch.rand(2, 1, 3, *SIZE)
    masks = torch.rand(1, 2, *SIZE, requires_grad=True)
    memory = first_memory(network, image, masks)
    entry = memory.bank.frames[0].entry
    logits, _ = network.segment(network.encode(FrameInput(query)), memory)
    for gradient in torch.autograd.grad(logits.square().mean(), (masks, entry.cosine_key, entry.dot_key)):
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("matching", KINDS)
def test_finite_where_nothing_is_readable(matching):
    network = small(matching=matching)
    image, query = torch.rand(2, 1, 3, *SIZE)
    masks = boxes((5, 3, 30, 28), (0, 0, 0, 0)).requires_grad_()
    memory = first_memory(network, image, masks, torch.tensor([[True, False]]))
    logits, _ = network.segment(network.encode(FrameInput(query)), memory)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [masks, *network.parameters()])


def test_objects_do_not_touch_each_other():
    network = small().eval()
    image, query = torch.rand(2, 1, 3, *SIZE)
    masks = boxes((5, 3, 30, 28), (20, 30, 47, 60), (0, 0, 16, 16))
    features = network.encode(FrameInput(query))
    together, _ = network.segment(features, first_memory(network, image, masks))
    for n in range(3):
        alone, _ = network.segment(features, first_memory(network, image, masks[:, n : n + 1]))
        assert_close(together[:, n : n + 1], alone)


@pytest.mark.parametrize("row_filter", [GaussianKernel(1.0), TopK(2), TopK(2, fill="minimum")], ids=str)
@pytest.mark.parametrize("where", ["reference_filter", "previous_filter"])
def test_bijective_filters_act_in_evaluation_only(where, row_filter):
    plain, filtered = small(), small(**{where: row_filter})
    filtered.load_state_dict(plain.state_dict())
    image, query = torch.rand(2, 1, 3, *SIZE)
    masks = boxes((5, 3, 30, 28), (20, 30, 47, 60))

    def logits(network: EMVOS) -> torch.Tensor:
        return network.segment(network.encode(FrameInput(query)), first_memory(network, image, masks))[0]

    assert torch.equal(logits(plain.train()), logits(filtered.train()))
    assert not torch.allclose(logits(plain.eval()), logits(filtered.eval()))


def test_bfloat16_autocast_runs_and_keeps_matching_in_float32():
    network = small()
    image, query = torch.rand(2, 1, 3, *SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = first_memory(network, image, boxes((5, 3, 30, 28), (20, 30, 47, 60)))
        logits, _ = network.segment(network.encode(FrameInput(query)), memory)
    entry = memory.bank.frames[0].entry
    assert logits.dtype == entry.cosine_key.dtype == entry.dot_key.dtype == torch.float32
    logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matching": "equalized", "reference_filter": TopK(4)}, "replace surjective matching"),
        ({"train_encoder": False, "norm": "batch"}, "norm 'frozen'"),
    ],
)
def test_refuses_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


# Starts without pretrained weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "mask", "score"), [({}, 1, 1), ({"mask_evidence": 8.0, "score_evidence": 12.0}, 2, 3)])
@pytest.mark.parametrize("matching", KINDS)
def test_copier_start_weighs_every_map(matching, options, mask, score):
    """Each map counts a quarter of its evidence: those of the foreground for it, those of the background against it."""
    network = small(matching=matching, copier_start=True, **options).eval()
    pyramid = FeaturePyramid(
        *(torch.zeros(1, c, 12 // k, 16 // k) for c, k in zip(network.backbone.channels, (1, 2, 4), strict=True))
    )
    pairs = len(network.score_names) // 2 + 1
    for lit in [{2 * i + k} for i in range(pairs) for k in (0, 1)] + [set(range(1, 2 * pairs, 2)), set(range(0, 2 * pairs, 2))]:
        maps = torch.zeros(1, 1, 2 * pairs, 3, 4)
        maps[:, :, list(lit)] = 1
        with torch.no_grad():
            logits = network.decoder(pyramid, maps)[0, 0, :, 20:28, 20:44]
        weights = [mask if channel >= 2 * pairs - 2 else score for channel in lit]
        expected = sum(weight if channel % 2 else -weight for channel, weight in zip(lit, weights, strict=True))
        assert (logits[1] - logits[0] - expected).abs().max() < 0.15 * abs(expected)


@pytest.mark.parametrize("normalize_fusion", [False, True])
def test_keys_may_be_made_of_normalised_features(normalize_fusion):
    network = small(normalize_fusion=normalize_fusion).eval()
    features = network.encode(FrameInput(torch.rand(2, 3, *SIZE)))
    s16 = features.pyramid.s16
    matched = F.instance_norm(s16, eps=1e-5) if normalize_fusion else s16
    assert_close(features.dot_key, F.conv2d(matched, network.dot_key.weight, network.dot_key.bias))
    assert_close(features.cosine_key, F.normalize(F.conv2d(matched, network.cosine_key.weight, network.cosine_key.bias), dim=1))
    assert not torch.allclose(s16, F.instance_norm(s16, eps=1e-5), atol=1e-2)


@pytest.mark.usefixtures("_types_are_not_checked")
def test_the_published_network_has_the_backbone_it_is_told(monkeypatch):
    told = []

    def recording(*arguments):
        told.append(arguments)
        return DenseNetPyramid(4, (2, 2, 3), 8, None, "frozen")

    monkeypatch.setattr(emvos, "DenseNetPyramid", recording)
    EMVOS.published(key_channels=16, decoder_channels=8)
    EMVOS.published("other", "instance", 4, (1, 2, 3), 8, key_channels=16, decoder_channels=8)  # type: ignore[arg-type]
    assert told == [(32, (6, 12, 24), 64, "IMAGENET1K_V1", "frozen"), (4, (1, 2, 3), 8, "other", "instance")]
