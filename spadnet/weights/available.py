"""What models there are: sizes that can be built, and weights that lie on this machine."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from spadnet.models import registry
from spadnet.weights.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_config
from spadnet.weights.from_arguments import build_from_arguments
from spadnet.weights.source import SHIPPED

_MAX_DEPTH = 3  # folders below the one that is searched: runs/NAME/encoder and the like


class ModelInfo(NamedTuple):
    """A size that can be built, or weights that can be loaded.

    Attributes:
        name: Name for :func:`spadnet.create_model`; for weights, of their size if they tell it.
        kind: ``"tokenizer"``, ``"encoder"``, ``"masked image model"`` or ``"U-Net"``.
        num_parameters: Number of parameters, as built by default or, of weights, their own; None if
            unreadable.
        megabytes: Size of the weights on disk, None without weights.
        data: Data sets that the weights were trained on.
        licence: Licence of the weights, None without weights.
        source: What :func:`spadnet.load_encoder` and its kin take to load them; None where there
            are only random weights.
    """

    name: str
    kind: str
    num_parameters: int | None
    megabytes: float | None = None
    data: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None


_KINDS = {
    "Tokenizer": "tokenizer",
    "SpadViT": "encoder",
    "MaskedImageModel": "masked image model",
    "SpadUNet": "U-Net",
    "SpadConvNet": "classifier",
    "AttentionClassifier": "classifier",
    "VitSegmentor": "segmentor",
    "TokenizerSegmentor": "segmentor",
}


def list_models() -> list[ModelInfo]:
    """Describe all model sizes, and the weights of those that are shipped.

    >>> [info.name for info in list_models()][:2]
    ['spad_vt_tiny', 'spad_vt_small']
    """
    infos = []
    for name in registry.model_names():
        with torch.device("meta"):
            model = registry.create_model(name)
        info = ModelInfo(name, _KINDS[type(model).__name__], _count(model))
        folder = SHIPPED / name
        if folder.is_dir():
            config = read_config(folder)
            kind, arguments = config["model"]["class"], config["model"]["arguments"]
            count = _count(build_from_arguments(kind, arguments, where=str(folder)))
            info = _describe(folder, config)._replace(name=name, num_parameters=count, source=name)
        infos.append(info)
    return infos


def find_weights(folder: Path) -> Iterator[ModelInfo]:
    """Describe the checkpoint folders at and below a folder; broken ones are passed over.

    Args:
        folder: Where to look; a few folders deep.
    """
    for config_file in _config_files(folder, _MAX_DEPTH):
        try:
            config = read_config(config_file.parent)
        except ValueError:
            continue  # another program's config.json, or a folder that loading would refuse
        if not (config_file.parent / WEIGHTS_FILE).is_file():
            continue  # a download that was damaged, whose weights were removed
        yield _describe(config_file.parent, config)._replace(source=str(config_file.parent))


def find_downloads(cache_dir: str | Path | None = None) -> Iterator[ModelInfo]:
    """Describe the checkpoints of spadnet in the cache of downloads from hubs.

    Args:
        cache_dir: The cache, by default that of ``huggingface_hub``.
    """
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    for repo in sorted(root.glob("models--*--*")):
        name = "/".join(repo.name.split("--")[1:])
        for snapshot in sorted(repo.glob("snapshots/*")):
            for info in find_weights(snapshot):
                yield info._replace(source=f"hf-hub:{name}@{_revision(repo, snapshot.name)}")


def _revision(repo: Path, commit: str) -> str:
    """The branch or tag that a commit was downloaded as, or the commit."""
    for ref in sorted((repo / "refs").glob("**/*")):
        if ref.is_file() and ref.read_text().strip() == commit:
            return str(ref.relative_to(repo / "refs"))
    return commit


def _config_files(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / CONFIG_FILE).is_file():
        yield folder / CONFIG_FILE
        return
    try:
        children = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for child in children if depth else []:
        yield from _config_files(Path(child), depth - 1)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _count_stored(file: Path) -> int | None:
    """Number of values in a weights file, by its header alone."""
    try:
        with safe_open(file, framework="pt") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return sum(math.prod(shape) for shape in shapes)


def _describe(folder: Path, config: dict[str, Any]) -> ModelInfo:
    weights = folder / WEIGHTS_FILE
    kind = str(config["model"]["class"])
    data = config["training"].get("data", []) if isinstance(config["training"], dict) else []
    return ModelInfo(
        name=str(config["model"]["name"] or "-"),
        kind=_KINDS.get(kind, kind),
        num_parameters=_count_stored(weights),
        megabytes=weights.stat().st_size / 1e6 if weights.is_file() else None,
        data=tuple(str(name) for name in data) if isinstance(data, Sequence) else (),
        licence=str(config["licence"]),
    )
