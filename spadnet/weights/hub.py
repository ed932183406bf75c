"""Save models as checkpoint folders and load them, from disk or from a Hugging Face hub.

Loading is strict: whatever does not fit is an error, unless it was asked for.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from spadnet.models import registry
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.weights.card import model_card
from spadnet.weights.checkpoint import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    read_config,
    read_weights,
    write_folder,
)
from spadnet.weights.contract import InputContract, Model, contract_of, read_contract
from spadnet.weights.from_arguments import (
    CLASSES,
    VIT_AT,
    build_from_arguments,
    change_arguments,
)
from spadnet.weights.golden import golden_tensors
from spadnet.weights.source import HubOptions, find_folder
from spadnet.weights.strict import LoadReport, fit_weights

logger = logging.getLogger(__name__)

_READERS = {
    "Tokenizer": "load_tokenizer",
    "SpadUNet": "weights.hub.load_pretrained",
    "SpadConvNet": "weights.hub.load_pretrained",
    "TokenizerSegmentor": "weights.hub.load_pretrained",
}
_HEADS = ("head.", "decoder.heads.")


class Loaded(NamedTuple):
    """A model and where it comes from.

    Attributes:
        model: The model in evaluation mode.
        contract: What the model takes.
        config: Contents of ``config.json``.
        report: What became of every key.
        folder: The checkpoint folder.
    """

    model: Model
    contract: InputContract
    config: dict[str, Any]
    report: LoadReport
    folder: Path


# --- save ---


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    training: Mapping[str, Any] | None = None,
    licence: str = "Apache-2.0",
    intensity: Mapping[str, Any] | None = None,
) -> Path:
    """Save a model as a checkpoint folder; nothing is left half-written.

    >>> save_pretrained(tokenizer, "runs/tokenizer", training={"data": ["IXI"]})  # doctest: +SKIP

    Args:
        model: Any model of spadnet.
        folder: Where to; files of an earlier save there are replaced, others left alone.
        name: Name of the size, such as ``"spad_vt_tiny"``.
        training: Plain facts about the training; ``data`` lists the data sets.
        licence: SPDX name of the licence of the weights.
        intensity: What differs from :data:`spadnet.weights.contract.INTENSITY_RULE` in the
            preprocessing that the model was trained with.

    Returns:
        The folder.

    Raises:
        ValueError: If the model is of no known class, or ``training`` holds more than plain types.
        OSError: If the disk is full or the folder cannot be written.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    if not isinstance(model, Model):
        raise ValueError(f"cannot save a {type(model).__name__}; known are {', '.join(CLASSES)}")
    folder = Path(folder).expanduser()
    config = {
        "format_version": FORMAT_VERSION,
        "model": {"class": type(model).__name__, "name": name, "arguments": model.config()},
        "contract": contract_of(model, intensity=intensity)._asdict(),
        "training": dict(training or {}),
        "licence": licence,
        "versions": {"spadnet": _version(), "torch": str(torch.__version__)},
    }
    card = model_card(config, num_parameters=sum(p.numel() for p in model.parameters()))
    golden = golden_tensors(model)
    write_folder(folder, config=config, state=model.state_dict(), card=card, golden=golden)
    return folder


def _version() -> str:
    try:
        return importlib.metadata.version("spadnet")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


# --- load ---


def load_checkpoint(
    source: str | Path,
    *,
    expect: type[Model] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    pos_grid: Sequence[int] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Loaded:
    """Load a model with everything known about it.

    Args:
        source: Folder, ``local-dir:folder``, ``org/name[@revision]``, or the same after
            ``hf-hub:``.
        expect: Class that is wanted; an encoder is also taken out of a masked image model.
        in_chans: Channels wanted; the first and last layers are adapted to them.
        num_classes: Width of the classifier wanted; another width than the saved one starts afresh.
        pos_grid: Position grid (D, H, W) wanted; the saved one is resampled to it.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where downloads are kept.
        token: Access token for the hub, True for the stored one.
        local_files_only: Whether to use only what was downloaded before.

    Raises:
        ValueError: If the folder is missing, damaged or of another kind, or the weights do not fit.
        OSError: If the hub cannot be reached.
    """
    folder = find_folder(source, HubOptions(revision, cache_dir, token, local_files_only))
    config = read_config(folder)
    where, prefix = str(folder / CONFIG_FILE), ""
    kind, arguments = config["model"]["class"], config["model"]["arguments"]
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(f"{where}: unknown model class {kind!r}{suggest(str(kind), CLASSES)}")
    if expect is SpadViT and kind in VIT_AT and "vit" in arguments:
        kind, arguments, prefix = "SpadViT", arguments["vit"], VIT_AT[kind]
    if expect is not None and CLASSES[kind] is not expect:
        reader = _READERS.get(kind, "load_encoder")
        raise ValueError(
            f"{folder}: holds a {kind}, not a {expect.__name__}; spadnet.{reader} reads it"
        )
    model = build_from_arguments(kind, arguments, where=where)
    stated = config["contract"]
    if prefix and isinstance(model, SpadViT):  # the stride of its own, not of what it is part of
        stated = {**stated, "stride": model.patch_embed.patch_size}
    contract = read_contract(stated, model=model, where=where)
    if in_chans is not None or pos_grid is not None:
        changed = change_arguments(arguments, kind=kind, in_chans=in_chans, pos_grid=pos_grid)
        model = build_from_arguments(kind, changed, where=where)
    if num_classes is not None and not isinstance(model, SpadViT | SpadUNet):
        raise ValueError(f"{folder}: a {kind} has no classifier, got num_classes={num_classes}")
    state, left_out = read_weights(folder / WEIGHTS_FILE, prefix=prefix)
    fitted, report = fit_weights(
        state,
        model,
        contract=contract,
        where=str(folder / WEIGHTS_FILE),
        adapt_channels=in_chans is not None,
        resize_positions=pos_grid is not None,
    )
    report.unexpected.extend(left_out)
    model.load_state_dict(fitted, assign=True)
    vit = getattr(model, "vit", model)
    if isinstance(vit, SpadViT | SpadConvNet):
        vit.register_intensity()
    if isinstance(vit, SpadViT | SpadUNet) and num_classes not in (None, vit.num_classes):
        assert num_classes is not None
        report.unexpected.extend(_move_head(report.loaded))
        vit.reset_classifier(num_classes)
        report.missing.extend(key for key in vit.state_dict() if key.startswith(_HEADS))
    logger.info("%s: %s", folder, report)
    now = contract_of(model, intensity=contract.intensity)
    return Loaded(model.eval(), now, config, report, folder)


def load_pretrained(source: str | Path, **options: Any) -> Model:
    """Load whatever model a checkpoint holds; the options are those of :func:`load_checkpoint`."""
    return load_checkpoint(source, **options).model


def load_tokenizer(source: str | Path, **options: Any) -> Tokenizer:
    """Load a tokenizer in evaluation mode; the options are those of :func:`load_checkpoint`.

    >>> tokenizer = load_tokenizer("runs/demo/tokenizer/tokenizer")  # doctest: +SKIP
    """
    model = load_checkpoint(source, expect=Tokenizer, **options).model
    assert isinstance(model, Tokenizer)
    return model


def load_vit(source: str | Path, **options: Any) -> SpadViT:
    """Load a SPAD-ViT in evaluation mode, from its own folder or a masked image model's.

    The options are those of :func:`load_checkpoint`; see
    :func:`spadnet.inference.encoder.load_encoder` for an encoder that takes files.
    """
    model = load_checkpoint(source, expect=SpadViT, **options).model
    assert isinstance(model, SpadViT)
    return model


def _move_head(loaded: list[str]) -> list[str]:
    """Take the classifier's keys out of a list of keys and return them."""
    head = [key for key in loaded if key.startswith(_HEADS)]
    loaded[:] = [key for key in loaded if key not in head]
    return head


# --- by name ---


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Build a model of a registered size, with random or pretrained weights.

    >>> vit = create_model("spad_vit_tiny", in_chans=1, num_classes=3)

    Args:
        name: One of :func:`spadnet.models.registry.model_names`.
        pretrained: True for the weights of that name, or a source as for :func:`load_checkpoint`:
            its first layer is adapted to ``in_chans``, its position grid to ``pos_grid`` where one
            is given, and a classifier of another width than ``num_classes`` starts afresh. Tokens
            are pooled as they were there, unless ``global_pool`` is given.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where downloads are kept.
        token: Access token for the hub, True for the stored one.
        local_files_only: Whether to use only what was downloaded before.
        **arguments: Arguments of the size's function, such as ``in_chans`` and ``num_classes``.
    """
    model = registry.create_model(name, **arguments)
    if pretrained is False:
        return model
    source = name if pretrained is True else pretrained
    assert isinstance(model, Model)
    loaded = load_checkpoint(
        source,
        expect=type(model),
        in_chans=contract_of(model).channels,
        num_classes=model.num_classes if isinstance(model, SpadViT | SpadUNet) else None,
        pos_grid=arguments.get("pos_grid"),
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
    )
    if isinstance(model, SpadViT) and isinstance(loaded.model, SpadViT):
        if "global_pool" not in arguments and loaded.model.global_pool:
            model.reset_classifier(model.num_classes, loaded.model.global_pool)
        elif model.head_hidden_size != loaded.model.head_hidden_size:
            loaded.model.reset_classifier(model.num_classes, model.global_pool)
    fitted, _ = fit_weights(
        loaded.model.state_dict(), model, contract=loaded.contract, where=f"{source} for {name}"
    )
    model.load_state_dict(fitted)
    return model
