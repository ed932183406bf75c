"""``spadnet pretrain-tokenizer``: stage 1."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from spadnet.cli.configure import configure
from spadnet.cli.data import Data, build_data
from spadnet.cli.training import (
    Training,
    build_model,
    call,
    optim_settings,
    plain,
    run_dir,
    stopped,
    train,
    training_facts,
)
from spadnet.cli.usage import UsageError
from spadnet.cli.validation import build_validation, tokenizer_judge
from spadnet.losses.perceptual import build_perceptual
from spadnet.losses.tokenizer import TokenizerLoss
from spadnet.models.discriminator import SpadDiscriminator
from spadnet.models.tokenizer import Tokenizer
from spadnet.train.launch import is_first_rank
from spadnet.train.tokenizer_task import CodeStart, TokenizerTask
from spadnet.weights.hub import save_pretrained

logger = logging.getLogger(__name__)

VERB = "pretrain-tokenizer"


def run(argv: Sequence[str]) -> int:
    """Train a tokenizer and write it as a checkpoint folder."""
    config = configure("pretrain_tokenizer", argv)
    if config is None:
        return 0
    settings = plain(config)
    task, data = prepare(settings)
    validate = build_validation(
        settings,
        data,
        run_dir(config),
        in_chans=task.tokenizer.in_chans,
        judge=partial(tokenizer_judge, settings),
    )
    result = train(task, data, config, argv=argv, verb=VERB, validate=validate)
    code = stopped(result, config, argv=argv, verb=VERB)
    if code is not None:
        return code
    if not is_first_rank():
        return 0
    folder = save_pretrained(
        task.final_model,
        run_dir(config) / "tokenizer",
        name=config.model.name,
        training=training_facts(result, config, data),
    )
    logger.info("tokenizer written to %s", folder)
    return 0


def prepare(settings: Mapping[str, Any]) -> tuple[TokenizerTask, Data]:
    """Build the task and its data from a composed configuration."""
    task = build_task(settings)
    check_code_start(task, settings["data"])
    return task, build_data(settings, in_chans=task.tokenizer.in_chans)


def rebuild(settings: Mapping[str, Any]) -> Training:
    """A training as its configuration says, to do a step of it again."""
    task, data = prepare(settings)
    return Training(task, data.module)


def build_task(settings: Mapping[str, Any]) -> TokenizerTask:
    """Build the task of stage 1.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
    """
    torch.manual_seed(settings["seed"])
    section = dict(settings["model"])
    checkpointing = section.pop("grad_checkpointing", False)
    tokenizer = build_model(section, prefix="spad_vt_")
    assert isinstance(tokenizer, Tokenizer)
    tokenizer.set_grad_checkpointing(checkpointing)
    optim = optim_settings(settings["optim"])
    adversary = settings["discriminator"]
    return TokenizerTask(
        tokenizer,
        max_steps=settings["trainer"]["max_steps"],
        loss=build_loss(settings["loss"]),
        discriminator=SpadDiscriminator(tokenizer.in_chans) if adversary["enabled"] else None,
        optim=optim,
        discriminator_optim=optim._replace(lr=adversary["lr"]),
        gate_threshold=adversary["gate_threshold"],
        code_start=call(CodeStart, settings["code_start"], where="code_start"),
        seed=settings["seed"],
    )


def check_code_start(task: TokenizerTask, section: Mapping[str, Any]) -> None:
    """Refuse a start of the codes from fewer latents than there are codes.

    Args:
        task: Task of stage 1.
        section: The ``data`` section.
    """
    num_steps = min(task.start_step, task.code_start.num_steps)
    num_codes = task.tokenizer.quantizer.codebook_size
    per_step = section["token_budget"] * section["degrees_per_step"]
    if num_steps > 0 and num_steps * per_step < num_codes:
        raise UsageError(
            f"the {num_codes} codes would start from {num_steps} steps of {per_step} tokens; "
            "raise trainer.max_steps or data.token_budget, or set code_start.share=0"
        )


def build_loss(section: Mapping[str, Any]) -> TokenizerLoss:
    """Build the losses from a ``loss`` section."""
    rest = dict(section)
    name, weights = rest.pop("perceptual"), rest.pop("perceptual_weights")
    perceptual = None if name is None else build_perceptual(name, weights)
    loss = call(TokenizerLoss, {"perceptual": perceptual, **rest}, where="loss")
    assert isinstance(loss, TokenizerLoss)
    return loss
