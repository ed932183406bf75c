"""Laws of anatomies from shapes."""

import math

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis.fields import sample_generators
from spadnet.synthesis.geometry import plan_geometry
from spadnet.synthesis.shapes import BOX, ELLIPSOID, TUBE, Shape, _paint, draw_shapes, shape_labels

UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "volume"),
    [
        (ELLIPSOID, 4 / 3 * math.pi * 12 * 8 * 6),
        (BOX, 8 * 12 * 8 * 6),
        (TUBE, 2 * 12 * math.pi * 8 * 6),
    ],
)
@pytest.mark.parametrize("step", [1.0, 0.5])
def test_shape_has_its_volume_in_mm(kind, volume, step):
    size = round(40 / step)
    geometry = plan_geometry((size,) * 3, spacing=Spacing(step, step, step), field_of_view=None)
    labels = torch.zeros((size,) * 3, dtype=torch.uint8)
    shape = Shape(kind, (20, 20, 20), UPRIGHT, (12, 8, 6), bend=0.0, inner=1.0, labels=(7, 7))
    _paint(labels, shape, geometry=geometry)
    assert math.isclose((labels == 7).sum() * step**3, volume, rel_tol=0.05)


def test_nothing_of_a_shape_lies_outside_its_box():
    geometry = plan_geometry((48,) * 3, spacing=Spacing(1, 1, 1), field_of_view=None)
    generator = torch.Generator().manual_seed(0)
    for shape in draw_shapes(generator, geometry=geometry, num_labels=4, count=30):
        boxed, whole = (torch.zeros(48, 48, 48, dtype=torch.uint8) for _ in range(2))
        _paint(boxed, shape._replace(labels=(9, 9)), geometry=geometry)
        # The same shape written with a hopelessly large box.
        huge = _Everywhere(*shape._replace(labels=(9, 9)))
        _paint(whole, huge, geometry=geometry)
        assert torch.equal(boxed, whole)


class _Everywhere(Shape):
    """A shape whose box is the whole volume."""

    __slots__ = ()

    @property
    def reach(self):
        return [1000.0] * 3


def test_shape_outside_the_volume_changes_nothing():
    geometry = plan_geometry((8, 8, 8), spacing=Spacing(1, 1, 1), field_of_view=None)
    labels = torch.zeros(8, 8, 8, dtype=torch.uint8)
    shape = Shape(BOX, (-30, 4, 4), UPRIGHT, (3, 3, 3), bend=0.0, inner=1.0, labels=(1, 1))
    _paint(labels, shape, geometry=geometry)
    assert not labels.any()


@pytest.mark.parametrize("spacing", [Spacing(1, 1, 1), Spacing(8, 1, 1), Spacing.planar()])
@pytest.mark.parametrize("num_labels", [2, 9])
def test_labels_stay_below_their_number(spacing, num_labels):
    depth = 1 if spacing.is_planar else 6
    geometry = plan_geometry((depth, 40, 40), spacing=spacing, field_of_view=None)
    labels = shape_labels(
        sample_generators([3, 4], stream=0),
        geometry=geometry,
        num_labels=num_labels,
        background=torch.tensor([True, False]),
        max_displacement=1 / 32,
        device="cpu",
    )
    assert labels.shape == (2, *geometry.thin_size)
    assert labels.max() < num_labels
    assert len(labels.unique()) > 1
