"""How many devices a training uses, as many as can share its batch equally, and what they are called."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vos_lightning.app.composition import ExperimentError

if TYPE_CHECKING:
    import torch
    from lightning.fabric.plugins.environments import ClusterEnvironment


@dataclass(frozen=True)
class Share:
    """Devices, batch size and learning rate with which a training runs."""

    devices: int | None
    """Number of devices on every node; None leaves what was asked for."""
    batch_size: int
    """Number of clips of a step, over all processes."""
    rate_factor: float
    """Factor that multiplies every learning rate."""
    note: str | None = None
    """One line that says what differs from what was asked for; None if nothing does."""


def share_batch(
    trainer: Mapping[str, Any],
    batch_size: int,
    scale: bool = False,
    available: Callable[[Any], int] = lambda accelerator: 1,  # noqa: ARG005
    launched: int | None = None,
) -> Share:
    """Choose the devices of a training, so that its processes share the batch equally.

    Where all devices are asked for (``auto``, ``-1``), the training gets the largest number of devices that divides the batch.

    With ``scale``, all devices are used: the batch becomes the smallest multiple of their number that is not below the
    experiment's batch, and learning rates are multiplied by the square root of its growth. That is the rule for Adam, which
    divides gradients by their root mean square. The number of steps stays the same.

    Args:
        trainer: the ``trainer`` section: ``devices``, ``num_nodes``, ``accelerator``.
        batch_size: number of clips of a step in the experiment, >= 1.
        scale: allow a larger batch.
        available: function that gives the number of devices of a node for an ``accelerator``.
        launched: number of processes that a cluster has already started; None if the training starts them itself.

    Raises:
        ExperimentError: the requested devices cannot share the batch equally.

    Reference:
        Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022: the square root.
    """
    nodes = trainer.get("num_nodes") or 1
    asked = _number(trainer.get("devices", "auto"))
    if asked == 0:  # the trainer refuses this value itself
        return Share(None, batch_size, 1.0)
    started = max(1, launched // nodes) if launched else None
    most = asked or started or max(1, available(trainer.get("accelerator", "auto")))
    where = f"{most} device{'s' * (most > 1)}" + (f" on each of {nodes} nodes" if nodes > 1 else "")
    clips = f"a batch of {batch_size} clip{'s' * (batch_size > 1)}"
    chosen = None if asked or launched else most
    if scale:
        return _scaled(batch_size, nodes * most, chosen, f"{clips} on {where}")
    if batch_size % (nodes * most) == 0:
        return Share(chosen, batch_size, 1.0)
    fitting = [devices for devices in range(1, most + 1) if batch_size % (nodes * devices) == 0]
    larger = "--scale_batch=true enlarges the batch, which departs from the published training"
    if not fitting:
        raise ExperimentError(f"{clips} cannot be shared by {nodes} nodes: start fewer, or {larger}")
    if asked or launched:
        mend = f"start {fitting[-1]} process a node" if launched else f"--trainer.devices={fitting[-1]}"
        raise ExperimentError(
            f"{clips} cannot be shared by {where}, as it is not a multiple of {nodes * most} processes: {mend}, or {larger}"
        )
    each = " of every node" if nodes > 1 else ""
    note = f"{clips}: training on {fitting[-1]} of {most} devices{each}; {larger}"
    return Share(fitting[-1], batch_size, 1.0, note[0].upper() + note[1:])


def require_all_processes(trainer: Mapping[str, Any], launched: int | None) -> int | None:
    """Number of devices of a node, so that a training has as many processes as a cluster has started.

    Without this check, each of two processes that take one device would do the whole work, in the same folder.

    Args:
        trainer: the ``trainer`` section: ``devices`` as a number or ``auto``, ``num_nodes``.
        launched: number of processes that were started; None if the training starts them itself.

    Returns:
        The number to set; None leaves ``devices`` as it is.

    Raises:
        ExperimentError: the numbers disagree.
    """
    if launched is None:
        return None
    nodes, asked = trainer.get("num_nodes") or 1, _number(trainer.get("devices", "auto"))
    if asked is None and launched % nodes == 0:
        return launched // nodes
    if asked is None or nodes * asked != launched:
        raise ExperimentError(
            f"{launched} processes were started, but --trainer.devices={trainer.get('devices')} and --trainer.num_nodes={nodes} "
            f"ask for another number: their product has to be {launched}"
        )
    return None


def device_name(device: torch.device) -> str:
    """The model of an accelerator or of the CPU; its kind where the system does not tell the model."""
    import torch

    if device.type != "cpu":
        backend = torch.get_device_module(device)
        return str(backend.get_device_name(device)) if hasattr(backend, "get_device_name") else device.type.upper()
    with contextlib.suppress(OSError):  # Linux alone has this file; Python's own answer there is empty
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _scaled(batch_size: int, processes: int, devices: int | None, before: str) -> Share:
    batch = math.ceil(batch_size / processes) * processes
    factor = math.sqrt(batch / batch_size)
    if batch == batch_size:
        return Share(devices, batch, 1.0, f"--scale_batch changes nothing: {before}")
    note = (
        f"--scale_batch: {batch} clips a step instead of {before}; learning rates times {factor:.4g} (the square root, the rule "
        "for Adam), as many steps as before; this departs from the published training"
    )
    return Share(devices, batch, factor, note)


def _number(devices: Any) -> int | None:
    """How many devices ``trainer.devices`` asks for; None for all of them."""
    if devices is None or devices in ("auto", "-1", -1, [-1]):
        return None
    if isinstance(devices, str):
        names = [name for name in devices.split(",") if name.strip()]
        return len(names) if "," in devices else int(devices) if devices.strip().isdigit() else 0
    return len(devices) if isinstance(devices, (list, tuple)) else int(devices)


def available_devices(accelerator: str) -> int:
    """How many devices of this machine ``trainer.devices=auto`` takes."""
    from lightning.pytorch.accelerators import (
        Accelerator,
        AcceleratorRegistry,
        CPUAccelerator,
        CUDAAccelerator,
        MPSAccelerator,
        XLAAccelerator,
    )

    # Lightning's classes are asked, as constructing an accelerator fails where its library is not installed.
    graphics: list[type[Accelerator]] = [MPSAccelerator, CUDAAccelerator]
    groups: dict[str, list[type[Accelerator]]] = {"auto": [XLAAccelerator, *graphics], "gpu": graphics}
    known: list[Any] = list(groups.get(accelerator, ()))
    if accelerator in AcceleratorRegistry:
        known.append(AcceleratorRegistry[accelerator]["accelerator"])
    return next(int(kind.auto_device_count()) for kind in (*known, CPUAccelerator) if kind.is_available())


def launched_processes() -> int | None:
    """How many processes a cluster has started, this one included; None if a training starts its own processes."""
    found = _cluster()
    return found.world_size() if found else None


@dataclass(frozen=True)
class Place:
    """This process among those of a command."""

    rank: int = 0
    """Number of this process, from 0."""
    processes: int = 1
    """Number of all processes, on all nodes."""
    local_rank: int = 0
    """Number of this process among those on its node."""


def launched_place() -> Place:
    """This process among those that a cluster (torchrun, SLURM, LSF, MPI) has started; the only one if it has started none."""
    found = _cluster()
    return Place(found.global_rank(), found.world_size(), found.local_rank()) if found else Place()


def _cluster() -> ClusterEnvironment | None:
    from lightning.fabric.plugins.environments import LSFEnvironment, MPIEnvironment, TorchElasticEnvironment
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    kinds = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    return next((kind() for kind in kinds if kind.detect()), None)
