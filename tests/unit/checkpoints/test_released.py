"""Released checkpoints: files in the authors' format and random values, and what their weights compute."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.models import densenet121, resnet50

from tests.oracles import emvos as emvos_oracle
from tests.oracles import pmvos as pmvos_oracle
from tests.tolerances import assert_close
from vos_lightning.app.cli import main
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.checkpoints.released.command import PAPERS
from vos_lightning.checkpoints.released.conversion import FORMATS
from vos_lightning.mask_ops import IMAGENET_MEAN, IMAGENET_STD, MAX_LOGIT
from vos_lightning.propagation.step import StepOutput, unroll
from vos_lightning.structures import FeaturePyramid, Given

SIZE = (32, 48)
MEAN = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


def layers(state: dict[str, Tensor], **shapes: tuple[int, ...]) -> None:
    """Random weights and biases; ``__`` in a name is a dot. Transposed convolutions have their outputs second."""
    for name, shape in shapes.items():
        key = "vos." + name.replace("__", ".")
        outputs = shape[1] if "deconv" in name or "predictor" in name else shape[0]
        fan = shape[0] if outputs is shape[1] else shape[1]
        state[f"{key}.weight"] = torch.randn(shape) * (fan * shape[2] * shape[3]) ** -0.5
        state[f"{key}.bias"] = torch.randn(outputs) * 0.1


def backbone(state: dict[str, Tensor], prefix: str, source: dict[str, Tensor]) -> None:
    for key, value in source.items():
        if key.endswith("running_mean"):
            value = torch.randn_like(value) * 0.1
        elif key.endswith("running_var"):
            value = torch.rand_like(value) + 0.5
        state[prefix + key] = value.clone()


@functools.cache
def pmvos_file() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    backbone(state, "vos.backbone.", resnet50().state_dict())
    layers(
        state,
        pm__conv_in__conv=(512, 2048, 1, 1),
        att__sa__query_conv__conv=(3, 3, 1, 1),
        att__sa__key_conv__conv=(3, 3, 1, 1),
        att__sa__value_conv__conv=(3, 3, 1, 1),
        refine__conv_s16__conv=(256, 2048, 1, 1),
        refine__blend_s16__conv=(128, 270, 3, 3),
        refine__conv_s8__conv=(128, 512, 1, 1),
        refine__blend_s8__conv=(128, 130, 3, 3),
        refine__conv_s4__conv=(128, 256, 1, 1),
        refine__blend_s4__conv=(128, 130, 3, 3),
        refine__deconv1_1=(128, 2, 4, 4),
        refine__deconv2=(128, 2, 4, 4),
        refine__deconv1_2=(2, 2, 4, 4),
        refine__deconv3=(128, 2, 3, 3),
        refine__predictor=(6, 2, 6, 6),
    )
    state["vos.att.sa.gamma"], state["vos.att.ca.gamma"] = torch.tensor([0.6]), torch.tensor([-0.4])
    assert len(state) == 352
    return state


@functools.cache
def emvos_file() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {"vos.encoder.mean": MEAN, "vos.encoder.std": STD}
    features = densenet121().features.state_dict()
    kept = {k: v for k, v in features.items() if not k.startswith(("transition3", "denseblock4", "norm5"))}
    backbone(state, "vos.encoder.", kept)
    layers(state, matcher__conv1__conv=(512, 1024, 1, 1), matcher__conv2__conv=(512, 1024, 1, 1))
    for k, (lateral, blend) in enumerate(((1024, 266), (512, 258), (256, 258)), start=1):
        shapes = {
            f"conv{k}__conv": (256, lateral, 1, 1),
            f"blend{k}__conv": (256, blend, 3, 3),
            f"cbam{k}__conv1__conv": (256, 256, 3, 3),
            f"cbam{k}__conv2__0__conv": (256, 256, 1, 1),
            f"cbam{k}__conv2__1__conv": (256, 256, 1, 1),
            f"cbam{k}__conv3__0__conv": (16, 2, 3, 3),
            f"cbam{k}__conv3__1__conv": (1, 16, 3, 3),
            f"deconv{k}__deconv": (256, 2, 6, 6) if k == 3 else (256, 2, 4, 4),
        }
        layers(state, **{f"decoder__{name}": shape for name, shape in shapes.items()})
    state["vos.matcher.conv2.conv.weight"] *= 0.05  # else the unscaled softmax is one-hot
    assert len(state) == 576
    return state


def layer(state: dict[str, Tensor], key: str) -> SimpleNamespace:
    return SimpleNamespace(weight=state[f"vos.{key}.weight"], bias=state[f"vos.{key}.bias"])


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def pmvos_reference(state: dict[str, Tensor]) -> SimpleNamespace:
    trunk = resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    trunk.load_state_dict(without_prefix(state, "vos.backbone."))

    def pyramid(image: Tensor) -> FeaturePyramid:
        s4 = trunk.layer1(trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1((image - MEAN) / STD)))))
        s8 = trunk.layer2(s4)
        return FeaturePyramid(s4, s8, trunk.layer4(trunk.layer3(s8)))

    of = functools.partial(layer, state)
    stages = {
        f"stage{s}": SimpleNamespace(
            lateral=of(f"refine.conv_s{s}.conv"), blend=of(f"refine.blend_s{s}.conv"), deconv=of(f"refine.{deconv}")
        )
        for s, deconv in ((16, "deconv1_1"), (8, "deconv2"), (4, "deconv3"))
    }
    spatial = {name: of(f"att.sa.{name}_conv.conv") for name in ("query", "key", "value")}
    return SimpleNamespace(
        kinds=("global", "local", "medial"),
        backbone=pyramid,
        key=of("pm.conv_in.conv"),
        attention=SimpleNamespace(
            spatial=SimpleNamespace(**spatial, gamma=state["vos.att.sa.gamma"]),
            channel=SimpleNamespace(gamma=state["vos.att.ca.gamma"]),
        ),
        decoder=SimpleNamespace(**stages, grow16=of("refine.deconv1_2"), predictor=of("refine.predictor")),
    )


def emvos_reference(state: dict[str, Tensor]) -> SimpleNamespace:
    trunk = densenet121().features.eval()
    trunk.load_state_dict(without_prefix(state, "vos.encoder."), strict=False)

    def pyramid(image: Tensor) -> FeaturePyramid:
        x = trunk.pool0(trunk.relu0(trunk.norm0(trunk.conv0((image - MEAN) / STD))))
        s4 = trunk.denseblock1(x)
        s8 = trunk.denseblock2(trunk.transition1(s4))
        return FeaturePyramid(s4, s8, trunk.denseblock3(trunk.transition2(s8)))

    of = functools.partial(layer, state)

    def stage(k: int) -> SimpleNamespace:
        def gate(name: str) -> list[SimpleNamespace | None]:
            return [of(f"decoder.cbam{k}.{name}.0.conv"), None, of(f"decoder.cbam{k}.{name}.1.conv")]

        entry = of(f"decoder.cbam{k}.conv1.conv")
        return SimpleNamespace(
            lateral=of(f"decoder.conv{k}.conv"),
            blend=of(f"decoder.blend{k}.conv"),
            attention=SimpleNamespace(entry=entry, channel_gate=gate("conv2"), spatial_gate=gate("conv3")),
            deconv=of(f"decoder.deconv{k}.deconv"),
        )

    return SimpleNamespace(
        backbone=pyramid,
        cosine_key=of("matcher.conv1.conv"),
        dot_key=of("matcher.conv2.conv"),
        decoder=SimpleNamespace(stage16=stage(1), stage8=stage(2), stage4=stage(3)),
    )


@pytest.fixture(autouse=True)
def _quiet_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning 2.6.6 calls what jsonargparse has deprecated since.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def converted(state: dict[str, Tensor], paper: str, folder: Path):
    torch.save(state, folder / "released.tar")
    out = folder / "ours.ckpt"
    assert main(["import-checkpoint", str(folder / "released.tar"), "--paper", paper, "--output", str(out)]) == 0
    return load_engine(out, device="cpu")


def clip() -> tuple[Tensor, Tensor]:
    frames = torch.rand(4, 3, *SIZE)
    masks = torch.zeros(1, 2, *SIZE)
    masks[0, 0, 3:20, 5:25] = 1
    masks[0, 1, 10:30, 28:44] = 1
    return frames, masks


def given(masks: Tensor, n: int) -> Given:
    return Given(masks, torch.tensor([[k == n for k in range(2)]]))


def test_pmvos_computes_what_the_released_weights_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = converted(pmvos_file(), "pmvos", tmp_path)
    assert "350 tensors of pmvos; dropped vos.backbone.fc.weight, vos.backbone.fc.bias" in capsys.readouterr().out
    frames, masks = clip()
    with torch.no_grad():
        expected = pmvos_oracle.propagate(
            pmvos_reference(pmvos_file()), frames, {0: {0: masks[0, 0]}, 1: {1: masks[0, 1]}}, "released"
        )
        outputs = unroll(engine.network, engine.propagation, frames[None], {0: given(masks, 0), 1: given(masks, 1)})
    assert_same_logits(outputs, expected)


def test_emvos_computes_what_the_released_weights_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = converted(emvos_file(), "emvos", tmp_path)
    assert "574 tensors of emvos; dropped vos.encoder.mean, vos.encoder.std" in capsys.readouterr().out
    frames, masks = clip()
    with torch.no_grad():
        expected = emvos_oracle.propagate(emvos_reference(emvos_file()), frames, {0: {0: masks[0, 0]}, 1: {1: masks[0, 1]}})
        outputs = unroll(engine.network, engine.propagation, frames[None], {0: given(masks, 0), 1: given(masks, 1)})
    assert_same_logits(outputs, expected)


def assert_same_logits(outputs: list[StepOutput], expected: dict[tuple[int, int], Tensor]) -> None:
    for t, n in ((2, 0), (2, 1), (3, 0), (3, 1)):
        background, foreground = expected[t, n]
        assert (foreground - background).std() > 1e-3
        assert_close(outputs[t].logits[0, n + 1], (foreground - background).clamp(-MAX_LOGIT, MAX_LOGIT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vos.extra": torch.zeros(1)}, "unknown keys vos.extra"),
        ({"vos.pm.conv_in.conv.bias": None}, "nothing for key.bias"),
        ({"vos.pm.conv_in.conv.bias": torch.zeros(256)}, "vos.pm.conv_in.conv.bias is (256,) instead of (512,)"),
        ({"vos.backbone.fc.bias": torch.zeros(10)}, "vos.backbone.fc.bias is (10,) instead of (1000,)"),
        ({"epoch": 3}, "parameter names and tensors and nothing else"),
    ],
)
def test_a_foreign_file_is_one_line(change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {key: value for key, value in {**pmvos_file(), **change}.items() if value is not None}
    torch.save(state, tmp_path / "f.tar")
    arguments = [str(tmp_path / "f.tar"), "--paper", "pmvos", "--output", str(tmp_path / "o.ckpt")]
    assert main(["import-checkpoint", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "f.tar: this is no released checkpoint" in error
    assert message in error
    assert not (tmp_path / "o.ckpt").exists()


def test_no_file_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released, trained = tmp_path / "released.tar", tmp_path / "trained.ckpt"
    torch.save(pmvos_file(), released)
    trained.write_bytes(b"days of training")
    before = released.read_bytes()
    for output, message in ((released, "is the input"), (trained, "exists already; pass --overwrite"), (tmp_path, "is a folder")):
        assert main(["import-checkpoint", str(released), "--paper", "pmvos", "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert (released.read_bytes(), trained.read_bytes()) == (before, b"days of training")


def test_files_that_are_no_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    for name, message in (("text.pth", "no PyTorch file"), ("nothing.pth", "there is no such checkpoint")):
        assert main(["import-checkpoint", str(tmp_path / name), "--paper", "emvos", "--output", "o.ckpt"]) == 2
        assert message in capsys.readouterr().err


def test_the_command_offers_every_format() -> None:
    assert tuple(FORMATS) == PAPERS
