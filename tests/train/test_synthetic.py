"""Synthetic images have the wanted degree and depend on their own seed only."""

import pytest
import torch

from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple
from spadnet.train.synthetic import synthetic_images


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_degree_and_range(degree: int) -> None:
    depth = required_multiple(degree)[0]
    image, spacing = synthetic_images([3, 4], (depth, 32, 32), degree=degree)
    assert image.shape == (2, 1, depth, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    for row in spacing.tolist():
        assert Spacing(*row).degree() == degree
    alone, _ = synthetic_images([4], (depth, 32, 32), degree=degree)
    assert torch.equal(alone[0], image[1])
