"""Validation counts degrees alike, repeats itself exactly, and draws every plane."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.mim_figures import mim_figures
from spadnet.evaluate.picture_sheet import picture_sheet
from spadnet.evaluate.tokenizer_figures import tokenizer_figures
from spadnet.evaluate.validation import (
    MaskRule,
    mim_pictures,
    mim_scores,
    one_of_each_degree,
    tokenizer_pictures,
    tokenizer_scores,
)
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing

RULE = MaskRule((2, 3, 3), 0.5)


def test_degrees_count_alike(tokenizer: Tokenizer, images: list[HeldOut]) -> None:
    scores, use = tokenizer_scores(tokenizer, images)
    each = tokenizer_figures(tokenizer, images).images  # degrees 5, 2, 5
    flat = (each[0].psnr + each[2].psnr) / 2
    assert scores["psnr"] == pytest.approx((flat + each[1].psnr) / 2)
    assert scores["psnr_degree5"] == pytest.approx(flat)
    assert "lpips" not in scores
    assert use.sum() == sum(
        math.prod(image.image.shape[2:]) // (16 * 16 * (4 if image.degree == 2 else 1))
        for image in images
    )


def test_a_perceptual_distance_is_measured_where_there_is_one(
    tokenizer: Tokenizer, images: list[HeldOut]
) -> None:
    def by_degree(
        x: Tensor, y: Tensor, *, degree: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.tensor(float(degree))

    scores, _ = tokenizer_scores(tokenizer, images, perceptual=by_degree)
    assert scores["lpips"] == pytest.approx((5 + 2) / 2)


def test_loss_stands_beside_the_constant(
    model: MaskedImageModel, tokenizer: Tokenizer, images: list[HeldOut]
) -> None:
    scores = mim_scores(model, tokenizer, images, RULE)
    assert scores == mim_scores(model, tokenizer, images, RULE)
    found = mim_figures(
        model, tokenizer, images, window=RULE.window, mask_ratio=0.5, num_masks=1
    ).by_degree
    assert scores["loss"] == pytest.approx((found[2].loss + found[5].loss) / 2)
    assert scores["constant"] == pytest.approx((found[2].constant + found[5].constant) / 2)
    assert scores["gain"] == pytest.approx(1 - scores["loss"] / scores["constant"])


def test_a_grey_image_suits_networks_of_either_number_of_channels(
    tokenizer: Tokenizer, images: list[HeldOut]
) -> None:
    vit = SpadViT(in_chans=3, embed_dim=24, depth=2, num_heads=2)
    model = MaskedImageModel(vit, codebook_size=8)
    assert mim_scores(model, tokenizer, images, RULE)["loss"] > 0
    assert len(list(mim_pictures(model, tokenizer, images[:1], RULE))) == 1


def test_low_precision_models_see_images_of_theirs(
    tokenizer: Tokenizer, images: list[HeldOut]
) -> None:
    scores, _ = tokenizer_scores(tokenizer.double(), images)
    assert scores["psnr"] > 0


def test_pictures_show_the_images_themselves(
    model: MaskedImageModel, tokenizer: Tokenizer, images: list[HeldOut]
) -> None:
    shown = one_of_each_degree(images)
    assert [image.degree for image in shown] == [5, 2]
    two = dict(tokenizer_pictures(tokenizer, shown))
    four = dict(mim_pictures(model, tokenizer, shown, RULE))
    assert list(two) == list(four) == ["image5", "image2"]
    for name, sheet in two.items():
        assert sheet.dtype == np.uint8
        assert four[name].shape[1] > sheet.shape[1]
        assert four[name].shape[0] == sheet.shape[0]


def test_a_volume_has_three_planes_to_one_scale() -> None:
    volume = torch.zeros(1, 1, 8, 48, 32)
    volume[:, :, 4] = 1.0  # white in the axial plane, a stripe in the others
    held_out = HeldOut("a", volume, Spacing(4, 1, 1), 2, "CT")
    sheet = picture_sheet(held_out, {"input": volume})
    white = (sheet == 255).all(-1)
    rows = white.sum(1)
    # 48 pixels become 192: four times. Axial 192 rows, then two stripes of one slice: 16 rows.
    assert (rows > 0).sum() == 192 + 2 * 16
    assert rows.max() == 48 * 4  # the stripe of the sagittal plane is as wide as y is long


def test_a_flat_image_has_one_row() -> None:
    image = torch.rand(1, 3, 1, 500, 400)
    sheet = picture_sheet(HeldOut("x", image, Spacing.planar(), 5), {"input": image})
    assert sheet.shape[0] < 384 + 80
    assert sheet.shape[1] >= 307  # 400 / 500 of 384, in colour
