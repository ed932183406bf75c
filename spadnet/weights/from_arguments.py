"""Models from what ``config.json`` holds of them: the name of a class and its arguments."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.weights.checkpoint import check_entries
from spadnet.weights.contract import Model

CLASSES: dict[str, type[Model]] = {
    "Tokenizer": Tokenizer,
    "SpadViT": SpadViT,
    "MaskedImageModel": MaskedImageModel,
    "SpadUNet": SpadUNet,
    "SpadConvNet": SpadConvNet,
    "AttentionClassifier": AttentionClassifier,
    "VitSegmentor": VitSegmentor,
    "TokenizerSegmentor": TokenizerSegmentor,
}
VIT_AT = {  # where the encoder of a larger model is
    "MaskedImageModel": "vit.",
    "AttentionClassifier": "vit.",
    "VitSegmentor": "pyramid.vit.",
}


def build_from_arguments(
    kind: str, arguments: Any, *, where: str, device: torch.device | str = "meta"
) -> Model:
    """Build a model from what ``config.json`` holds under ``model``.

    Args:
        kind: Name of its class.
        arguments: Of its constructor, as plain types.
        where: The file, for messages.
        device: Where its values are; by default nowhere, for they are about to be read.

    Raises:
        ValueError: If there is no such class, or it does not take these arguments.
    """
    if kind not in CLASSES:
        raise ValueError(f"{where}: unknown model class {kind!r}{suggest(kind, CLASSES)}")
    parameters = inspect.signature(CLASSES[kind]).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty]
    check_entries(arguments, list(parameters), required=required, where=f"{where}: {kind}")
    rest = dict(arguments)
    vit = None
    if "vit" in parameters:
        vit = build_from_arguments("SpadViT", rest.pop("vit"), where=where, device=device)
    build: Any = CLASSES[kind]
    try:
        with torch.device(device):
            return cast(Model, build(**rest) if vit is None else build(vit, **rest))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: cannot build a {kind}: {error}") from error


def change_arguments(
    arguments: Mapping[str, Any],
    *,
    kind: str,
    in_chans: int | None,
    pos_grid: Sequence[int] | None,
) -> dict[str, Any]:
    """Arguments for other channels, with their own normalisation, or for another grid.

    Args:
        arguments: Of the model's constructor, as plain types.
        kind: Name of its class.
        in_chans: Channels wanted; None leaves them.
        pos_grid: Position grid (D, H, W) wanted; None leaves it.

    Raises:
        ValueError: If the model has no position grid.
    """
    changed = dict(arguments)
    if kind in VIT_AT:
        changed["vit"] = change_arguments(
            changed["vit"], kind="SpadViT", in_chans=in_chans, pos_grid=pos_grid
        )
        return changed
    if in_chans is not None and in_chans != changed["in_chans"]:
        changed["in_chans"] = in_chans
        changed.pop("mean", None)
        changed.pop("std", None)
    if pos_grid is not None:
        if kind != "SpadViT":
            raise ValueError(f"a {kind} has no position grid, got pos_grid={tuple(pos_grid)}")
        changed["pos_grid"] = list(pos_grid)
    return changed
