"""``spadnet pretrain-mim``: stage 2."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spadnet.cli.configure import configure
from spadnet.cli.data import build_data
from spadnet.cli.trained import find_tokenizer
from spadnet.cli.training import (
    build_model,
    optim_settings,
    plain,
    run_dir,
    stopped,
    train,
    training_facts,
)
from spadnet.cli.usage import UsageError
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.train.checkpoint import read_checkpoint
from spadnet.train.initial_weights import start_from
from spadnet.train.launch import is_first_rank
from spadnet.train.mim_task import MimTask
from spadnet.weights.hub import save_pretrained

logger = logging.getLogger(__name__)

VERB = "pretrain-mim"


def run(argv: Sequence[str]) -> int:
    """Train a SPAD-ViT and write it, and the whole model with its head, as checkpoint folders."""
    config = configure("pretrain_mim", argv)
    if config is None:
        return 0
    if "tokenizer" not in config or config.get("tokenizer") is None:
        raise UsageError("tokenizer=FOLDER is missing: the folder of a trained tokenizer")
    settings = plain(config)
    tokenizer = find_tokenizer(str(settings["tokenizer"]))
    task = build_task(settings, tokenizer)
    in_chans = common_channels(task.model.vit.in_chans, tokenizer.in_chans, settings["tokenizer"])
    data = build_data(settings, in_chans=in_chans)
    result = train(task, data.module, config, argv=argv, verb=VERB)
    code = stopped(result, config, argv=argv, verb=VERB)
    if code is not None:
        return code
    if not is_first_rank():
        return 0
    if config.trainer.strategy == "fsdp" and result.checkpoint is not None:
        task = build_task(settings, tokenizer)  # a whole model: this rank's holds a part
        task.load_state_dict(read_checkpoint(result.checkpoint)["state_dict"])
    facts = {
        **training_facts(result, config, data),
        "tokenizer": Path(settings["tokenizer"]).name,
    }
    name, folder = config.model.name, run_dir(config)
    encoder = save_pretrained(task.model.vit, folder / "encoder", name=name, training=facts)
    save_pretrained(task.model, folder / "mim", name=name, training=facts)
    logger.info("encoder written to %s", encoder)
    return 0


def common_channels(encoder: int, tokenizer: int, source: str) -> int:
    """Channels of images that both models take; grey images are repeated for either.

    Args:
        encoder: Channels that the encoder takes.
        tokenizer: Channels that the tokenizer takes.
        source: The tokenizer, named in errors.
    """
    if encoder != tokenizer and 1 not in (encoder, tokenizer):
        raise ValueError(
            f"{source}: the tokenizer takes {tokenizer} channels, the encoder {encoder}"
        )
    return min(encoder, tokenizer)


def build_task(settings: Mapping[str, Any], tokenizer: Tokenizer) -> MimTask:
    """Build the task of stage 2.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        tokenizer: Trained tokenizer.
    """
    torch.manual_seed(settings["seed"])
    section = dict(settings["model"])
    num_mask_layers = section.pop("num_mask_layers")
    checkpointing = section.pop("grad_checkpointing")
    vit = build_model(section, prefix="spad_vit_")
    assert isinstance(vit, SpadViT)
    if settings["init"] is not None:
        start_from(vit, settings["init"])
    vit.set_grad_checkpointing(checkpointing)
    model = MaskedImageModel(
        vit,
        codebook_size=tokenizer.quantizer.codebook_size,
        num_mask_layers=num_mask_layers,
    )
    return MimTask(
        model,
        tokenizer,
        max_steps=settings["trainer"]["max_steps"],
        mask_ratio=settings["mask_ratio"],
        optim=optim_settings(settings["optim"]),
        seed=settings["seed"],
    )
