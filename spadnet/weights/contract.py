"""The input contract: everything that must hold for an image before a model may see it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE
from spadnet.weights.checkpoint import check_entries

Model = (
    Tokenizer
    | SpadViT
    | MaskedImageModel
    | SpadUNet
    | SpadConvNet
    | AttentionClassifier
    | VitSegmentor
    | TokenizerSegmentor
)

INTENSITY_RULE: dict[str, Any] = {
    "range": [0.0, 1.0],
    "percentiles": [0.5, 99.5],
    "percentiles_of": "foreground",
    "pictures": "8-bit and colour images are divided by 255",
    "crop_to_foreground": True,
    "max_in_plane": 512,
}
"""How stored voxels become intensities in [0, 1]: the arguments of spadnet's preprocessing."""

_OWN_NUMBERS = ("percentiles", "crop_to_foreground", "max_in_plane")  # a checkpoint may choose

DEGREE_RULE = "floor(log2(z / min(y, x))), clamped to [0, max_degree]"
STRIDE_RULE = "depth stride = stride >> min(degree, log2(stride))"


class InputContract(NamedTuple):
    """What a model takes; a checkpoint's ``config.json`` holds it under ``contract``.

    Attributes:
        channels: Channels of the image.
        mean: Mean per channel that the model itself subtracts from intensities in [0, 1].
        std: Standard deviation per channel that the model itself divides by.
        stride: In-plane patch size or total stride in pixels.
        max_degree: Degree of a 2D image.
        axes: Order of the spatial axes; the one with the odd spacing is z.
        degree_rule: How spacing in mm decides the degree.
        stride_rule: How the degree decides the stride along depth.
        intensity: How stored voxels become intensities in [0, 1].
    """

    channels: int
    mean: list[float]
    std: list[float]
    stride: int
    max_degree: int = MAX_DEGREE
    axes: str = "zyx"
    degree_rule: str = DEGREE_RULE
    stride_rule: str = STRIDE_RULE
    intensity: Mapping[str, Any] = INTENSITY_RULE


def contract_of(model: Model, *, intensity: Mapping[str, Any] | None = None) -> InputContract:
    """Contract that a model keeps.

    Args:
        model: Any model of spadnet.
        intensity: What differs from ``INTENSITY_RULE`` in the preprocessing it was trained with.
    """
    rule = {**INTENSITY_RULE, **(intensity or {})}
    _check_intensity(rule, where="intensity")
    if isinstance(model, Tokenizer | TokenizerSegmentor):
        halves = [0.5] * model.in_chans  # 2x - 1
        return InputContract(model.in_chans, halves, halves, model.stride, intensity=rule)
    if isinstance(model, SpadUNet):  # intensities as they are: the first norm scales them
        zeros, ones = [0.0] * model.in_chans, [1.0] * model.in_chans
        return InputContract(model.in_chans, zeros, ones, model.stride, intensity=rule)
    if isinstance(model, SpadConvNet):
        mean, std = list(model.intensity_mean), list(model.intensity_std)
        return InputContract(model.in_chans, mean, std, model.stride, intensity=rule)
    vit = model if isinstance(model, SpadViT) else model.vit
    mean, std = list(vit.intensity_mean), list(vit.intensity_std)
    stride = model.stride if isinstance(model, VitSegmentor) else vit.patch_embed.patch_size
    return InputContract(vit.in_chans, mean, std, stride, intensity=rule)


def read_contract(plain: Any, *, model: Model, where: str) -> InputContract:
    """Read a contract from a ``config.json`` and refuse what this version cannot keep.

    Args:
        plain: The entry ``contract`` of the file.
        model: The model as its constructor arguments build it.
        where: The file, for messages.

    Raises:
        ValueError: If an entry is unknown, missing, or not what this model takes.
    """
    check_entries(plain, InputContract._fields, where=f"{where}: contract")
    contract = InputContract(**plain)
    _check_intensity(contract.intensity, where=f"{where}: contract.intensity")
    for key, ours in contract_of(model, intensity=contract.intensity)._asdict().items():
        if getattr(contract, key) != ours:
            raise ValueError(
                f"{where}: contract.{key} is {getattr(contract, key)!r}, but this model under this "
                f"version of spadnet takes {ours!r}"
            )
    return contract


def _check_intensity(rule: Any, *, where: str) -> None:
    check_entries(rule, list(INTENSITY_RULE), where=where)
    for key, ours in INTENSITY_RULE.items():
        if key not in _OWN_NUMBERS and rule[key] != ours:
            raise ValueError(
                f"{where}: {key} is {rule[key]!r}; this version of spadnet knows {ours!r}"
            )
    percentiles, side = rule["percentiles"], rule["max_in_plane"]
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"{where}: percentiles must rise within 0 to 100, got {percentiles}")
    if side is not None and side < 1:
        raise ValueError(f"{where}: max_in_plane must be positive or null, got {side}")
