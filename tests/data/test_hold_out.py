"""Some images of each degree are kept out, the same ones whatever their order."""

import random

import torch

from spadnet.data.hold_out import keep_out
from spadnet.data.volume import Volume
from spadnet.spacing import Spacing


def volumes(count: int, *, z: float = 1.0, name: str = "a") -> list[Volume]:
    return [
        Volume(torch.zeros(1, 2, 2, 2), Spacing(z, 1, 1), f"{name}{i}.nii.gz") for i in range(count)
    ]


def keys(found: list[Volume]) -> set[str]:
    return {volume.key for volume in found}


def test_each_degree_gives_as_many_and_nothing_is_in_both() -> None:
    images = [*volumes(80), *volumes(40, z=4.0, name="b"), *volumes(19, z=8.0, name="c")]
    train, held = keep_out(images, per_degree=3)
    degrees = [volume.spacing.degree() for volume in held]
    assert [degrees.count(d) for d in (0, 2, 3)] == [3, 2, 0]  # at most one in twenty
    assert not keys(train) & keys(held)
    assert keys(train) | keys(held) == keys(images)


def test_the_choice_depends_on_names_alone() -> None:
    images = volumes(100)
    _, held = keep_out(images, per_degree=5)
    random.Random(0).shuffle(images)
    assert keys(keep_out(images, per_degree=5)[1]) == keys(held)


def test_frames_of_a_file_stay_together() -> None:
    frames = [volume._replace(key=f"{volume.key}[{i}]") for volume in volumes(40) for i in range(3)]
    _, held = keep_out(frames, per_degree=2)
    assert len(held) == 6
    assert len({key.partition("[")[0] for key in keys(held)}) == 2
