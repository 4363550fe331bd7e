"""How the keys of a file that authors have released read here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.propagation.network import VOSNetwork

Adapted = tuple[dict[str, Tensor], dict[str, Any]]


def as_it_is(state: dict[str, Tensor]) -> Adapted:
    """Nothing to adapt."""
    return state, {}


def describe(kind: type, **arguments: Any) -> dict[str, Any]:
    """A class and its arguments as a configuration file says them."""
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def build(section: Mapping[str, Any]) -> Any:
    """The object that :func:`describe` describes, with those in its arguments."""
    module_name, _, name = section["class_path"].rpartition(".")
    arguments = {
        key: build(value) if isinstance(value, Mapping) and "class_path" in value else value
        for key, value in section["init_args"].items()
    }
    return getattr(importlib.import_module(module_name), name)(**arguments)


def trunk(**arguments: Any) -> dict[str, Any]:
    """The ResNet up to stride 16 of STM and STCN, without pretrained weights."""
    common = {"last": "layer3", "weights": None, "train_from": "stem", "norm": "frozen_statistics"}
    return describe(ResNetPyramid, **common, **arguments)


@dataclass(frozen=True)
class ReleasedLayout:
    """How the keys of a released file read here.

    Attributes:
        module: class path of the LightningModule.
        network: class of the network.
        describe: the ``init_args`` of the network as the released code computes, with what ``adapt`` has found in the file.
        renamed: prefix of their keys -> prefix of ours; the longest that fits counts.
        dropped: keys that nobody needs, with their shapes.
        adapt: changes tensors that are laid out otherwise here, before keys are renamed, and finds the arguments that depend on
            the file.
    """

    module: str
    network: type[VOSNetwork[Any, Any, Any]]
    describe: Callable[..., dict[str, Any]]
    renamed: Mapping[str, str]
    dropped: Mapping[str, tuple[int, ...]]
    adapt: Callable[[dict[str, Tensor]], Adapted] = as_it_is

    def rename(self, key: str) -> str | None:
        """Our name of their key; None if it belongs to nothing."""
        fitting = [prefix for prefix in self.renamed if key.startswith(prefix)]
        if not fitting:
            return None
        prefix = max(fitting, key=len)
        return self.renamed[prefix] + key.removeprefix(prefix)
