"""Laws of synthesis as a whole: seeds, ranges, thick slices, spacings."""

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis import Appearance, random_spacing, synthesize, synthesize_views

CASES = [
    ((1, 32, 48), Spacing.planar(0.7, 0.7)),
    ((1, 16, 16), Spacing(1, 1, 1)),
    ((16, 16, 24), Spacing(1, 1, 1)),
    ((4, 32, 32), Spacing(5, 1, 1)),
    ((2, 32, 32), Spacing(20, 0.8, 0.8)),
    ((5, 7, 9), Spacing(0.5, 1, 1)),
]
SOURCES = ["fields", "shapes", "mixed"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("size", "spacing"), CASES)
def test_shapes_and_ranges(size, spacing, source):
    sample = synthesize(range(2), size, spacing=spacing, num_labels=5, source=source)
    assert sample.image.shape == sample.clean.shape == sample.bias.shape == (2, 1, *size)
    assert sample.labels.shape == (2, *size)
    assert sample.labels.dtype == torch.uint8
    assert sample.labels.max() < 5
    for image in (sample.image, sample.clean):
        assert image.isfinite().all()
        assert image.min() >= 0
        assert image.max() <= 1
    assert sample.bias.min() > 0
    torch.testing.assert_close(sample.spacing, torch.tensor([spacing, spacing]))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("size", "spacing"), CASES[::2])
def test_a_sample_depends_on_its_own_seed_only(size, spacing, source):
    batch = synthesize([3, 1, 2], size, spacing=spacing, source=source)
    single = synthesize([1], size, spacing=spacing, source=source)
    for whole, one in zip(batch, single, strict=True):
        assert torch.equal(whole[1:2], one)


@pytest.mark.parametrize("source", SOURCES)
def test_chunks_of_many_samples_give_the_same_samples(source, monkeypatch):
    arguments = {"spacing": Spacing(4, 1, 1), "source": source}
    single = synthesize(range(3), (4, 24, 24), **arguments)
    monkeypatch.setattr("spadnet.synthesis.generate._chunk_size", lambda *_, **__: 2)
    together = synthesize(range(3), (4, 24, 24), **arguments)
    # A tie between two labels may fall either way.
    assert (single.labels == together.labels).float().mean() > 0.999
    assert ((single.image - together.image).abs() < 1e-4).float().mean() > 0.999


def test_seeds_differ():
    sample = synthesize(range(4), (1, 32, 32), spacing=Spacing.planar())
    for first in range(4):
        for second in range(first):
            assert (sample.image[first] - sample.image[second]).abs().mean() > 0.02
            assert (sample.labels[first] != sample.labels[second]).any()


def test_global_random_state_is_untouched_and_irrelevant():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = synthesize([9], (4, 16, 16)).image
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(synthesize([9], (4, 16, 16)).image, first)


@pytest.mark.parametrize("source", SOURCES)
def test_thick_slice_is_the_average_of_thin_slices(source):
    thin = synthesize([5], (16, 24, 24), spacing=Spacing(1, 1, 1), source=source, field_of_view=40)
    thick = synthesize([5], (4, 24, 24), spacing=Spacing(4, 1, 1), source=source, field_of_view=40)
    averaged = thin.clean.unflatten(2, (4, 4)).mean(3)
    torch.testing.assert_close(thick.clean, averaged, atol=1e-5, rtol=1e-5)
    assert torch.equal(thick.labels, thin.labels[:, 2::4])


def test_another_view_shows_the_same_anatomy():
    first, second = (synthesize([5], (4, 16, 16), view=view) for view in (0, 1))
    assert torch.equal(first.labels, second.labels)
    assert (first.image - second.image).abs().mean() > 0.02


def test_appearance_leaves_the_anatomy_alone():
    mild, severe = (
        synthesize([5], (4, 16, 16), appearance=Appearance.at(severity)) for severity in (0.1, 0.9)
    )
    assert torch.equal(mild.labels, severe.labels)
    assert torch.equal(mild.clean, severe.clean)


def test_given_label_maps_are_used():
    maps = torch.randint(33, (2, 8, 16, 16))
    sample = synthesize([0, 1], (8, 16, 16), num_labels=33, source=maps, max_displacement=0.0)
    assert torch.equal(sample.labels, maps.to(torch.uint8))
    moved = synthesize([0, 1], (8, 16, 16), num_labels=33, source=maps)
    assert not torch.equal(moved.labels, sample.labels)


def test_one_label_everywhere_is_no_trouble():
    maps = torch.full((1, 4, 8, 8), 2)
    sample = synthesize([0], (4, 8, 8), num_labels=3, source=maps)
    assert sample.image.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seeds": []}, "seeds"),
        ({"num_labels": 1}, "num_labels"),
        ({"num_labels": 300}, "300"),
        ({"source": "brains"}, "brains"),
        ({"source": torch.zeros(2, 4, 8, 8)}, "float32"),
        ({"source": torch.full((2, 4, 8, 8), 9)}, "9"),
        ({"source": torch.zeros(1, 4, 8, 8, dtype=torch.uint8)}, "label maps"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    arguments = {"seeds": [0, 1]} | arguments
    with pytest.raises(ValueError, match=named):
        synthesize(arguments.pop("seeds"), (4, 8, 8), **arguments)


def test_every_degree_occurs():
    generator = torch.Generator().manual_seed(0)
    spacings = [random_spacing(generator) for _ in range(200)]
    degrees = [spacing.degree() for spacing in spacings]
    assert set(degrees) == set(range(6))
    assert min(degrees.count(degree) for degree in range(6)) > 15
    assert all(0.4 <= spacing.x <= 1.6 for spacing in spacings)


@pytest.mark.parametrize("degree", range(6))
def test_wanted_degree_is_drawn(degree):
    generator = torch.Generator().manual_seed(0)
    drawn = [random_spacing(generator, degree=degree) for _ in range(100)]
    assert {spacing.degree() for spacing in drawn} == {degree}
    assert len(set(drawn)) == 100


def test_wrong_degree_is_named():
    with pytest.raises(ValueError, match="7"):
        random_spacing(torch.Generator(), degree=7)


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("size", "spacing"), CASES[::2])
def test_device_does_not_matter(size, spacing, source):
    arguments = {"spacing": spacing, "source": source}
    here = synthesize(range(3), size, **arguments)
    there = synthesize(range(3), size, **arguments, device="cuda")
    assert (here.labels == there.labels.cpu()).float().mean() > 0.999
    assert ((here.image - there.image.cpu()).abs() < 1e-3).float().mean() > 0.995


@pytest.mark.parametrize("source", SOURCES)
def test_views_made_together_are_those_made_one_by_one(source):
    looks = {0: Appearance(), 3: Appearance.at(0.9), 1: Appearance.at(0.1)}
    settings = {"spacing": Spacing(2.0, 1.0, 1.0), "num_labels": 5, "source": source}
    together = synthesize_views([7, 8], (4, 16, 16), looks=looks, **settings)
    for sample, (view, look) in zip(together, looks.items(), strict=True):
        alone = synthesize([7, 8], (4, 16, 16), view=view, appearance=look, **settings)
        assert all(map(torch.equal, sample, alone))
    assert not torch.equal(together[0].image, together[1].image)
