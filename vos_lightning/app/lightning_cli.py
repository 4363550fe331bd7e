"""LightningCLI with this project's callbacks, loggers and one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from vos_lightning.app.clusters import TorchrunEnvironment
from vos_lightning.app.composition import ExperimentError
from vos_lightning.app.devices import available_devices, launched_processes, require_all_processes, share_batch
from vos_lightning.app.runs import Run, Stage
from vos_lightning.callbacks.finite import FiniteCheckpoint, FiniteNumbers
from vos_lightning.callbacks.last_checkpoint import LastCheckpoint, NoSignals, ResumingTrainer
from vos_lightning.callbacks.panels import FramePanels
from vos_lightning.callbacks.predictions import PredictionWriter
from vos_lightning.callbacks.ranks import end_ranks, lost_rank, pass_on, watch_ranks
from vos_lightning.callbacks.stopping import LostProcessError, Stopped, StopRequest
from vos_lightning.callbacks.throughput import Throughput
from vos_lightning.callbacks.visuals import EvaluationPictures
from vos_lightning.checkpoints.loading import load_weights
from vos_lightning.checkpoints.saving import AtomicCheckpointIO
from vos_lightning.io.files import naming
from vos_lightning.io.pretrained import MissingWeightsError, before_download, weights_are_overwritten

WandbMode = Literal["auto", "online", "offline", "disabled"]


class VOSCommandLine(LightningCLI):
    """Builds trainer, module and data module from one composed configuration and command-line overrides."""

    def __init__(self, file: Path, run: Run, name: str, stage: Stage | None, request: StopRequest | None = None) -> None:
        """Parse and instantiate.

        Pretrained weights are loaded only where a training starts from them: an evaluation would overwrite them at once, as would
        a training that starts or continues from a checkpoint. The data are looked for before anything is downloaded.

        Args:
            file: the composed configuration.
            run: the directory of the run.
            name: name of the experiment.
            stage: Lightning's stage that follows; None only parses (``.parser``, ``.config``).
            request: signals that stop the training.

        Raises:
            ExperimentError: the message of the argument parser, in one line; or pretrained weights are not in the cache and
                cannot be downloaded; or, where they would be downloaded, the data are not where they should be.
        """
        self.run_folder, self.name, self.stage = run, name, stage
        self.request = request or StopRequest()
        checkpoints = str(run.directory / "checkpoints")
        fixed = [
            f"--trainer.default_root_dir={run.directory}",
            f"--best_checkpoint.dirpath={checkpoints}",
            f"--last_checkpoint.dirpath={checkpoints}",
        ]
        quiet()
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                trainer_class=ResumingTrainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                seed_everything_default=0,
                parser_kwargs={"exit_on_error": False},
                args=["--config", str(file), *fixed],
                run=False,
            )
        except ExperimentError:
            raise
        except (argparse.ArgumentError, ValueError) as error:
            raise ExperimentError(condense(str(error))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks that every run has, addressable by name, and the project's own options."""
        parser.add_argument("--wandb.mode", type=WandbMode, default="auto", help="auto: online with an API key, else offline")
        parser.add_argument("--wandb.project", type=str, default="vos_lightning")
        parser.add_argument(
            "--wandb.group", type=str | None, default=None, help="default: the experiment's name, which groups its seeds"
        )
        parser.add_argument(
            "--initial_weights", type=str | None, default=None, help="checkpoint whose weights training starts from"
        )
        parser.add_argument(
            "--scale_batch",
            type=bool,
            default=False,
            help="use devices that cannot share the experiment's batch: a larger batch, and learning rates times the square "
            "root of its growth; departs from the published training",
        )
        parser.add_lightning_class_args(FiniteCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(EvaluationPictures, "pictures")
        parser.add_lightning_class_args(FramePanels, "panels")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(FiniteNumbers, "finite")
        parser.set_defaults(
            {
                "best_checkpoint.monitor": "val_jf",
                "best_checkpoint.mode": "max",
                "best_checkpoint.filename": "best-step={step:06d}-jf={val_jf:.4f}",
                "best_checkpoint.auto_insert_metric_name": False,
                # A validation that is repeated after a kill replaces the file that it had written.
                "best_checkpoint.enable_version_counter": False,
                "last_checkpoint.filename": "last",
                "last_checkpoint.every_n_train_steps": 200,
                "last_checkpoint.enable_version_counter": False,
                # Training is one long epoch of max_steps steps (see data_modules.base); no clip is read twice and no epoch
                # repeats.
                "trainer.max_epochs": 1,
                "trainer.use_distributed_sampler": False,
                "trainer.check_val_every_n_epoch": None,
                "trainer.num_sanity_val_steps": 0,
                "trainer.log_every_n_steps": 10,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Check that all processes take part, and that a training has a number of steps and devices that can share its batch."""
        if self.stage is None:
            return
        asked = {key: self.config["trainer"][key] for key in ("devices", "num_nodes")}
        devices = require_all_processes(asked, launched_processes())
        if devices is not None:
            self.config["trainer"]["devices"] = devices
        if self.stage != "fit":
            return
        if int(self.config["trainer"]["max_steps"]) <= 0 and not self.config["trainer"]["fast_dev_run"]:
            raise ExperimentError("trainer.max_steps is not set: trainings are counted in steps, e.g. --trainer.max_steps=64000")
        self._share_batch()

    def _share_batch(self) -> None:
        trainer, data, model = self.config["trainer"], self.config["data"]["init_args"], self.config["model"]["init_args"]
        loading = data.get("loading")
        if loading is None or not isinstance(trainer["accelerator"], str):
            return
        asked = {key: trainer[key] for key in ("devices", "num_nodes", "accelerator")}
        share = share_batch(asked, loading["batch_size"], self.config["scale_batch"], available_devices, launched_processes())
        if share.note and getattr(rank_zero_only, "rank", 0) == 0:
            Console(stderr=True).print(share.note, highlight=False, soft_wrap=True)
        if share.devices is not None:
            trainer["devices"] = share.devices
        loading["batch_size"] = share.batch_size
        rates = model.get("optimisation", model)
        if "learning_rate" in rates:
            rates["learning_rate"] *= share.rate_factor

    def instantiate_classes(self) -> None:
        """Module, data module and trainer; see :meth:`__init__` for pretrained weights."""
        if self.stage is None:
            return
        fresh = self.stage == "fit" and not self.config["initial_weights"] and self.run_folder.resumed_checkpoint is None
        try:
            with before_download(self._look_for_data) if fresh else weights_are_overwritten():
                super().instantiate_classes()
        except Exception as error:
            # Around what a constructor raises, jsonargparse puts an error of its own that is as long as the whole configuration.
            causes = list(_causes(error))
            for cause in causes:
                if isinstance(cause, _WrongDataError):
                    raise ExperimentError(str(cause)) from error
            for cause in causes:
                if isinstance(cause, MissingWeightsError):
                    options = " ".join(f"--{key}=null" for key in _pretrained_options(self.config["model"].as_dict(), "model"))
                    raise ExperimentError(f"{cause}, or start from random weights: {options}") from error
            refused = next((cause for cause in causes if isinstance(cause, MisconfigurationException)), None)
            if refused is not None:
                raise ExperimentError(condense(str(refused))) from error
            raise

    def _look_for_data(self) -> None:
        """Raise the error of the data module if its folders are missing."""
        data = self.parser.instantiate_classes(Namespace(data=self.config["data"]))["data"]
        try:
            data.setup("fit")
        except (ValueError, OSError) as error:
            raise _WrongDataError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add loggers, the handling of signals, and the environment of a cluster; that of SLURM does not requeue jobs itself."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            kwargs["logger"] = self._loggers()
        kwargs["callbacks"] = list(config.get("callbacks") or [])
        if kwargs.get("logger", config.get("logger")):
            kwargs["callbacks"].append(LearningRateMonitor("step"))
        plugins = config.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))
        elif TorchrunEnvironment.detect():
            kwargs["plugins"].append(TorchrunEnvironment())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ImportError) as error:  # devices or libraries that the machine has not
            raise ExperimentError(f"trainer: {condense(str(error))}") from error
        trainer._signal_connector = NoSignals(trainer)
        watch_ranks(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint):
                callback.request = self.request
        weights = self.config_init.get("initial_weights")
        if self.stage == "fit" and weights and self.run_folder.resumed_checkpoint is None:
            load_weights(self.model, Path(weights), start=True)
        return trainer

    def _loggers(self) -> list[Logger]:
        run = self.run_folder
        # Every start has its own folder: CSVLogger deletes the metrics of a folder that exists.
        # Every row is written at once, so that a killed training loses none.
        csv = RunLogs(run.directory, name="logs", version=f"start_{run.start_number()}", flush_logs_every_n_steps=1)
        mode: WandbMode = self.config_init["wandb"]["mode"]
        if self.stage != "fit" or mode == "disabled" or not has_wandb():
            return [csv]
        if mode == "auto":
            mode = "online" if has_wandb_key() else "offline"
        if mode == "offline":
            os.environ.setdefault("WANDB_MODE", "offline")
        run.directory.mkdir(parents=True, exist_ok=True)
        return [
            csv,
            WandbLogger(
                name=self.name,
                group=self.config_init["wandb"]["group"] or self.name,
                job_type="train",
                project=self.config_init["wandb"]["project"],
                save_dir=run.directory,
                # One process alone writes the file, and only that process logs.
                id=run.wandb_id() if getattr(rank_zero_only, "rank", 0) == 0 else None,
                resume="allow",
                offline=mode == "offline",
                log_model=False,
                settings=_flushing(),
            ),
        ]


class LogConfiguration(Callback):
    """Gives every logger what a run is: its configuration, code, packages and hardware.

    Args:
        configuration: plain values, nested in mappings.
    """

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        super().__init__()
        self.configuration = configuration

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Log it, when all processes have been started."""
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(self.configuration))


class RunLogs(CSVLogger):
    """CSV files whose errors name the file, and do not hide the error because of which a training ends."""

    def save(self) -> None:
        """Write what was logged.

        Raises:
            OSError: it cannot be written.
        """
        with naming(Path(self.log_dir) / "metrics.csv"):
            super().save()

    def finalize(self, status: str) -> None:
        """Write what was logged, at the end of a training that has succeeded or failed."""
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            super().finalize(status)


def fit(cli: VOSCommandLine, resume: Path | None, request: StopRequest) -> None:
    """Train.

    Args:
        cli: with ``request`` in its :class:`LastCheckpoint`.
        resume: checkpoint from which the training goes on.
        request: signals that ask to stop; they are deferred.

    Raises:
        Stopped: a signal asked for it.
        LostProcessError: a loader of data, or the process of another device, has died.
    """
    trainer = cli.trainer
    try:
        with request.passed_on(functools.partial(pass_on, trainer)):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=str(resume) if resume else None, weights_only=True)
    except Stopped:
        end_ranks(trainer)
        raise
    except Exception as error:
        worker = "DataLoader worker" in str(error) and isinstance(error, RuntimeError)
        if not worker and not lost_rank(error, trainer):
            raise
        end_ranks(trainer)
        request.check()  # a scheduler signals all processes, and another one may have ended before this one
        if worker:
            raise LostProcessError(
                f"a process that reads the training data has died ({condense(str(error))}), often for lack of memory: start the "
                "same command again, perhaps with fewer data.init_args.loading.num_workers"
            ) from error
        raise LostProcessError("the process of another device has ended: start the same command again") from error


class _WrongDataError(ValueError):
    """The data are wrong; raised before anything is downloaded."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _pretrained_options(section: Mapping[str, Any], where: str) -> list[str]:
    """Dotted names of the arguments that name pretrained weights."""
    found = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            found += _pretrained_options(value, f"{where}.{key}")
        elif key in ("weights", "pretrained") and value is not None:
            found.append(f"{where}.{key}")
    return found


def has_wandb() -> bool:
    """Whether Weights & Biases is installed."""
    return importlib.util.find_spec("wandb") is not None


def _flushing() -> dict[str, Any]:
    """Settings by which W&B writes to its file every second, so that a killed training loses no more than that.

    By default it writes every 15 seconds, and a training that is killed before leaves an empty file.
    """
    try:
        import wandb
    except ImportError:  # stood in for in tests
        return {}
    name = "x_transaction_log_flush_interval"
    return {name: 1.0} if name in getattr(wandb.Settings, "model_fields", {}) else {}


def has_wandb_key() -> bool:
    """Whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def condense(message: str) -> str:
    """The parser's message in one line: the complaint and the key that it concerns, without the values around it."""
    unknown = re.search(
        r"Key '(?P<a>[^']+)' is not expected"
        r"|[Oo]ption '(?P<b>[^']+)' is not accepted"
        r"|[Uu]nrecognized arguments?:? '?(?P<c>[^\s'(]+)"
        r"|Group '(?P<group>[^']+)' does not accept option '(?P<d>[^']+)'",
        message,
    )
    if unknown:
        key = ".".join(filter(None, (unknown["group"], unknown["a"] or unknown["b"] or unknown["c"] or unknown["d"])))
        where = re.search(r"Parser key \"(?P<key>[^\"]+)\"", message)
        at = f" of {where['key']}" if where and where["key"] not in key else ""
        return f"unknown option {key}{at}: `vos show EXP --options` lists what there is"
    # A value of a class may be of several types, and the complaint lies inside: `Parser key "model": ... Errors: - Problem with
    # given class_path 'C': Parser key "network": ... - Expected a <class 'NoneType'> Given value ...`.
    text = " ".join(message.split())
    keys = re.findall(r"[Pp]arser key \"([^\"]+)\"", text)
    text = re.split(r" - Expected a <class 'NoneType'>| Given value", text)[0]
    text = re.sub(r".*Errors: - ", "", text)
    text = re.sub(r"Problem with given class_path '[^']+': |[Pp]arser key \"[^\"]+\": ", "", text)
    return f"{'.'.join(keys)}: {text}"[:400] if keys else text[:400]


def quiet() -> None:
    """Silence warnings about choices that are intended here, so that the remaining ones get read."""
    # Lightning 2.6.6 calls functions that newer versions of jsonargparse deprecate.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        "LightningCLI's args parameter is intended",  # we call it from our own command line
        r"Found \d+ module\(s\) in eval mode",  # frozen normalisation
        "Attribute 'network' is an instance of",  # what makes a checkpoint describe its network
        "The number of training batches",
        r"It is recommended to use `self\.log\(.*sync_dist=True",  # every process logs the same score, of rows that are gathered
        r"The '\w+_dataloader' does not have many workers",  # videos are decoded frame by frame, see data_modules.base
        r".*isinstance\(treespec, LeafSpec\)",
        "Checkpoint directory .* exists and is not empty",  # resuming is the rule here
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.getMessage())
