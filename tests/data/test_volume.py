"""Prepared images become what training keeps in memory."""

import math

import numpy as np
import torch

from spadnet.data.image import Image, orient, plain_grid
from spadnet.data.preprocess import prepare
from spadnet.data.volume import to_volume


def test_to_volume_adapts_channels_and_type() -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1, 40, 50), dtype=np.uint8)
    grid = plain_grid((1, 40, 50), num_axes=2)
    image: Image = prepare(orient(pixels, grid, source="eye.png"))
    grey = to_volume(image, in_chans=1, dtype=torch.uint8)
    assert grey.image.dtype == torch.uint8
    assert grey.key == "eye.png"
    half = to_volume(image, in_chans=1)
    torch.testing.assert_close(grey.image / 255, half.image.float(), atol=0.003, rtol=0)
    assert to_volume(image, in_chans=3).image.shape[0] == 3
    assert math.isclose(to_volume(image, in_chans=3, weight=0.2).weight, 0.2)
