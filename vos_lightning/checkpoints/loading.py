"""From a checkpoint file to a streaming engine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Required,  # pydantic reads these from `typing` from Python 3.12 on
)

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch import __version__ as lightning_version
from pydantic import Field, InstanceOf
from torch import Tensor
from typing_extensions import TypedDict

from vos_lightning.checkpoints.descriptions import checked_class, own_class
from vos_lightning.checkpoints.files import LITE
from vos_lightning.checkpoints.portable import SUFFIX, read_portable, resolve
from vos_lightning.io.documents import checked
from vos_lightning.io.pretrained import weights_are_overwritten
from vos_lightning.io.tensors import read_tensors
from vos_lightning.io.texts import check_plain
from vos_lightning.io.weights import require_finite
from vos_lightning.modules.base import VOSModule
from vos_lightning.propagation.engine import InferenceEngine

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""The function with which Lightning builds the module of a checkpoint; a checkpoint names it."""
_HYPER_PARAMETERS = VOSModule.CHECKPOINT_HYPER_PARAMS_KEY


class _Checkpoint(TypedDict, total=False):
    """What is read of a checkpoint, beside what Lightning reads."""

    state_dict: Required[dict[str, InstanceOf[Tensor]]]
    hyper_parameters: dict[str, Any]
    global_step: Annotated[int, Field(ge=0)]


def load_engine(
    checkpoint: str | Path = LITE,
    *,
    device: str = "auto",
    precision: torch.dtype | None = None,
    short_side: int | Literal["checkpoint"] | None = "checkpoint",
    max_memory_frames: int | None = None,
) -> InferenceEngine:
    """Load a trained system for streaming.

    Only tensors and plain values are unpickled (``weights_only=True``). Every class that the checkpoint names, at any depth, is
    looked at before anything is imported or built: it must be a class of this library, or one that derives from a class of this
    library and whose module the caller has already imported. Files that the checkpoint names are not opened. A checkpoint from
    elsewhere therefore neither imports a module of its choice nor runs code of its own; see :func:`describe_model`.

    Args:
        checkpoint: a ``.ckpt`` file of a run that was started from an experiment, or a ``.safetensors`` file that ``vos export``
            has made of one; it describes its own network. ``"lite"`` is the small network that comes with the library.
        device: ``auto`` takes an accelerator if there is one; otherwise the name of a device, as ``cpu`` or ``cuda:1``.
        precision: autocast type (``torch.bfloat16``, ``torch.float16``); None for full precision.
        short_side: short side in pixels at which frames are processed; None for the size of the video, ``checkpoint`` for the
            size of the run.
        max_memory_frames: most remembered frames without annotation, the latest ones, where the run's memory would otherwise grow
            with every video, so that memory and time a frame stay bounded; None keeps as many as the run does.

    Returns:
        An engine on a network in evaluation mode, with the evaluation propagation of the run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this library or does not fit it, its weights are not finite, or the device is
            not available.
    """
    module = load_module(checkpoint, device=device)
    if short_side != "checkpoint":
        module.evaluation = dataclasses.replace(module.evaluation, short_side=short_side)
    if max_memory_frames is not None:
        propagation = module.eval_propagation
        module.eval_propagation = dataclasses.replace(propagation, policy=propagation.policy.bounded(max_memory_frames))
    return module.engine(precision)


def load_module(checkpoint: str | Path, *, device: str = "auto") -> VOSModule:
    """Load the LightningModule of a checkpoint in evaluation mode, without gradients; see :func:`load_engine`."""
    path = _existing(checkpoint)
    target = resolve_device(device)
    class_path = describe_model(path)["class_path"]
    module_class = own_class(class_path)
    if module_class is None or not issubclass(module_class, VOSModule):
        raise ValueError(f"{path}: the checkpoint needs {class_path}, which is no VOSModule of this version of the library")
    try:
        with _quiet(), weights_are_overwritten():
            module = module_class.load_from_checkpoint(_as_lightning_reads(path), map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # jsonargparse, Lightning and PyTorch each raise their own kinds for a checkpoint that does not fit.
        raise ValueError(f"{path}: the checkpoint does not fit this version of {class_path}: {_one_line(error)}") from error
    require_finite(module.state_dict(), path)
    return module.to(target).eval().requires_grad_(False)


def module_of_network(class_path: str, *, small: bool = False) -> VOSModule:
    """The LightningModule of a network class, with all default arguments and random weights.

    Args:
        class_path: class path such as ``vos_lightning.networks.emvos.EMVOS``; its module is in the file of the same name in
            ``modules``.
        small: take the small network for tests (:meth:`VOSNetwork.small`).

    Raises:
        ValueError: there is no such network.
    """
    slug = class_path.rpartition(".")[0].rpartition(".")[2]
    try:
        network = pkgutil.resolve_name(class_path)
        candidates = vars(importlib.import_module(f"vos_lightning.modules.{slug}")).values()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no network {class_path}; name one as vos_lightning.networks.emvos.EMVOS") from error
    module: Any = next(m for m in candidates if isinstance(m, type) and issubclass(m, VOSModule) and m is not VOSModule)
    with _quiet(), weights_are_overwritten():
        built: VOSModule = module(network.small() if small else network.published(None))
    return built


def load_weights(module: LightningModule, checkpoint: str | Path, *, start: bool = False) -> None:
    """Load the parameters of a checkpoint into a module that was built from an experiment; all names and shapes must fit.

    Args:
        module: module whose parameters are replaced.
        checkpoint: a ``.ckpt`` file, or weights as :func:`load_engine` takes them.
        start: whether a training starts from these weights. The checkpoint may then be of the system that this one extends,
            without its ``new_parts``, which keep their initial values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, belongs to another network, or holds weights that are not finite.
    """
    path = _existing(checkpoint)
    state = _read(path)["state_dict"]
    require_finite(state, path)
    new_parts, base = (module.new_parts, module.base_part) if isinstance(module, VOSModule) else ((), "")
    if start and new_parts and not any(name.startswith(new_parts) for name in state):
        if base and not any(name.startswith(base) for name in state):
            state = {base + name.removeprefix("network."): value for name, value in state.items()}
        state = {**{k: v for k, v in module.state_dict().items() if k.startswith(new_parts)}, **state}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: the checkpoint does not fit this experiment's network: {_one_line(error)}") from error


def describe_model(checkpoint: str | Path) -> dict[str, Any]:
    """The ``model`` section of an experiment (``class_path``, ``init_args``) that builds the system of a checkpoint.

    What a checkpoint says about itself is read here and nowhere else. All of it is checked before anything of it is imported: its
    size and depth, every class, and every text. A text must be a plain word, for an argument that takes words, because the parser
    of arguments takes other texts for files that describe a class. Names of files with weights, from which a training may have
    started, are left out, as the parameters of the checkpoint take their place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, does not describe its module, or names a class of neither kind that
            :func:`load_engine` allows.
    """
    path = _existing(checkpoint)
    hyper_parameters = _read(path).get(_HYPER_PARAMETERS)
    class_path = hyper_parameters.get("_class_path") if isinstance(hyper_parameters, dict) else None
    if not isinstance(hyper_parameters, dict) or not isinstance(class_path, str):
        raise ValueError(f"{path}: the checkpoint does not name its module; load one of a run that started from an experiment")
    check_plain(hyper_parameters, path)
    if hyper_parameters.get("_instantiator", _INSTANTIATOR) != _INSTANTIATOR:
        raise ValueError(f"{path}: the checkpoint wants to be built by {str(hyper_parameters['_instantiator'])[:60]!r}")
    arguments = {key: value for key, value in hyper_parameters.items() if not str(key).startswith("_")}
    return checked_class(path, {"class_path": class_path, "init_args": arguments})


def decisive_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model`` section with every default written out, without the arguments that do not change a prediction.

    Two systems with the same decisive arguments and the same parameters predict the same. The ``training_arguments`` of the
    classes are left out. Arguments that the class of the module does not take (any more) are left out as well, as when a
    checkpoint is loaded.

    Args:
        model: ``class_path`` and ``init_args``, from an experiment or from :func:`describe_model`; its classes are imported.

    Raises:
        ValueError: a class does not exist, or an argument has a wrong value; the message comes from the argument parser.
    """
    class_path, arguments = str(model["class_path"]), dict(model.get("init_args") or {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    try:
        taken = inspect.signature(pkgutil.resolve_name(class_path)).parameters
        known = {key: value for key, value in arguments.items() if key in taken}
        parsed = parser.parse_object({"model": {"class_path": class_path, "init_args": known}}).as_dict()
    except (argparse.ArgumentError, ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(str(error)) from error
    decisive: dict[str, Any] = _without_training(parsed["model"])
    return decisive


def _without_training(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_training(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = value
    if isinstance(value.get("class_path"), str) and isinstance(value.get("init_args"), dict):
        ignored = getattr(pkgutil.resolve_name(value["class_path"]), "training_arguments", ())
        kept = {**value, "init_args": _without_keys(value["init_args"], ignored)}
    return {key: _without_training(entry) for key, entry in kept.items()}


def _without_keys(arguments: Mapping[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    """The arguments without the ignored ones, whose names are dotted inside groups."""
    kept = {}
    for key, value in arguments.items():
        if key in ignored:
            continue
        inside = [name.removeprefix(f"{key}.") for name in ignored if name.startswith(f"{key}.")]
        kept[key] = _without_keys(value, inside) if inside and isinstance(value, Mapping) else value
    return kept


def checkpoint_step(checkpoint: str | Path) -> int:
    """The optimiser step at which a checkpoint was written; 0 for imported weights."""
    return int(_read(resolve(checkpoint)).get("global_step", 0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that do not apply here."""
    with warnings.catch_warnings():
        # Lightning warns about the saved network, which is what makes a checkpoint describe its network.
        warnings.filterwarnings("ignore", message="Attribute 'network' is an instance of `nn.Module`")
        # Lightning 2.6.6 calls functions that newer versions of jsonargparse deprecate.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _existing(checkpoint: str | Path) -> Path:
    path = resolve(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    return path


def _as_lightning_reads(path: Path) -> Path | io.BytesIO:
    """The checkpoint itself, or what Lightning would have saved of other weights."""
    if path.suffix != SUFFIX:
        return path
    file = io.BytesIO()
    torch.save({**_read(path), "pytorch-lightning_version": lightning_version}, file)
    file.seek(0)
    return file


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; weights of another form are put into that of a checkpoint."""
    if path.suffix == SUFFIX:
        card, state = read_portable(path)
        arguments = {**(card["model"].get("init_args") or {}), "_class_path": card["model"].get("class_path")}
        return {
            "state_dict": state,
            "global_step": card["step"],
            _HYPER_PARAMETERS: {**arguments, "_instantiator": _INSTANTIATOR},
        }
    otherwise = "this is no checkpoint of a run that started from an experiment, or it is damaged or truncated"
    content = read_tensors(path, otherwise, mmap=True)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path}: this is no Lightning checkpoint (it has no state_dict)")
    checked(content, _Checkpoint, path, "this is no checkpoint of a run that started from an experiment")
    return content


def resolve_device(device: str) -> torch.device:
    """The device with a name; ``auto`` takes an accelerator if there is one.

    Raises:
        ValueError: the name is unknown, or the device is not available.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return accelerator or torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda, cuda:1 or mps") from error
    if resolved.type != "cpu" and (
        accelerator is None or resolved.type != accelerator.type or (resolved.index or 0) >= torch.accelerator.device_count()
    ):
        raise ValueError(f"device {device!r} is not available on this machine; use auto or cpu")
    return resolved


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
