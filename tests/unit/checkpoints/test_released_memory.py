"""Released checkpoints of STCN and STM: files in the authors' format and random values, and what their weights compute."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from tests.oracles import stcn as oracle
from tests.tolerances import assert_close
from tests.unit.decoders.test_refine import normalized
from vos_lightning.app.cli import main
from vos_lightning.checkpoints.loading import load_engine
from vos_lightning.checkpoints.released.conversion import import_released
from vos_lightning.checkpoints.released.format import build
from vos_lightning.propagation.step import unroll
from vos_lightning.structures import Given

SIZE = (40, 56)
"""Padded to (48, 64)."""
MASKS = torch.zeros(1, 2, *SIZE)
MASKS[0, 0, 5:30, 3:28] = 1
MASKS[0, 1, 20:40, 30:50] = 1
STCN_LAYERS = {
    "key_proj.key_proj": (64, 1024),
    "key_comp": (512, 1024),
    "value_encoder.fuser.block1.downsample": (512, 1280),
    "value_encoder.fuser.block1.conv1": (512, 1280),
    "value_encoder.fuser.block1.conv2": (512, 512),
    "value_encoder.fuser.block2.conv1": (512, 512),
    "value_encoder.fuser.block2.conv2": (512, 512),
    "decoder.compress.downsample": (512, 1024),
    "decoder.compress.conv1": (512, 1024),
    "decoder.compress.conv2": (512, 512),
    "decoder.up_16_8.skip_conv": (512, 512),
    "decoder.up_16_8.out_conv.downsample": (256, 512),
    "decoder.up_16_8.out_conv.conv1": (256, 512),
    "decoder.up_16_8.out_conv.conv2": (256, 256),
    "decoder.up_8_4.skip_conv": (256, 256),
    "decoder.up_8_4.out_conv.conv1": (256, 256),
    "decoder.up_8_4.out_conv.conv2": (256, 256),
    "decoder.pred": (1, 256),
}
STM_LAYERS = {
    **{f"KV_{which}_r4.{name}": (count, 1024) for which in "MQ" for name, count in (("Key", 128), ("Value", 512))},
    "Decoder.convFM": (256, 1024),
    "Decoder.ResMM.conv1": (256, 256),
    "Decoder.ResMM.conv2": (256, 256),
    **{f"Decoder.RF{n}.convFS": (256, count) for n, count in ((3, 512), (2, 256))},
    **{f"Decoder.RF{n}.Res{part}.conv{k}": (256, 256) for n in (3, 2) for part in ("FS", "MM") for k in (1, 2)},
    "Decoder.pred2": (2, 256),
}


def add_layers(state: dict[str, Tensor], layers: dict[str, tuple[int, int]]) -> None:
    for key, (outputs, inputs) in layers.items():
        state[f"{key}.weight"] = torch.randn(outputs, inputs, 3, 3) * (inputs * 9) ** -0.5
        state[f"{key}.bias"] = torch.randn(outputs) * 0.1


def add_trunk(state: dict[str, Tensor], prefix: str, trunk: nn.Module, stages: tuple[str, str, str]) -> None:
    """The first three stages under the authors' names; random statistics."""
    names = dict(zip(("layer1", "layer2", "layer3"), stages, strict=True))
    for key, value in trunk.state_dict().items():
        if key.startswith(("layer4", "fc")):
            continue
        if key.endswith("running_mean"):
            value = torch.randn_like(value) * 0.1
        elif key.endswith("running_var"):
            value = torch.rand_like(value) + 0.5
        first, _, rest = key.partition(".")
        state[f"{prefix}.{names.get(first, first)}.{rest}"] = value.clone()


@functools.cache
def stcn_file() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    add_trunk(state, "key_encoder", resnet50(), ("res2", "layer2", "layer3"))
    shallow = resnet18()
    for layer in shallow.modules():
        if isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.randn(layer.out_channels) * 0.1)
    add_trunk(state, "value_encoder", shallow, ("layer1", "layer2", "layer3"))
    state["value_encoder.conv1.weight"] = torch.randn(64, 5, 7, 7) * 0.1
    add_layers(state, STCN_LAYERS)
    # Else affinities are one-hot and masks almost binary, and rounding shows.
    state["key_proj.key_proj.weight"] *= 0.1
    state["decoder.pred.weight"] *= 0.3
    cbam = "value_encoder.fuser.attention"
    for layer, shape in ((1, (32, 512)), (3, (512, 32))):
        state[f"{cbam}.ChannelGate.mlp.{layer}.weight"] = torch.randn(shape) * shape[1] ** -0.5
        state[f"{cbam}.ChannelGate.mlp.{layer}.bias"] = torch.randn(shape[0]) * 0.1
    state[f"{cbam}.SpatialGate.spatial.conv.weight"] = torch.randn(1, 2, 7, 7) * 0.1
    state[f"{cbam}.SpatialGate.spatial.conv.bias"] = torch.randn(1)
    assert len(state) == 405
    return state


@functools.cache
def stm_file() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for which in "MQ":
        add_trunk(state, f"Encoder_{which}", resnet50(), ("res2", "res3", "res4"))
        state[f"Encoder_{which}.mean"], state[f"Encoder_{which}.std"] = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    state["Encoder_M.conv1_m.weight"], state["Encoder_M.conv1_o.weight"] = torch.randn(2, 64, 1, 7, 7) * 0.1
    add_layers(state, STM_LAYERS)
    for which in "MQ":
        state[f"KV_{which}_r4.Key.weight"] *= 0.1
    state["Decoder.pred2.weight"] *= 0.3
    assert len(state) == 558
    return {f"module.{key}": value for key, value in state.items()}


def trunk_of(state: dict[str, Tensor], prefix: str, model: nn.Module, stages: tuple[str, str, str]) -> nn.Module:
    names = dict(zip(stages, ("layer1", "layer2", "layer3"), strict=True))
    own = {}
    for key, value in state.items():
        first, _, rest = key.removeprefix(f"{prefix}.").partition(".")
        if key.startswith(f"{prefix}.") and (first in names or first in ("conv1", "bn1")):
            own[f"{names.get(first, first)}.{rest}"] = value
    own["conv1.weight"] = own["conv1.weight"][:, :3]
    for name, layer in model.named_modules():
        if f"{name}.bias" in own and isinstance(layer, nn.Conv2d):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(key.startswith(("layer4", "fc")) for key in missing)
    return model.eval()


def of(state: dict[str, Tensor], key: str) -> SimpleNamespace:
    weight = state[f"{key}.weight"]
    return SimpleNamespace(weight=weight if weight.ndim == 4 else weight[..., None, None], bias=state[f"{key}.bias"])


def block_of(state: dict[str, Tensor], key: str) -> SimpleNamespace:
    shortcut = of(state, f"{key}.downsample") if f"{key}.downsample.weight" in state else None
    return SimpleNamespace(conv1=of(state, f"{key}.conv1"), conv2=of(state, f"{key}.conv2"), shortcut=shortcut)


def stcn_reference(state: dict[str, Tensor]) -> SimpleNamespace:
    layer, block = functools.partial(of, state), functools.partial(block_of, state)
    cbam = "value_encoder.fuser.attention"
    stages = {
        f"stage{scale}": SimpleNamespace(
            skip=layer(f"decoder.{name}.skip_conv"), skip_block=None, block=block(f"decoder.{name}.out_conv")
        )
        for scale, name in ((8, "up_16_8"), (4, "up_8_4"))
    }
    return SimpleNamespace(
        key_encoder=trunk_of(state, "key_encoder", resnet50(), ("res2", "layer2", "layer3")),
        projection=SimpleNamespace(key=layer("key_proj.key_proj"), value=layer("key_comp")),
        value_encoder=SimpleNamespace(
            trunk=SimpleNamespace(
                trunk=trunk_of(state, "value_encoder", resnet18(), ("layer1", "layer2", "layer3")),
                mask_conv=SimpleNamespace(weight=state["value_encoder.conv1.weight"][:, 3:]),
            ),
            block1=block("value_encoder.fuser.block1"),
            block2=block("value_encoder.fuser.block2"),
            attention=SimpleNamespace(
                channel_gate={n: layer(f"{cbam}.ChannelGate.mlp.{n + 1}") for n in (0, 2)},
                spatial_gate=[layer(f"{cbam}.SpatialGate.spatial.conv")],
            ),
        ),
        decoder=SimpleNamespace(entry=block("decoder.compress"), **stages, predictor=layer("decoder.pred")),
    )


def stm_reference(wrapped: dict[str, Tensor]) -> SimpleNamespace:
    state = {key.removeprefix("module."): value for key, value in wrapped.items()}
    layer, block = functools.partial(of, state), functools.partial(block_of, state)
    masks = torch.cat([state["Encoder_M.conv1_m.weight"], state["Encoder_M.conv1_o.weight"]], 1)
    stages = {
        f"stage{scale}": SimpleNamespace(
            skip=layer(f"Decoder.RF{n}.convFS"), skip_block=block(f"Decoder.RF{n}.ResFS"), block=block(f"Decoder.RF{n}.ResMM")
        )
        for scale, n in ((8, 3), (4, 2))
    }
    return SimpleNamespace(
        query_encoder=trunk_of(state, "Encoder_Q", resnet50(), ("res2", "res3", "res4")),
        memory_encoder=SimpleNamespace(
            trunk=trunk_of(state, "Encoder_M", resnet50(), ("res2", "res3", "res4")), mask_conv=SimpleNamespace(weight=masks)
        ),
        query_projection=SimpleNamespace(key=layer("KV_Q_r4.Key"), value=layer("KV_Q_r4.Value")),
        memory_projection=SimpleNamespace(key=layer("KV_M_r4.Key"), value=layer("KV_M_r4.Value")),
        decoder=SimpleNamespace(
            entry=layer("Decoder.convFM"), block16=block("Decoder.ResMM"), **stages, predictor=layer("Decoder.pred2")
        ),
    )


@pytest.fixture(autouse=True)
def _quiet_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning 2.6.6 calls what jsonargparse has deprecated since.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def converted(content: dict, paper: str, folder: Path):
    torch.save(content, folder / "released.pth")
    out = folder / "ours.ckpt"
    assert main(["import-checkpoint", str(folder / "released.pth"), "--paper", paper, "--output", str(out)]) == 0
    return load_engine(out, device="cpu")


def test_stcn_computes_what_the_released_weights_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As a training checkpoint, beside the optimiser.
    content = {"it": 7, "network": stcn_file(), "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}}
    engine = converted(content, "stcn", tmp_path)
    assert "406 tensors of stcn; dropped none" in capsys.readouterr().out
    frames = torch.rand(6, 3, *SIZE)
    start = {0: 0, 1: 2}
    order = {t: {n: MASKS[0, n]} for n, t in start.items()}
    with torch.no_grad():
        # The strides of DAVIS and YouTube-VOS agree in a clip this short.
        expected = oracle.stcn(stcn_reference(stcn_file()), normalized(frames), order, 5, 20, from_latest=False)
        given = {t: Given(MASKS, torch.tensor([[n in objects for n in range(2)]])) for t, objects in order.items()}
        outputs = unroll(engine.network, engine.propagation, frames[None], given)
    for (t, n), foreground in expected.items():
        assert_close(outputs[t].probabilities[0, n + 1], foreground)
    assert min(float(expected[5, n].std()) for n in range(2)) > 1e-3


def test_stm_computes_what_the_released_weights_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = converted(stm_file(), "stm", tmp_path)
    assert "553 tensors of stm; dropped Encoder_M.mean, Encoder_M.std" in capsys.readouterr().out
    frames = torch.rand(4, 3, *SIZE)
    with torch.no_grad():
        expected = oracle.stm(stm_reference(stm_file()), frames, {n: MASKS[0, n] for n in range(2)}, normalized)
        both = Given(MASKS, torch.ones(1, 2, dtype=torch.bool))
        outputs = unroll(engine.network, engine.propagation, frames[None], {0: both})
    for (t, n), foreground in expected.items():
        if t > 0:
            assert_close(outputs[t].probabilities[0, n + 1], foreground)
    assert min(float(expected[3, n].std()) for n in range(2)) > 1e-3


def test_variants_of_stcn_are_found(tmp_path: Path) -> None:
    state = {key: value for key, value in stcn_file().items() if "attention" not in key}
    state["value_encoder.conv1.weight"] = state["value_encoder.conv1.weight"][:, :4].clone()
    torch.save(state, tmp_path / "stage0.pth")
    checkpoint, _ = import_released(tmp_path / "stage0.pth", "stcn")
    arguments = checkpoint["hyper_parameters"]["network"]["init_args"]
    assert set(arguments) == {"backbone", "mask_encoder", "attention"}
    assert arguments["attention"] is False
    encoder = arguments["mask_encoder"]["init_args"]
    assert encoder["others"] is None
    for trunk in (arguments["backbone"], encoder["trunk"]):
        assert trunk["init_args"]["weights"] is None
    # What is described is what the file has: built, it takes all its tensors.
    network = build(checkpoint["hyper_parameters"]["network"])
    network.load_state_dict({name.removeprefix("network."): value for name, value in checkpoint["state_dict"].items()})
    assert network.value_encoder.attention is None
    assert network.value_encoder.trunk.mask_conv.in_channels == 1


@pytest.mark.parametrize(
    ("paper", "change", "message"),
    [
        ("stcn", {"decoder.extra": torch.zeros(1)}, "unknown keys decoder.extra"),
        ("stcn", {"key_comp.bias": None}, "nothing for projection.value.bias"),
        ("stcn", {"value_encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}, "(64, 0, 7, 7) instead of (64, 2, 7, 7)"),
        ("stm", {"module.Encoder_M.conv1_o.weight": None}, "nothing for memory_encoder.mask_conv.weight"),
        ("stm", {"module.Encoder_Q.mean": torch.zeros(3)}, "Encoder_Q.mean is (3,) instead of (1, 3, 1, 1)"),
    ],
)
def test_a_foreign_file_is_refused(paper: str, change: dict, message: str, tmp_path: Path) -> None:
    source = stcn_file() if paper == "stcn" else stm_file()
    torch.save({key: value for key, value in {**source, **change}.items() if value is not None}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="this is no released checkpoint") as error:
        import_released(tmp_path / "f.pth", paper)
    assert message in str(error.value)
