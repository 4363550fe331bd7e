"""How the keys of a released file map to the keys of this library."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.propagation.network import VOSNetwork

Adapted = tuple[dict[str, Tensor], dict[str, Any]]


def as_it_is(state: dict[str, Tensor]) -> Adapted:
    """Return the state as it is, without arguments that depend on the file."""
    return state, {}


def describe(kind: type, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments in the form of a configuration file."""
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def build(section: Mapping[str, Any]) -> Any:
    """The object that :func:`describe` describes; described objects among its arguments are built too."""
    arguments = {
        key: build(value) if isinstance(value, Mapping) and "class_path" in value else value
        for key, value in section["init_args"].items()
    }
    return pkgutil.resolve_name(section["class_path"])(**arguments)


def trunk(**arguments: Any) -> dict[str, Any]:
    """The ResNet up to stride 16 of STM and STCN, without pretrained weights."""
    common = {"last": "layer3", "weights": None, "train_from": "stem", "norm": "frozen_statistics"}
    return describe(ResNetPyramid, **common, **arguments)


@dataclass(frozen=True)
class ReleasedFormat:
    """How the keys of a released file map to the keys of this library.

    Attributes:
        module: class path of the LightningModule.
        network: class of the network.
        describe: function that returns the ``init_args`` of the network of the released code; it takes the arguments that
            ``adapt`` found.
        renamed: prefix of the authors' keys -> prefix of our keys; the longest matching prefix counts.
        dropped: keys that are not used, with their shapes.
        adapt: function that changes tensors whose layout differs here, before keys are renamed, and returns the arguments that
            depend on the file.
    """

    module: str
    network: type[VOSNetwork[Any, Any, Any]]
    describe: Callable[..., dict[str, Any]]
    renamed: Mapping[str, str]
    dropped: Mapping[str, tuple[int, ...]]
    adapt: Callable[[dict[str, Tensor]], Adapted] = as_it_is

    def rename(self, key: str) -> str | None:
        """Our key for a key of the authors; None if no prefix matches."""
        fitting = [prefix for prefix in self.renamed if key.startswith(prefix)]
        if not fitting:
            return None
        prefix = max(fitting, key=len)
        return self.renamed[prefix] + key.removeprefix(prefix)
