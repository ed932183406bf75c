"""Steps: pure functions of their number, shared exactly by ranks, of one degree per micro-batch."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spadnet.data.augment import IntensityAugment
from spadnet.data.batch import Batch
from spadnet.data.crop_plan import NO_AUGMENT, CropAugment
from spadnet.data.datasets import StepDataset
from spadnet.data.volume import Volume
from spadnet.spacing import Spacing


def random_volume(shape: tuple[int, int, int], spacing: Spacing, key: str) -> Volume:
    generator = torch.Generator().manual_seed(len(key))
    return Volume(torch.rand(1, *shape, generator=generator).half(), spacing, key)


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    return [
        random_volume((64, 48, 48), Spacing(1, 1, 1), "isotropic"),
        random_volume((16, 64, 64), Spacing(5, 1, 1), "thick"),
        random_volume((1, 70, 80), Spacing.planar(), "picture"),
    ]


def synthesize(
    seeds: Sequence[int], size: tuple[int, int, int], *, degree: int
) -> tuple[Tensor, Tensor]:
    images = [torch.rand(1, *size, generator=torch.Generator().manual_seed(s)) for s in seeds]
    spacing = torch.tensor([2.0**degree, 1.0, 1.0]).expand(len(seeds), 3)
    return torch.stack(images), spacing


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.image, b.image)
        and torch.equal(a.augmented().image, b.augmented().image)
        and torch.equal(a.spacing, b.spacing)
        and (a.degree, a.keys) == (b.degree, b.keys)
        for a, b in zip(first, second, strict=True)
    )


def small(volumes: Sequence[Volume], **options: object) -> StepDataset:
    settings: dict[str, object] = {"max_steps": 20, "tokens": (2, 2, 2), "token_budget": 16}
    return StepDataset(volumes, **{**settings, **options})  # type: ignore[arg-type]


def test_micro_batches_have_one_degree_and_are_evenly_full(volumes: list[Volume]) -> None:
    data = small(volumes)
    assert data.degrees == (0, 1, 2, 3, 4, 5)
    for step in range(len(data)):
        batches = data[step]
        assert len({batch.degree for batch in batches}) == 3
        for batch in batches:
            count, channels, depth, height, width = batch.image.shape
            assert channels == 1
            slices_per_token = max(16 >> batch.degree, 1)
            tokens = count * (depth / slices_per_token) * height * width / 256
            assert tokens == 16
            assert batch.image.dtype == torch.float32
            assert batch.image.min() >= 0
            assert batch.image.max() <= 1
            assert len(batch.keys) == count
            for spacing in batch.spacing.tolist():
                assert Spacing(*spacing).degree() == batch.degree


def test_steps_depend_on_seed_and_number_alone(volumes: list[Volume]) -> None:
    data = small(volumes, synthetic=synthesize)
    late = [data[7], data[3]]
    fresh = small(volumes, synthetic=synthesize)
    assert same(fresh[3], late[1])
    assert same(fresh[7], late[0])
    assert not same(small(volumes, seed=1)[3], small(volumes)[3])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_make_the_single_process_step(
    volumes: list[Volume], world_size: int
) -> None:
    whole = small(volumes, synthetic=synthesize, token_budget=64)
    ranks = [whole.for_rank(rank, world_size) for rank in range(world_size)]
    for step in range(3):
        parts = [data[step] for data in ranks]
        for index, batch in enumerate(whole[step]):
            own = [part[index] for part in parts]
            assert {part.degree for part in own} == {batch.degree}
            assert len({part.image.shape for part in own}) == 1
            assert torch.equal(torch.cat([part.image for part in own]), batch.image)
            changed = torch.cat([part.augmented().image for part in own])
            assert torch.equal(changed, batch.augmented().image)
            assert torch.equal(torch.cat([part.spacing for part in own]), batch.spacing)
            assert [key for part in own for key in part.keys] == batch.keys


def test_workers_change_nothing(volumes: list[Volume]) -> None:
    data = small(volumes, max_steps=4)
    for workers in (0, 1, 4):
        loader = DataLoader(data, batch_size=None, num_workers=workers)
        assert all(same(step, data[index]) for index, step in enumerate(loader))


def test_without_augmentation_crops_are_cut_from_the_image(volumes: list[Volume]) -> None:
    data = small(
        volumes[2:], crop_augment=NO_AUGMENT, intensity_augment=None, degrees=(5,), max_steps=1
    )
    picture = volumes[2].image[0, 0].float()
    (batch,) = data[0]
    windows = picture.unfold(0, 32, 1).unfold(1, 32, 1)
    for crop in batch.image[:, 0, 0]:
        assert (windows == crop).flatten(2).all(dim=2).any()


def test_intensity_is_changed_where_it_is_asked_for(volumes: list[Volume]) -> None:
    augment = IntensityAugment(scale_prob=1.0, contrast_prob=1.0, gamma_prob=1.0)
    (batch,) = small(volumes, degrees=(5,), intensity_augment=augment, max_steps=1)[0]
    (plain,) = small(volumes, degrees=(5,), intensity_augment=None, max_steps=1)[0]
    assert torch.equal(batch.image, plain.image)
    assert plain.augmented() is plain
    changed = batch.augmented()
    assert changed.intensity is None
    assert (changed.image != batch.image).flatten(1).any(dim=1).all()
    assert changed.augmented() is changed


def test_2d_micro_batches_have_the_share_asked_for(volumes: list[Volume]) -> None:
    data = small(volumes, flat_share=0.5, degrees_per_step=2)
    degrees = [batch.degree for step in range(20) for batch in data[step]]
    assert degrees.count(5) == 20
    assert len(set(degrees)) == 6


def test_a_fractional_degree_mixes_images_by_their_fraction() -> None:
    low = random_volume((40, 48, 48), Spacing(2**1.25, 1, 1), "low")
    high = random_volume((40, 48, 48), Spacing(2**1.75, 1, 1), "high")
    augment = NO_AUGMENT._replace(fractional_degree=True)
    data = small([low, high], crop_augment=augment, intensity_augment=None, max_steps=60)
    assert data.degrees == (1, 2, 5)
    keys = {1: [], 2: [], 5: []}
    for step in range(60):
        for batch in data[step]:
            keys[batch.degree] += batch.keys
    shares = [keys[degree].count("high") / len(keys[degree]) for degree in (1, 2)]
    assert shares == pytest.approx([0.25, 0.75], abs=0.08)


def test_weights_decide_how_often_an_image_is_drawn(volumes: list[Volume]) -> None:
    weighted = [volumes[0]._replace(weight=3.0), volumes[1], volumes[2]._replace(weight=0.0)]
    data = small(weighted, degrees=(3,), max_steps=60, intensity_augment=None)
    keys = [key for step in range(60) for batch in data[step] for key in batch.keys]
    assert keys.count("isotropic") / len(keys) == pytest.approx(0.75, abs=0.12)
    assert "picture" not in keys


def test_synthesis_has_its_share_and_fills_missing_degrees(volumes: list[Volume]) -> None:
    data = small(volumes, synthetic=synthesize, synthetic_share=0.25, max_steps=30)
    keys = [key for step in range(30) for batch in data[step] for key in batch.keys]
    assert np.mean([key.startswith("synthetic") for key in keys]) == pytest.approx(0.25, abs=0.08)
    pictures = small(volumes[2:], synthetic=synthesize, in_chans=1)
    assert pictures.degrees == (0, 1, 2, 3, 4, 5)
    only = small([], synthetic=synthesize, in_chans=3)
    assert all(batch.image.shape[1] == 3 for batch in only[0])


def test_thin_slices_are_not_made_of_thick_ones(volumes: list[Volume]) -> None:
    assert small(volumes[1:]).degrees == (2, 3, 4, 5) or small(volumes[1:]).degrees == (
        1,
        2,
        3,
        4,
        5,
    )
    assert small(volumes[1:], crop_augment=NO_AUGMENT).degrees == (2, 5)
    assert small(volumes[2:]).degrees == (5,)
    assert small(volumes[:1], crop_augment=CropAugment(thick_prob=0)).degrees == (0, 5)


def test_shallow_volumes_give_shallow_crops() -> None:
    flat = random_volume((20, 48, 48), Spacing(1, 1, 1), "flat")
    (batch,) = small([flat], degrees=(0,), degrees_per_step=1)[0]
    assert batch.image.shape == (4, 1, 16, 32, 32)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"degrees": (0,), "volumes": "pictures"}, r"no image can give \[0\]"),
        ({"degrees": ()}, "no image can give them"),
        ({"in_chans": 3}, "isotropic has 1 channels, in_chans is 3"),
        ({"synthetic_share": 1.5}, "synthetic_share"),
        ({"rank": 2, "world_size": 2}, "rank must lie"),
        ({"token_budget": 24, "world_size": 2}, "cannot share evenly"),
        ({"tokens": (0, 2, 2)}, "must be positive"),
        ({"flat_share": -0.5}, "flat_share must lie"),
        ({"flat_share": 0.5, "degrees": (0, 1)}, r"flat_share=0\.5 with degrees \[0, 1\]"),
        ({"flat_share": 0.5, "degrees": (5,)}, r"flat_share=0\.5 with degrees \[5\]"),
        ({"volumes": "none"}, "no images and no synthesis"),
    ],
)
def test_impossible_settings_are_named(
    volumes: list[Volume], options: dict[str, object], reason: str
) -> None:
    chosen = {"pictures": volumes[2:], "none": [], None: volumes}[options.pop("volumes", None)]
    with pytest.raises(ValueError, match=reason):
        small(chosen, **options)


def test_steps_end(volumes: list[Volume]) -> None:
    data = small(volumes, max_steps=3)
    assert len(data) == 3
    with pytest.raises(IndexError):
        data[3]
