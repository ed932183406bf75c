"""What verbs share that use trained models: their options, models and inputs, and what failed."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from spadnet.cli.configure import configure
from spadnet.cli.usage import UsageError
from spadnet.data.inputs import Item, list_items, split_series
from spadnet.data.journal import Fault
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.weights.hub import Loaded, load_checkpoint, load_tokenizer

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
_SHOWN = 10  # files that cannot be used named in the terminal


def read_options(verb: str, argv: Sequence[str]) -> dict[str, Any] | None:
    """A verb's options as plain types; None if they were only printed."""
    config = configure(verb, argv)
    if config is None:
        return None
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def find_tokenizer(source: str) -> Tokenizer:
    """Load a tokenizer from its folder, from the folder of the run that trained it, or a hub.

    Args:
        source: Folder, or ``hf-hub:org/name[@revision]``.

    Raises:
        ValueError: If there is none; the message names the folder and the reason.
    """
    return load_tokenizer(inner_folder(source, "tokenizer"))


def find_loaded(source: str, *, expect: type[Tokenizer] | type[SpadViT]) -> Loaded:
    """Load an encoder or a tokenizer like :func:`find_tokenizer`, with all that is known of it."""
    name = "tokenizer" if expect is Tokenizer else "encoder"
    return load_checkpoint(inner_folder(source, name), expect=expect)


def find_any(source: str) -> Loaded:
    """Load any model for inference: as it is, but of a masked image model the encoder.

    A run's folder stands for its encoder, U-Net or tokenizer, or for what was best in fine-tuning.
    """
    folder = Path(source).expanduser()
    kinds = ("encoder", "unet", "tokenizer", "best")
    names = [name for name in kinds if (folder / name / "config.json").is_file()]
    if len(names) == 1 and not (folder / "config.json").exists():
        source = str(folder / names[0])
    loaded = load_checkpoint(source)
    if isinstance(loaded.model, MaskedImageModel):
        return load_checkpoint(source, expect=SpadViT)
    return loaded


def inner_folder(source: str, *names: str) -> str:
    """The checkpoint folder of one of some names within a run's folder; anything else as it is."""
    folder = Path(source).expanduser()
    if ":" in source or (folder / "config.json").exists():
        return source
    return next((str(folder / name) for name in names if (folder / name).is_dir()), source)


def required(options: Mapping[str, Any], key: str, what: str) -> str:
    """A value that the verb cannot do without.

    Raises:
        UsageError: If it is missing.
    """
    if options[key] is None:
        raise UsageError(f"{key}={what}")
    return str(options[key])


def input_source(options: Mapping[str, Any]) -> str:
    """What ``in=`` names."""
    return required(options, "in", "FILE is missing: a file, a folder, a glob pattern or a table")


def find_inputs(
    options: Mapping[str, Any],
    *,
    columns: Sequence[Sequence[str]] = (("path",),),
    num_files: int = 1,
) -> list[Item]:
    """The images that ``in=`` names; each DICOM series is one.

    Args:
        options: Of the verb.
        columns: See :func:`spadnet.data.inputs.list_items`.
        num_files: See there.
    """
    source = input_source(options)
    return split_series(list_items(source, columns=columns, num_files=num_files))


def choose_device(options: Mapping[str, Any]) -> torch.device:
    """Where to compute; ``threads`` is set on the way.

    Raises:
        UsageError: If there is no such device.
    """
    name, threads = str(options["device"]), options["threads"]
    if name.partition(":")[0] not in DEVICES:
        raise UsageError(f"unknown device {name!r}{suggest(name, DEVICES)}")
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
        raise UsageError(f"threads must be a positive whole number or null, got {threads}")
    if threads is not None:
        torch.set_num_threads(min(threads, os.cpu_count() or threads))
    has_cuda = torch.cuda.is_available()
    if name.startswith("cuda") and not has_cuda:
        raise UsageError(f"device={name}: there is no CUDA device here")
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    return torch.device(name)


def number(options: Mapping[str, Any], key: str, *, low: float, high: float) -> float:
    """A number within bounds, the upper one left out.

    Raises:
        UsageError: If it is no number or beyond them.
    """
    value = options[key]
    if not isinstance(value, int | float) or not low <= value < high:
        raise UsageError(f"{key} must be at least {low:g} and below {high:g}, got {value}")
    return value


def tell_faults(faults: Sequence[Fault], quarantine: Path) -> None:
    """Name the files that cannot be used."""
    for fault in faults[:_SHOWN]:
        logger.warning("left out: %s", fault.reason)
    if len(faults) > _SHOWN:
        logger.warning("left out: %d more", len(faults) - _SHOWN)
    if faults:
        logger.warning("%d files cannot be used, see %s", len(faults), quarantine)
