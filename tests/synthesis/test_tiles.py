"""The tile-wise maximum is the maximum of the whole."""

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis.anatomy import lattice_bases, lattice_grids
from spadnet.synthesis.fields import node_grid, separable, spline_basis
from spadnet.synthesis.geometry import plan_geometry
from spadnet.synthesis.tiles import upsampled_argmax


@pytest.mark.parametrize("num_labels", [2, 9, 33])
@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        ((64, 72, 56), Spacing(1, 1, 1)),
        ((1, 200, 150), Spacing.planar()),
        ((6, 5, 7), Spacing(4, 1, 1)),
    ],
)
def test_tiles_find_the_largest_upsampled_score(size, spacing, num_labels):
    geometry = plan_geometry(size, spacing=spacing, field_of_view=None)
    bases = lattice_bases(geometry, device="cpu")
    # As smooth as fields are: nodes an eighth of the view apart.
    nodes = [node_grid(span, geometry.field_of_view / 8) for span in geometry.spans()]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, num_labels, *(grid.num for grid in nodes), generator=generator)
    scores = separable(
        noise,
        [
            spline_basis(grid, nodes=node, device="cpu")
            for grid, node in zip(lattice_grids(geometry), nodes, strict=True)
        ],
    )
    found = upsampled_argmax(scores, bases)
    whole = separable(scores, bases)
    chosen = whole.gather(1, found[:, None].long())[:, 0]
    # Labels ride in the lowest bits of a score, so a near tie may fall either way.
    assert (whole.amax(1) - chosen).max() < 1e-4
    assert (found == whole.argmax(1)).float().mean() > 0.9999
