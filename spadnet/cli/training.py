"""From a composed configuration to a training and back: what all verbs that train share."""

import inspect
import logging
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from spadnet.cli.data import Data
from spadnet.cli.usage import UsageError
from spadnet.data.labelled_steps import RankedSteps
from spadnet.models.registry import create_model, model_names
from spadnet.near_names import suggest
from spadnet.train.datamodule import StepDataModule
from spadnet.train.launch import find_launch, is_first_rank
from spadnet.train.loggers import SERVICES, check_services
from spadnet.train.meters import Meters
from spadnet.train.optim import OptimSettings
from spadnet.train.precision import choose_precision
from spadnet.train.run import FitResult, fit
from spadnet.train.run_folder import checkpoint_to_resume, record_run
from spadnet.train.step_task import StepTask
from spadnet.train.strategy import check_strategy
from spadnet.train.tokenizer_task import TokenizerTask
from spadnet.train.validation import Validate

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """What is trained, and on what."""

    task: StepTask
    data: StepDataModule


def plain(section: DictConfig) -> dict[str, Any]:
    """A part of the configuration as plain types, interpolations resolved."""
    content = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def call(build: Any, arguments: Mapping[str, Any], *, where: str) -> Any:
    """Call ``build`` with keyword arguments that a user may have added to the configuration.

    Args:
        build: Function or class.
        arguments: Keyword arguments.
        where: Part of the configuration, named in errors.

    Raises:
        UsageError: If it takes no such argument.
    """
    known = list(inspect.signature(build).parameters)
    for name in arguments:
        if name not in known:
            raise UsageError(f"{where}.{name}: no such argument{suggest(name, known)}")
    return build(**arguments)


def build_model(section: Mapping[str, Any], *, prefix: str) -> nn.Module:
    """Build the model that a ``model`` section names, from its remaining entries.

    Args:
        section: Name and arguments; a ``global_pool`` of None is the model's default.
        prefix: What the names of fitting models start with.
    """
    arguments = dict(section)
    if arguments.get("global_pool", "") is None:
        del arguments["global_pool"]
    name = str(arguments.pop("name"))
    fitting = [known for known in model_names() if known.startswith(prefix)]
    if name not in fitting:
        raise UsageError(f"model {name!r} does not fit this stage{suggest(name, fitting)}")
    try:
        return create_model(name, **arguments)
    except TypeError as error:
        if odd := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise UsageError(
                f"model.{odd[1]}: {name} takes no such argument; '~model.{odd[1]}' leaves it out"
            ) from error
        raise UsageError(f"model: {error}") from error


def optim_settings(section: Mapping[str, Any]) -> OptimSettings:
    """Settings of the optimiser from an ``optim`` section."""
    values = dict(section)
    values["betas"] = tuple(values["betas"])
    settings = call(OptimSettings, values, where="optim")
    assert isinstance(settings, OptimSettings)
    return settings


def run_dir(config: DictConfig) -> Path:
    """The run folder."""
    return Path(str(config.out)).expanduser()


def train(
    task: StepTask,
    data: Data,
    config: DictConfig,
    *,
    argv: Sequence[str],
    verb: str,
    validate: Validate | None,
) -> FitResult:
    """Record the run and train.

    Args:
        task: Task of any stage.
        data: Its batches.
        config: Composed configuration.
        argv: The verb's command line.
        verb: Its name.
        validate: Looks at held-out images now and then.
    """
    folder = run_dir(config)
    # Refuse what cannot work before anything is written.
    checkpoint_to_resume(folder, config.resume)
    choose_precision(config.trainer.precision)
    check_ranks(task, data.module, config, argv=argv, verb=verb)
    looks = [] if validate is None else [validate]
    meters = Meters(
        folder,
        sources=data.sources,
        codebook_size=task.tokenizer.quantizer.codebook_size
        if isinstance(task, TokenizerTask)
        else None,
        aside=looks,
    )
    return record_and_fit(
        task,
        data.module,
        config,
        argv=argv,
        verb=verb,
        identity=data.identity,
        callbacks=[meters, *looks],
    )


def record_and_fit(
    task: StepTask,
    datamodule: StepDataModule,
    config: DictConfig,
    *,
    argv: Sequence[str],
    verb: str,
    identity: Mapping[str, Any],
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Write down what is run, and run it, once all that a user can get wrong was checked.

    Args:
        task: Task of any stage.
        datamodule: Its batches.
        config: Composed configuration.
        argv: The verb's command line.
        verb: Its name.
        identity: What is trained on, for the run folder.
        callbacks: Lightning callbacks of the stage.
    """
    folder = run_dir(config)
    services = [name for name in SERVICES if config.logger[name]]
    check_services(services)
    launch = find_launch()
    if launch is None or launch.rank == 0:
        record_run(
            folder,
            config=OmegaConf.to_yaml(config, resolve=True),
            command=["spadnet", verb, *argv],
            data=identity,
        )
    trainer, rules, log = config.trainer, config.callbacks, config.logger
    return fit(
        task,
        datamodule,
        folder,
        precision=trainer.precision,
        accelerator=trainer.accelerator,
        strategy=trainer.strategy,
        rank_timeout=trainer.rank_timeout,
        threads=trainer.threads,
        compile_backend=trainer.compile_backend if trainer.compile else None,
        deterministic=trainer.deterministic,
        skip_non_finite=trainer.skip_non_finite,
        resume=config.resume,
        save_every_steps=rules.save_every_steps,
        keep_last=rules.keep_last,
        log_every_steps=log.every_steps,
        tensorboard=log.tensorboard,
        csv_file=log.csv,
        services=services,
        project=log.project,
        show_progress=rules.show_progress,
        description=config.name,
        seed=config.seed,
        callbacks=callbacks,
    )


def check_ranks(
    task: StepTask,
    datamodule: StepDataModule,
    config: DictConfig,
    *,
    argv: Sequence[str],
    verb: str,
) -> None:
    """Refuse ranks that cannot share a step, and say how to start those that are asked for.

    Args:
        task: Task of any stage.
        datamodule: Its batches.
        config: Composed configuration.
        argv: The verb's command line.
        verb: Its name.
    """
    check_strategy(config.trainer.strategy)
    launch = find_launch()
    if config.trainer.devices != 1:
        rest = [text for text in argv if not text.startswith("trainer.devices=")]
        count = config.trainer.devices
        start = ["torchrun", "--standalone", f"--nproc-per-node={count}", "-m", "spadnet", verb]
        raise UsageError(
            f"trainer.devices={count}: a process does not start others; "
            f"start one per device: {shlex.join([*start, *rest])}"
        )
    if config.trainer.strategy == "fsdp" and isinstance(task, TokenizerTask):
        raise UsageError(
            "trainer.strategy=fsdp is for pretrain-mim; a tokenizer fits on one device"
        )
    if config.trainer.strategy == "fsdp":
        if config.trainer.compile:
            raise UsageError("trainer.compile=true does not go with trainer.strategy=fsdp")
        if config.trainer.precision == "16-mixed":
            raise UsageError("trainer.precision=16-mixed does not go with trainer.strategy=fsdp")
    if launch is not None:
        assert isinstance(datamodule.dataset, RankedSteps)
        datamodule.dataset.for_rank(launch.rank, launch.world_size)


def stopped(result: FitResult, config: DictConfig, *, argv: Sequence[str], verb: str) -> int | None:
    """Say how to continue a training that was stopped.

    Returns:
        Exit code, None if the training ran to its end.
    """
    if result.stopped_by is None:
        return None
    if not is_first_rank():
        return 128 + result.stopped_by
    again = [text for text in argv if text.partition("=")[0].lstrip("+") != "resume"]
    command = shlex.join(["spadnet", verb, *again, "resume=auto"])
    sys.stderr.write(
        f"stopped after step {result.step} of {config.trainer.max_steps}, saved in "
        f"{result.checkpoint}\ncontinue with: {command}\n"
    )
    return 128 + result.stopped_by


def training_facts(result: FitResult, config: DictConfig, data: Data) -> dict[str, Any]:
    """What a model card tells about the training."""
    return {
        "stage": config.stage,
        "run": config.name,
        "steps": result.step,
        "seed": config.seed,
        "data": data.names,
        **data.trained.facts(),
    }
