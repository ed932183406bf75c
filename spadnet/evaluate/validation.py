"""Figures and pictures of a model in training on a few held-out images, degrees counting alike."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from spadnet.evaluate.held_out import HeldOut, Window, evaluating, mask_generator
from spadnet.evaluate.mim_figures import mim_figures
from spadnet.evaluate.panels import masked_views
from spadnet.evaluate.picture_sheet import picture_sheet
from spadnet.evaluate.tokenizer_figures import tokenizer_figures
from spadnet.losses.perceptual import Perceptual
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer


class MaskRule(NamedTuple):
    """How a masked objective hides tokens.

    Attributes:
        window: Token grid (z, y, x) of a training crop.
        mask_ratio: Share of tokens that are hidden.
        seed: Of the masks.
    """

    window: Window
    mask_ratio: float
    seed: int = 0


def tokenizer_scores(
    tokenizer: Tokenizer, images: Sequence[HeldOut], *, perceptual: Perceptual | None = None
) -> tuple[dict[str, float], Tensor]:
    """Reconstruction and use of the codes.

    Args:
        tokenizer: Model in training.
        images: Held-out images.
        perceptual: LPIPS, where its weights are at hand.

    Returns:
        Scores by name, means over the images of each degree averaged over degrees: ``psnr`` in dB,
        what it is above that of block means, ``ssim``, ``lpips``; ``codes_used`` (share of all
        codes), ``perplexity``, ``mutual_information`` in nats. And how many tokens use each code.
    """
    images = on_model(images, tokenizer)
    found = tokenizer_figures(tokenizer, images, perceptual=perceptual)
    per_degree: dict[str, dict[int, float]] = {
        "psnr": _by_degree(images, [image.psnr for image in found.images]),
        "psnr_gain": _by_degree(images, [image.psnr_gain for image in found.images]),
        "ssim": _by_degree(images, [image.ssim for image in found.images]),
    }
    if perceptual is not None:
        distances = [math.nan if i.lpips is None else i.lpips for i in found.images]
        per_degree["lpips"] = _by_degree(images, distances)
    codes = found.codes
    scores = {name: _mean(values.values()) for name, values in per_degree.items()} | {
        "codes_used": codes.codes_used / codes.codebook_size,
        "perplexity": codes.perplexity,
        "mutual_information": codes.mutual_information,
    }
    for name in ("psnr", "ssim"):
        scores |= {f"{name}_degree{d}": value for d, value in per_degree[name].items()}
    return scores, codes.histogram


def mim_scores(
    model: MaskedImageModel, tokenizer: Tokenizer, images: Sequence[HeldOut], rule: MaskRule
) -> dict[str, float]:
    """Loss behind masks beside what ignores the visible tokens.

    Args:
        model: Model in training.
        tokenizer: The frozen tokenizer.
        images: Held-out images.
        rule: How tokens are hidden; the masks are the same each time.

    Returns:
        In nats, means over degrees: ``loss``, ``constant`` (the best constant of each degree) and
        ``own_mean`` (each image's own mean target, which no predictor could know); and ``gain``,
        the share by which the loss is below the constant's.
    """
    images = on_model(images, model)
    found = mim_figures(
        model,
        tokenizer,
        images,
        window=rule.window,
        mask_ratio=rule.mask_ratio,
        num_masks=1,
        seed=rule.seed,
    ).by_degree
    return {
        **beside_constant(
            {degree: (score.loss, score.constant) for degree, score in found.items()}
        ),
        "own_mean": _mean(score.own for score in found.values()),
    }


def beside_constant(by_degree: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """``loss`` and ``constant``, means over degrees, ``gain``, and the loss of each degree.

    Args:
        by_degree: Loss of a model and of what knows nothing.
    """
    loss, constant = (_mean(pair[i] for pair in by_degree.values()) for i in (0, 1))
    return {
        "loss": loss,
        "constant": constant,
        "gain": 1 - loss / constant if constant > 0 else 0.0,
        **{f"loss_degree{degree}": pair[0] for degree, pair in by_degree.items()},
    }


def tokenizer_pictures(
    tokenizer: Tokenizer, images: Sequence[HeldOut]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each image beside its reconstruction."""
    for held_out in on_model(images, tokenizer):
        with evaluating(tokenizer):
            reconstruction, _ = tokenizer(held_out.image, held_out.degree)
        views = {"input": held_out.image, "reconstruction": reconstruction}
        yield held_out.name, picture_sheet(held_out, views)


def mim_pictures(
    model: MaskedImageModel, tokenizer: Tokenizer, images: Sequence[HeldOut], rule: MaskRule
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each image, its masked view and what is predicted behind the mask."""
    for place, held_out in enumerate(on_model(images, model)):
        views = masked_views(
            model,
            tokenizer,
            held_out,
            window=rule.window,
            mask_ratio=rule.mask_ratio,
            generator=mask_generator(rule.seed, place),
        )
        columns = {
            "input": views.original,
            "reconstruction": views.reconstruction,
            "masked view": views.masked,
            "prediction": views.prediction,
        }
        yield held_out.name, picture_sheet(held_out, columns)


def one_of_each_degree(images: Sequence[HeldOut]) -> list[HeldOut]:
    """The first image of each degree."""
    first: dict[int, HeldOut] = {}
    for image in images:
        first.setdefault(image.degree, image)
    return list(first.values())


def on_model(images: Sequence[HeldOut], model: nn.Module) -> list[HeldOut]:
    """The images where the model is and in its number format."""
    like = next(model.parameters())
    return [image._replace(image=image.image.to(like.device, like.dtype)) for image in images]


def _by_degree(images: Sequence[HeldOut], values: Sequence[float]) -> dict[int, float]:
    degrees: dict[int, list[float]] = {}
    for image, value in zip(images, values, strict=True):
        degrees.setdefault(image.degree, []).append(value)
    return {degree: math.fsum(found) / len(found) for degree, found in sorted(degrees.items())}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
