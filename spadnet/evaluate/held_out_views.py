"""Views of held-out images, as many of each degree, small enough to look at now and then."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from spadnet.data.extract import Bounds, Box
from spadnet.data.volume import Volume
from spadnet.evaluate.held_out import HeldOut, fit_to_multiple
from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple

logger = logging.getLogger(__name__)


def held_out_views(
    volumes: Sequence[Volume],
    *,
    degrees: Sequence[int],
    per_degree: int,
    tokens: Sequence[int],
    stride: int = 16,
) -> list[HeldOut]:
    """Cut the middle out of held-out images, up to the same number for each degree.

    An image whose slices are too thin for a degree is seen with slices averaged, or its middle
    slice alone as a 2D image, where too few images have that degree themselves.

    Args:
        volumes: Images that no training step sees.
        degrees: Degrees that the training draws.
        per_degree: Views of each degree, fewer where there are fewer images.
        tokens: Most tokens of a view (z, y, x).
        stride: Total in-plane stride of the network.
    """
    views: list[HeldOut] = []
    for degree in degrees:
        able = [volume for volume in volumes if _averaged(volume, degree) is not None]
        able.sort(key=lambda volume: degree - volume.spacing.degree())  # the degree's own first
        if not able:
            logger.warning("no held-out image can show degree %d", degree)
        views += [_view(volume, degree, tokens, stride) for volume in able[:per_degree]]
    return views


def _averaged(volume: Volume, degree: int) -> int | None:
    """Slices of an image that make one slice of a degree; None where it cannot."""
    own = volume.spacing.degree()
    if degree in (own, MAX_DEGREE):
        return 1
    count: int = 2 ** (degree - own) if degree > own else 0
    return count if 0 < count <= volume.image.shape[1] else None


def _view(volume: Volume, degree: int, tokens: Sequence[int], stride: int) -> HeldOut:
    count = _averaged(volume, degree)
    assert count is not None
    _, depth, *plane = volume.image.shape
    steps = required_multiple(degree, stride=stride)
    slices = 1 if degree == MAX_DEGREE else min(tokens[0] * steps[0], depth // count)
    sizes = [
        min(n * step, size) for n, step, size in zip(tokens[1:], steps[1:], plane, strict=True)
    ]
    box = (
        _middle(depth, slices * count),
        _middle(plane[0], sizes[0]),
        _middle(plane[1], sizes[1]),
    )
    image = _read(volume, box)
    image = image.unflatten(1, (slices, count)).mean(2)
    spacing, own = volume.spacing, volume.spacing.degree()
    note = ""
    if degree == MAX_DEGREE > own:
        spacing, note = Spacing.planar(spacing.y, spacing.x), ", middle slice"
    elif count > 1:
        spacing, note = spacing._replace(z=spacing.z * count), f", means of {count} slices"
    fitted = fit_to_multiple(image, degree, stride=stride)
    return HeldOut(volume.key + note, fitted[None], spacing, degree, volume.modality)


def _middle(size: int, length: int) -> Bounds:
    first = (size - length) // 2
    return first, first + length


def _read(volume: Volume, box: Box) -> Tensor:
    """Intensities in [0, 1] of a box, [C, d, h, w], float32."""
    image = volume.image
    if not isinstance(image, Tensor):
        return image.reader()(box)
    z, y, x = (slice(*bounds) for bounds in box)
    part = image[:, z, y, x].float()
    return part / 255 if image.dtype == torch.uint8 else part
