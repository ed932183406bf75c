"""What the objectives beside codes reach on what no step saw, beside what knows nothing."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from spadnet.data.crop_plan import crop_size
from spadnet.data.labelled_steps import LabelledImages, LabelledSource
from spadnet.data.masking import random_visible_index
from spadnet.evaluate.held_out import (
    HeldOut,
    by_degree,
    cover,
    evaluating,
    mask_generator,
    middle_window,
    repeat_grey,
)
from spadnet.evaluate.panels import MASK_GREY
from spadnet.evaluate.picture_sheet import picture_sheet
from spadnet.evaluate.validation import MaskRule, beside_constant, on_model
from spadnet.losses.pixels import pixel_errors
from spadnet.losses.prototypes import prototype_loss
from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures, coarse_labels
from spadnet.models.mae import MaskedAutoencoder

_SEED = 0x7E1D  # of the first anatomy; a training draws below 2^62 and hardly ever meets them


class Sums(NamedTuple):
    """Sums of losses and of those of what knows nothing, and how many there are."""

    loss: float
    constant: float
    num: int


class Anatomy(NamedTuple):
    """A synthetic image of a degree, whose anatomy is known, in its views."""

    degree: int
    images: LabelledImages


def pixel_scores(
    model: MaskedAutoencoder, images: Sequence[HeldOut], rule: MaskRule
) -> dict[str, float]:
    """Squared error of normalised voxels behind masks, beside that of each patch's own mean.

    Args:
        model: Model in training.
        images: Held-out images.
        rule: How tokens are hidden; the masks are the same each time.

    Returns:
        See :func:`summary`.
    """
    embed = model.vit.patch_embed
    found = []
    with evaluating(model):
        for place, held_out in enumerate(on_model(images, model)):
            generator = mask_generator(rule.seed, place)
            parts = []
            for batch in cover(held_out, rule.window, stride=embed.patch_size):
                num = math.prod(embed.grid_size(batch.shape[2:], held_out.degree))
                visible = random_visible_index(
                    len(batch), num, mask_ratio=rule.mask_ratio, generator=generator
                )
                grey = repeat_grey(batch, model.vit.in_chans)
                output = model(grey, visible.to(batch.device), held_out.degree)
                pairs = [output.predicted, torch.zeros_like(output.predicted)]
                loss, flat = (pixel_errors(pair, output.patches).sum().item() for pair in pairs)
                parts.append(Sums(loss, flat, output.patches.numel()))
            found.append(_pooled(parts))
    return _summary([held_out.degree for held_out in images], found)


def pixel_pictures(
    model: MaskedAutoencoder, images: Sequence[HeldOut], rule: MaskRule
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of a window of each image, of what is seen of it and of what is predicted.

    Predicted patches get the mean and the spread of the hidden ones, which the model is not asked
    for.
    """
    embed = model.vit.patch_embed
    for place, held_out in enumerate(on_model(images, model)):
        generator = mask_generator(rule.seed, place)
        window = middle_window(held_out, rule.window, stride=embed.patch_size)
        grid = embed.grid_size(window.shape[2:], held_out.degree)
        visible = random_visible_index(
            1, math.prod(grid), mask_ratio=rule.mask_ratio, generator=generator
        )
        grey = repeat_grey(window, model.vit.in_chans)
        with evaluating(model):
            output = model(grey, visible.to(window.device), held_out.degree)
        spread, mean = torch.std_mean(output.patches, dim=-1, keepdim=True, correction=0)
        index = output.masked_index[..., None].expand_as(output.patches)
        patches = embed.patchify(grey, held_out.degree)
        views = {"input": window}
        for name, hidden in (
            ("masked view", torch.full_like(output.patches, MASK_GREY)),
            ("prediction", output.predicted * spread + mean),
        ):
            painted = patches.scatter(1, index, hidden.to(patches))
            views[name] = embed.unpatchify(painted, grid, held_out.degree)[:, : window.shape[1]]
        yield held_out.name, picture_sheet(held_out._replace(image=window), views)


def make_anatomies(
    source: LabelledSource, *, degrees: Sequence[int], per_degree: int, tokens: Sequence[int]
) -> list[Anatomy]:
    """Make the same images each time, of every degree.

    Args:
        source: Makes them, as those of the training.
        degrees: Degrees that the training draws.
        per_degree: Images of each degree.
        tokens: Size of an image in tokens (z, y, x).
    """
    z, y, x = tokens
    made = []
    for degree in degrees:
        for number in range(per_degree):
            size = crop_size(degree, (z, y, x))
            made.append(Anatomy(degree, source([_SEED + number], size, degree=degree)))
    return made


def prototype_scores(
    model: VitDenseFeatures | UNetDenseFeatures,
    anatomies: Sequence[Anatomy],
    *,
    num_labels: int,
    temperature: float,
) -> dict[str, float]:
    """Prototype loss beside that of features that tell nothing.

    Args:
        model: Model in training.
        anatomies: Images that no step saw.
        num_labels: See :func:`spadnet.losses.prototypes.prototype_loss`.
        temperature: See there.

    Returns:
        See :func:`summary`.
    """
    like = next(model.parameters())
    found = []
    with evaluating(model):
        for degree, images in anatomies:
            views = [view for view in (images.image, images.other_view) if view is not None]
            together = repeat_grey(torch.cat(views).to(like.device, like.dtype), model.in_chans)
            labels = coarse_labels(images.labels, stride=model.stride, degree=degree)
            features = model(together, degree)
            losses = []
            for given in (features, torch.ones_like(features)):
                first, *others = given.chunk(len(views))
                loss = prototype_loss(
                    first,
                    labels.to(like.device),
                    num_labels=num_labels,
                    other_view=others[0] if others else None,
                    temperature=temperature,
                )
                losses.append(loss.item())
            found.append(Sums(losses[0], losses[1], 1))
    return _summary([degree for degree, _ in anatomies], found)


def _summary(degrees: Sequence[int], sums: Sequence[Sums]) -> dict[str, float]:
    """What :func:`beside_constant` tells of sums of images of these degrees."""
    found = by_degree(degrees, sums, _pooled)
    return beside_constant(
        {degree: (one.loss / one.num, one.constant / one.num) for degree, one in found.items()}
    )


def _pooled(parts: Sequence[Sums]) -> Sums:
    return Sums(
        math.fsum(part.loss for part in parts),
        math.fsum(part.constant for part in parts),
        sum(part.num for part in parts),
    )
