"""Images held out of training, and how they are cut to fit a network and its training windows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, product
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.spacing import Spacing, required_multiple

_Part = TypeVar("_Part")
_Pooled = TypeVar("_Pooled")

_WINDOWS_AT_ONCE = 16

Grid = tuple[int, int, int]
"""Size or place on a token grid, (z, y, x)."""

Window = Sequence[int] | Mapping[int, Sequence[int]]
"""Token grid (z, y, x) of a training crop, the same for all degrees or one for each."""


class HeldOut(NamedTuple):
    """One image that no training step has seen.

    Attributes:
        name: Name in tables and captions.
        image: Intensities in [0, 1], [1, C, D, H, W], sizes as ``fit_to_multiple`` makes them.
        spacing: Distance between voxels in mm.
        degree: Degree of anisotropy at which the networks see it.
        modality: Kind of image for captions, such as ``CT``; may be empty.
    """

    name: str
    image: Tensor
    spacing: Spacing
    degree: int
    modality: str = ""


def fit_to_multiple(volume: Tensor, degree: int, *, stride: int = 16) -> Tensor:
    """Cut a volume about its centre to sizes a network takes; repeat the edge where it is too thin.

    >>> fit_to_multiple(torch.rand(1, 7, 50, 15), degree=2).shape
    torch.Size([1, 4, 48, 16])

    Args:
        volume: Intensities, [C, D, H, W].
        degree: Degree of anisotropy.
        stride: Total in-plane stride of the network.

    Returns:
        Volume whose sizes are multiples of ``required_multiple``, [C, D', H', W'].

    Raises:
        ValueError: If an axis is empty or the tensor is no volume.
    """
    if volume.ndim != 4 or 0 in volume.shape:
        raise ValueError(f"a volume must be [C, D, H, W] with no empty axis, got {[*volume.shape]}")
    pads: list[int] = []
    for axis, step in enumerate(required_multiple(degree, stride=stride), start=1):
        size = volume.shape[axis]
        kept = max(size // step, 1) * step
        if size >= kept:
            volume = volume.narrow(axis, (size - kept) // 2, kept)
        before = max(kept - size, 0) // 2
        pads = [before, max(kept - size, 0) - before, *pads]
    return F.pad(volume[None], pads, mode="replicate")[0] if any(pads) else volume


def block_means(image: Tensor, degree: int, *, stride: int = 16) -> Tensor:
    """Paint every token's block with its own mean: the baseline of all reconstructions.

    Args:
        image: [B, C, D, H, W], sizes multiples of ``required_multiple``.
        degree: Degree of anisotropy.
        stride: In-plane size of a block in pixels.

    Returns:
        Image of the same shape, constant over each block.
    """
    z, y, x = required_multiple(degree, stride=stride)
    blocks = image.unflatten(4, (-1, x)).unflatten(3, (-1, y)).unflatten(2, (-1, z))
    return blocks.mean((3, 5, 7), keepdim=True).expand_as(blocks).reshape(image.shape)


def token_grid(image: Tensor, degree: int, *, stride: int = 16) -> Grid:
    """Token grid (z, y, x) of an image [B, C, D, H, W]."""
    steps = required_multiple(degree, stride=stride)
    z, y, x = (size // step for size, step in zip(image.shape[-3:], steps, strict=True))
    return z, y, x


def window_size(window: Window, grid: Grid, degree: int) -> Grid:
    """Size (z, y, x) of a window in tokens on this grid: the training window where it fits.

    Raises:
        ValueError: If a window has no tokens, or none is given for this degree.
    """
    if isinstance(window, Mapping):
        if degree not in window:
            raise ValueError(f"no window for degree {degree}, only for {sorted(window)}")
        window = window[degree]
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"a window must be three positive token counts, got {tuple(window)}")
    z, y, x = (min(size, whole) for size, whole in zip(window, grid, strict=True))
    return z, y, x


def window_starts(grid: Grid, size: Grid) -> list[Grid]:
    """First tokens of windows that cover a grid; the last along an axis is shifted inwards.

    All windows have the same size, so tokens near the far edge may lie in two of them.

    >>> window_starts((1, 4, 5), (1, 4, 4))
    [(0, 0, 0), (0, 0, 1)]
    """
    along = [
        [min(start, whole - length) for start in range(0, whole, length)]
        for whole, length in zip(grid, size, strict=True)
    ]
    return [(z, y, x) for z, y, x in product(*along)]


def cut_window(image: Tensor, start: Grid, size: Grid, degree: int, *, stride: int = 16) -> Tensor:
    """Voxels of a window of tokens.

    Args:
        image: [B, C, D, H, W].
        start: First token (z, y, x).
        size: Tokens (z, y, x).
        degree: Degree of anisotropy.
        stride: In-plane stride of a token in pixels.

    Returns:
        Part of the image, [B, C, d, h, w].
    """
    steps = required_multiple(degree, stride=stride)
    for axis, (first, count, step) in enumerate(zip(start, size, steps, strict=True), start=2):
        image = image.narrow(axis, first * step, count * step)
    return image


def cover(held_out: HeldOut, window: Window, *, stride: int = 16) -> Iterator[Tensor]:
    """Batches [B, C, d, h, w] of the windows that cover an image, sixteen at most in each."""
    grid = token_grid(held_out.image, held_out.degree, stride=stride)
    size = window_size(window, grid, held_out.degree)
    starts = iter(window_starts(grid, size))
    while some := list(islice(starts, _WINDOWS_AT_ONCE)):
        cuts = [cut_window(held_out.image, at, size, held_out.degree, stride=stride) for at in some]
        yield torch.cat(cuts)


def middle_window(held_out: HeldOut, window: Window, *, stride: int = 16) -> Tensor:
    """The window [1, C, d, h, w] in the middle of an image."""
    grid = token_grid(held_out.image, held_out.degree, stride=stride)
    size = window_size(window, grid, held_out.degree)
    z, y, x = ((whole - length) // 2 for whole, length in zip(grid, size, strict=True))
    return cut_window(held_out.image, (z, y, x), size, held_out.degree, stride=stride)


def mask_generator(seed: int, place: int) -> torch.Generator:
    """Source of the masks of an image; they depend on its place in the list alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + place)


def repeat_grey(image: Tensor, channels: int) -> Tensor:
    """A grey image [B, 1, D, H, W] with the channels that a network takes; others as they are."""
    return image.expand(-1, channels, -1, -1, -1) if image.shape[1] == 1 else image


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def by_degree(
    degrees: Sequence[int], parts: Sequence[_Part], pool: Callable[[Sequence[_Part]], _Pooled]
) -> dict[int, _Pooled]:
    """Pool what was measured on each image over the images of each degree."""
    return {
        degree: pool([part for part, at in zip(parts, degrees, strict=True) if at == degree])
        for degree in sorted(set(degrees))
    }
