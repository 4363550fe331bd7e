"""How the processes of a training that ``torchrun`` has started find each other."""

from __future__ import annotations

import datetime
import functools
import os

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from torch.distributed import TCPStore

WAIT = datetime.timedelta(minutes=30)
"""How long processes wait for the first one, which may load a checkpoint from a slow drive."""


class TorchrunEnvironment(TorchElasticEnvironment):
    """Processes of ``torchrun``, with a key-value store for every training.

    The processes of a training find each other through a store. ``torchrun`` offers one for as long as it runs, where the second
    training of a staged experiment would read what the first one has left, and wait for ever. So the first process opens a store
    of its own, and the store of ``torchrun`` only tells the others at which port.
    """

    @functools.cached_property
    def _port(self) -> int:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # the first process opens the store anyway
            return super().main_port
        shared = TCPStore(self.main_address, super().main_port, is_master=False, timeout=WAIT)
        rank = self.global_rank()
        training = shared.add(f"vos_lightning/trainings/{rank}", 1)  # every process counts the same trainings
        key = f"vos_lightning/port/{training}"
        if rank == 0:
            self._store = TCPStore(self.main_address, 0, is_master=True, multi_tenant=True, wait_for_workers=False)
            shared.set(key, str(self._store.port))
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        return int(shared.get(key))

    @property
    def main_port(self) -> int:
        """Port of the store of this training, on the node of the first process."""
        return self._port
