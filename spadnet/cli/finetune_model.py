"""The model and the loss of a fine-tuning from its configuration."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from spadnet.cli.trained import inner_folder
from spadnet.cli.training import build_model, optim_settings
from spadnet.cli.usage import UsageError
from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import TaskData, class_counts
from spadnet.evaluate.probe_head import put_probe
from spadnet.losses.targets import OutputKind, TargetLoss, balanced_weights, num_outputs
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.low_rank import add_low_rank
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.train.finetune_task import target_statistics
from spadnet.train.initial_weights import start_from
from spadnet.train.optim import OptimSettings
from spadnet.train.run import device_kind
from spadnet.weights.transfer import put_tokenizer, put_unet

logger = logging.getLogger(__name__)

MODES = ("full", "probe", "attention", "lora")
HEADS = ("random", "probe")


class Statistics(NamedTuple):
    """Mean and standard deviation of values to be predicted; None for other targets."""

    mean: Tensor | None = None
    std: Tensor | None = None


def recipe_mode(settings: Mapping[str, Any]) -> str:
    """Which part of the model is trained."""
    mode = settings["recipe"]["mode"]
    if mode not in MODES:
        raise UsageError(f"unknown recipe.mode {mode!r}{suggest(str(mode), MODES)}")
    return str(mode)


def first_head(
    settings: Mapping[str, Any], task: TaskData, *, model: nn.Module | None = None
) -> str:
    """How the head starts; refused where it cannot start as a probe.

    Args:
        settings: Composed configuration as plain types.
        task: What is predicted.
        model: What is trained, where the settings do not say.
    """
    head = str(settings["recipe"]["first_head"])
    if head not in HEADS:
        raise UsageError(f"unknown recipe.first_head {head!r}{suggest(head, HEADS)}")
    # Statistics of an untrained network's batch norms are none of the batches that it will see.
    name = str(settings["model"]["name"])
    is_conv = name.startswith("spad_conv_") if model is None else isinstance(model, SpadConvNet)
    if head == "probe":
        for what, applies in (
            ("label maps", task.kind == "segmentation"),
            ("recipe.mode=attention", recipe_mode(settings) == "attention"),
            ("a spad_conv", is_conv),
        ):
            if applies:
                raise UsageError(f"recipe.first_head=probe does not fit {what}; leave it out")
    return head


def start_head(
    model: nn.Module,
    settings: Mapping[str, Any],
    task: TaskData,
    statistics: Statistics,
    *,
    train: Sequence[TaskImage],
    val: Sequence[TaskImage],
) -> None:
    """Make the head a linear probe of the encoder's features where the recipe says so."""
    if first_head(settings, task, model=model) != "probe":
        return
    device = torch.device(device_kind(settings["trainer"]["accelerator"]))
    fit = put_probe(
        model, train, val, kind=cast(OutputKind, task.kind), device=device, **statistics._asdict()
    )
    logger.info("head: linear probe of %d cases, penalty %g", len(train), fit.chosen)


def recipe_optim(settings: Mapping[str, Any]) -> OptimSettings:
    """Settings of the optimiser, with those that a recipe holds."""
    recipe = settings["recipe"]
    own = {name: recipe[name] for name in ("schedule", "layer_decay", "ema")}
    return optim_settings({**settings["optim"], **own})


def check_mixup(settings: Mapping[str, Any], task: TaskData) -> float:
    """How images are mixed; refused where a share of a target means nothing."""
    mixup = settings["recipe"]["mixup"]
    if mixup and task.kind not in ("classification", "multi_label"):
        raise UsageError(f"recipe.mixup is for classes and labels, not for {task.kind}; leave it 0")
    if mixup and settings["data"]["micro_batch"] == 1:
        raise UsageError(
            "recipe.mixup mixes the images of a micro-batch; data.micro_batch=2 or more"
        )
    return float(mixup)


def find_init(settings: Mapping[str, Any]) -> str | None:
    """Where the first weights come from; a run's folder stands for what was trained in it."""
    source = settings["init"]
    return (
        None
        if source is None
        else inner_folder(str(source), "encoder", "unet", "tokenizer", "best")
    )


def build_classifier(settings: Mapping[str, Any], task: TaskData) -> nn.Module:
    """Build a model with a head for classes, labels or values.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        task: What is predicted.
    """
    torch.manual_seed(settings["seed"])
    section, mode, source = dict(settings["model"]), settings["recipe"]["mode"], find_init(settings)
    section.pop("num_mask_layers", None)
    checkpointing = section.pop("grad_checkpointing", False)
    width = num_outputs(cast(OutputKind, task.kind), len(task.classes))
    name = str(section["name"])
    section["num_classes"] = width
    if name.startswith("spad_conv_"):
        if source is not None or mode != "full":
            raise UsageError(f"init= and recipe.mode={mode} are for a spad_vit")
        return build_model(section, prefix="spad_conv_")
    if not name.startswith("spad_vit_"):
        raise UsageError(f"model {name!r} does not fit a {task.kind} task")
    vit = cast(SpadViT, build_model(section, prefix="spad_vit_"))
    if source is not None:
        keep_pool = section.get("global_pool") is not None
        logger.info("init: %s", start_from(vit, source, keep_pool=keep_pool))
    elif mode != "full":
        logger.warning("recipe.mode=%s without init=: the frozen encoder is a random one", mode)
    vit.set_grad_checkpointing(checkpointing)
    if mode == "attention":
        return AttentionClassifier(vit, num_classes=width)
    if mode == "lora":
        add_low_rank(vit, rank=settings["recipe"]["lora_rank"])
    return vit


def build_segmentor(settings: Mapping[str, Any], task: TaskData) -> nn.Module:
    """Build a network that gives logits of voxels at every level.

    A U-Net; or an encoder with a U-Net's decoder, which is a ViT or, under the name of a
    tokenizer, the encoder of that.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
        task: What is predicted.
    """
    torch.manual_seed(settings["seed"])
    section, mode, source = dict(settings["model"]), settings["recipe"]["mode"], find_init(settings)
    section.pop("num_mask_layers", None)
    checkpointing = section.pop("grad_checkpointing", False)
    if mode != "full":
        raise UsageError(f"recipe.mode={mode} is for classes and values; leave it out")
    name, count = str(section["name"]), len(task.classes)
    model: SpadUNet | VitSegmentor | TokenizerSegmentor
    if name.startswith("spad_unet_"):
        section |= {"num_classes": count, "deep_supervision": True}
        model = cast(SpadUNet, build_model(section, prefix="spad_unet_"))
        if source is not None:
            logger.info("init: %s", put_unet(model, source))
    elif name.startswith("spad_vt_"):
        tokenizer = cast(Tokenizer, build_model(section, prefix="spad_vt_"))
        model = TokenizerSegmentor(
            in_chans=tokenizer.in_chans,
            encoder_widths=tokenizer.widths,
            num_classes=count,
            deep_supervision=True,
        )
        model.pyramid.encoder.load_state_dict(tokenizer.encoder.state_dict())  # its own start
        if source is not None:
            logger.info("init: %s", put_tokenizer(model, source))
    elif name.startswith("spad_vit_"):
        vit = cast(SpadViT, build_model(section, prefix="spad_vit_"))
        if source is not None:
            logger.info("init: %s", start_from(vit, source))
        model = VitSegmentor(vit, num_classes=count, deep_supervision=True)
    else:
        raise UsageError(f"model {name!r} does not fit a segmentation task")
    model.set_grad_checkpointing(checkpointing)
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
