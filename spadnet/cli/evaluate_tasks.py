"""What ``spadnet evaluate`` measures on: tasks, and the models that stand beside each other."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig
from torch import nn

from spadnet.cli.configure import configure
from spadnet.cli.finetune_data import find_task, preparation
from spadnet.cli.finetune_model import build_classifier, build_segmentor
from spadnet.cli.trained import find_any
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError
from spadnet.data.task_images import Preparation
from spadnet.data.tasks import TaskData, rehearsed
from spadnet.evaluate.extractors import Encoder
from spadnet.evaluate.few_shot import Amount, parse_amount
from spadnet.inference.work_list import model_digest
from spadnet.losses.targets import OutputKind, num_outputs
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.low_rank import add_low_rank
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.weights.hub import load_checkpoint
from spadnet.weights.transfer import put_unet

logger = logging.getLogger(__name__)

PROTOCOLS = ("knn", "probe", "finetune")
GIVEN, SCRATCH, RECIPE = "given", "scratch", "recipe"
_ENTRY = ("path", "finetune", "features", "shares")


class Given(NamedTuple):
    """The model that is measured.

    Attributes:
        source: Where the user says it is.
        folder: Where it is.
        name: Of its size.
        model: An encoder, or a U-Net, which is measured by fine-tuning on label maps alone.
        digest: Hash of its configuration and weights.
    """

    source: str
    folder: Path
    name: str
    model: Encoder | SpadUNet
    digest: str


class Subject(NamedTuple):
    """A task and what is done with it.

    Attributes:
        name: In tables.
        task: Its cases.
        settings: Of a fine-tuning, as plain types.
        arguments: The overrides that they come from.
        rule: What is done to the images of frozen features.
        amounts: How many labels.
    """

    name: str
    task: TaskData
    settings: dict[str, Any]
    arguments: list[str]
    rule: Preparation
    amounts: list[Amount]


def find_given(source: str) -> Given:
    """Load the model to be measured: an encoder, or what holds one, or a U-Net.

    Raises:
        ValueError: If there is none; the message names the folder.
    """
    loaded = find_any(source)
    if not isinstance(loaded.model, SpadConvNet | SpadUNet):
        loaded = load_checkpoint(loaded.folder, expect=SpadViT)
    model = cast(Encoder | SpadUNet, loaded.model)
    name = str(loaded.config["model"].get("name") or type(model).__name__)
    return Given(source, loaded.folder, name, model, model_digest(loaded.folder))


def check_unet(given: Given, subjects: Sequence[Subject], options: Mapping[str, Any]) -> None:
    """Refuse what a U-Net cannot be asked.

    Raises:
        UsageError: If it is asked for features, or for classes.
    """
    if not isinstance(given.model, SpadUNet):
        return
    if options["study"] is not None:
        raise UsageError(f"{given.source} is a U-Net, which study= is not for")
    if options["protocols"] != ["finetune"]:
        raise UsageError(
            f"{given.source} is a U-Net, which has no features of images: protocols=[finetune]"
        )
    if other := [subject.name for subject in subjects if subject.task.kind != "segmentation"]:
        raise UsageError(f"{given.source} is a U-Net, which needs label maps; {other[0]} has none")


def find_subjects(
    options: Mapping[str, Any], *, in_chans: int, config_dir: Sequence[str]
) -> list[Subject]:
    """Read the descriptions of all tasks, so that what is wrong with any shows first.

    Args:
        options: Of the verb.
        in_chans: Channels of the given model.
        config_dir: Flags that name the user's own configurations.
    """
    entries = {name: entry for name, entry in options["tasks"].items() if _has_path(name, entry)}
    if options["data"]["path"] is not None:
        entries = {"": {}, **entries}
    if not entries:
        raise UsageError(
            "data.path=FILE|FOLDER is missing: labelled images as for spadnet finetune; "
            "or tasks={NAME: {path: ...}}"
        )
    labelled = plain(finetune_config([]))["data"]
    found = []
    for name, entry in entries.items():
        own = _changes(options["data"], labelled, "data")
        if name:
            own = [*_overrides(entry.get("finetune")), f"data.path={_text(entry['path'])}"]
        arguments = [*config_dir, *_overrides(options["finetune"]), *own]
        shares = entry.get("shares") or options["shares"]
        frozen = _overrides(options["features"]) + _overrides(entry.get("features"))
        subject = _subject(name, arguments, frozen, shares, in_chans)
        if options["score_on"] == "val":
            subject = _on_validation(subject)
        if not subject.task.of("test"):
            raise ValueError(f"{subject.name}: the split 'test' is empty")
        found.append(subject)
    names = [subject.name for subject in found]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"several tasks are named {', '.join(sorted(repeated))}")
    return found


def _has_path(name: str, entry: Any) -> bool:
    if not isinstance(entry, dict):
        raise UsageError(f"tasks.{name} must be {{path: ...}}, got {entry!r}")
    for key in entry:
        if key not in _ENTRY:
            raise UsageError(f"tasks.{name}.{key}: no such key{suggest(str(key), _ENTRY)}")
    return entry.get("path") is not None


def _subject(
    name: str, arguments: list[str], frozen: list[str], shares: Sequence[Any], in_chans: int
) -> Subject:
    config = finetune_config(arguments)
    settings = plain(config)
    task = find_task(settings)
    name = name or task.name
    try:
        amounts = [parse_amount(text) for text in shares]
    except ValueError as error:
        raise UsageError(str(error)) from error
    is_map = task.kind == "segmentation"
    section = plain(finetune_config([*arguments, *frozen]))["data"]
    rule = preparation(section, in_chans=in_chans, is_map=is_map)
    return Subject(name, task, settings, arguments, rule, amounts)


def _on_validation(subject: Subject) -> Subject:
    """The task without its test split; its name tells so in tables and records."""
    share, seed = subject.settings["data"]["val_share"], subject.settings["seed"]
    task = rehearsed(subject.task, share=share, seed=seed)
    return subject._replace(name=f"{subject.name} (validation)", task=task)


def finetune_config(arguments: Sequence[str]) -> DictConfig:
    """Compose the settings of a fine-tuning."""
    config = configure("finetune", arguments)
    if config is None:
        raise UsageError("--cfg belongs to the verb, not to finetune=[...]")
    return config


def _overrides(values: Any, where: str = "") -> list[str]:
    """Overrides that a nested mapping stands for."""
    if values is None:
        return []
    if not isinstance(values, dict):
        raise UsageError(f"settings must be {{KEY: VALUE}}, got {values!r}")
    found = []
    for key, value in values.items():
        name = f"{where}{key}"
        found += (
            _overrides(value, f"{name}.") if isinstance(value, dict) else [f"{name}={_text(value)}"]
        )
    return found


def _changes(values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> list[str]:
    """Overrides that make ``values`` of ``defaults``."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _changes(value, defaults[key], f"{where}.{key}")
        elif value != defaults[key]:
            found.append(f"{where}.{key}={_text(value)}")
    return found


def _text(value: Any) -> str:
    """A value as the right side of an override."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value)


# --- models ---


def untrained(model: Encoder, *, seed: int) -> Encoder:
    """The same architecture with random weights."""
    torch.manual_seed(seed)
    return type(model)(**model.config())


def build_start(
    given: Given, kind: str, subject: Subject, settings: Mapping[str, Any]
) -> nn.Module:
    """A network to be fine-tuned, with a fresh head.

    Args:
        given: The measured model.
        kind: ``"given"``, ``"scratch"`` (the same with random weights), or ``"recipe"``: what the
            settings build.
        subject: The task.
        settings: Of the training; their seed decides random weights.
    """
    task = subject.task
    is_map = task.kind == "segmentation"
    if kind == RECIPE:
        settings = {**settings, "init": None}
        return build_segmentor(settings, task) if is_map else build_classifier(settings, task)
    seed = settings["seed"]
    if isinstance(given.model, SpadUNet):
        torch.manual_seed(seed)
        own = {**given.model.config(), "num_classes": len(task.classes), "deep_supervision": True}
        unet = SpadUNet(**own)
        if kind == GIVEN:
            put_unet(unet, given.folder)
        return unet
    model = untrained(given.model, seed=seed) if kind == SCRATCH else copy.deepcopy(given.model)
    torch.manual_seed(seed)
    if is_map:
        if not isinstance(model, SpadViT):
            raise UsageError(f"protocols: a {type(model).__name__} cannot learn label maps")
        model.reset_classifier(0)
        return VitSegmentor(model, num_classes=len(task.classes), deep_supervision=True)
    width = num_outputs(cast(OutputKind, task.kind), len(task.classes))
    mode = settings["recipe"]["mode"]
    if isinstance(model, SpadConvNet):
        if mode != "full":
            raise UsageError(f"recipe.mode={mode} is for a spad_vit")
        model.head, model.num_classes = nn.Linear(model.num_features, width), width
        return model
    if mode == "attention":
        return AttentionClassifier(model, num_classes=width)
    model.reset_classifier(width)
    if mode == "lora":
        add_low_rank(model, rank=settings["recipe"]["lora_rank"])
    return model


def repeats_scratch(given: Given, subject: Subject, settings: Mapping[str, Any]) -> bool:
    """Whether the settings build the very network that stands for the given one untrained."""
    with torch.device("meta"):
        nets = [
            cast(Any, build_start(given, kind, subject, settings)) for kind in (RECIPE, SCRATCH)
        ]
    return type(nets[0]) is type(nets[1]) and nets[0].config() == nets[1].config()
