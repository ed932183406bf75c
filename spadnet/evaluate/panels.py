"""Pictures of held-out images: original, reconstruction, masked view, predicted codes decoded."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.masking import random_visible_index
from spadnet.evaluate.held_out import (
    Grid,
    HeldOut,
    Window,
    cut_window,
    evaluating,
    mask_generator,
    repeat_grey,
    token_grid,
    window_size,
    window_starts,
)
from spadnet.models.mim import MaskedImageModel
from spadnet.models.quantizer import NearestQuantizer
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import Spacing, required_multiple

MASK_GREY = 0.5
PLANES = ("axial slice", "coronal slice", "sagittal slice")
_CORONAL_SLICES, _CORONAL_ASPECT = 8, 0.3  # a coronal plane below is a stripe that shows nothing
_WINDOWS_AT_ONCE = 16


class Panel(NamedTuple):
    """Four pictures of one plane through one image, uint8, [H, W] or [H, W, 3], square pixels.

    Attributes:
        name: Name of the image.
        modality: Kind of image; may be empty.
        spacing: Distance between voxels in mm.
        degree: Degree of anisotropy.
        plane: ``2D image``, ``axial slice`` or ``coronal slice``.
        original: The image.
        reconstruction: What the tokenizer makes of its own codes.
        masked: The image with grey blocks where tokens are hidden.
        prediction: Decoded tokens: predicted ones behind the mask, the tokenizer's own elsewhere.
    """

    name: str
    modality: str
    spacing: Spacing
    degree: int
    plane: str
    original: np.ndarray
    reconstruction: np.ndarray
    masked: np.ndarray
    prediction: np.ndarray


class Views(NamedTuple):
    """The four forms of one image, each [1, C, D, H, W] in [0, 1]."""

    original: Tensor
    reconstruction: Tensor
    masked: Tensor
    prediction: Tensor


def panels(
    model: MaskedImageModel,
    tokenizer: Tokenizer,
    images: Sequence[HeldOut],
    *,
    window: Window,
    mask_ratio: float,
    seed: int = 0,
) -> list[Panel]:
    """Picture the middle axial slice of each image, and a coronal one where the volume is thick.

    Args:
        model: Trained model; its mode is left as it was.
        tokenizer: The frozen tokenizer.
        images: Images held out of training.
        window: Token grid (z, y, x) of a training crop, or one per degree.
        mask_ratio: Share of tokens that are hidden.
        seed: Seed of the masks.
    """
    made: list[Panel] = []
    for place, held_out in enumerate(images):
        generator = mask_generator(seed, place)
        views = masked_views(
            model, tokenizer, held_out, window=window, mask_ratio=mask_ratio, generator=generator
        )
        depth, _, width = held_out.image.shape[2:]
        spacing = held_out.spacing
        planes = ["2D image" if depth == 1 else "axial slice"]
        aspect = depth * spacing.z / (width * spacing.x)
        if depth >= _CORONAL_SLICES and aspect >= _CORONAL_ASPECT:
            planes.append("coronal slice")
        for plane in planes:
            made.append(
                Panel(
                    held_out.name,
                    held_out.modality,
                    spacing,
                    held_out.degree,
                    plane,
                    *(cut_plane(view, plane, spacing) for view in views),
                )
            )
    return made


def masked_views(
    model: MaskedImageModel,
    tokenizer: Tokenizer,
    held_out: HeldOut,
    *,
    window: Window,
    mask_ratio: float,
    generator: torch.Generator,
) -> Views:
    """Hide random tokens of a whole image and predict them in windows of the training size.

    Where windows overlap, their predicted distributions are averaged.

    Args:
        model: Trained model.
        tokenizer: The frozen tokenizer.
        held_out: Image.
        window: Token grid (z, y, x) of a training crop, or one per degree.
        mask_ratio: Share of tokens that are hidden.
        generator: Source of the mask, on the CPU.
    """
    degree, stride = held_out.degree, tokenizer.stride
    image = held_out.image.to(model.mask_token.device)
    grid = token_grid(image, degree, stride=stride)
    num_tokens = grid[0] * grid[1] * grid[2]
    visible = random_visible_index(1, num_tokens, mask_ratio=mask_ratio, generator=generator)
    hidden = torch.ones(num_tokens, dtype=torch.bool)
    hidden = hidden.index_fill(0, visible[0], False).view(grid).to(image.device)
    with evaluating(model, tokenizer):
        reconstruction, tokens = tokenizer(repeat_grey(image, tokenizer.in_chans), degree)
        predicted = _predict(model, image, tokens.logits[0], hidden, window, degree, stride)
        own = tokens.logits.softmax(-1)
        if isinstance(tokenizer.quantizer, NearestQuantizer):
            own = F.one_hot(tokens.index, own.shape[-1]).to(own.dtype)
        probs = torch.where(hidden[..., None], predicted, own)
        prediction = tokenizer.decode(tokenizer.quantizer.mix(probs), degree)
    blocks = hidden[None, None]
    for axis, step in enumerate(required_multiple(degree, stride=stride), start=2):
        blocks = blocks.repeat_interleave(step, dim=axis)
    masked = torch.where(blocks, torch.full_like(image, MASK_GREY), image)
    return Views(image, reconstruction, masked, prediction)


def _predict(
    model: MaskedImageModel,
    image: Tensor,
    logits: Tensor,
    hidden: Tensor,
    window: Window,
    degree: int,
    stride: int,
) -> Tensor:
    """Distributions over codes [d, h, w, K] that the model predicts at hidden tokens, else zero."""
    grid: Grid = token_grid(image, degree, stride=stride)
    size = window_size(window, grid, degree)
    total = torch.zeros_like(logits)
    times = torch.zeros_like(logits[..., :1])
    # Windows that hide equally many tokens go through the model together.
    by_count: dict[int, list[tuple[slice, ...]]] = defaultdict(list)
    for start in window_starts(grid, size):
        place = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        by_count[int(hidden[place].sum())].append(place)
    by_count.pop(0, None)
    for places in by_count.values():
        for i in range(0, len(places), _WINDOWS_AT_ONCE):
            some = places[i : i + _WINDOWS_AT_ONCE]
            is_hidden = torch.stack([hidden[place].flatten() for place in some])
            visible = (~is_hidden).nonzero()[:, 1].view(len(some), -1)
            starts = [(z.start, y.start, x.start) for z, y, x in some]
            cuts = [cut_window(image, at, size, degree, stride=stride) for at in starts]
            target = torch.stack([logits[place].flatten(0, 2) for place in some])
            seen = repeat_grey(torch.cat(cuts), model.vit.in_chans)
            output = model(seen, visible, target, degree)
            at = output.masked_index.unsqueeze(-1).expand_as(output.logits)
            part = torch.zeros_like(target).scatter(1, at, output.logits.softmax(-1).to(target))
            for place, mask, probs in zip(some, is_hidden, part, strict=True):
                total[place] += probs.view(*size, -1)
                times[place] += mask.view(*size, 1)
    return total / times.clamp_min(1)


def cut_plane(view: Tensor, plane: str, spacing: Spacing) -> np.ndarray:
    """Cut the middle of a view along a plane, and give it square pixels.

    Args:
        view: [1, C, D, H, W] in [0, 1].
        plane: One of ``PLANES``; anything else is the axial one.
        spacing: In mm.

    Returns:
        Picture, uint8, [H, W], or [H, W, 3] where there are three channels.
    """
    volume = view[0].float().cpu().clamp(0, 1)
    _, depth, rows, columns = volume.shape
    if plane == "coronal slice":
        cut = volume[:, :, rows // 2].flip(1)  # z points to the head: up
        height, width = spacing.z, spacing.x
    elif plane == "sagittal slice":
        cut = volume[:, :, :, columns // 2].flip(1)
        height, width = spacing.z, spacing.y
    else:
        cut = volume[:, depth // 2]
        height, width = spacing.y, spacing.x
    pixel = min(height, width)
    size = [round(cut.shape[1] * height / pixel), round(cut.shape[2] * width / pixel)]
    # Nearest neighbours: thick slices and the blocks of the mask look as thick as they are.
    cut = F.interpolate(cut[None], size=size, mode="nearest-exact")[0]
    grey = (cut * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    return grey if grey.shape[-1] == 3 else grey[..., 0]


def describe(name: str, modality: str, spacing: Spacing, degree: int, *, planes: str = "") -> str:
    """Name, modality, planes, spacing in mm and degree of an image as a caption."""
    z, y, x = (f"{size:.3g}" for size in spacing)
    size = f"pixels of {y} x {x} mm"
    if spacing == Spacing.planar():  # what an image gets that says nothing
        size = "no pixel size known"
    elif not spacing.is_planar:
        size = f"{z} x {y} x {x} mm (z, y, x)"
    return ", ".join(filter(None, (name, modality, planes, size, f"degree {degree}")))
