"""Batches of a fine-tuning: pure functions of the step, every case once, degrees apart."""

from collections import Counter

import pytest
import torch

from spadnet.data.task_images import TaskImage
from spadnet.data.task_steps import TaskAugment, TaskSteps
from spadnet.data.warp import WarpRange, turn_to_z
from spadnet.spacing import Spacing

PLAIN = TaskAugment(warp=None, intensity=None)


def case(key: str, degree: int, *size: int, is_map: bool = False) -> TaskImage:
    image = torch.rand(1, *size).half()
    target = (image[0] > 0.5).to(torch.uint8) if is_map else torch.tensor([1.0])
    spacing = Spacing.planar() if degree == 5 else Spacing(2.0**degree, 1.0, 1.0)
    return TaskImage(key, image, target, degree, spacing)


def test_every_case_comes_once_before_any_comes_twice() -> None:
    steps = TaskSteps([case(str(i), 5, 1, 8, 8) for i in range(10)], batch_size=4, augment=PLAIN)
    seen = [key for step in range(5) for batch in steps[step] for key in batch.keys]
    assert Counter(seen) == {str(i): 2 for i in range(10)}
    assert Counter(seen[:10]) == {str(i): 1 for i in range(10)}


def test_a_step_does_not_depend_on_those_before() -> None:
    images = [case(str(i), 0, 16, 16, 16, is_map=True) for i in range(4)]
    augment = TaskAugment(warp=WarpRange(rotation_prob=1.0), thick_prob=0.5)
    first, second = (
        TaskSteps(images, batch_size=2, crop=(16, 16, 16), augment=augment) for _ in range(2)
    )
    for _ in range(3):
        second[0]
    for a, b in zip(first[7], second[7], strict=True):
        assert torch.equal(a.augmented().image, b.augmented().image)
        assert torch.equal(a.target, b.target)
        assert a.keys == b.keys


def test_degrees_are_kept_apart_and_thick_crops_have_fewer_slices() -> None:
    images = [
        case("thin", 0, 40, 40, 40, is_map=True),
        case("thick", 2, 10, 40, 40, is_map=True),
        case("flat", 5, 1, 40, 40, is_map=True),
    ]
    steps = TaskSteps(images, batch_size=3, crop=(32, 32, 32), augment=PLAIN)
    batches = {batch.degree: batch for batch in steps[0]}
    assert {degree: tuple(b.image.shape[2:]) for degree, b in batches.items()} == {
        0: (32, 32, 32),
        2: (8, 32, 32),
        5: (1, 32, 32),
    }
    for batch in batches.values():  # labels follow their voxels; beyond the border is background
        assert torch.equal((batch.image[:, 0] > 0.5).to(torch.uint8), batch.target)


def test_thin_cases_also_come_with_thick_slices() -> None:
    images = [case(str(i), 0, 32, 32, 32, is_map=True) for i in range(8)]
    augment = PLAIN._replace(thick_prob=0.5)
    steps = TaskSteps(images, batch_size=8, crop=(32, 32, 32), augment=augment)
    degrees = {batch.degree: batch for step in range(3) for batch in steps[step]}
    assert set(degrees) == {0, 1, 2}
    assert degrees[2].image.shape[2:] == (8, 32, 32)
    assert degrees[2].spacing[0].tolist() == [4.0, 1.0, 1.0]
    assert degrees[2].target.shape[1:] == (32, 32, 32)  # labels stay fine
    assert {degree: batch.out_degree for degree, batch in degrees.items()} == {0: None, 1: 0, 2: 0}


def test_batches_tell_the_axis_of_the_body_that_slices_lie_along() -> None:
    """Averaged along any axis, and of files whose slices lie along another one."""
    volume = torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(1, 32, 32, 32).half()
    thin = TaskImage("thin", volume, (volume[0] > 0.5).byte(), 0, Spacing(1, 1, 1))
    side = case("side", 2, 8, 32, 32, is_map=True)._replace(axis=2)
    augment = PLAIN._replace(thick_prob=1.0)
    steps = TaskSteps([thin, side], batch_size=2, crop=(32, 32, 32), augment=augment)
    batches = [batch for step in range(8) for batch in steps[step]]
    assert {batch.axis for batch in batches if "side" in batch.keys} == {2}
    seen = {batch.axis: batch.image[0, 0] for batch in batches if batch.keys == ["thin"]}
    assert set(seen) == {0, 1, 2}
    for axis, image in seen.items():  # bright towards the body's larger y, wherever it went
        ramp = image.diff(dim={0: 1, 1: 0, 2: 2}[axis]).mean()
        assert ramp.abs() > 0.02


def test_thin_cases_of_any_axis_come_with_thick_slices_along_all() -> None:
    """A thin case comes as the same body in a file that lies along z would."""
    plain = case("thin", 0, 16, 16, 16, is_map=True)._replace(spacing=Spacing(1, 1.25, 1.25))
    augment = PLAIN._replace(thick_prob=1.0)
    for axis in (1, 2):
        image, label, spacing = turn_to_z(plain.image, plain.target, plain.spacing, axis=axis)
        assert label is not None
        turned = plain._replace(image=image, target=label, spacing=spacing, axis=axis)
        assert torch.equal(turned.upright().image, plain.image)
        assert torch.equal(turned.upright().target, plain.target)
        assert turned.upright()[3:] == plain[3:]
        one, other = (
            TaskSteps([c], batch_size=1, crop=(16, 16, 16), augment=augment)
            for c in (plain, turned)
        )
        axes = set()
        for step in range(12):
            a, b = one[step][0], other[step][0]
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.target, b.target)
            assert (a.degree, a.axis) == (b.degree, b.axis)
            assert torch.equal(a.spacing, b.spacing)
            axes.add(b.axis)
        assert axes == {0, 1, 2}


def test_thick_slices_come_as_those_of_cases_that_are_so_thick() -> None:
    thin = case("thin", 0, 32, 32, 32, is_map=True)
    thick = case("thick", 2, 8, 32, 32, is_map=True)
    augment = PLAIN._replace(thick_prob=1.0)
    steps = TaskSteps([thin, thick], batch_size=2, crop=(32, 32, 32), augment=augment)
    batches = [batch for step in range(8) for batch in steps[step] if batch.degree == 2]
    depths = {batch.keys[0]: batch.target.shape[1] for batch in batches}
    assert depths == {"thin": 32, "thick": 8}
    for batch in batches:  # whatever the axis: the average of what the labels are of
        if batch.keys == ["thin"]:
            share = batch.target.float().unflatten(1, (-1, 4)).mean(2)
            level = torch.corrcoef(torch.stack([share.flatten(), batch.image.flatten()]))
            assert level[0, 1] > 0.8


def test_micro_batches_bound_what_passes_together() -> None:
    images = [case(str(i), 5, 1, 8, 8) for i in range(7)]
    steps = TaskSteps(images, batch_size=7, micro_batch=3, augment=PLAIN)
    assert [len(batch.keys) for batch in steps[0]] == [3, 3, 1]


def test_crops_are_multiples_of_what_the_network_takes() -> None:
    images = [case("thick", 2, 10, 40, 40, is_map=True)]
    steps = TaskSteps(images, batch_size=1, crop=(24, 40, 40), stride=32, augment=PLAIN)
    assert [steps.size(degree) for degree in (0, 2, 5)] == [(32, 64, 64), (8, 64, 64), (1, 64, 64)]


def test_mixed_images_tell_what_was_mixed_in() -> None:
    images = [case(str(i), 5, 1, 8, 8)._replace(target=torch.tensor([float(i)])) for i in range(6)]
    steps = TaskSteps(images, batch_size=6, augment=PLAIN._replace(mixup=0.4))
    by_target = {int(image.target): image.image.float() for image in images}
    shares = set()
    for step in range(3):
        (batch,), (again,) = steps[step], steps[step]
        assert batch.mixture is not None
        assert torch.equal(batch.image, again.image)
        share, other = batch.mixture
        shares.add(share)
        for mixed, own, added in zip(batch.image, batch.target, other, strict=True):
            expected = share * by_target[int(own)] + (1 - share) * by_target[int(added)]
            torch.testing.assert_close(mixed, expected)
    assert len(shares) == 3
    (plain,) = TaskSteps(images, batch_size=6, augment=PLAIN)[0]
    assert plain.mixture is None
    with pytest.raises(ValueError, match=r"mixup must not be negative, got -0\.1"):
        TaskSteps(images, batch_size=6, augment=TaskAugment(mixup=-0.1))
