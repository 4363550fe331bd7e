"""Fixtures: device, seeds, synthetic clips, and every network of the library."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterator
from urllib.error import URLError

import pytest
import torch

import vos_lightning.networks
from vos_lightning.propagation.network import VOSNetwork

torch.set_num_threads(1)  # pytest-xdist runs a process a core


def all_networks() -> dict[str, type[VOSNetwork]]:
    """Every VOSNetwork in ``vos_lightning.networks``: a new file is found without an edit elsewhere."""
    found = {}
    for module_info in pkgutil.iter_modules(vos_lightning.networks.__path__):
        module = importlib.import_module(f"vos_lightning.networks.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, VOSNetwork) and value.__module__ == module.__name__:
                found[module_info.name] = value
    return found


NETWORKS = all_networks()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "realdata" in item.keywords and not os.environ.get("VOS_REAL_DATA"):
            item.add_marker(pytest.mark.skip(reason="needs VOS_REAL_DATA"))


@pytest.fixture
def device() -> torch.device:
    return torch.device(os.environ.get("VOS_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest, device: torch.device) -> VOSNetwork:
    """Every network, small, random, in evaluation mode."""
    torch.manual_seed(1)
    return NETWORKS[request.param].small().to(device).eval()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be downloaded fails as on a machine without a network."""

    def refuse(request: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
