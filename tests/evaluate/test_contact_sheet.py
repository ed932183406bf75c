"""The contact sheet shows planes with square pixels and labels in colours."""

import numpy as np
import pytest
import torch

from spadnet.evaluate.contact_sheet import GAP, SIDE, colours, contact_sheet, tiles
from spadnet.spacing import Spacing


@pytest.mark.parametrize(
    ("size", "spacing", "count"),
    [
        ((1, 20, 30), Spacing.planar(), 1),
        ((20, 20, 20), Spacing(1, 1, 1), 2),
        ((5, 20, 20), Spacing(4, 1, 1), 2),
        ((2, 40, 40), Spacing(1, 1, 1), 1),
    ],
)
def test_thick_volumes_show_a_coronal_plane_too(size, spacing, count):
    made = tiles(torch.rand(size), spacing=spacing)
    assert [tile.shape for tile in made] == [(SIDE, SIDE, 3)] * count


def test_pixels_are_square():
    (tile,) = tiles(torch.ones(1, 10, 40), spacing=Spacing.planar(2.0, 1.0))
    assert (tile.max(2) > 0).sum() == SIDE * SIDE // 2


def test_head_is_up_in_the_coronal_plane():
    volume = torch.zeros(8, 8, 8)
    volume[4:] = 1  # the upper half of the body
    coronal = tiles(volume, spacing=Spacing(1, 1, 1))[1]
    assert coronal[: SIDE // 2].min() == 255
    assert coronal[SIDE // 2 :].max() == 0


def test_labels_have_different_colours_and_background_is_black():
    made = colours(33)
    assert len(np.unique(made, axis=0)) == 33
    assert (made[0] == 0).all()
    (tile,) = tiles(torch.arange(4).view(1, 2, 2), spacing=Spacing.planar(), is_label=True)
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 4


def test_every_tile_is_on_the_sheet():
    rows = [
        [np.full((SIDE, SIDE, 3), 100 + 2 * row + i, np.uint8) for i in range(2)]
        for row in range(7)
    ]
    sheet = contact_sheet(rows)
    for value in range(100, 114):
        assert (sheet == value).sum() == SIDE * SIDE * 3
    assert sheet.shape[0] == 2 * (SIDE + GAP) + GAP
