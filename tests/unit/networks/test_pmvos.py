import dataclasses

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn
from torchvision.models import resnet18, resnet50

from tests.oracles import pmvos as oracle
from tests.tolerances import assert_close
from vos_lightning.attention.dual import DualAttention
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.decoders.crvos import CRVOSDecoder
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD, MAX_LOGIT
from vos_lightning.matching.medial import medial_match, medial_template, update_template
from vos_lightning.modules.optimisation import Schedule
from vos_lightning.modules.pmvos import PMVOSModule
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation, advance, unroll
from vos_lightning.structures import FeaturePyramid, FrameInput, Given

SMALL = {"blocks": (1, 1, 1, 2), "width": 4, "key_channels": 8, "lateral_channels": 8, "decoder_channels": 8}
SIZE = (48, 64)
SURE = 24.0


def small(**arguments) -> PMVOS:
    torch.manual_seed(0)
    return PMVOS.published(None, **{**SMALL, **arguments})


def randomize(network: nn.Module) -> None:
    """Values where initialisation has zeros and ones, which would hide that one is forgotten."""
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def boxes(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    masks = torch.zeros(1, len(corners), *SIZE)
    for n, (top, left, bottom, right) in enumerate(corners):
        masks[0, n, top:bottom, left:right] = 1
    return masks


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Parameters -----------------------------------------------------------------------------------------------------------


def test_parameter_counts():
    network = PMVOS.published(None)
    # The released file has 27,851,208, with the unused classifier of the backbone.
    assert count(network) == 27_851_208 - 2_049_000
    assert count(network.backbone) == 23_508_032
    assert count(network.key) == 1_049_088
    assert (count(network.attention.spatial), count(network.attention.channel)) == (37, 1)
    assert count(network.decoder) == 1_245_050
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 17_258_912
    trained = [name for name, p in network.backbone.named_parameters() if p.requires_grad]
    assert all(name.startswith("layer4.") for name in trained)
    assert sum(p.numel() for p in network.backbone.layer4.parameters()) == 14_964_736
    stages = [network.decoder.stage16, network.decoder.stage8, network.decoder.stage4]
    assert [count(stage.lateral) for stage in stages] == [524_544, 65_664, 32_896]
    assert [count(stage.blend) for stage in stages] == [311_168, 149_888, 149_888]
    assert [count(stage.deconv) for stage in stages] == [4_098, 4_098, 2_306]
    assert (count(network.decoder.grow16), count(network.decoder.predictor)) == (66, 434)


@pytest.mark.parametrize(
    ("matching", "attention", "channels"),
    [
        ("global", False, 256 + 2 + 2),
        ("global+local", False, 256 + 4 + 2),
        ("global+local+medial", False, 256 + 6 + 2),
        ("global+local+medial", True, 270),
    ],
)
def test_ablation_rows_have_their_channels(matching, attention, channels):
    network = small(matching=matching, attention=attention, lateral_channels=256)
    assert network.decoder.stage16.blend.in_channels == channels
    assert isinstance(network.attention, DualAttention) == attention


# Backbone -------------------------------------------------------------------------------------------------------------


def test_backbone_is_torchvisions_with_a_dilated_last_stage():
    torch.manual_seed(0)
    reference = resnet50(replace_stride_with_dilation=[False, False, True])
    randomize(reference)
    network = ResNetPyramid(weights=None)
    missing, unexpected = network.load_state_dict(reference.state_dict(), strict=False)
    assert (missing, sorted(unexpected)) == ([], ["fc.bias", "fc.weight"])
    image = torch.rand(1, 3, 64, 96)
    x = (image - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    reference.eval()
    network.eval()
    with torch.no_grad():
        s4 = reference.layer1(reference.maxpool(reference.relu(reference.bn1(reference.conv1(x)))))
        s8 = reference.layer2(s4)
        s16 = reference.layer4(reference.layer3(s8))
        pyramid = network(image)
    assert tuple(s16.shape[1:]) == (network.channels[-1], 4, 6)
    for ours, theirs in ((pyramid.s4, s4), (pyramid.s8, s8), (pyramid.s16, s16)):
        assert_close(ours, theirs)


def test_truncated_trunks():
    trunk = ResNetPyramid(weights=None, last="layer3", train_from="stem", norm="frozen")
    assert sum(p.numel() for p in trunk.parameters()) == 8_543_296
    assert trunk.channels == (256, 512, 1024)
    shallow = ResNetPyramid("basic", (2, 2, 2, 2), weights=None, last="layer3", train_from="stem", norm="frozen")
    assert shallow.channels == (64, 128, 256)
    reference = {key: value.shape for key, value in resnet18().state_dict().items() if not key.startswith(("layer4", "fc"))}
    assert {key: value.shape for key, value in shallow.state_dict().items()} == reference
    assert shallow(torch.rand(1, 3, 32, 48)).s16.shape == (1, 256, 2, 3)


def test_only_the_trained_stages_normalise_by_their_batch():
    network = small().train()
    before = {name: value.clone() for name, value in network.backbone.named_buffers()}
    network.backbone(torch.rand(2, 3, *SIZE))
    changed = {name for name, value in network.backbone.named_buffers() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("layer4.") for name in changed)
    frozen = ResNetPyramid(blocks=(1, 1, 1, 1), width=4, weights=None, train_from="stem", norm="frozen").train()
    assert not any(module.training for module in frozen.modules() if isinstance(module, nn.BatchNorm2d))
    assert {name.rsplit(".", 2)[-2] for name, p in frozen.named_parameters() if not p.requires_grad} <= {
        "bn1", "bn2", "bn3", "1",
    }  # fmt: skip
    nothing = ResNetPyramid(blocks=(1, 1, 1, 1), width=4, weights=None, train_from=None)
    assert not any(p.requires_grad for p in nothing.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "IMAGENET1K_V1", "width": 8}, "set weights to None"),
        ({"weights": "IMAGENET1K_V1", "norm": "instance"}, "set norm to"),
    ],
)
def test_backbone_refuses_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNetPyramid(**arguments)


# Matching and attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["paper", "released"])
def test_medial_templates_are_the_formulas(form):
    key = F.normalize(torch.randn(2, 6, 3, 4), dim=1)
    masks = torch.rand(2, 3, 3, 4)
    templates = medial_template(key, masks, form)
    scores = medial_match(templates, key.flatten(2))
    for b in range(2):
        for n in range(3):
            for k, mask in enumerate((1 - masks[b, n], masks[b, n])):
                expected = oracle.template_of(key[b], mask, form)
                assert_close(templates[b, n, k], expected)
                assert_close(scores[b, n, k], (expected[:, None] * key[b].flatten(1)).sum(0))


def test_medial_template_of_an_empty_class():
    key = F.normalize(torch.randn(1, 16, 2, 2), dim=1)
    empty = torch.zeros(1, 1, 2, 2)
    assert medial_template(key, empty, "paper")[0, 0, 1].eq(0).all()
    assert_close(medial_template(key, empty, "released")[0, 0, 1], torch.full((16,), 0.25))


def test_template_update_restarts_and_averages():
    old, new = torch.randn(2, 1, 2, 2, 5)
    updated = update_template(old, new, torch.tensor([[True, False]]))
    assert_close(updated[0, 0], new[0, 0])
    assert_close(updated[0, 1], 0.9 * old[0, 1] + 0.1 * new[0, 1])


def test_attention_equals_the_whole_matrix_and_starts_as_identity():
    attention = DualAttention(3)
    x = torch.randn(4, 3, 5, 6)
    assert_close(attention(x), torch.cat([x, x], dim=1))
    randomize(attention)
    nn.init.constant_(attention.spatial.gamma, 0.7)
    expected = [
        torch.cat([oracle.spatial_attention(row, attention.spatial), oracle.channel_attention(row, attention.channel)])
        for row in x
    ]
    assert_close(attention(x), torch.stack(expected))


def test_decoder_equals_concatenated_convolutions():
    decoder = CRVOSDecoder((6, 10, 12), 5, 8, 4)
    randomize(decoder)
    pyramid = FeaturePyramid(torch.rand(1, 6, 12, 16), torch.rand(1, 10, 6, 8), torch.rand(1, 12, 3, 4))
    maps = torch.randn(1, 2, 5, 3, 4)
    out = decoder(pyramid, maps)
    assert out.shape == (1, 2, 2, *SIZE)
    for n in range(2):
        assert_close(out[:, n], oracle.decode(pyramid, maps[:, n], decoder))


def copier_prediction(frames: torch.Tensor, attention: bool = True) -> torch.Tensor:
    """Foreground in the last frame, by an untrained network that has seen the object at (16, 16, 32, 48) in the first."""
    torch.manual_seed(0)
    network = small(attention=attention, copier_start=True, normalize_fusion=True, norm="instance", train_from="stem").eval()
    given = Given(boxes((16, 16, 32, 48)), torch.tensor([[True]]))
    with torch.no_grad():
        return unroll(network, Propagation(AnnotatedOnly(), "minimum", "join"), frames, {0: given})[-1].probabilities[0, 1]


@pytest.mark.parametrize("attention", [False, True])
def test_copier_start_hands_the_previous_mask_on(attention):
    frames = torch.rand(1, 1, 3, *SIZE).expand(-1, 2, -1, -1, -1)
    last = copier_prediction(frames, attention)
    assert last[22:26, 26:38].min() > 0.9
    assert last[4:8, 4:60].max() < 0.1
    assert last[4:44, 4:8].max() < 0.1


@pytest.mark.parametrize(("options", "of_mask", "of_score"), [({}, 4, 2), ({"mask_evidence": 3.0, "score_evidence": 5.0}, 3, 5)])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("matching", ["global", "global+local+medial"])
def test_copier_start_weighs_the_scores(matching, attention, options, of_mask, of_score):
    network = small(matching=matching, attention=attention, copier_start=True, **options).eval()
    kinds = matching.count("+") + 1
    pyramid = FeaturePyramid(
        *(torch.zeros(1, c, 12 // k, 16 // k) for c, k in zip(network.backbone.channels, (1, 2, 4), strict=True))
    )
    for background, foreground in ((1.0, 0.0), (0.0, 1.0)):
        scores = torch.tensor([background, foreground])[None, None, :, None, None, None].expand(1, 1, 2, kinds, 3, 4)
        attended = network.attention(scores.flatten(0, 2)).unflatten(0, (1, 1, 2)).flatten(2, 3)
        for mask in (0.0, 1.0):
            masks = torch.tensor([1 - mask, mask])[None, None, :, None, None].expand(1, 1, 2, 3, 4)
            logits = network.decoder(pyramid, torch.cat([attended, masks], dim=2))[0, 0, :, 20:28, 20:44]
            # Every kind of matching and the mask count, as constants, where no border is near; the rest starts small.
            expected = of_score * kinds * (foreground - background) + of_mask * (2 * mask - 1)
            assert (logits[1] - logits[0] - expected).abs().max() < 0.15 * (of_score * kinds + of_mask)


# The whole network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matching", "attention", "form"),
    [
        ("global", False, "paper"),
        ("global+local", False, "paper"),
        ("global+local+medial", False, "released"),
        ("global+local+medial", True, "paper"),
        ("global+local+medial", True, "released"),
    ],
)
@pytest.mark.parametrize("reannotation", ["replace", "add"])
def test_given_masks_in_all_their_roles_equal_the_literal_computation(matching, attention, form, reannotation):
    network = small(matching=matching, attention=attention, medial=form).eval()
    randomize(network)
    # Predictions as sure as given masks: only these take a pixel from one.
    network.decoder.stage16.blend.weight.data[:, SMALL["lateral_channels"] :].mul_(10)  # score maps and masks
    network.decoder.predictor.weight.data.mul_(SURE)
    network.decoder.predictor.bias.data.mul_(SURE)
    frames = torch.rand(6, 3, *SIZE)
    masks = boxes((5, 3, 30, 28), (20, 30, 47, 60), (8, 10, 40, 50), (12, 8, 40, 35))[0]
    order = {0: {0: masks[0], 1: masks[1]}, 2: {2: masks[2]}, 3: {0: masks[3]}}
    given = {
        t: Given(
            torch.stack([objects.get(n, torch.zeros(SIZE)) for n in range(3)])[None],
            torch.tensor([[n in objects for n in range(3)]]),
        )
        for t, objects in order.items()
    }
    with torch.no_grad():
        expected = oracle.propagate(network, frames, order, form, reannotation == "add")
        outputs = unroll(network, Propagation(AnnotatedOnly(reannotation), "minimum", "join"), frames[None], given)
    logits = {key: (foreground - background).clamp(-MAX_LOGIT, MAX_LOGIT) for key, (background, foreground) in expected.items()}
    compared = [(t, n) for t, n in logits if t not in order]  # what is shown in the others is the annotation
    for t, n in compared:
        torch.testing.assert_close(outputs[t].logits[0, n + 1], logits[t, n], rtol=1e-5, atol=1e-4)
    assert set(compared) == {(1, 0), (1, 1), *((t, n) for t in (4, 5) for n in range(3))}
    sure = torch.maximum(logits[2, 0], logits[2, 1]) == MAX_LOGIT
    assert (sure & (masks[2] > 0)).sum() > 10, "no object claims a pixel of the late one, which would compare nothing"


def test_an_object_that_is_annotated_again_gets_a_new_template():
    network = small().eval()
    randomize(network)
    frames = torch.rand(4, 1, 3, *SIZE)
    masks = boxes((5, 3, 30, 28), (20, 30, 47, 60))
    again = boxes((12, 8, 40, 35), (0, 0, 0, 0))
    given = {
        0: Given(masks, torch.tensor([[True, True]])),
        2: Given(again, torch.tensor([[True, False]])),
    }
    state, carries = None, []
    with torch.no_grad():
        for t, frame in enumerate(frames):
            _, state = advance(network, Propagation(AnnotatedOnly(), "minimum", "join"), state, FrameInput(frame), given.get(t))
            entry = state.memory.previous.latest.entry
            carries.append((state.memory.carry.templates[0], medial_template(entry.key, entry.masks)[0]))
    for t in (1, 2, 3):
        for n in range(2):
            new = carries[t][1][n]
            expected = new if (t, n) == (2, 0) else 0.9 * carries[t - 1][0][n] + 0.1 * new
            assert_close(carries[t][0][n], expected)
    assert (carries[2][1][0] - carries[1][0][0]).abs().max() > 1e-3, "nothing to restart from would compare nothing"


def test_gradient_flows_through_templates_masks_and_keys():
    network = small(train_from="stem").train()
    randomize(network)
    frames = torch.rand(2, 4, 3, *SIZE)
    given = {0: Given(boxes((5, 3, 30, 28)).expand(2, 1, *SIZE), torch.ones(2, 1, dtype=torch.bool))}
    outputs = unroll(network, Propagation(AnnotatedOnly(), "none", "join"), frames, given)
    outputs[-1].probabilities[:, 1].square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert network.attention.spatial.query.weight.grad.abs().sum() > 0
    assert network.backbone.conv1.weight.grad.abs().sum() > 0


def test_finite_where_a_class_is_empty():
    network = small().train()
    frames = torch.rand(1, 3, 3, *SIZE)
    masks = boxes((0, 0, *SIZE), (0, 0, 0, 0)).requires_grad_()
    given = {0: Given(masks, torch.tensor([[True, True]]))}
    outputs = unroll(network, Propagation(AnnotatedOnly(), "none", "join"), frames, given)
    outputs[-1].logits[:, 1:].square().mean().backward()
    assert all(output.logits.isfinite().all() for output in outputs)
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# The module -----------------------------------------------------------------------------------------------------------


def test_rate_falls_by_the_epoch():
    published = PMVOSModule(small()).optimisation
    assert (published.learning_rate, published.schedule) == (1e-4, Schedule("exponential", factor=0.975, period=883))
    own = dataclasses.replace(published, schedule=Schedule("exponential", factor=0.5, period=3))
    module = PMVOSModule(small(), optimisation=own)
    module.trainer = Trainer(max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False)
    configured = module.configure_optimizers()
    rates = []
    for _ in range(7):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([1e-4 * factor for factor in (1, 1, 1, 0.5, 0.5, 0.5, 0.25)])
    with pytest.raises(ValueError, match="factor"):
        Schedule("exponential", factor=1.5)
    with pytest.raises(ValueError, match="period"):
        Schedule("exponential", period=0)
