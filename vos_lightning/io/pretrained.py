"""Weights that torchvision publishes: read from its cache, and downloaded into it if they are missing."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from vos_lightning.io.files import sha256_of

BATCH_NORM_EPSILON = 1e-5
"""Epsilon of every batch normalisation in this library; PyTorch's default."""
_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up, as a firewall may drop packets without an error."""
_WITHOUT_EPSILON: tuple[WeightsEnum, ...] = (MaskRCNN_ResNet50_FPN_Weights.COCO_V1,)
"""Weights that were trained with batch normalisation without an epsilon."""

_overwritten: ContextVar[bool] = ContextVar("overwritten", default=False)
_before_download: ContextVar[Callable[[], Any] | None] = ContextVar("before_download", default=None)


class MissingWeightsError(FileNotFoundError):
    """Pretrained weights that are not in the cache and cannot be downloaded."""


@contextlib.contextmanager
def weights_are_overwritten() -> Iterator[None]:
    """Inside this context, networks load no pretrained weights, because the parameters of a checkpoint replace them at once."""
    token = _overwritten.set(True)
    try:
        yield
    finally:
        _overwritten.reset(token)


@contextlib.contextmanager
def before_download(check: Callable[[], Any]) -> Iterator[None]:
    """Inside this context, call ``check`` before anything is downloaded; if it raises, nothing is downloaded."""
    token = _before_download.set(check)
    try:
        yield
    finally:
        _before_download.reset(token)


def is_overwritten() -> bool:
    """Whether pretrained weights are not loaded at present, see :func:`weights_are_overwritten`."""
    return _overwritten.get()


def announce_download() -> None:
    """Run the check of :func:`before_download`, if there is one, where another library is going to download weights."""
    check = _before_download.get()
    if check is not None:
        check()


def read_pretrained(weights: WeightsEnum) -> dict[str, Tensor] | None:
    """The state dict of weights that torchvision publishes.

    A file in the cache, ``$TORCH_HOME/hub/checkpoints``, is read; a missing one is downloaded to the cache first. In both cases
    the file must have the hash that is part of its name. Parameters of batch normalisation are returned for an epsilon of
    :data:`BATCH_NORM_EPSILON`, also if the published ones belong to none.

    Args:
        weights: a member of one of torchvision's enumerations, such as ``ResNet50_Weights.IMAGENET1K_V1``.

    Returns:
        The tensors by torchvision's names; None inside :func:`weights_are_overwritten`.

    Raises:
        MissingWeightsError: the file is missing and cannot be downloaded.
        ValueError: the file in the cache is damaged or is a different file.
    """
    if is_overwritten():
        return None
    path = published_path(weights)
    if not path.is_file():
        _download(weights, path)
    elif not sha256_of(path).startswith(published_hash(weights)):
        raise ValueError(f"{path}: the file is damaged, or is not that of {weights.url}: remove it, or put that one in its place")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return for_epsilon(state) if weights in _WITHOUT_EPSILON else state


def published_path(weights: WeightsEnum) -> Path:
    """Path of the file of published weights in the cache, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(weights.url).path)


def published_hash(weights: WeightsEnum) -> str:
    """The first digits of the SHA-256 of a published file, which are part of its name."""
    found = re.search(r"-([0-9a-f]{8,})\.", published_path(weights).name)
    return found[1] if found else ""


def for_epsilon(state: dict[str, Tensor], epsilon: float = BATCH_NORM_EPSILON) -> dict[str, Tensor]:
    """Convert parameters of batch normalisation without an epsilon to equivalent ones with an epsilon."""
    scaled = dict(state)
    for key, variance in state.items():
        if key.endswith(".running_var"):
            weight = key.removesuffix("running_var") + "weight"
            scaled[weight] = state[weight] * ((variance + epsilon) / variance).sqrt()
    return scaled


def _download(weights: WeightsEnum, path: Path) -> None:
    announce_download()
    url = weights.url
    sys.stderr.write(f"downloading {url} to {path}\n")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout or _TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch.hub writes to a temporary file, compares the hash and then renames the file.
        torch.hub.download_url_to_file(url, str(path), published_hash(weights) or None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingWeightsError(
            f"pretrained weights are missing and cannot be downloaded ({reason}): on a machine with a network, download {url} "
            f"and put the file into {path.parent}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
