"""Dense features keep the contract, and all they use of an encoder can learn."""

from collections.abc import Sequence

import pytest
import torch
from contract import ModelContract
from torch import nn

from spadnet.models.dense import UNetDenseFeatures, VitDenseFeatures
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride


def vit_features() -> VitDenseFeatures:
    """Features of a ViT of two blocks."""
    vit = SpadViT(in_chans=1, num_classes=2, embed_dim=16, depth=2, num_heads=1, pos_grid=(2, 3, 3))
    return VitDenseFeatures(vit, num_features=5, width=8)


def unet_features() -> UNetDenseFeatures:
    """Features of a U-Net of three levels."""
    unet = SpadUNet(in_chans=1, num_classes=2, features=(4, 8, 8), num_convs=1)
    return UNetDenseFeatures(unet, num_features=5)


class TestVitDenseFeatures(ModelContract):
    stride = 32

    def build(self) -> nn.Module:
        return vit_features()

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        _, _, *size = self.volume(degree, batch=batch, grid=grid).shape
        return [(batch, 5, size[0] // depth_stride(4, degree), size[1] // 4, size[2] // 4)]


class TestUNetDenseFeatures(ModelContract):
    stride = 4

    def build(self) -> nn.Module:
        return unet_features()

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 5, *self.volume(degree, batch=batch, grid=grid).shape[2:])]


def test_all_of_the_vit_learns_its_final_norm_included() -> None:
    model = vit_features()
    assert isinstance(model.vit.head, nn.Identity)
    assert all(parameter.requires_grad for parameter in model.vit.parameters())


def test_all_of_the_unet_learns_but_its_heads() -> None:
    model = unet_features()
    frozen = {name for name, p in model.unet.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("decoder.heads.") for name in frozen)


@pytest.mark.parametrize("size", [(2, 48, 64), (3, 64, 64), (0, 64, 64)])
def test_size_that_the_pyramid_cannot_halve_is_named(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"size \({size[0]}, .* is not a multiple of \(2, 32, 32"):
        vit_features()(torch.rand(1, 1, *size), degree=4)
