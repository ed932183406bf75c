"""Golden outputs: what a model computed where it was saved, kept beside its weights.

A copy that computes the same from the same inputs was neither damaged on its way nor is run by code
that means something else by its weights.
"""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, required_multiple
from spadnet.weights.contract import Model, contract_of
from spadnet.weights.convert.rename import StateDict

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Root mean square difference over that of the values, in float32; rounding stays far below."""

_GRIDS = {0: (1, 2, 2), 2: (2, 2, 2), MAX_DEGREE: (1, 2, 3)}


class GoldenCheck(NamedTuple):
    """One output beside the golden one.

    Attributes:
        name: Degree and name of the output, such as ``degree2.features``.
        error: Root mean square difference over that of the golden values.
    """

    name: str
    error: float


def golden_tensors(model: Model) -> StateDict | None:
    """Inputs and outputs of a model at several degrees, computed in float32 on the CPU.

    Args:
        model: The model; a copy of it computes.

    Returns:
        Tensors ``degree{n}.input`` (8 bits) and ``degree{n}.{output}``; None where an output is not
        finite, which is logged.
    """
    own = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    contract = contract_of(model)
    tensors: StateDict = {}
    for degree, grid in _GRIDS.items():
        if degree != MAX_DEGREE and contract.stride & (contract.stride - 1):
            continue  # such a patch has no whole number of slices
        steps = required_multiple(degree, stride=contract.stride)
        size = [count * step for count, step in zip(grid, steps, strict=True)]
        generator = torch.Generator().manual_seed(degree)
        x = torch.randint(256, (1, contract.channels, *size), generator=generator)
        tensors[f"degree{degree}.input"] = x.to(torch.uint8)
    tensors |= outputs_of(own, tensors)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        logger.warning("the model computes values that are not finite; saved without golden ones")
        return None
    return tensors


@torch.no_grad()
def outputs_of(model: Model, inputs: Mapping[str, Tensor]) -> StateDict:
    """Everything that a model computes from golden inputs.

    Args:
        model: The model, put in evaluation mode.
        inputs: Tensors ``degree{n}.input``; others are passed over.
    """
    model.eval()
    outputs: StateDict = {}
    for key, stored in inputs.items():
        label, _, name = key.rpartition(".")
        if name == "input":
            found = _compute(model, stored.float() / 255, int(label.removeprefix("degree")))
            outputs |= {
                f"{label}.{name}": value.clone(memory_format=torch.contiguous_format)
                for name, value in found.items()
            }
    return outputs


def _compute(model: Model, x: Tensor, degree: int) -> StateDict:
    match model:
        case Tokenizer():
            z = model.encode(x, degree)
            logits = model.quantizer.logits(z)
            # Codes by number: the best one of two that are nearly alike may change by rounding.
            index = torch.arange(logits[..., 0].numel()) % model.quantizer.codebook_size
            codes = model.quantizer.lookup(index.view(logits.shape[:-1]))
            return {"logits": logits, "decoded": model.decode(codes, degree)}
        case SpadViT():
            features = model.forward_features(x, degree)
            found = {"features": features, "pooled": model.forward_head(features, pre_logits=True)}
            return found | {"logits": model(x, degree)} if model.num_classes else found
        case SpadUNet():
            maps = model.forward_features(x, degree)
            found = {f"features{level}": value for level, value in enumerate(maps)}
            return found | {"logits": model.get_classifier()(maps[0])}
        case SpadConvNet() | AttentionClassifier():
            return {"logits": model(x, degree)}
        case VitSegmentor() | TokenizerSegmentor():
            logits = model(x, degree)
            return {"logits": logits[0] if isinstance(logits, list) else logits}
        case MaskedImageModel():
            num_tokens = (
                model.vit.forward_features(x, degree).shape[1] - model.vit.num_prefix_tokens
            )
            visible = torch.arange(0, num_tokens, 2)[None]
            return {"logits": model.head(model.hidden(x, visible, degree))}


def check_golden(model: Model, file: Path) -> list[GoldenCheck]:
    """Compute golden outputs again and compare.

    Args:
        model: The model as loaded, in float32 on the CPU.
        file: Golden tensors of its folder.

    Raises:
        ValueError: If the file is damaged, or an output differs by more than ``TOLERANCE``.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            golden = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: damaged or truncated: {error}") from error
    outputs = outputs_of(model, golden)
    expected = {key: value for key, value in golden.items() if not key.endswith(".input")}
    if not expected or outputs.keys() != expected.keys():
        odd = sorted(outputs.keys() ^ expected.keys())
        raise ValueError(
            f"{file}: not the golden outputs of this model: {', '.join(odd) or 'none'}"
        )
    checks = [GoldenCheck(key, _error(outputs[key], value)) for key, value in expected.items()]
    worst = max(checks, key=lambda check: check.error)
    if not worst.error <= TOLERANCE:  # NaN misses too
        raise ValueError(
            f"{file.parent}: computes something else than where it was saved: {worst.name} differs "
            f"by {worst.error:.1e}, more than {TOLERANCE:.0e}"
        )
    return checks


def _error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    scale = expected.double().square().mean().sqrt().clamp_min(1e-12)
    return float((actual.double() - expected.double()).square().mean().sqrt() / scale)
