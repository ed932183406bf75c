"""Strict loading that explains itself: what fits, what does not, what was adapted on request."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.layers.patch_embed import resample_position_grid
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.weights.contract import InputContract, Model, contract_of
from spadnet.weights.convert.rename import StateDict

GREY_OF_RGB = (0.299, 0.587, 0.114)


class LoadReport(NamedTuple):
    """What became of every key of a weights file and of the model.

    Attributes:
        loaded: Keys taken as they are.
        missing: Keys of the model that start afresh, on request (a new classifier).
        unexpected: Keys of the file that the model has no place for, left out on request.
        resized: Position grids resampled on request.
        adapted: Keys adapted to another number of channels on request.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    resized: list[str]
    adapted: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for name, keys in zip(self._fields[1:], self[1:], strict=True):
            if keys:
                parts.append(f"{len(keys)} {name} ({_first(keys)})")
        return ", ".join(parts)


def _first(keys: Sequence[str], *, count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")


def adapt_input_channels(
    weight: Tensor,
    bias: Tensor,
    channels: int,
    *,
    mean: tuple[Sequence[float], Sequence[float]],
    std: tuple[Sequence[float], Sequence[float]],
) -> tuple[Tensor, Tensor]:
    """Adapt the first convolution: the new model sees each channel as the mean of the old ones.

    A grey image gives the same features as the same image repeated over the channels did before:
    kernels are summed over the old channels and shared among the new ones, after the old
    normalisation is folded in and the new one folded out.

    Args:
        weight: Kernel, [C, C_in, k, k, k].
        bias: Bias, [C].
        channels: New number of input channels.
        mean: Old and new mean per channel.
        std: Old and new standard deviation per channel.
    """

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1, 1)

    kernel = weight.double() / per_channel(std[0])
    raw_bias = bias.double() - (kernel * per_channel(mean[0])).flatten(1).sum(1)
    kernel = kernel.sum(1, keepdim=True).expand(-1, channels, -1, -1, -1) / channels
    new_bias = raw_bias + (kernel * per_channel(mean[1])).flatten(1).sum(1)
    return (kernel * per_channel(std[1])).to(weight.dtype), new_bias.to(bias.dtype)


def adapt_output_channels(weight: Tensor, bias: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Adapt the last transposed convolution: RGB becomes grey by luminance, others by the mean.

    Args:
        weight: Kernel, [C, C_out, k, k, k]; a convolution's goes in and out with its first two axes
            exchanged.
        bias: Bias, [C_out].
        channels: New number of output channels.
    """
    old = bias.shape[0]
    share = torch.tensor(GREY_OF_RGB if old == 3 else [1 / old] * old).to(weight)
    grey = torch.einsum("coxyz,o->cxyz", weight, share).unsqueeze(1)
    return grey.expand(-1, channels, -1, -1, -1).clone(), (bias @ share).expand(channels).clone()


def _input_layer(model: Model) -> str:
    match model:
        case Tokenizer():
            return "encoder.stem" if model.num_residual_blocks else "encoder.stem.conv"
        case SpadViT():
            return "patch_embed.proj"
        case MaskedImageModel() | AttentionClassifier():
            return "vit.patch_embed.proj"
        case VitSegmentor():  # its stem is a second first layer and does not fit: an error
            return "pyramid.vit.patch_embed.proj"
        case TokenizerSegmentor():  # as with a ViT's
            return "pyramid.encoder.stem.conv"
        case SpadConvNet():
            return "stages.0.conv1" if model.stem is None else "stem"
        case SpadUNet():
            return "encoder.stages.0.blocks.0.conv"


def fit_weights(
    state: Mapping[str, Tensor],
    model: Model,
    *,
    contract: InputContract,
    where: str,
    adapt_channels: bool = False,
    resize_positions: bool = False,
) -> tuple[StateDict, LoadReport]:
    """Fit weights to a model; whatever was not asked for is an error.

    Args:
        state: Weights as saved.
        model: The model that is to take them.
        contract: Contract that the weights were saved with.
        where: The file, for messages.
        adapt_channels: Whether the number of channels may change.
        resize_positions: Whether the position grid may be resampled.

    Returns:
        A state dict that ``model.load_state_dict`` takes strictly, and the report.

    Raises:
        ValueError: If keys or shapes differ beyond what was asked for.
    """
    target = model.state_dict()
    state = dict(state)
    fitted: StateDict = {}
    report = LoadReport([], [], [], [], [])
    old, new = contract, contract_of(model)
    if adapt_channels and old.channels != new.channels:
        for layer in (_input_layer(model), "decoder.head"):
            keys = f"{layer}.weight", f"{layer}.bias"
            if keys[0] not in state:
                continue
            num_biases = state[keys[0]].shape[int(layer == "decoder.head")]
            pair = state[keys[0]], state.get(keys[1], torch.zeros(num_biases))
            if layer == "decoder.head":
                # A VQGAN ends in a convolution, the published form in a transposed one.
                turn = isinstance(model, Tokenizer) and model.num_residual_blocks > 0
                kernel = pair[0].transpose(0, 1) if turn else pair[0]
                kernel, bias = adapt_output_channels(kernel, pair[1], new.channels)
                pair = (kernel.transpose(0, 1) if turn else kernel), bias
            else:
                pair = adapt_input_channels(
                    *pair, new.channels, mean=(old.mean, new.mean), std=(old.std, new.std)
                )
            present = [key for key in keys if key in state]  # layers before a norm have no bias
            state |= dict(zip(present, pair, strict=False))
            report.adapted.extend(present)
    misfits = []
    for key, value in state.items():
        if key not in target:
            continue
        wanted = target[key].shape
        is_grid = resize_positions and key.endswith("pos_embed") and value.ndim == len(wanted)
        if is_grid and value.shape != wanted and value.shape[:2] == wanted[:2]:
            value = resample_position_grid(value, wanted[2:])
            report.resized.append(key)
        if value.shape != wanted:
            misfits.append(f"{key} is {list(value.shape)}, the model's {list(wanted)}")
        fitted[key] = value.to(target[key].dtype)
    changed = {*report.adapted, *report.resized}
    report.loaded.extend(k for k in state if k in target and k not in changed)
    problems = {
        "missing": [k for k in target if k not in fitted],
        "unexpected": [k for k in state if k not in target],
        "of another shape": misfits,
    }
    if any(problems.values()):
        listed = (f"{len(keys)} {what} ({_first(keys)})" for what, keys in problems.items() if keys)
        raise ValueError(f"{where}: weights do not fit the model: {'; '.join(listed)}")
    return fitted, report
