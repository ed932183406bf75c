"""Laws of anatomies from label maps of the user."""

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis import Appearance, synthesize, synthesize_views
from spadnet.synthesis.fields import sample_generators
from spadnet.synthesis.geometry import plan_geometry
from spadnet.synthesis.label_maps import (
    fill_box,
    given_labels,
    keep_largest,
    label_maps,
    place_sample,
)


def test_given_labels_without_displacement_are_kept():
    geometry = plan_geometry((6, 20, 24), spacing=Spacing(1, 1, 1), field_of_view=None)
    maps = torch.randint(9, (2, 6, 20, 24), dtype=torch.uint8)
    labels = given_labels(
        sample_generators([0, 1], stream=0),
        fill_box(maps, geometry=geometry),
        geometry=geometry,
        max_displacement=0.0,
        device="cpu",
    )
    assert torch.equal(labels, maps)


@pytest.mark.parametrize("spacing", [Spacing(1, 1, 1), Spacing(4, 1, 1), Spacing.planar()])
def test_given_labels_of_any_size_fill_the_box(spacing):
    depth = 1 if spacing.is_planar else 4
    geometry = plan_geometry((depth, 32, 32), spacing=spacing, field_of_view=None)
    maps = torch.zeros(1, 3, 10, 14, dtype=torch.uint8)
    maps[..., 7:] = 3
    labels = given_labels(
        sample_generators([5], stream=0),
        fill_box(maps, geometry=geometry),
        geometry=geometry,
        max_displacement=1 / 32,
        device="cpu",
    )
    assert labels.shape == (1, *geometry.thin_size)
    assert (labels[..., :8] == 0).float().mean() > 0.9
    assert (labels[..., 24:] == 3).float().mean() > 0.9


def disc(size=40, *, depth=30, value=7):
    """A cylinder along z in the middle of a map."""
    place = torch.arange(size) - (size - 1) / 2
    flat = (place[:, None] ** 2 + place**2 < (size / 4) ** 2).long() * value
    return flat.expand(depth, size, size)


def place(label_map, geometry, *, seed=0, affine=0.0):
    generator = torch.Generator().manual_seed(seed)
    return place_sample(label_map, geometry=geometry, affine=affine, generator=generator)


def test_labels_of_all_maps_are_numbered_alike():
    first = torch.tensor([[[0, 2035], [-4, 0]]])
    second = torch.tensor([[[17.0, 2035.0], [17.0, 17.0]]])
    maps = label_maps([first, second], spacings=[Spacing.planar()] * 2, names=["a", "b"])
    assert maps[0].values == maps[1].values == (0, -4, 17, 2035)
    for given, made in zip((first, second), maps, strict=True):
        inside = made.labels[:, 1:-1, 1:-1].long()
        assert torch.equal(torch.tensor(made.values)[inside], given.long())
        assert (made.labels[:, 0] == 0).all()
        assert made.size == (1, 2, 2)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (torch.full((2, 3, 4), 0.5), "scan.nii: not a label map: 0.5 is not a whole number"),
        (torch.full((2, 3, 4), torch.nan), "scan.nii: not a label map: nan"),
        (torch.arange(600).view(6, 10, 10), "scan.nii: 600 labels"),
        (torch.zeros(3, 4), "scan.nii: a label map must be"),
    ],
)
def test_what_is_no_label_map_is_named(array, named):
    with pytest.raises(ValueError, match=named):
        label_maps([array], spacings=[Spacing(1, 1, 1)], names=["scan.nii"])


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((30, 40, 40), Spacing(1, 1, 1)), ((10, 40, 40), Spacing(3, 1, 1)), ((1, 40, 40), None)],
)
def test_a_map_on_its_own_grid_is_kept(size, spacing):
    (label_map,) = label_maps([disc()], spacings=[Spacing(1, 1, 1)], names=["disc"])
    geometry = plan_geometry(size, spacing=spacing or Spacing.planar(), field_of_view=None)
    labels = given_labels(
        sample_generators([0], stream=0),
        place(label_map, geometry),
        geometry=geometry,
        max_displacement=0.0,
        device="cpu",
    )
    values = torch.tensor(label_map.values)[labels.long()]
    assert torch.equal(values[0], disc(depth=geometry.thin_size[0]))


def test_a_small_sample_lies_near_what_is_labelled_and_a_large_one_has_background_around():
    (label_map,) = label_maps([disc()], spacings=[Spacing(1, 1, 1)], names=["disc"])
    for seed in range(8):
        small = plan_geometry((12, 12, 12), spacing=Spacing(1, 1, 1), field_of_view=None)
        maps = place(label_map, small, seed=seed)
        sample = synthesize([seed], (12, 12, 12), num_labels=2, source=maps, max_displacement=0.0)
        assert sample.labels.any()
    large = plan_geometry((60, 80, 80), spacing=Spacing(1, 1, 1), field_of_view=None)
    maps = place(label_map, large)
    labels = synthesize([0], (60, 80, 80), num_labels=2, source=maps, max_displacement=0.0).labels
    assert torch.equal(labels[0, 15:45, 20:60, 20:60].long() * 7, disc())
    assert labels.sum() * 7 == disc().sum()


def test_affine_turns_and_zooms_a_little():
    (label_map,) = label_maps([disc()], spacings=[Spacing(1, 1, 1)], names=["disc"])
    geometry = plan_geometry((30, 40, 40), spacing=Spacing(1, 1, 1), field_of_view=None)
    areas = []
    for seed in range(6):
        maps = place(label_map, geometry, seed=seed, affine=1.0)
        volume = torch.linalg.det(maps.turn.double()).abs()
        assert 1 / 1.15**3 - 1e-6 <= volume <= 1 / 0.85**3 + 1e-6
        made = synthesize(
            [seed], (30, 40, 40), num_labels=2, source=maps, max_displacement=0.0
        ).labels
        areas.append(int(made.sum()))
    assert len(set(areas)) == 6
    whole = int((disc() > 0).sum())
    assert all(0.5 * whole < area < 2 * whole for area in areas)
    flat = plan_geometry((1, 40, 40), spacing=Spacing.planar(), field_of_view=None)
    turn = place(label_map, flat, affine=1.0).turn[0]
    assert torch.equal(turn[0, 1:], torch.zeros(2))
    assert torch.equal(turn[1:, 0], torch.zeros(2))


def test_a_single_slice_gives_no_volume():
    (label_map,) = label_maps([disc(depth=1)], spacings=[Spacing.planar()], names=["disc.png"])
    geometry = plan_geometry((4, 8, 8), spacing=Spacing(1, 1, 1), field_of_view=None)
    with pytest.raises(ValueError, match=r"disc\.png: a single slice"):
        place(label_map, geometry)


def test_placed_maps_must_match_the_seeds():
    (label_map,) = label_maps([disc()], spacings=[Spacing(1, 1, 1)], names=["disc"])
    geometry = plan_geometry((4, 8, 8), spacing=Spacing(1, 1, 1), field_of_view=None)
    with pytest.raises(ValueError, match="need 2 label maps"):
        synthesize([0, 1], (4, 8, 8), source=place(label_map, geometry))


def test_a_rare_structure_is_found_and_all_of_it_alike():
    array = torch.zeros(40, 50, 60, dtype=torch.long)
    array[7, 9, 5] = array[20, 30, 30] = array[20, 31, 55] = 4
    (label_map,) = label_maps([array], spacings=[Spacing(1, 1, 1)], names=["rare"])
    geometry = plan_geometry((8, 8, 8), spacing=Spacing(1, 1, 1), field_of_view=None)
    seen = []
    for seed in range(60):
        maps = place(label_map, geometry, seed=seed)
        made = synthesize([seed], (8, 8, 8), num_labels=2, source=maps, max_displacement=0.0)
        assert made.labels.sum() == 1
        seen.append(round(float(maps.start[0, 2])) // 20)
    assert min(seen.count(third) for third in set(seen)) > 10
    assert len(set(seen)) == 3


def test_a_map_without_labels_is_shown_in_its_middle():
    (label_map,) = label_maps(
        [torch.zeros(20, 20, 20)], spacings=[Spacing(1, 1, 1)], names=["empty"]
    )
    geometry = plan_geometry((4, 4, 4), spacing=Spacing(1, 1, 1), field_of_view=None)
    starts = place(label_map, geometry).start
    assert (starts - 9).abs().max() < 2


def test_the_largest_structures_are_numbered_by_their_size_in_each_sample():
    labels = torch.zeros(2, 4, 5, 10, dtype=torch.uint8)
    labels[0, 0, :3] = 200  # 30 voxels
    labels[0, 1, 0] = 7  # 10
    labels[0, 2, 0, :4] = 255  # 4
    labels[1, 3] = 7  # 50
    kept = keep_largest(labels, num_labels=3)
    assert kept.dtype == torch.uint8
    for given, numbered in ((200, 1), (7, 2), (255, 0), (0, 0)):
        assert (kept[0][labels[0] == given] == numbered).all()
    assert torch.equal(kept[1], (labels[1] == 7).to(torch.uint8))
    assert torch.equal(keep_largest(labels, num_labels=4)[0] > 0, labels[0] > 0)


def test_images_show_no_more_than_the_structures_that_are_kept():
    maps = torch.zeros(1, 6, 24, 24, dtype=torch.uint8)
    maps[:, :, :8], maps[:, :, 8:10], maps[:, :, 12:16] = 90, 200, 40
    looks = {0: Appearance(texture=(0.0, 0.0))}
    made = synthesize_views(
        [3], (6, 24, 24), looks=looks, num_labels=3, source=maps, only_largest=True
    )[0]
    assert made.labels.unique().tolist() == [0, 1, 2]
    for label in range(3):
        assert made.clean[:, 0][made.labels == label].unique().numel() == 1
