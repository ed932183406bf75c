"""The model and the loss of a fine-tuning from its configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from spadnet.cli.training import build_model, optim_settings
from spadnet.cli.usage import UsageError
from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import TaskData, class_counts
from spadnet.losses.targets import OutputKind, TargetLoss, balanced_weights, num_outputs
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.low_rank import add_low_rank
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.train.finetune_task import FinetuneSettings, target_statistics
from spadnet.train.initial_weights import start_from

MODES = ("full", "probe", "attention", "lora")


class Statistics(NamedTuple):
    """Mean and standard deviation of values to be predicted; None for other targets."""

    mean: Tensor | None = None
    std: Tensor | None = None


def finetune_settings(settings: Mapping[str, Any]) -> FinetuneSettings:
    """What is trained and how fast."""
    recipe = settings["recipe"]
    mode = recipe["mode"]
    if mode not in MODES:
        raise UsageError(f"unknown recipe.mode {mode!r}{suggest(str(mode), MODES)}")
    return FinetuneSettings(
        optim=optim_settings(settings["optim"]),
        schedule=recipe["schedule"],
        layer_decay=recipe["layer_decay"],
        freeze=mode in ("probe", "attention"),
        ema=recipe["ema"],
    )


def build_classifier(settings: Mapping[str, Any], task: TaskData) -> nn.Module:
    """Build a model with a head for classes, labels or values.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        task: What is predicted.
    """
    torch.manual_seed(settings["seed"])
    section, mode = dict(settings["model"]), settings["recipe"]["mode"]
    section.pop("num_mask_layers", None)
    checkpointing = section.pop("grad_checkpointing", False)
    width = num_outputs(cast(OutputKind, task.kind), len(task.classes))
    is_conv = str(section["name"]).startswith("spad_conv_")
    prefix = "spad_conv_" if is_conv else "spad_vit_"
    if not str(section["name"]).startswith(prefix):
        raise UsageError(f"model {section['name']!r} does not fit a {task.kind} task")
    model = build_model({**section, "num_classes": width}, prefix=prefix)
    if not isinstance(model, SpadViT):
        if settings["init"] is not None or mode != "full":
            raise UsageError(f"init= and recipe.mode={mode} are for a spad_vit")
        return model
    if settings["init"] is not None:
        start_from(model, settings["init"])
    model.set_grad_checkpointing(checkpointing)
    if mode == "attention":
        return AttentionClassifier(model, num_classes=width)
    if mode == "lora":
        add_low_rank(model, rank=settings["recipe"]["lora_rank"])
    return model


def build_segmentor(settings: Mapping[str, Any], task: TaskData) -> nn.Module:
    """Build a U-Net, or a ViT with a decoder, that gives logits of voxels at every level.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        task: What is predicted.
    """
    torch.manual_seed(settings["seed"])
    section, mode = dict(settings["model"]), settings["recipe"]["mode"]
    section.pop("num_mask_layers", None)
    checkpointing = section.pop("grad_checkpointing", False)
    if mode != "full":
        raise UsageError(f"recipe.mode={mode} is for classes and values; leave it out")
    count = len(task.classes)
    if str(section["name"]).startswith("spad_unet_"):
        arguments = {**section, "num_classes": count, "deep_supervision": True}
        model = build_model(arguments, prefix="spad_unet_")
        if settings["init"] is not None:
            raise UsageError("init= is for a spad_vit")
    else:
        if not str(section["name"]).startswith("spad_vit_"):
            raise UsageError(f"model {section['name']!r} does not fit a segmentation task")
        vit = build_model(section, prefix="spad_vit_")
        assert isinstance(vit, SpadViT)
        if settings["init"] is not None:
            start_from(vit, settings["init"])
        model = VitSegmentor(vit, num_classes=count, deep_supervision=True)
    cast(Any, model).set_grad_checkpointing(checkpointing)
    return model


def target_loss(
    settings: Mapping[str, Any], task: TaskData, images: Sequence[TaskImage]
) -> tuple[TargetLoss, Statistics]:
    """The loss of classes, labels or values.

    Args:
        settings: Composed configuration as plain types.
        task: What is predicted.
        images: Training cases.
    """
    wanted = settings["recipe"]["class_weights"]
    weight: Tensor | None = None
    if wanted == "balanced":
        counts = torch.tensor(list(class_counts(task).values()))
        if task.kind == "classification":
            weight = balanced_weights(counts)
        elif task.kind == "multi_label":
            weight = (len(images) - counts) / counts.clamp_min(1)
        else:
            raise UsageError(f"recipe.class_weights=balanced does not fit a {task.kind} task")
    elif wanted is not None:
        if not isinstance(wanted, list) or len(wanted) != len(task.classes):
            raise UsageError(
                f"recipe.class_weights must be balanced or {len(task.classes)} numbers, "
                f"got {wanted}"
            )
        weight = torch.tensor(wanted, dtype=torch.float32)
    found = Statistics()
    if task.kind == "regression":
        found = Statistics(**target_statistics([image.target for image in images]))
    loss = TargetLoss(
        cast(OutputKind, task.kind),
        weight=weight,
        mean=found.mean,
        std=found.std,
        label_smoothing=settings["recipe"]["label_smoothing"],
    )
    return loss, found


def in_chans(model: nn.Module) -> int:
    """Channels that a model takes."""
    return int(cast(Any, getattr(model, "vit", model)).in_chans)
