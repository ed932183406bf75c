"""What the objectives beside codes reach, beside what knows nothing; oracles reach everything."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spadnet.data.labelled_steps import LabelledImages
from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.objective_scores import (
    Anatomy,
    make_anatomies,
    pixel_pictures,
    pixel_scores,
    prototype_scores,
)
from spadnet.evaluate.picture_sheet import picture_sheet
from spadnet.evaluate.validation import MaskRule
from spadnet.layers.patch_embed import PatchEmbed
from spadnet.losses.pixels import normalised_patches
from spadnet.models.mae import MaeOutput, MaskedAutoencoder
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.train.synthetic import labelled_images

RULE = MaskRule((2, 3, 3), 0.75)


class Oracle(MaskedAutoencoder):
    """Knows what is hidden."""

    def forward(self, x: Tensor, visible_index: Tensor, degree: int) -> MaeOutput:
        """Give the hidden patches themselves."""
        found = super().forward(x, visible_index, degree)
        return found._replace(predicted=normalised_patches(found.patches))


def vit() -> SpadViT:
    torch.manual_seed(0)
    return SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=2)


def test_voxels_behind_masks(images: list[HeldOut]) -> None:
    model = MaskedAutoencoder(vit(), decoder_dim=64, decoder_depth=1)
    scores = pixel_scores(model, images, RULE)
    assert scores == pixel_scores(model, images, RULE)
    assert scores["constant"] == pytest.approx(1, abs=0.01)
    assert scores["loss"] > 0.9  # it has learned nothing
    assert scores["loss"] == pytest.approx((scores["loss_degree2"] + scores["loss_degree5"]) / 2)
    oracle = pixel_scores(Oracle(vit(), decoder_dim=64, decoder_depth=1), images, RULE)
    assert oracle["loss"] == pytest.approx(0, abs=1e-6)
    assert oracle["gain"] == pytest.approx(1)


def test_what_an_oracle_predicts_is_the_image(images: list[HeldOut]) -> None:
    small = images[1]._replace(image=images[1].image[..., :8, :48, :48])
    (name, sheet), *others = pixel_pictures(Oracle(vit()), [small], RULE)
    assert (name, others) == (small.name, [])
    views = {key: small.image for key in ("input", "masked view", "prediction")}
    wanted = picture_sheet(small, views)
    third = sheet.shape[1] // 3
    differs = np.abs(sheet.astype(int) - wanted.astype(int)) > 1
    assert not differs[:, 2 * third :].any()  # flat patches have no scale to be told by
    assert differs[:, third : 2 * third].any()


@pytest.mark.parametrize("degree", [0, 2, 4, 5])
def test_patches_are_put_together_again(degree: int) -> None:
    embed = PatchEmbed(2, 24, patch_size=16)
    z, y, x = required_multiple(degree)
    image = torch.rand(2, 2, 2 * z if degree < 5 else 1, 3 * y, 2 * x)
    grid = embed.grid_size(image.shape[2:], degree)
    assert torch.equal(embed.unpatchify(embed.patchify(image, degree), grid, degree), image)


class Painter(nn.Module):
    """Reads the label off the intensity."""

    stride, in_chans = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """One feature per label, [B, 8, D, H, W]."""
        labels = (x[:, 0] * self.scale).round().long()
        return nn.functional.one_hot(labels, 8).movedim(-1, 1).float()


@pytest.mark.parametrize("num_views", [1, 2])
def test_structures_told_apart(num_views: int) -> None:
    labels = (torch.arange(2 * 8 * 8).view(1, 2, 8, 8) % 4).to(torch.uint8)
    image = labels[:, None] / 8
    made = LabelledImages(image, labels, torch.ones(1, 3), image if num_views == 2 else None)
    flat = made._replace(image=image[:, :, :1], labels=labels[:, :1], other_view=None)
    anatomies = [Anatomy(1, made), Anatomy(5, flat)]
    model: nn.Module = Painter()
    scores = prototype_scores(model, anatomies, num_labels=8, temperature=0.07)  # type: ignore[arg-type]
    assert scores["constant"] == pytest.approx(2 * math.log(4), rel=1e-4)
    assert scores["loss"] < 1e-4
    assert scores["gain"] > 0.999
    assert {"loss_degree1", "loss_degree5"} < set(scores)
    if num_views == 2:  # a view whose structures look like one another's is told apart by neither
        swapped = made._replace(other_view=(labels[:, None] + 1) % 4 / 8)
        found = prototype_scores(model, [Anatomy(1, swapped)], num_labels=8, temperature=0.07)  # type: ignore[arg-type]
        assert found["loss"] > found["constant"]


def test_anatomies_are_the_same_each_time() -> None:
    def make() -> list[Anatomy]:
        return make_anatomies(labelled_images, degrees=[3, 5], per_degree=2, tokens=(2, 2, 2))

    first, second = make(), make()
    assert [one.degree for one in first] == [3, 3, 5, 5]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images.image, other.images.image)
    assert not torch.equal(first[0].images.image, first[1].images.image)
