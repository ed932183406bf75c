"""``spadnet finetune``: a model on labelled images."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spadnet.cli.configure import configure
from spadnet.cli.finetune_data import find_task
from spadnet.cli.finetune_job import keep_best, prepare_job, saver
from spadnet.cli.finetune_scores import Judge, write_results
from spadnet.cli.training import Training, plain, record_and_fit, run_dir, stopped
from spadnet.cli.usage import UsageError
from spadnet.data.tasks import TaskData
from spadnet.train.launch import find_launch
from spadnet.train.meters import Meters
from spadnet.train.precision import choose_precision
from spadnet.train.run_folder import RESULTS_FILE, checkpoint_to_resume
from spadnet.weights.hub import load_pretrained

logger = logging.getLogger(__name__)

VERB = "finetune"


def run(argv: Sequence[str]) -> int:
    """Train on labelled images; write the best and the last state, and the scores of the best."""
    config = configure("finetune", argv)
    if config is None:
        return 0
    folder = run_dir(config)
    checkpoint = _refuse_early(config, folder)
    task = find_task(plain(config))
    config = with_length(config, num_cases=len(task.of("train")))
    settings = plain(config)
    job = prepare_job(settings, task, is_resumed=checkpoint is not None)
    save = saver(job, settings, folder)
    result = record_and_fit(
        job.module,
        job.data,
        config,
        argv=argv,
        verb=VERB,
        identity=job.identity,
        callbacks=[Meters(folder), keep_best(job, settings, save)],
    )
    code = stopped(result, config, argv=argv, verb=VERB)
    if code is not None:
        return code
    save(job.module.final_model, result.step, {}, "last")
    logger.info("the best state is in %s", folder / "best")
    if settings["test"] and task.of("test"):
        score_test(job.judge, settings, task, folder, seconds=result.seconds)
    return 0


def rebuild(settings: Mapping[str, Any]) -> Training:
    """A training as its configuration says, to do a step of it again."""
    job = prepare_job(settings, find_task(settings))
    return Training(job.module, job.data)


def _refuse_early(config: DictConfig, folder: Path) -> Path | None:
    """Refuse what cannot work before anything is read; the checkpoint to go on from, if any."""
    checkpoint = checkpoint_to_resume(folder, config.resume)
    choose_precision(config.trainer.precision)
    if config.trainer.devices != 1 or find_launch() is not None:
        raise UsageError(
            "fine-tuning on several devices is not supported yet; trainer.devices=1, and "
            "data.micro_batch=N where a batch does not fit"
        )
    return checkpoint


def with_length(config: DictConfig, *, num_cases: int) -> DictConfig:
    """The configuration with the training's length in steps where it is given in epochs.

    Args:
        config: Composed configuration.
        num_cases: Training cases.
    """
    epoch = -(-num_cases // max(config.data.batch_size, 1))
    changed = config.copy()
    OmegaConf.set_readonly(changed, False)
    if config.recipe.epochs is not None:
        if not isinstance(config.recipe.epochs, int) or config.recipe.epochs < 1:
            raise UsageError(
                f"recipe.epochs must be a positive whole number, got {config.recipe.epochs}"
            )
        changed.trainer.max_steps = config.recipe.epochs * epoch
    if config.validate.every_steps is None:
        changed.validate.every_steps = epoch
    OmegaConf.set_readonly(changed, True)
    return changed


def score_test(
    judge: Judge, settings: Mapping[str, Any], task: TaskData, folder: Path, *, seconds: float
) -> None:
    """Score the best state on the test split and write what came out."""
    begin = time.monotonic()
    scores = judge.test(load_pretrained(folder / "best"), folder)
    seconds += time.monotonic() - begin
    write_results(folder / RESULTS_FILE, settings, task, scores, seconds=seconds)
    logger.info("test: %s", ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
