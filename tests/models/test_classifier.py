"""Classifiers keep the contract of all models."""

from collections.abc import Sequence

import pytest
import torch
from contract import ModelContract
from torch import nn

from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.vit import SpadViT


class TestConvNet(ModelContract):
    stride = 8

    def build(self) -> nn.Module:
        return SpadConvNet(num_classes=3, widths=(4, 6, 8), first_stride=2)

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3)]


class TestAttentionClassifier(ModelContract):
    def build(self) -> nn.Module:
        vit = SpadViT(in_chans=1, embed_dim=16, depth=2, num_heads=2, pos_grid=(2, 3, 3))
        return AttentionClassifier(vit, num_classes=3, num_queries=2)

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3)]


def test_thick_slices_give_what_repeated_thin_ones_give() -> None:
    # Repeating slices is an average of nothing: away from the border the features are the same.
    net = SpadConvNet(num_classes=0, widths=(4, 8)).eval()
    thick = torch.rand(1, 1, 1, 32, 32).expand(-1, -1, 12, -1, -1)
    thin = thick.repeat_interleave(2, 2)
    with torch.no_grad():
        ours = net.forward_features(thick, 1)[:, :, 4:8]
        theirs = net.forward_features(thin, 0)[:, :, 4:8]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_flat_images_need_no_degree() -> None:
    net = SpadConvNet(num_classes=2, widths=(4, 8)).eval()
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(net(x), net(x.unsqueeze(2), 5))
    with pytest.raises(ValueError, match="needs a degree"):
        net(x.unsqueeze(2))
    with pytest.raises(ValueError, match="the model takes"):
        net(torch.rand(2, 3, 16, 16))


def test_attention_pool_does_not_care_for_the_order_of_tokens() -> None:
    model = TestAttentionClassifier().build().eval()
    assert isinstance(model, AttentionClassifier)
    tokens = torch.randn(2, 7, 16)
    torch.testing.assert_close(model.pool(tokens), model.pool(tokens[:, torch.randperm(7)]))
    with pytest.raises(ValueError, match="num_classes must be positive"):
        AttentionClassifier(model.vit, num_classes=0)
