"""Run a network over a large volume in windows, blend where they overlap, keep memory small.

Windows lie on a regular grid, so that their blending weights are products of one weight per axis
and can be normalised beforehand: nothing is divided at the end. Windows are taken from the first
slice to the last, and only the slices that a later window can still change are held. Memory is that
of one window's depth, however deep the volume is and however many classes there are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Blend = Literal["gaussian", "constant"]
Predict = Callable[[Tensor], Tensor]
"""Maps windows [B, C_in, d, h, w] to as large outputs [B, C, d, h, w]."""

_SIGMA = 0.125  # of a window's length, as in nnU-Net and MONAI
_FLOOR = 1e-3  # smallest weight along an axis: at an image's border a window is all there is
_MAX_LABELS = 256


class Slab(NamedTuple):
    """Slices that no later window changes.

    Attributes:
        start: The first of them.
        values: Blended outputs, [C, n, H, W]; valid until the next slab is asked for.
    """

    start: int
    values: Tensor


@torch.no_grad()
def slabs(
    image: Tensor,
    predict: Predict,
    *,
    window: Sequence[int],
    multiple: Sequence[int] = (1, 1, 1),
    overlap: float = 0.5,
    batch_size: int = 1,
    blend: Blend = "gaussian",
) -> Iterator[Slab]:
    """Predict a volume in overlapping windows and give it slab by slab.

    Args:
        image: Volume, [C_in, D, H, W].
        predict: The network; what it gives is blended as it is, so let it end in probabilities
            where these shall be averaged.
        window: Size (z, y, x) of a window in voxels, cut down to the image's.
        multiple: Sizes must be multiples of this; the image is padded by its last slice, row and
            column, and windows start at multiples. ``window`` is rounded up.
        overlap: Share of a window that its neighbour covers too, at least, in [0, 1).
        batch_size: Windows that pass the network together.
        blend: ``"gaussian"`` trusts the middle of a window more, ``"constant"`` all of it.

    Yields:
        Slabs from the first slice to the last, together [C, D, H, W].

    Raises:
        ValueError: If an argument is out of range, or outputs are not as large as their windows.
    """
    if not 0 <= overlap < 1 or batch_size < 1 or min(window) < 1:
        raise ValueError(
            f"overlap must lie in [0, 1) and windows and batch_size be positive, got {overlap}, "
            f"{tuple(window)}, {batch_size}"
        )
    if blend not in ("gaussian", "constant"):
        raise ValueError(f"blend must be 'gaussian' or 'constant', got {blend!r}")
    depth, height, width = image.shape[1:]
    image = pad_to_multiple(image, multiple)
    full = list(image.shape[1:])
    size = [min(-(-w // m) * m, n) for w, m, n in zip(window, multiple, full, strict=True)]
    axes = [_starts(n, w, m, overlap) for n, w, m in zip(full, size, multiple, strict=True)]
    weights = [_weights(starts, n, w, blend) for starts, n, w in zip(axes, full, size, strict=True)]
    places = [(y, x) for y in range(len(axes[1])) for x in range(len(axes[2]))]
    buffer: Tensor | None = None
    for row, z in enumerate(axes[0]):
        slices = image[:, z : z + size[0]]
        for first in range(0, len(places), batch_size):
            batch = places[first : first + batch_size]
            cuts = [(axes[1][y], axes[2][x]) for y, x in batch]
            parts = [slices[:, :, y : y + size[1], x : x + size[2]] for y, x in cuts]
            outputs = predict(torch.stack(parts)).to(image.device)
            if list(outputs.shape[2:]) != size:
                raise ValueError(
                    f"windows of {tuple(size)} gave outputs of {tuple(outputs.shape[2:])}"
                )
            if buffer is None:
                buffer = outputs.new_zeros(
                    outputs.shape[1], size[0], *full[1:], dtype=torch.float32
                )
            for (iy, ix), (y, x), output in zip(batch, cuts, outputs, strict=True):
                plane = weights[1][iy][:, None] * weights[2][ix]
                share = (weights[0][row][:, None, None] * plane).to(buffer)
                target = buffer[:, :, y : y + size[1], x : x + size[2]]
                torch.addcmul(target, output.to(buffer), share, out=target)
        assert buffer is not None
        is_last = row + 1 == len(axes[0])
        done = (depth if is_last else axes[0][row + 1]) - z
        yield Slab(z, buffer[:, :done, :height, :width])
        if not is_last:
            _shift(buffer, done)


def stitch(image: Tensor, predict: Predict, **options: object) -> Tensor:
    """Blended outputs of a whole volume, [C, D, H, W] float32; the options are those of ``slabs``.

    For few channels: it holds all of them. See :func:`segment` for masks of many classes.
    """
    whole: Tensor | None = None
    for slab in slabs(image, predict, **options):  # type: ignore[arg-type]
        if whole is None:
            whole = slab.values.new_empty(slab.values.shape[0], *image.shape[1:])
        whole[:, slab.start : slab.start + slab.values.shape[1]] = slab.values
    assert whole is not None
    return whole


def segment(image: Tensor, predict: Predict, **options: object) -> Tensor:
    """Most probable class of each voxel, uint8 [D, H, W]; the options are those of ``slabs``.

    Args:
        image: Volume, [C_in, D, H, W].
        predict: Gives a score for each class, [B, C, d, h, w]; a single one is a probability whose
            voxels above one half are the mask.
        **options: Options of :func:`slabs`.

    Raises:
        ValueError: If there are more than 256 classes, or for what :func:`slabs` refuses.
    """
    labels = torch.empty(image.shape[1:], dtype=torch.uint8)
    for slab in slabs(image, predict, **options):  # type: ignore[arg-type]
        if slab.values.shape[0] > _MAX_LABELS:
            raise ValueError(f"{slab.values.shape[0]} classes, at most {_MAX_LABELS} fit a mask")
        if slab.values.shape[0] == 1:
            best = slab.values[0] > 0.5
        else:  # several times faster than argmax(0)
            best = slab.values.max(0).indices
        labels[slab.start : slab.start + best.shape[0]] = best
    return labels


def with_flips(predict: Predict, axes: Sequence[int] = (0, 1, 2)) -> Predict:
    """Average a network's outputs over all flips of some axes (test-time augmentation).

    Args:
        predict: The network.
        axes: Of z, y, x (0, 1, 2) those that are flipped, alone and together: 8 runs for three.

    Raises:
        ValueError: If an axis is unknown or repeated.
    """
    if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
        raise ValueError(f"axes must be of 0, 1, 2 and differ, got {tuple(axes)}")
    flips = [
        [2 + axis for axis in chosen]
        for count in range(len(axes) + 1)
        for chosen in combinations(axes, count)
    ]

    def averaged(x: Tensor) -> Tensor:
        total: Tensor | None = None
        for dims in flips:
            output = predict(x.flip(dims)).flip(dims)
            total = output if total is None else total + output
        assert total is not None
        return total / len(flips)

    return averaged


def pad_to_multiple(image: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the last slice, row and column of [C, D, H, W] until sizes are multiples (z, y, x)."""
    missing = [-have % step for have, step in zip(image.shape[1:], multiple, strict=True)]
    if not any(missing):
        return image
    ends = (0, missing[2], 0, missing[1], 0, missing[0])
    return F.pad(image[None], ends, mode="replicate")[0]


def _starts(length: int, window: int, multiple: int, overlap: float) -> list[int]:
    """Evenly spread starts of windows that cover an axis, all multiples."""
    step = max(window * (1 - overlap), multiple)
    count = math.ceil((length - window) / step) + 1
    spread = [(length - window) * i / max(count - 1, 1) for i in range(count)]
    starts = [math.ceil(start / multiple) * multiple for start in spread]
    # Rounding up may leave a gap of less than a multiple where windows do not overlap: none here,
    # for the gap between neighbours stays at most the window, itself a multiple.
    return sorted(set(starts))


def _weights(starts: Sequence[int], length: int, window: int, blend: Blend) -> list[Tensor]:
    """Weights [window] of each window along an axis; where windows overlap they add up to 1."""
    profile = torch.ones(window, dtype=torch.float64)
    if blend == "gaussian":
        place = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
        profile = torch.exp(-((place / (_SIGMA * window)) ** 2) / 2).clamp_min(_FLOOR)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += profile
    return [profile / total[start : start + window] for start in starts]


def _shift(buffer: Tensor, count: int) -> None:
    """Move slices of [C, n, H, W] to the front by ``count``, in place, and zero the rest."""
    kept = buffer.shape[1] - count
    for i in range(kept):  # slice by slice: source and target may overlap
        buffer[:, i] = buffer[:, i + count]
    buffer[:, max(kept, 0) :] = 0
