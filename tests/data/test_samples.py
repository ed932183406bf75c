"""The images in the package: readable, licensed, of every degree, no patient in both splits."""

import re

import numpy as np
import pytest

from spadnet.data.samples import FOLDER, list_samples, load_samples

ALLOWED = {"Apache-2.0", "MIT", "BSD-3-Clause"}


def test_files_and_list_agree() -> None:
    listed = {sample.path.name for sample in list_samples()}
    assert listed == {path.name for path in FOLDER.iterdir()} - {"NOTICE.md"}
    assert len({sample.name for sample in list_samples()}) == len(listed)


def test_notice_says_the_same_as_the_list() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|", (FOLDER / "NOTICE.md").read_text(), re.M)
    listed = {(s.path.name, s.source, s.licence) for s in list_samples()}
    assert set(rows) == listed
    assert {sample.licence for sample in list_samples()} <= ALLOWED


def test_splits_are_apart_and_rich() -> None:
    train, held_out = list_samples("train"), list_samples("heldout")
    assert not {s.path for s in train} & {s.path for s in held_out}
    assert len(train) + len(held_out) == len(list_samples())
    assert {sample.modality for sample in train} == {"CT", "MR", "US", "fundus"}
    with pytest.raises(ValueError, match="no split named 'held_out'; did you mean 'heldout'"):
        list_samples("held_out")


@pytest.mark.parametrize(
    ("split", "degrees"), [("train", {0, 1, 2, 3, 5}), ("heldout", {0, 1, 3, 5})]
)
def test_samples_are_prepared_and_span_the_degrees(split: str, degrees: set[int]) -> None:
    images = load_samples(split)
    assert {image.spacing.degree() for image in images} == degrees
    for image, sample in zip(images, list_samples(split), strict=True):
        assert image.array.dtype == np.float32
        assert image.array.min() == pytest.approx(0, abs=0.1)
        assert 0.3 < image.array.max() <= 1
        assert image.array.std() > 0.05
        assert image.modality == sample.modality
        assert min(image.array.shape[2:]) >= 48
