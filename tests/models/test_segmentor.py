"""The ViT segmentor keeps the contract of all models, with and without deep supervision."""

from collections.abc import Sequence

import pytest
import torch
from contract import ModelContract
from torch import nn

from spadnet.models.segmentor import VitSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride


def build(*, deep_supervision: bool = False) -> VitSegmentor:
    vit = SpadViT(in_chans=1, embed_dim=12, depth=2, num_heads=1, pos_grid=(2, 2, 2))
    return VitSegmentor(
        vit, num_classes=3, widths=(4, 4, 4, 6, 6, 6), deep_supervision=deep_supervision
    )


class TestVitSegmentor(ModelContract):
    stride = 32

    def build(self) -> nn.Module:
        return build()

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3, *self.volume(degree, batch=batch, grid=grid).shape[2:])]


@pytest.mark.parametrize("degree", [0, 2, 5])
def test_deep_supervision_gives_every_level(degree: int) -> None:
    model = build(deep_supervision=True)
    depth = 32 * 2 >> min(degree, 5)
    logits = model(torch.rand(1, 1, depth, 64, 32), degree)
    assert [tuple(x.shape[2:]) for x in logits] == [
        (depth // depth_stride(1 << i, degree), 64 >> i, 32 >> i) for i in range(5)
    ]
    sum(x.square().mean() for x in logits).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_flat_images_and_wrong_sizes() -> None:
    model = build().eval()
    assert model(torch.rand(1, 1, 32, 64)).shape == (1, 3, 32, 64)
    with pytest.raises(ValueError, match="not a multiple"):
        model(torch.rand(1, 1, 1, 48, 64), 5)
    with pytest.raises(ValueError, match="has 6 levels"):
        VitSegmentor(SpadViT(embed_dim=12, depth=2, num_heads=1), num_classes=2, widths=(4, 4))


def test_default_blocks_are_the_published_ones() -> None:
    vit = SpadViT(in_chans=1, embed_dim=12, depth=12, num_heads=1)
    assert VitSegmentor(vit, num_classes=2).pyramid.out_indices == (3, 5, 7, 11)
