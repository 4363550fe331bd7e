"""Published weights: from the cache, downloaded where they are missing, and never where a checkpoint replaces them."""

from __future__ import annotations

import hashlib
import io
import socket
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

from tests.tolerances import assert_close
from vos_lightning.app.cli import main
from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.checkpoints.loading import module_of_network
from vos_lightning.io import pretrained
from vos_lightning.io.files import sha256_of
from vos_lightning.io.pretrained import MissingWeightsError, before_download, read_pretrained, weights_are_overwritten
from vos_lightning.proposals.detector import ProposalDetector

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


class Answer(io.BytesIO):
    """What a server sends."""

    def info(self) -> Message:
        message = Message()
        message["Content-Length"] = str(len(self.getvalue()))
        return message


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small file in the place of the published one, with its hash."""
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.arange(3.0)}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setattr(pretrained, "published_hash", lambda _: digest[:8])
    return buffer.getvalue()


def test_hashes_are_in_the_names() -> None:
    assert pretrained.published_path(WEIGHTS).name == "resnet18-f37072fd.pth"
    assert pretrained.published_hash(WEIGHTS) == "f37072fd"


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        HTTPError("https://example.org", 403, "Forbidden", Message(), None),
        TimeoutError("timed out"),
        ConnectionResetError("reset by peer"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_no_network_is_one_line_that_says_what_goes_where(error: OSError, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: object) -> None:
        assert socket.getdefaulttimeout() is not None
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(MissingWeightsError) as caught:
        read_pretrained(WEIGHTS)
    message = str(caught.value)
    assert "\n" not in message
    for part in (WEIGHTS.url, str(cache), str(error)):
        assert part in message
    assert list(cache.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_download_is_kept(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def serve(request: object) -> Answer:
        asked.append(request)
        return Answer(content)

    monkeypatch.setattr(torch.hub, "urlopen", serve)
    for _ in range(2):
        state = read_pretrained(WEIGHTS)
        assert state is not None
        assert state["conv1.weight"].tolist() == [0, 1, 2]
    assert len(asked) == 1
    assert [path.name for path in cache.iterdir()] == ["resnet18-f37072fd.pth"]


def test_a_broken_download_leaves_nothing(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", lambda _: Answer(content[:-1]))
    with pytest.raises(MissingWeightsError, match="invalid hash"):
        read_pretrained(WEIGHTS)
    assert list(cache.iterdir()) == []


def test_a_damaged_file_is_named(content: bytes, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth: the file is damaged"):
        read_pretrained(WEIGHTS)


def test_what_is_checked_first(cache: Path) -> None:
    def wrong() -> None:
        raise FileNotFoundError("no data")

    with before_download(wrong), pytest.raises(FileNotFoundError, match="no data"):
        read_pretrained(WEIGHTS)
    with before_download(wrong), weights_are_overwritten():
        assert read_pretrained(WEIGHTS) is None
    with pytest.raises(MissingWeightsError):
        read_pretrained(WEIGHTS)
    assert list(cache.iterdir()) == []


def test_a_resnet_has_the_published_parameters(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resnet18().state_dict()
    cache.mkdir(parents=True)
    # The published file is from before batches were counted.
    torch.save({k: v for k, v in source.items() if not k.endswith("num_batches_tracked")}, cache / "resnet18-f37072fd.pth")
    monkeypatch.setattr(pretrained, "published_hash", lambda _: "")
    torch.manual_seed(1)
    own = ResNetPyramid("basic", (2, 2, 2, 2), last="layer3", weights="IMAGENET1K_V1").state_dict()
    after = torch.rand(1)
    for name, value in own.items():
        assert torch.equal(value, source[name]), name
    # What is initialised after it does not depend on whether weights were loaded.
    torch.manual_seed(1)
    ResNetPyramid("basic", (2, 2, 2, 2), last="layer3", weights=None)
    assert torch.equal(torch.rand(1), after)


def test_a_detector_computes_what_torchvisions_does(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it got its weights: COCO_V1 was trained without an epsilon, which a checkpoint does not say."""
    path = tmp_path / "published.pth"
    with torch.no_grad():
        skeleton = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        state = skeleton.state_dict()
        state["backbone.body.bn1.running_var"].uniform_(1e-6, 1e-4)  # as in the published file, some are far below an epsilon
        state["backbone.body.bn1.weight"].fill_(1e-3)
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path)
    monkeypatch.setattr(MaskRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda *_, **__: state)
    theirs = maskrcnn_resnet50_fpn(weights="COCO_V1").eval()
    cache.mkdir(parents=True)
    pretrained.published_path(MaskRCNN_ResNet50_FPN_Weights.COCO_V1).symlink_to(path)
    digest = sha256_of(path)
    monkeypatch.setattr(pretrained, "published_hash", lambda _: digest[:8])
    monkeypatch.setattr("vos_lightning.proposals.detector.published_hash", lambda _: digest[:8])
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.backbone(image)["0"]
        for options in ({"pretrained": "COCO_V1"}, {"weights": str(path)}):
            ours = ProposalDetector("resnet50", **options).model.backbone(image)["0"]
            assert_close(ours / expected.std(), expected / expected.std())


# Who downloads and who does not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dmn_aoa.DMNAOA", "emvos.EMVOS", "munet.MUNet", "pmnet.PMNet", "pmvos.PMVOS", "stcn.STCN", "stm.STM"]
)
def test_every_network_asks_in_one_place(name: str, cache: Path) -> None:
    with torch.device("meta"):
        module = module_of_network(f"vos_lightning.networks.{name}")  # its weights would be those of ImageNet
    assert isinstance(module.network, nn.Module)
    assert not cache.exists()
    with torch.device("meta"), pytest.raises(MissingWeightsError, match=r"download\.pytorch\.org"):
        type(module.network).published()


def test_detectors_ask_there_too(cache: Path) -> None:
    for architecture in ("resnet50", "resnet50_v2"):
        with torch.device("meta"), pytest.raises(MissingWeightsError, match="maskrcnn_resnet50_fpn"):
            ProposalDetector(architecture, pretrained="COCO_V1")
        with torch.device("meta"), weights_are_overwritten():
            ProposalDetector(architecture, pretrained="COCO_V1")
    with torch.device("meta"), weights_are_overwritten():
        ProposalDetector("resnet18", weights="on/the/machine/of/the/training.pth")


def test_precompute_says_what_is_missing(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", str(tmp_path / "nothing"), "--output", str(tmp_path / "out"), "--pretrained", "COCO_V1"]
    assert main(["precompute-proposals", *arguments]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "one.png").touch()
    assert main(["precompute-proposals", *arguments, "--device", "abacus"]) == 2
    assert "device 'abacus'" in capsys.readouterr().err
    assert main(["precompute-proposals", *arguments, "--device", "cpu"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert str(cache) in lines[0]
    assert "--weights FILE" in lines[0]
