"""Every network of the library."""

from __future__ import annotations

import importlib
import pkgutil

import vos_lightning.networks
from vos_lightning.propagation.network import VOSNetwork


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
