"""The objectives of a pre-training from its configuration."""

from collections.abc import Mapping
from typing import Any

from spadnet.cli.training import call
from spadnet.cli.usage import UsageError
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.synthesis.dataset import NUM_LABELS
from spadnet.train.objectives import PixelObjective, PrototypeObjective, TokenObjective
from spadnet.train.pretrain_task import Part
from spadnet.train.synthetic import MAP_LABELS

OBJECTIVES = ("tokens", "pixels", "disentangle")


def objective_weights(settings: Mapping[str, Any]) -> dict[str, float]:
    """Weights of the objectives that ``objective=`` names, a single one of weight 1.

    Args:
        settings: Composed configuration as plain types.

    Raises:
        UsageError: If one is unknown or a weight is no positive number; 0 leaves one out.
    """
    wanted = settings["objective"]
    weights = {wanted: 1.0} if isinstance(wanted, str) else wanted
    if not isinstance(weights, dict):
        raise UsageError(f"objective must be a name or names with weights, got {wanted}")
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise UsageError(f"unknown objective {name!r}{suggest(str(name), OBJECTIVES)}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < float("inf"):
            raise UsageError(f"objective.{name} must be a number from 0 on, got {weight}")
    chosen = {name: float(weights[name]) for name in OBJECTIVES if weights.get(name, 0) > 0}
    if not chosen:
        raise UsageError(f"objective={wanted} names none; choose of {', '.join(OBJECTIVES)}")
    return chosen


def takes_images(settings: Mapping[str, Any]) -> bool:
    """Whether an objective wants images; ``disentangle`` makes its own."""
    return set(objective_weights(settings)) != {"disentangle"}


def build_parts(
    settings: Mapping[str, Any],
    encoder: SpadViT | SpadUNet,
    tokenizer: Tokenizer | None,
    *,
    num_mask_layers: int,
) -> dict[str, Part]:
    """Build the objectives and the models around the encoder that they train.

    Args:
        settings: Composed configuration as plain types.
        encoder: What all objectives train.
        tokenizer: Trained tokenizer, of the objective ``tokens``.
        num_mask_layers: Blocks that see mask tokens, of the objective ``tokens``.
    """
    weights = objective_weights(settings)
    if isinstance(encoder, SpadUNet):
        if list(weights) != ["disentangle"]:
            raise UsageError("a spad_unet is pre-trained with objective=disentangle")
        return {"disentangle": _disentangle(settings, encoder, weights["disentangle"])}
    parts = {}
    for name, weight in weights.items():
        if name == "tokens":
            assert tokenizer is not None
            mim = MaskedImageModel(
                encoder,
                codebook_size=tokenizer.quantizer.codebook_size,
                num_mask_layers=num_mask_layers,
            )
            objective = TokenObjective(mim, tokenizer, mask_ratio=settings["mask_ratio"])
            parts[name] = Part(mim, objective, weight)
        elif name == "pixels":
            section = dict(settings["pixels"])
            pixels = PixelObjective(mask_ratio=section.pop("mask_ratio"))
            mae = call(MaskedAutoencoder, {"vit": encoder, **section}, where="pixels")
            parts[name] = Part(mae, pixels, weight)
        else:
            parts[name] = _disentangle(settings, encoder, weight)
    if set(parts) == {"disentangle"} and settings["model"].get("global_pool") is None:
        encoder.reset_classifier(0, "avgstd")  # it leaves the class token's end as it comes
    return parts


def _disentangle(settings: Mapping[str, Any], encoder: SpadViT | SpadUNet, weight: float) -> Part:
    section = settings["disentangle"]
    num_features = section["num_features"]
    model = (
        UNetDenseFeatures(encoder, num_features=num_features)
        if isinstance(encoder, SpadUNet)
        else VitDenseFeatures(encoder, num_features=num_features)
    )
    num_labels = max(NUM_LABELS) if settings["data"]["label_maps"] is None else MAP_LABELS
    objective = PrototypeObjective(num_labels=num_labels, temperature=section["temperature"])
    return Part(model, objective, weight)
