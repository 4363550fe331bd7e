"""Fixtures: threads, device, seeds, and every network of the library."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import pytest

from tests import processor_time

if TYPE_CHECKING:
    import torch

    from vos_lightning.propagation.network import VOSNetwork

# pytest-xdist runs a process a core, so that every process takes one thread. Libraries read these variables when they are loaded;
# nothing above loads one of them. Processes that tests start inherit the variables.
THREADS = os.environ.get("VOS_TEST_THREADS", "1")
for variable in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
):
    os.environ[variable] = THREADS

# Found by name, so that the process that only hands tests to others loads no library.
NETWORK_NAMES = sorted(
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "vos_lightning" / "networks")])
)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(processor_time)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        _load_libraries()


def _load_libraries() -> None:
    # Before the library, whose type checks are compiled into it on import: whatever is imported for the first time meanwhile is
    # compiled anew as well, which takes longer than the rest of the start.
    import cv2
    import lightning.pytorch.cli  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(int(THREADS))
    cv2.setNumThreads(int(THREADS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "realdata" in item.keywords and not os.environ.get("VOS_REAL_DATA"):
            item.add_marker(pytest.mark.skip(reason="needs VOS_REAL_DATA"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def device() -> torch.device:
    import torch

    return torch.device(os.environ.get("VOS_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    import torch

    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=NETWORK_NAMES)
def network(request: pytest.FixtureRequest, device: torch.device) -> VOSNetwork:
    """Every network, small, random, in evaluation mode."""
    import torch

    from tests.networks import NETWORKS

    torch.manual_seed(1)
    return NETWORKS[request.param].small().to(device).eval()


@pytest.fixture
def _types_are_not_checked() -> Iterator[None]:
    """The library refuses wrong values by itself; in the tests, the type checker is faster where it can see them."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be downloaded fails as on a machine without a network."""
    import torch

    def refuse(request: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
