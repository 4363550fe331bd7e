import dataclasses

import pytest
import torch
from lightning import Trainer
from torch import nn

from data_modules.clips.dataset import ClipDataset, ClipKey, ClipSource, Draw, ItemNames, collate_clips
from data_modules.clips.recipe import AffineRecipe, ClipRecipe
from data_modules.datasets.synthetic import SyntheticDataModule
from data_modules.proposals import ProposalsDataModule, ProposalsFromTruth, StoredProposals
from tests.clips import given_at, random_clip
from tests.dmn_aoa import PAPER, SMALL, small
from tests.oracles import dmn_aoa as oracle
from tests.tolerances import assert_close
from vos_lightning.attention.aoa import AlignmentOptions
from vos_lightning.decoders.coarse_masks import ProposalMatching
from vos_lightning.decoders.reference_refine import ReferenceFrame, ReferenceRefinement, ReferenceRefiner
from vos_lightning.encoders.objects import ObjectOptions, sinusoid
from vos_lightning.losses.matching import matching_loss, soft_iou_loss
from vos_lightning.mask_ops import pool_to_stride
from vos_lightning.matching.assignment import AssignmentOptions
from vos_lightning.modules.dmn_aoa import DMNAOAModule, memory_policy
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import All, AnnotatedOnly, EveryKth, PreviousOnly
from vos_lightning.propagation.step import Propagation, unroll
from vos_lightning.proposals.boxes import paste_masks
from vos_lightning.proposals.store import Found, write_proposals
from vos_lightning.proposals.truth import EXACT, TruthNoise
from vos_lightning.structures import ClipBatch, FeaturePyramid, Given, Proposals

SIZE = (48, 64)


def some_proposals(rows: int, count: int, size: tuple[int, int] = SIZE) -> Proposals:
    low = torch.rand(rows, count, 2) * torch.tensor([size[1], size[0]]) * 0.5
    boxes = torch.cat([low, low + 8 + torch.rand(rows, count, 2) * 24], dim=2)
    return Proposals(boxes, torch.rand(rows, count, 28, 28).round(), torch.rand(rows, count) + 0.1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The network ----------------------------------------------------------------------------------------------------------


def test_parameter_counts():
    with torch.device("meta"):
        network = DMNAOA.published(None)
    assert count(network.backbone) == 8_543_296
    # A quarter of the channels, 1 x 1.
    assert [count(layer) for layer in network.reduce] == [c * c // 4 + 3 * c // 4 for c in (256, 512, 1024)]
    assert count(network.objects.fuse) == (64 + 128 + 256) * 512 + 512 + 1024
    assert count(network.dynamic_memory.key) == 513 * 9 * 128 + 128
    assert count(network.dynamic_memory.value) == 513 * 9 * 512 + 512
    assert count(network.dynamic_memory.query) == 512 * 9 * 128 + 128
    projector = 512 * 9 * 256 + 256 + 512 + 256 * 9 * 256 + 256
    assert count(network.coarse_masks) == 2 * projector
    of_frame = 256 * 9 * 256 + 256 + 512 + 256 * 9 * 256 + 256
    assert count(network.refiner.query) == count(network.refiner.reference) == of_frame
    residual = 2 * (256 * 9 * 256 + 256 + 512)
    blends = sum((3 * c + 3) * 9 * 256 + 256 + 512 for c in (64, 128, 256))
    assert count(network.refiner.decoder) == blends + 5 * residual + 2 * 256 + 2


VARIANTS = {
    **PAPER,
    "best": {"matching": ProposalMatching(assignment=AssignmentOptions(eval_kept="best"))},
    "pooled": {"matching": ProposalMatching(comparison="pooled")},
    "top_k": {"refinement": ReferenceRefinement(width=8, top_k=3)},
    "masked_null": {
        "matching": ProposalMatching(pool="masked", iou_weight=0.3, assignment=AssignmentOptions(null_column=True)),
        "objects": ObjectOptions(channels=16, grid=3, box_scale=1.25),
        "alignment": AlignmentOptions(channels=8, sharpness=6.0, learned_sharpness=True),
    },
    "flat_last": {
        "matching": ProposalMatching(pool="flat", assignment=AssignmentOptions(output="last")),
        "refinement": ReferenceRefinement(width=8, kernel=3, move_masks=False),
    },
}
AS_COMPUTED = ("template", "similarity", "assignment", "coarse", "pasted", "foreground")


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", [*PAPER, "best", "pooled", "top_k"])
def test_every_part_equals_the_literal_computation(name, training):
    """Five frames; the second has no proposal and the fourth fewer than the others; an object comes late."""
    network = small(**VARIANTS[name]).train(training)
    frames = torch.rand(5, 3, *SIZE)
    proposals = some_proposals(5, 4)
    counts = (4, 0, 4, 2, 4)
    for t, number in enumerate(counts):
        proposals.scores[t, number:] = 0
    masks = torch.zeros(1, 3, *SIZE)
    for n, (top, left, bottom, right) in enumerate(((5, 3, 30, 28), (20, 30, 47, 60), (0, 40, 20, 64))):
        masks[0, n, top:bottom, left:right] = 1
    start = {0: 0, 1: 0, 2: 2}
    order = {t: {n: masks[0, n] for n in start if start[n] == t} for t in (0, 2)}
    with torch.no_grad():
        inside = [proposals.masks[t, :number] for t, number in enumerate(counts)]
        boxes = [proposals.boxes[t, :number] for t, number in enumerate(counts)]
        expected = oracle.propagate(network, frames, order, inside, boxes)
        given = {t: Given(masks, torch.tensor([[n in objects for n in range(3)]])) for t, objects in order.items()}
        outputs = unroll(network, Propagation(All(), "product", "overwrite"), frames[None], given, proposals)
    assert set(expected) == {(t, n) for n, first in start.items() for t in range(first + 1, 5)}
    compared = set()
    for (t, n), parts in expected.items():
        aux, number = outputs[t].aux, counts[t]
        found = {"coarse": aux["coarse"][0, n]}
        if network.needs_proposals:
            found["template"] = aux["template"][0, n]
            found["similarity"] = aux["similarity"][0, n, :number]
            found["assignment"] = aux["assignment"][0, n, :number]
            found["pasted"] = aux["proposal_masks"][0, :number]
            assert aux["assignment"][0, n, number:].eq(0).all()
        if t != 2:  # what is shown there is the annotation; frames 3 and 4 see what was fed back
            found["foreground"] = outputs[t].probabilities[0, n + 1]
        for part, value in found.items():
            if value.numel():
                assert_close(value, parts[part])
        compared |= found.keys()
    assert compared == (set(AS_COMPUTED) if network.needs_proposals else {"coarse", "foreground"})
    spread = torch.stack([expected[4, n]["foreground"] for n in range(3)]).flatten(1).std(dim=1)
    assert (spread > 1e-3).all(), "flat predictions would compare nothing"


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_train_stream_and_keep_slots_apart(name):
    network = small(**VARIANTS[name])
    frames, labels = random_clip(2, 4, 2, SIZE)
    proposals = some_proposals(8, 5)
    given = {0: given_at(labels, 0, [1], 2), 1: given_at(labels, 1, [2], 2)}
    propagation = Propagation(EveryKth(2, include_previous=True), "product", "overwrite")
    with torch.no_grad():
        outputs = unroll(network, propagation, frames, given, proposals)
        flipped = {t: Given(g.masks.flip(1), g.which.flip(1)) for t, g in given.items()}
        swapped = unroll(network, propagation, frames, flipped, proposals)
    for output, other in zip(outputs, swapped, strict=True):
        assert output.probabilities.isfinite().all()
        assert_close(other.probabilities[:, 1:], output.probabilities[:, 1:].flip(1))
    engine = InferenceEngine(network, propagation)
    for t in range(4):
        row = Proposals(*(getattr(proposals, f.name)[2 * t : 2 * t + 1] for f in dataclasses.fields(Proposals)))
        annotation = labels[0, t] * (labels[0, t] == t + 1) if t < 2 else None
        prediction = engine.step(frames[0, t], annotation, proposals=row)
        seen = prediction.probabilities
        assert_close(seen, outputs[t].probabilities[0, 1 : 1 + len(seen)])
    network.train()
    outputs = unroll(network, Propagation(All(), "product"), frames, given, proposals)
    sum(output.logits[:, 1:].square().mean() for output in outputs[1:]).backward()
    missing = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_gradient_reaches_the_matcher_through_the_assignment():
    network = small().train()
    frames, labels = random_clip(1, 3, 2, SIZE)
    outputs = unroll(network, Propagation(All(), "product"), frames, {0: given_at(labels, 0, [1, 2], 2)}, some_proposals(3, 6))
    outputs[-1].aux["coarse"].sum().backward()
    matcher, store = network.coarse_masks.matcher, network.dynamic_memory
    for part in (matcher.template, matcher.proposal, store.value, store.query):
        gradients = [p.grad.abs().sum() for p in part.parameters() if p.grad is not None]
        assert sum(gradients) > 0


def test_coarse_masks_that_are_not_refined_teach_the_matcher():
    """Where the best proposal has the wrong pixels, too; no pixel has more than a hundred times the gradient of an unsure one."""
    network = small(refinement=None).train()
    frames, labels = random_clip(1, 2, 1, SIZE)
    proposals = some_proposals(2, 3)
    proposals.masks[:] = 1
    output = unroll(network, Propagation(All(), "product"), frames, {0: given_at(labels, 0, [1], 1)}, proposals)[1]
    assert (output.aux["coarse"] == 1).any()
    logit = torch.logit(torch.tensor(0.99))
    background = -2 * logit  # the logit of 1 - p is -logit, and a softmax sees their difference
    loss = nn.functional.cross_entropy(output.logits, torch.zeros(1, *SIZE, dtype=torch.long), reduction="none")
    assert_close(loss.max(), nn.functional.softplus(-background))
    (gradient,) = torch.autograd.grad(loss.mean(), output.aux["similarity"])
    best = output.aux["assignment"].detach().argmax(dim=2, keepdim=True)
    assert gradient.gather(2, best) > 0
    assert gradient.abs().max() < 2 / (0.99 * 0.01)


def test_a_frame_without_proposals_keeps_its_masks():
    network = small(refinement=None)
    frames, labels = random_clip(2, 3, 1, SIZE)
    proposals = some_proposals(6, 4)
    proposals.scores[2] = 0  # clip 0, frame 1
    with torch.no_grad():
        outputs = unroll(network, Propagation(All(), "product"), frames, {0: given_at(labels, 0, [1], 1)}, proposals)
    first, second = outputs[1].aux["coarse"][:, 0]
    truth = nn.functional.avg_pool2d((labels[:, 0] == 1).float(), 4)
    assert (first - truth[0]).abs().max() < 0.01
    assert (second - truth[1]).abs().max() > 0.5


def test_an_object_that_vanished_is_looked_for_where_it_was():
    network = small(coarse="template", refinement=None)
    frames, labels = random_clip(1, 5, 1, SIZE)
    propagation = Propagation(All(), "product")
    nn.init.constant_(network.coarse_masks.decode[-1].bias, -30.0)
    nn.init.zeros_(network.coarse_masks.decode[-1].weight)
    engine = InferenceEngine(network, propagation)
    for t in range(5):
        engine.step(frames[0, t], labels[0, 0] if t == 0 else None)
    carry = engine._state.memory.carry
    y, x = torch.nonzero(labels[0, 0] == 1, as_tuple=True)
    assert carry.boxes[0, 0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    visible = engine._state.memory.bank.entry.visible[0, 0].unflatten(0, (5, -1)).all(dim=1)
    assert visible.tolist() == [True, False, False, False, False]


def test_proposals_move_with_padding_and_size():
    network = small()
    frames, labels = random_clip(1, 3, 1, (40, 56))
    proposals = some_proposals(1, 4, (40, 56))
    doubled = Proposals(proposals.boxes * 2, proposals.masks, proposals.scores)
    large = nn.functional.interpolate(frames[0], size=(80, 112), mode="nearest")
    for engine, images, scale, own in (
        (InferenceEngine(network, Propagation(All(), "product")), frames[0], 1, proposals),
        (InferenceEngine(network, Propagation(All(), "product"), short_side=40), large, 2, doubled),
    ):
        labelled = labels[0, 0].repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        engine.step(images[0], labelled, proposals=own)
        aux = engine.step(images[1], proposals=own).aux
        # 40 x 56 is padded to 48 x 64: 4 pixels on every side.
        assert_close(aux["boxes"], proposals.boxes + 4)


def test_embedding_of_time():
    values = sinusoid(torch.tensor([0.0, 3.0]), 8)
    assert_close(values[0], torch.tensor([0.0, 1] * 4))
    assert_close(values[1], oracle.embedding(3.0, 8).flatten())


def test_copier_start_hands_the_coarse_mask_on():
    network = DMNAOA.published(None, "instance", **SMALL, copier_start=True).eval()
    frames, labels = random_clip(1, 2, 1, SIZE)
    with torch.no_grad():
        given = {0: given_at(labels, 0, [1], 1)}
        output = unroll(network, Propagation(All(), "product"), frames, given, some_proposals(2, 0))[1]
    assert ((output.probabilities[0, 1] > 0.5) == (labels[0, 0] == 1)).float().mean() > 0.9


def test_copier_start_without_proposals_moves_the_masks_of_the_references_with_the_picture():
    torch.manual_seed(0)
    network = DMNAOA.published(None, "instance", **SMALL, coarse="template", copier_start=True)
    small_refiner = network.refiner
    assert small_refiner is not None
    assert torch.equal(small_refiner.query[0].weight, small_refiner.reference[0].weight)
    assert torch.count_nonzero(small_refiner.decoder.fuse4.blend.weight[0, -3:]) == 2  # the first and the previous mask
    alignment = AlignmentOptions(channels=16, sharpness=200.0)
    refiner = ReferenceRefiner((16, 16, 16), alignment, ReferenceRefinement(width=32), groups=4).eval()
    refiner.start_as_copier("references")
    seen = FeaturePyramid(*(torch.randn(1, 16, 64 // stride, 96 // stride) for stride in (4, 8, 16)))
    current = FeaturePyramid(seen.s4.roll(4, -1), seen.s8.roll(2, -1), seen.s16.roll(1, -1))
    masks = torch.zeros(1, 1, 16, 24)
    masks[..., 4:12, 8:16] = 1
    reference = ReferenceFrame(seen, refiner.project(seen.s16)[1], masks, torch.ones(1, 1, dtype=torch.bool))
    moved = masks.roll(4, -1)
    with torch.no_grad():
        logits = refiner(current, refiner.project(current.s16)[0], (reference,), reference, 1 - moved)
    found = pool_to_stride((logits > 0).float(), 4) > 0.5
    assert (found == (moved == 1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(objects=ObjectOptions(channels=20)), r"objects\.channels must be a multiple of 4 \* groups"),
        (lambda: small(refinement=ReferenceRefinement(width=7)), r"refinement\.width must be multiples of groups, 2"),
        (lambda: small(template="first_frame", memory_features="frame"), "memory_features must be 'object'"),
        (lambda: ReferenceRefinement(top_k=0), r"refinement\.top_k must be at least 1"),
        (lambda: ObjectOptions(grid=0), r"objects\.grid must be positive"),
        (lambda: ObjectOptions(box_scale=-1.0), r"objects\.box_scale must be positive"),
        (lambda: AlignmentOptions(sharpness=-1.0), r"alignment\.sharpness must be positive"),
        (lambda: ProposalMatching(iou_weight=1.5), r"matching\.iou_weight must be in \[0, 1\]"),
        (lambda: AssignmentOptions(eval_steps=-1), r"assignment\.eval_steps must not be negative"),
        (lambda: AssignmentOptions(step_size=0.0), r"assignment\.step_size must be positive"),
    ],
)
def test_contradictions_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# The module -----------------------------------------------------------------------------------------------------------


def test_memory_strategies():
    assert memory_policy("first", 5, None) == AnnotatedOnly("add")
    assert memory_policy("previous", 5, None) == PreviousOnly()
    assert memory_policy("every_kth", 5, 20) == EveryKth(5, include_previous=True, max_frames=20)
    assert memory_policy("all", 5, None) == All()
    frames, labels = random_clip(1, 8, 1, SIZE)
    kept = {}
    for strategy in ("first", "previous", "first+previous", "every_kth", "all"):
        engine = InferenceEngine(small(), Propagation(memory_policy(strategy, 5, None), "product"))
        for t in range(8):
            engine.step(frames[0, t], labels[0, 0] if t == 0 else None, proposals=some_proposals(1, 3))
        kept[strategy] = [frame.t for frame in engine._state.memory.bank.frames]
    assert kept == {
        "first": [0],
        "previous": [7],
        "first+previous": [0, 7],
        "every_kth": [0, 5, 7],
        "all": [0, 1, 2, 3, 4, 5, 6, 7],
    }


def test_backbone_has_a_rate_of_its_own():
    module = DMNAOAModule(small())
    module.trainer = Trainer(max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False)
    assert [round(module.optimisation.schedule.at(step, 10), 3) for step in (0, 7, 8, 9)] == [1, 1, 0.1, 0.1]
    configured = module.configure_optimizers()
    backbone, rest = sorted(configured["optimizer"].param_groups, key=lambda group: group["lr"])
    assert (rest["lr"], backbone["lr"]) == (1e-4, pytest.approx(1e-5))
    trained = [p for p in module.network.backbone.parameters() if p.requires_grad]
    assert {id(p) for p in backbone["params"]} == {id(p) for p in trained}
    assert len(backbone["params"]) == len(trained) > 0
    everything = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for group in (rest, backbone) for p in group["params"]} == everything
    frozen = DMNAOAModule(small(train_from=None))
    frozen.trainer = module.trainer
    assert len(frozen.configure_optimizers()["optimizer"].param_groups) == 1
    with pytest.raises(ValueError, match=r"schedule\.milestones"):
        DMNAOAModule(small(), optimisation=Optimisation(schedule=Schedule("steps", milestones=(0.0,))))


def test_losses_of_coarse_masks_and_matching():
    truth = torch.zeros(1, 2, 4, 4)
    truth[0, 0, :2] = 1
    truth[0, 1, 2:] = 1
    both = torch.ones(1, 2, dtype=torch.bool)
    assert_close(soft_iou_loss(truth, truth, both), torch.zeros(1))
    assert_close(soft_iou_loss(truth.flip(1), truth, both), torch.ones(1))
    assert_close(soft_iou_loss(truth * 0.5, truth, both), torch.tensor([0.5]))
    similarity = torch.tensor([[[0.2, 0.9, 0.1], [1.0, 0.0, 0.3]]])
    masks = torch.cat([truth.flip(1), torch.zeros(1, 1, 4, 4)], dim=1)
    exist = torch.tensor([[True, True, False]])
    expected = (0.2**2 + 0.1**2) / 4
    assert matching_loss(similarity, masks, truth, both, exist).item() == pytest.approx(expected)


def test_auxiliary_losses_enter_the_loss():
    batch = truth_batch()
    plain = DMNAOAModule(small(), evaluation=Evaluation())
    weighted = DMNAOAModule(small(), coarse_weight=2.0, matching_weight=3.0)
    losses = []
    for module in (plain, weighted):
        given = {0: given_at(batch.label_maps, 0, [1, 2], 2)}
        outputs = unroll(module.network, module.train_propagation, batch.frames, given, batch.proposals)
        losses.append(module.clip_loss(outputs, batch))
    assert set(losses[0]) == {"loss", "coarse"}
    extra = 2 * losses[1]["coarse"] + 3 * losses[1]["matching"]
    assert_close(losses[1]["loss"], losses[0]["loss"] + extra)


# Data -----------------------------------------------------------------------------------------------------------------

RECIPE = ClipRecipe(
    num_frames=3,
    short_side=None,
    crop="random_resized",
    crop_size=48,
    crop_area=(0.5, 0.9),
    min_object_pixels=20,
    max_objects=2,
    swap_probability=0.0,
    affine=AffineRecipe(),
)


def synthetic(recipe: ClipRecipe = RECIPE) -> SyntheticDataModule:
    return SyntheticDataModule(num_train_videos=4, num_val_videos=1, num_test_videos=1, recipe=recipe)


def truth_batch() -> ClipBatch:
    data = ProposalsDataModule(synthetic(), ProposalsFromTruth(6, TruthNoise(recall=1.0)))
    dataset = ClipDataset(data.clip_parts(), 0)
    return collate_clips([dataset[ClipKey(Draw(0, i))] for i in range(2)], 2)


def best_overlaps(batch: ClipBatch) -> list[float]:
    """Largest overlap of a proposal with every visible object."""
    length, size = batch.frames.shape[1], batch.label_maps.shape[-2:]
    found = paste_masks(batch.proposals.masks, batch.proposals.boxes, *size) > 0.5
    found = found & (batch.proposals.scores > 0)[..., None, None]
    overlaps = []
    for t in range(length):
        for b in range(len(batch.frames)):
            for n in (1, 2):
                truth = batch.label_maps[b, t] == n
                if truth.sum() > 60:
                    planes = found[t * len(batch.frames) + b]
                    ious = (planes & truth).flatten(1).sum(1) / (planes | truth).flatten(1).sum(1)
                    overlaps.append(float(ious.max()))
    return overlaps


def test_proposals_from_truth_follow_the_clip():
    batch = truth_batch()
    assert batch.proposals.boxes.shape == (6, 6, 4)
    assert min(best_overlaps(batch)) > 0.55


def test_stored_proposals_follow_the_clip(tmp_path):
    """Written for the videos as they are, read for clips that are warped, cropped and mirrored."""
    plain = ClipRecipe(
        num_frames=1, short_side=None, crop="none", max_objects=8, swap_probability=0.0,
        horizontal_flip_probability=0.0, vertical_flip_probability=0.0, reverse_probability=0.0,
    )  # fmt: skip
    still = dataclasses.replace(RECIPE, max_gap=1)
    parts = ProposalsDataModule(synthetic(plain), ProposalsFromTruth(8, EXACT)).clip_parts()
    scenes = ClipDataset(parts, 0)
    source = synthetic(still).clip_source()
    samples = []
    for i in range(4):
        exact = scenes[ClipKey(Draw(0, i))]
        kept = exact.proposals.scores[0] > 0
        rows = Found(
            exact.proposals.boxes[0][kept],
            exact.proposals.masks[0][kept],
            exact.proposals.scores[0][kept],
            torch.zeros(int(kept.sum()), dtype=torch.int64),
        )
        write_proposals(tmp_path / f"{exact.video_name}.npz", {"00000": rows}, {})
        frozen = _OneFrame(source, i, exact.frame_indices[0])
        part = [(frozen, still)]
        data = ProposalsDataModule(_Parts(part, still), StoredProposals([str(tmp_path / "nothing"), str(tmp_path)], 8))
        samples.append(ClipDataset(data.clip_parts(), 3)[ClipKey(Draw(0, 0))])
    overlaps = best_overlaps(collate_clips(samples, 2))
    assert len(overlaps) >= 8
    assert sum(o > 0.75 for o in overlaps) >= 0.9 * len(overlaps)


class _Parts(SyntheticDataModule):
    def __init__(self, parts, recipe):
        super().__init__(recipe=recipe)
        self.parts = parts

    def clip_parts(self):
        return self.parts


class _OneFrame(ClipSource):
    """Clips that repeat one frame of a scene, as those of still images do."""

    def __init__(self, source, index, frame):
        self.source, self.index, self.frame = source, index, frame

    def __len__(self):
        return 1

    def names(self, index):
        return ItemNames(self.source.names(self.index).name, None)

    def draw(self, index, rng, recipe):
        from data_modules.datasets.static_images import repeat_image
        from data_modules.datasets.synthetic import TRAIN, make_scene

        scene = make_scene(self.source.scene_seed, TRAIN, self.index, self.source.scene)
        frames, label_maps = scene.render((self.frame,))
        return repeat_image(frames[0], label_maps[0], recipe.num_frames, f"synthetic-train-{self.index:05d}")


def test_videos_have_the_same_proposals_in_every_run():
    data = ProposalsDataModule(synthetic(), ProposalsFromTruth(6))
    frame = torch.zeros(3, 32, 48, dtype=torch.uint8)
    first, second = (data.val_videos()[0].proposals for _ in range(2))
    assert torch.equal(first.of_frame(2, frame).boxes, second.of_frame(2, frame).boxes)
    assert not torch.equal(first.of_frame(2, frame).boxes, first.of_frame(1, frame).boxes)


def test_pasted_occluders_are_refused():
    with pytest.raises(ValueError, match="swap_probability"):
        ProposalsDataModule(synthetic(dataclasses.replace(RECIPE, swap_probability=0.2)), ProposalsFromTruth(6))
