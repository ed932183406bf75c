"""``spadnet pretrain-mim``: pre-train an encoder, by tokens (stage 2), pixels or anatomies."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spadnet.cli.configure import configure
from spadnet.cli.data import Data, build_data
from spadnet.cli.objectives import build_parts, objective_weights, takes_images
from spadnet.cli.trained import find_tokenizer
from spadnet.cli.training import (
    Training,
    build_model,
    optim_settings,
    plain,
    run_dir,
    stopped,
    train,
    training_facts,
)
from spadnet.cli.usage import UsageError
from spadnet.cli.validation import build_validation, encoder_judge
from spadnet.models.mim import MaskedImageModel
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.train.checkpoint import read_checkpoint
from spadnet.train.initial_weights import start_from
from spadnet.train.launch import is_first_rank
from spadnet.train.pretrain_task import PretrainTask
from spadnet.weights.hub import save_pretrained

logger = logging.getLogger(__name__)

VERB = "pretrain-mim"


def run(argv: Sequence[str]) -> int:
    """Train an encoder and write it as a checkpoint folder."""
    config = configure("pretrain_mim", argv)
    if config is None:
        return 0
    settings = plain(config)
    if len(objective_weights(settings)) > 1 and config.trainer.strategy == "fsdp":
        raise UsageError("trainer.strategy=fsdp takes one objective")
    tokenizer = needed_tokenizer(settings)
    task, data = prepare(settings, tokenizer)
    has_images = takes_images(settings)
    validate = build_validation(
        settings,
        data,
        run_dir(config),
        in_chans=_channels(task, settings, tokenizer) if has_images else None,
        min_tokens=2,  # one of them is masked
        judge=partial(encoder_judge, settings, tokenizer=tokenizer, degrees=data.degrees),
    )
    result = train(task, data, config, argv=argv, verb=VERB, validate=validate)
    code = stopped(result, config, argv=argv, verb=VERB)
    if code is not None:
        return code
    if not is_first_rank():
        return 0
    if config.trainer.strategy == "fsdp" and result.checkpoint is not None:
        task = build_task(settings, tokenizer)  # a whole model: this rank's holds a part
        task.load_state_dict(read_checkpoint(result.checkpoint)["state_dict"])
    facts = {**training_facts(result, config, data), **objective_facts(settings)}
    name, folder, encoder = config.model.name, run_dir(config), encoder_of(task.final_model)
    place = save_pretrained(
        encoder,
        folder / ("unet" if isinstance(encoder, SpadUNet) else "encoder"),
        name=name,
        training=facts,
    )
    for model in task.final_model.modules():
        if isinstance(model, MaskedImageModel):
            save_pretrained(model, folder / "mim", name=name, training=facts)
    logger.info("encoder written to %s", place)
    return 0


def needed_tokenizer(settings: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a composed configuration names; None where no objective needs one."""
    if "tokens" not in objective_weights(settings):
        return None
    if settings["tokenizer"] is None:
        raise UsageError(
            "tokenizer=FOLDER is missing: the folder of a trained tokenizer; "
            "objective=pixels and objective=disentangle need none"
        )
    return find_tokenizer(str(settings["tokenizer"]))


def prepare(settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> tuple[PretrainTask, Data]:
    """Build the task and its data from a composed configuration."""
    weights = objective_weights(settings)
    task = build_task(settings, tokenizer)
    data = build_data(
        settings,
        in_chans=_channels(task, settings, tokenizer),
        images=takes_images(settings),
        labelled="disentangle" in weights,
    )
    return task, data


def _channels(task: PretrainTask, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> int:
    """Channels of the images that all models take."""
    own = encoder_of(task.model).in_chans
    if tokenizer is None:
        return own
    return common_channels(own, tokenizer.in_chans, str(settings["tokenizer"]))


def rebuild(settings: Mapping[str, Any]) -> Training:
    """A training as its configuration says, to do a step of it again."""
    task, data = prepare(settings, needed_tokenizer(settings))
    return Training(task, data.module)


def encoder_of(model: nn.Module) -> SpadViT | SpadUNet:
    """The encoder that all objectives train."""
    return next(m for m in model.modules() if isinstance(m, SpadViT | SpadUNet))


def objective_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a model card tells about the objectives and the share of synthesis."""
    weights, data = objective_weights(settings), settings["data"]
    facts: dict[str, Any] = {"objective": weights}
    if "tokens" in weights:
        facts["tokenizer"] = Path(str(settings["tokenizer"])).name
    if takes_images(settings):
        share = 1.0 if data["source"] == "synthesis" else data["synthetic_share"]
        facts["synthetic_share"] = share
    if "disentangle" in weights:
        facts["disentangle"] = "labelled synthetic images alone"
        if data["label_maps"] is not None:
            facts["label_map_share"] = data["label_map_share"]
    return facts


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


def build_task(settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> PretrainTask:
    """Build the task.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        tokenizer: Trained tokenizer, None where no objective needs one.
    """
    torch.manual_seed(settings["seed"])
    section = dict(settings["model"])
    num_mask_layers = section.pop("num_mask_layers", 1)
    checkpointing = section.pop("grad_checkpointing")
    is_unet = str(section["name"]).startswith("spad_unet_")
    encoder = build_model(section, prefix="spad_unet_" if is_unet else "spad_vit_")
    assert isinstance(encoder, SpadViT | SpadUNet)
    if settings["init"] is not None:
        if isinstance(encoder, SpadUNet):
            raise UsageError("init= is for a spad_vit")
        keep_pool = section.get("global_pool") is not None
        start_from(encoder, settings["init"], keep_pool=keep_pool)
    encoder.set_grad_checkpointing(checkpointing)
    return PretrainTask(
        build_parts(settings, encoder, tokenizer, num_mask_layers=num_mask_layers),
        max_steps=settings["trainer"]["max_steps"],
        optim=optim_settings(settings["optim"]),
        seed=settings["seed"],
    )
