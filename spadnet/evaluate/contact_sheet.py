"""Many small images and their labels on one picture."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from spadnet.spacing import Spacing

SIDE = 128  # pixels of a tile
GAP = 4
_CORONAL_ASPECT = 0.3  # a coronal plane flatter than this is a stripe that shows nothing
_TILES_ABREAST = 12


def tiles(volume: Tensor, *, spacing: Spacing, is_label: bool = False) -> list[np.ndarray]:
    """Middle planes of a volume: the axial one and, where the volume is thick, the coronal one.

    Args:
        volume: Intensities in [0, 1], or labels, [D, H, W].
        spacing: In mm.
        is_label: Whether to give each label a colour of its own; label 0 is black.

    Returns:
        Tiles, uint8, [SIDE, SIDE, 3], square pixels.
    """
    depth, height, width = volume.shape
    planes = [(volume[depth // 2], spacing.y, spacing.x)]
    if depth * spacing.z >= _CORONAL_ASPECT * width * spacing.x and not spacing.is_planar:
        planes.append((volume[:, height // 2].flip(0), spacing.z, spacing.x))
    made = []
    for plane, tall, wide in planes:
        rows, columns = plane.shape[0] * tall, plane.shape[1] * wide
        scale = SIDE / max(rows, columns)
        size = [max(round(rows * scale), 1), max(round(columns * scale), 1)]
        small = F.interpolate(plane[None, None].float(), size=size, mode="nearest-exact")[0, 0]
        picture = small.cpu().numpy()
        if is_label:
            coloured = colours(int(volume.max()) + 1)[picture.astype(np.int64)]
        else:
            grey = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            coloured = np.repeat(grey[..., None], 3, axis=2)
        tile = np.zeros((SIDE, SIDE, 3), np.uint8)
        top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
        tile[top : top + size[0], left : left + size[1]] = coloured
        made.append(tile)
    return made


def contact_sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lay tiles out: those of a row stay together, short rows share a line.

    Args:
        rows: At least one row of tiles, uint8, [SIDE, SIDE, 3].

    Returns:
        Picture, uint8, [H, W, 3].
    """
    longest = max(len(row) for row in rows)
    abreast = min(max(_TILES_ABREAST // longest, 1), len(rows))
    num_lines = math.ceil(len(rows) / abreast)
    block = longest * (SIDE + GAP) + GAP
    sheet = np.full((num_lines * (SIDE + GAP) + GAP, abreast * block, 3), 64, np.uint8)
    for index, row in enumerate(rows):
        line, column = divmod(index, abreast)
        top = GAP + line * (SIDE + GAP)
        for number, tile in enumerate(row):
            left = GAP + column * block + number * (SIDE + GAP)
            sheet[top : top + SIDE, left : left + SIDE] = tile
    return sheet


def colours(count: int) -> np.ndarray:
    """Colours that are easy to tell apart, uint8, [count, 3]; the first is black."""
    golden = (math.sqrt(5) - 1) / 2
    made = [(0.0, 0.0, 0.0)]
    for label in range(1, count):
        made.append(colorsys.hsv_to_rgb(label * golden % 1, 0.5 + 0.4 * (label % 2), 1.0))
    return np.rint(255 * np.array(made[:count])).astype(np.uint8)
