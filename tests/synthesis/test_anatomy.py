"""Laws of random anatomies from fields."""

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis.anatomy import displacement, field_labels
from spadnet.synthesis.fields import sample_generators
from spadnet.synthesis.geometry import plan_geometry

AIR = torch.tensor([True])
NO_AIR = torch.tensor([False])


def draw(seed, geometry, *, background=NO_AIR, num_labels=6):
    return field_labels(
        sample_generators([seed], stream=0),
        geometry=geometry,
        num_labels=num_labels,
        background=background,
        max_displacement=1 / 16,
        device="cpu",
    )


@pytest.mark.parametrize("num_labels", [2, 5, 16])
def test_several_labels_occur_and_none_is_beyond(num_labels):
    geometry = plan_geometry((1, 64, 64), spacing=Spacing.planar(), field_of_view=None)
    labels = draw(0, geometry, num_labels=num_labels)
    assert labels.dtype == torch.uint8
    assert labels.max() < num_labels
    assert len(labels.unique()) >= min(num_labels, 4)


def test_anatomy_is_smooth():
    geometry = plan_geometry((24, 48, 48), spacing=Spacing(1, 1, 1), field_of_view=None)
    labels = draw(1, geometry)
    for dim in (1, 2, 3):
        count = labels.shape[dim] - 1
        same = labels.narrow(dim, 0, count) == labels.narrow(dim, 1, count)
        assert same.float().mean() > 0.85


def test_thick_slices_show_the_anatomy_of_thin_ones():
    thin = plan_geometry((32, 24, 24), spacing=Spacing(1, 1, 1), field_of_view=24)
    thick = plan_geometry((8, 24, 24), spacing=Spacing(4, 1, 1), field_of_view=24)
    assert torch.equal(draw(2, thin), draw(2, thick))


def test_finer_voxels_show_the_same_anatomy():
    coarse = plan_geometry((1, 32, 32), spacing=Spacing.planar(2, 2), field_of_view=64)
    fine = plan_geometry((1, 96, 96), spacing=Spacing.planar(2 / 3, 2 / 3), field_of_view=64)
    same = draw(3, fine)[:, :, 1::3, 1::3] == draw(3, coarse)
    assert same.float().mean() > 0.9


def test_air_surrounds_the_body():
    geometry = plan_geometry((1, 64, 64), spacing=Spacing.planar(), field_of_view=None)
    for seed in range(4):
        labels = draw(seed, geometry, background=AIR)[0, 0]
        corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == 0).sum() >= 3
        assert (labels[24:40, 24:40] > 0).float().mean() > 0.9


def test_displacement_is_bounded_by_its_deviation():
    geometry = plan_geometry((32, 32, 32), spacing=Spacing(1, 1, 1), field_of_view=None)
    generators = sample_generators(range(4), stream=0)
    warp = displacement(
        generators, geometry=geometry, num_fields=2, max_displacement=1 / 16, device="cpu"
    )
    assert warp.shape[:3] == (4, 2, 3)
    assert 0.1 < warp.std() < 32 / 16 * 1.5
