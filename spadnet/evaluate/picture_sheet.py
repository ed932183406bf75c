"""One picture of one image: what networks make of it, plane by plane, under a caption."""

from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from torch import Tensor

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.panels import PLANES, cut_plane, describe

_SIDE = 192  # pixels that a tile has at least along its longer side
_MOST = 384  # and at most
_GAP, _TEXT = 6, 13
_PAPER, _INK, _SOFT = (252, 252, 250), (28, 33, 38), (90, 100, 109)


def picture_sheet(held_out: HeldOut, views: Mapping[str, Tensor]) -> np.ndarray:
    """Lay out views of an image: a column each, and a row for each of three orthogonal planes.

    Args:
        held_out: The image; its spacing and degree are in the caption.
        views: By name, [1, C, D, H, W] in [0, 1]; a 2D image has one row.

    Returns:
        Picture, uint8, [H, W, 3].
    """
    planes = ["2D image"] if held_out.image.shape[2] == 1 else list(PLANES)
    cuts = [
        [cut_plane(view, plane, held_out.spacing) for view in views.values()] for plane in planes
    ]
    longest = max(max(row[0].shape[:2]) for row in cuts)  # all planes are drawn to one scale
    rows = [[_tile(cut, longest) for cut in row] for row in cuts]
    font = PIL.ImageFont.load_default(size=_TEXT)
    line = _TEXT + _GAP
    caption = describe(held_out.name, held_out.modality, held_out.spacing, held_out.degree)
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(views))]
    widths = [max(w, int(font.getlength(n)) + 1) for w, n in zip(widths, views, strict=True)]
    height = 2 * line + _GAP + sum(row[0].shape[0] + line + _GAP for row in rows)
    width = max(sum(widths) + _GAP * (len(widths) + 1), int(font.getlength(caption)) + 2 * _GAP)
    sheet = PIL.Image.new("RGB", (width, height), _PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), caption, _INK, font=font)
    left = _GAP
    for name, column in zip(views, widths, strict=True):
        draw.text((left, line), name, _SOFT, font=font)
        left += column + _GAP
    top = 2 * line + _GAP
    for plane, row in zip(planes, rows, strict=True):
        draw.text((_GAP, top - 2), plane, _SOFT, font=font)
        left = _GAP
        for tile, column in zip(row, widths, strict=True):
            sheet.paste(PIL.Image.fromarray(tile), (left, top + line - _GAP))
            left += column + _GAP
        top += row[0].shape[0] + line + _GAP
    return np.asarray(sheet)


def _tile(picture: np.ndarray, longest: int) -> np.ndarray:
    """Enlarge a picture of a small image by a whole number, shrink that of a large one."""
    height, width = picture.shape[:2]
    image = PIL.Image.fromarray(picture)
    if longest > _MOST:
        scale = _MOST / longest
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        image = image.resize(size, PIL.Image.Resampling.BOX)
    elif longest < _SIDE:
        times = -(-_SIDE // longest)
        image = image.resize((width * times, height * times), PIL.Image.Resampling.NEAREST)
    return np.asarray(image)
