"""How the keys of a file that authors have released read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vos_lightning.propagation.network import VOSNetwork

Adapted = tuple[dict[str, Tensor], dict[str, Any]]


def as_it_is(state: dict[str, Tensor]) -> Adapted:
    """Nothing to adapt."""
    return state, {}


@dataclass(frozen=True)
class ReleasedLayout:
    """How the keys of a released file read here.

    Attributes:
        module: class path of the LightningModule.
        network: class of the network.
        arguments: of the network, as the released code computes.
        renamed: prefix of their keys -> prefix of ours; the longest that fits counts.
        dropped: keys that nobody needs, with their shapes.
        adapt: changes tensors that are laid out otherwise here, before keys are renamed, and finds the arguments that depend on
            the file.
    """

    module: str
    network: type[VOSNetwork[Any, Any, Any]]
    arguments: Mapping[str, Any]
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
