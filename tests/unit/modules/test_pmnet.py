"""PMNet's module: its losses, the turns of its parts, and what its training starts from."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.clips import given_at, random_clip
from tests.oracles import pmnet as oracle
from tests.pmnet import SIZE, SMALL, run, small
from tests.tolerances import assert_close
from vos_lightning.checkpoints.loading import load_weights
from vos_lightning.decoders.point_refinement import PointSampling
from vos_lightning.losses.segmentation import trainable_labels
from vos_lightning.mask_ops import soft_aggregate
from vos_lightning.modules.pmnet import PMNetModule
from vos_lightning.modules.stcn import STCNModule
from vos_lightning.networks.pmnet import PMNet
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.step import unroll
from vos_lightning.structures import ClipBatch


def module_of(step=0, max_steps=10, **arguments):
    network = arguments.pop("network", None) or small()
    module = PMNetModule(
        network, **{"hardest_from": 100, "hardest_until": 200, "uncertain_from": 100, "uncertain_until": 200, **arguments}
    )
    module.train()
    module._trainer = SimpleNamespace(max_steps=max_steps, global_step=step, loggers=[], logger=None, accumulate_grad_batches=1)
    return module


def batch_of(size=SIZE, clips=2, objects=2, seed=0):
    frames, labels = random_clip(clips, 3, objects, size, seed)
    valid = torch.ones(clips, objects, dtype=torch.bool)
    return ClipBatch(frames, labels, valid, ("v",) * clips, torch.zeros(clips, 3, dtype=torch.long))


def losses_of(module, batch):
    given = {0: given_at(batch.label_maps, 0, [1, 2], 2)}
    outputs = unroll(module.network, module.train_propagation, batch.frames, given)
    return outputs, module.clip_loss(outputs, batch)


@pytest.mark.parametrize(
    ("point_loss", "truth", "target"),
    [("binary", "area", "object"), ("binary", "nearest", "object"), ("aggregated", "area", "aggregated")],
)
@pytest.mark.parametrize("size", [SIZE, (56, 72)])
def test_loss_is_the_formula(point_loss, truth, target, size):
    module = module_of(alternation="joint", point_weight=0.5, point_loss=point_loss, truth=truth, target_probability=target)
    batch = batch_of(size)
    batch.label_maps[0, 1, :9, :9] = 255
    outputs, losses = losses_of(module, batch)
    top, left = (-size[0] % 16) // 2, (-size[1] % 16) // 2
    coarse = fine = uncertain = 0.0
    for t in (1, 2):
        aux = {name: value.detach() for name, value in outputs[t].aux.items()}
        for b in range(2):
            labels = batch.label_maps[b, t]
            padded = torch.full((64, 80), 255, dtype=torch.uint8)
            padded[top : top + size[0], left : left + size[1]] = labels
            logits = F.interpolate(aux["coarse"][b : b + 1], scale_factor=4, mode="bilinear")
            merged, probabilities = soft_aggregate(logits, torch.ones(1, 2, dtype=torch.bool), "product")
            inner = merged[..., top : top + size[0], left : left + size[1]]
            coarse += float(F.cross_entropy(inner, labels[None].long(), ignore_index=255)) / 2
            cells = padded.view(16, 4, 20, 4).transpose(1, 2).flatten(2)
            for n in range(2):
                small_truth = padded[::4, ::4] == n + 1 if truth == "nearest" else (cells == n + 1).float().mean(2) > 0.5
                known = padded[::4, ::4] != 255 if truth == "nearest" else (cells == 255).float().mean(2) <= 0.5
                p = aux["coarse"][b, n].sigmoid() if target == "object" else F.avg_pool2d(probabilities[:, n + 1], 4)[0]
                uncertain += (
                    oracle.uncertainty_loss(aux["uncertainty"][b, n], (p - small_truth.float()).abs(), known, 1.0, "loss") / 4
                )
                points = aux["points"][b, n][aux["points_valid"][b, n] & known.flatten()[aux["points"][b, n]]]
                inside = small_truth.flatten()[points].float()
                if point_loss == "binary":
                    q = aux["refined"][b, n].flatten()[points]
                    each = F.binary_cross_entropy_with_logits(q, inside)
                else:
                    both, _ = soft_aggregate(aux["refined"][b : b + 1], torch.ones(1, 2, dtype=torch.bool), "product")
                    slots = [(cells == k + 1).float().mean(2) > 0.5 for k in range(2)]
                    target_slots = torch.where(slots[1], 2, torch.where(slots[0], 1, 0))
                    each = F.cross_entropy(both[0].flatten(1).t()[points], target_slots.flatten()[points])
                fine += float(each) / 4
    losses = {name: value.detach() for name, value in losses.items()}
    assert float(losses["coarse"]) == pytest.approx(coarse, rel=1e-4)
    assert float(losses["uncertainty"]) == pytest.approx(uncertain, rel=1e-4)
    assert float(losses["points"]) == pytest.approx(fine, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(coarse + 0.5 * fine + uncertain, rel=1e-4)


@pytest.mark.parametrize("size", [SIZE, (56, 72)])
def test_the_first_term_can_lie_where_the_truth_of_equation_1_does(size):
    module = module_of(coarse_stride=4)
    batch = batch_of(size)
    outputs, losses = losses_of(module, batch)
    top, left = (-size[0] % 16) // 2, (-size[1] % 16) // 2
    expected = 0.0
    for t in (1, 2):
        padded = torch.full((2, 64, 80), 255, dtype=torch.uint8)
        padded[:, top : top + size[0], left : left + size[1]] = batch.label_maps[:, t]
        cells = padded.view(2, 16, 4, 20, 4).transpose(2, 3).flatten(3)
        one, two, void = ((cells == value).sum(dim=3) > 8 for value in (1, 2, 255))
        truth = one.long() + 2 * two.long() + 255 * void.long()
        merged, _ = soft_aggregate(outputs[t].aux["coarse"].detach(), torch.ones(2, 2, dtype=torch.bool), "product")
        for b in range(2):
            expected += float(F.cross_entropy(merged[b : b + 1], truth[b : b + 1], ignore_index=255)) / 2
    assert float(losses["coarse"].detach()) == pytest.approx(expected, rel=1e-4)


def test_a_convolution_after_the_mask_encoder():
    """256 x 256 weights of 3 x 3 cells and 256 biases at the published size; the identity changes nothing."""
    with torch.device("meta"):
        assert sum(p.numel() for p in PMNet.published(None, value_convolution=True).parameters()) == 55_774_854 + 590_080
    plain, more = small(), small(value_convolution=True)
    more.load_state_dict(plain.state_dict(), strict=False)
    convolution = more.stcn.value_encoder.convolution
    torch.nn.init.dirac_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)
    for ours, theirs in zip(run(more)[2], run(plain)[2], strict=True):
        assert_close(ours.logits, theirs.logits)
    convolution.bias.data.fill_(1.0)
    assert not torch.allclose(run(more)[2][1].logits, run(plain)[2][1].logits)


def test_fractions_fall_by_their_own_schedules():
    batch = batch_of()
    calm = losses_of(module_of(hardest_until=200), batch)[1]
    late = losses_of(module_of(step=300), batch)[1]
    assert late["coarse"] > calm["coarse"]
    assert not torch.equal(late["uncertainty"], calm["uncertainty"])
    mixed = losses_of(module_of(step=300, hardest_from=400, hardest_until=500), batch)[1]
    assert_close(mixed["coarse"], calm["coarse"])
    assert_close(mixed["uncertainty"], late["uncertainty"])


def train_step(module, batch):
    """A training step outside of a trainer."""
    module.log_dict = lambda *_, **__: None
    return module.training_step(batch, 0)


def test_gradients_of_the_two_objectives_do_not_meet():
    module = module_of(alternation="joint")
    _, losses = losses_of(module, batch_of())
    groups = {group["name"]: group["params"] for group in module.parameter_groups()}
    assert sum(len(group) for group in groups.values()) == len(list(module.network.parameters()))
    crossed = torch.autograd.grad(losses["uncertainty"], groups["segmentation"], retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in crossed)
    crossed = torch.autograd.grad(
        losses["coarse"] + losses["points"], groups["uncertainty"], retain_graph=True, allow_unused=True
    )
    assert all(gradient is None for gradient in crossed)


def test_points_come_from_probabilities_until_the_switch():
    module = module_of(max_steps=150)
    assert [module.training_source(step) for step in (0, 99, 100, 149)] == ["probabilities", "probabilities", None, None]
    for fraction, sources in ((0.0, [None, None]), (1.0, ["probabilities", "probabilities"])):
        module = module_of(max_steps=150, switch_fraction=fraction)
        assert [module.training_source(step) for step in (0, 149)] == sources
    module = module_of(network=small(sampling=PointSampling(source="all")))
    assert module.training_source(0) is None


def test_a_step_takes_the_source_of_points_without_changing_the_network():
    module = module_of(max_steps=150)
    used = module.training_network()
    assert used.point_source == "probabilities"
    assert module.network.point_source == "learned"
    assert next(used.parameters()) is next(module.network.parameters())
    assert module_of(step=149, max_steps=150).training_network().point_source == "learned"


@pytest.mark.parametrize(
    ("alternation", "step", "moved"),
    [
        ("iteration", 0, "segmentation"),
        ("iteration", 1, "uncertainty"),
        ("iteration", 2, "segmentation"),
        ("epoch", 2, "segmentation"),
        ("epoch", 3, "uncertainty"),
        ("epoch", 5, "uncertainty"),
        ("epoch", 6, "segmentation"),
    ],
)
def test_a_turn_updates_its_own_part_by_its_own_loss(alternation, step, moved):
    """As if there were an optimiser for it alone, on the gradient of its own loss: clipped, and with weight decay."""
    module = module_of(step=step, alternation=alternation, steps_per_epoch=3, switch_fraction=0.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    both = losses_of(module_of(step=step, alternation="joint"), batch_of())[1]
    assert both["loss"] == both["coarse"] + both["points"] + both["uncertainty"]

    alone = module_of(step=step, alternation="joint")
    losses = losses_of(alone, batch_of())[1]
    own = losses["uncertainty"] if moved == "uncertainty" else losses["coarse"] + losses["points"]
    parameters = alone.parts()[moved]
    for parameter, gradient in zip(parameters, torch.autograd.grad(own, parameters), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, 1e-3)
    torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-2).step()

    optimizer = torch.optim.Adam(module.parameter_groups(), lr=1e-2, weight_decay=1e-2)
    loss = train_step(module, batch_of())
    assert_close(loss.detach(), own.detach())
    loss.backward()
    # Several processes wait for a gradient of every parameter.
    assert all(p.grad is not None and p.requires_grad for p in module.parameters())
    module.on_before_optimizer_step(optimizer)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
    optimizer.step()
    for (name, parameter), expected in zip(module.named_parameters(), alone.parameters(), strict=True):
        assert_close(parameter.detach(), expected.detach())
        assert torch.equal(parameter, before[name]) == (("detector." in name) != (moved == "uncertainty")), name


@pytest.mark.parametrize("alternation", ["iteration", "joint"])
def test_the_resting_part_has_no_graph(alternation):
    graphs = []
    for step in range(2):
        module = module_of(step=step, alternation=alternation)
        for part in (module.network.stcn.key_encoder, module.network.stcn.decoder.predictor, module.network.detector):
            part.register_forward_hook(lambda _, __, out: graphs.append(getattr(out, "s16", out).requires_grad))
        train_step(module, batch_of())
        found = (graphs[0], *{(decoded, mapped) for decoded, mapped in zip(graphs[1::2], graphs[2::2], strict=True)})
        turns = ((True, (True, False)), (False, (False, True)))
        assert found == (turns[step] if alternation == "iteration" else (True, (True, True)))
        graphs.clear()


def test_without_points_there_are_no_turns():
    assert module_of(step=1, network=small(sampling=PointSampling(source="none"))).resting() is None
    assert module_of(step=1, network=small(sampling=PointSampling(source="all"))).resting() == "segmentation"


def test_a_network_without_points_trains_the_backbone_alone():
    module = module_of(network=small(sampling=PointSampling(source="none")))
    _, losses = losses_of(module, batch_of())
    assert set(losses) == {"loss", "coarse"}
    losses["loss"].backward()
    for name, parameter in module.named_parameters():
        new = name.startswith(PMNetModule.new_parts)
        assert parameter.requires_grad != new
        assert (parameter.grad is None) == new
    assert [group["name"] for group in module.parameter_groups()] == ["segmentation"]


def test_every_parameter_takes_part_when_all_masks_are_empty():
    module = module_of(alternation="joint")
    module.network.stcn.decoder.predictor.bias.data.fill_(-1e3)
    outputs, losses = losses_of(module, batch_of())
    assert not outputs[1].aux["points_valid"].any()
    losses["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())


def test_an_object_that_is_given_later_does_not_count_before():
    module = module_of()
    batch = batch_of()
    given = {0: given_at(batch.label_maps, 0, [1], 2), 1: given_at(batch.label_maps, 1, [2], 2)}
    outputs = unroll(module.network, module.train_propagation, batch.frames, given)
    known = outputs[0].introduced
    found = module._frame_losses(outputs[1].aux, trainable_labels(batch.label_maps[:, 1], known), known)
    alone = {name: value[:, :1] for name, value in outputs[1].aux.items()}
    hidden = batch.label_maps[:, 1].masked_fill(batch.label_maps[:, 1] == 2, 255)
    expected = module._frame_losses(alone, hidden, known[:, :1])
    for name in ("coarse", "points", "uncertainty"):
        assert_close(found[name], expected[name])


def test_training_starts_from_an_stcn_checkpoint(tmp_path):
    base = STCNModule(STCN.published(None, **SMALL))
    file = tmp_path / "stcn.ckpt"
    torch.save({"state_dict": base.state_dict()}, file)
    module = PMNetModule(small())
    fresh = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"stcn\.ckpt: the checkpoint does not fit"):
        load_weights(module, file)
    load_weights(module, file, start=True)
    for name, value in module.state_dict().items():
        new = name.startswith(PMNetModule.new_parts)
        assert torch.equal(value, fresh[name] if new else base.state_dict()[name.replace("network.stcn.", "network.")])
    for state in (
        {k: v for k, v in base.state_dict().items() if "projection.key.bias" not in k},
        {**base.state_dict(), "network.more": torch.zeros(1)},
        {**base.state_dict(), "network.refiner.fusion.bias": torch.zeros(8)},
    ):
        torch.save({"state_dict": state}, file)
        with pytest.raises(ValueError, match="does not fit"):
            load_weights(module, file, start=True)


def test_the_main_training_adds_the_channel_of_the_other_objects(tmp_path):
    """Still images have one object; after the pre-training the new channel has orthogonal weights, and nothing has decayed."""
    before = PMNetModule(small(sampling=PointSampling(source="none"), others=None))
    file = tmp_path / "static.ckpt"
    torch.save({"state_dict": before.state_dict()}, file)
    module = PMNetModule(small())
    load_weights(module, file, start=True)
    old, new = (m.network.stcn.value_encoder.trunk.mask_conv.weight.detach() for m in (before, module))
    assert old.shape[1] == 1
    assert torch.equal(new[:, :1], old)
    added = new[:, 1].flatten(1)
    assert_close(added @ added.t(), torch.eye(len(added)))
    others = {name: value for name, value in before.state_dict().items() if "mask_conv" not in name}
    assert all(torch.equal(module.state_dict()[name], value) for name, value in others.items())


@pytest.mark.parametrize(
    "arguments",
    [{"switch_fraction": 1.5}, {"steps_per_epoch": 0}, {"hardest_from": 300}, {"uncertain_from": 300}],
)
def test_module_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments)).split("_")[0]):
        module_of(**arguments)


def test_fine_truth_is_where_the_mask_is():
    """The centre of mass stays; the first pixel of every cell would move it by 1.5 pixels, which is the middle of a cell."""
    generator = torch.Generator().manual_seed(0)
    centres, radii = 20 + 24 * torch.rand(100, 2, generator=generator), 5 + 10 * torch.rand(100, generator=generator)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    discs = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2 < radii[:, None, None] ** 2

    def centre(masks, cell):
        return torch.stack([cell * (mask.nonzero() + 0.5).mean(dim=0) for mask in masks.float()])

    def shift(module):
        fine = module._downsample(discs.to(torch.uint8), 1)
        assert fine.counted.all()
        return (centre(fine.masks[:, 0], 4) - centre(discs, 1)).mean(dim=0)

    assert shift(module_of()).abs().max() < 0.1
    assert shift(module_of(truth="nearest")).tolist() == pytest.approx([1.5, 1.5], abs=0.1)


@pytest.mark.parametrize(
    ("pixels", "slot"),
    [
        ({1: 9}, 1),
        ({1: 8}, 0),  # half of the cell is not more than half
        ({2: 9, 1: 7}, 2),
        ({1: 8, 2: 8}, 0),
        ({255: 9, 1: 7}, 255),
        ({255: 8, 2: 8}, 0),
        ({255: 7, 2: 9}, 2),
    ],
)
def test_truth_by_area_is_what_fills_more_than_half_of_a_cell(pixels, slot):
    cell = [value for value, number in pixels.items() for _ in range(number)]
    cell = torch.tensor(cell + [0] * (16 - len(cell)), dtype=torch.uint8)[torch.randperm(16)]
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, 4:, :4] = cell.view(4, 4)
    fine = module_of()._downsample(labels, 2)
    assert fine.labels.tolist() == [[[0, 0], [slot, 0]]]
    assert fine.counted.tolist() == [[[True, True], [slot != 255, True]]]
    if slot != 255:
        assert fine.masks[0, :, 1, 0].tolist() == [float(slot == 1), float(slot == 2)]
