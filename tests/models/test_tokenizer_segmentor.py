"""A tokenizer's encoder that segments: the contract at every degree, and what its encoder gives."""

from collections.abc import Sequence

import pytest
import torch
from contract import ModelContract
from torch import nn

from spadnet.models.autoencoder import Encoder
from spadnet.models.pyramid import EncoderPyramid
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.spacing import depth_stride


def build(*, deep_supervision: bool = False) -> TokenizerSegmentor:
    return TokenizerSegmentor(
        encoder_widths=(6, 10, 16),
        num_classes=3,
        widths=(4, 4, 6, 6, 6),
        deep_supervision=deep_supervision,
    )


class TestTokenizerSegmentor(ModelContract):
    def build(self) -> nn.Module:
        return build()

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3, *self.volume(degree, batch=batch, grid=grid).shape[2:])]


@pytest.mark.parametrize("degree", [0, 2, 5])
def test_deep_supervision_gives_every_level(degree: int) -> None:
    model = build(deep_supervision=True)
    depth = 32 >> min(degree, 5)
    logits = model(torch.rand(1, 1, depth, 48, 32), degree)
    assert [tuple(x.shape[2:]) for x in logits] == [
        (depth // depth_stride(1 << i, degree), 48 >> i, 32 >> i) for i in range(4)
    ]
    sum(x.square().mean() for x in logits).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_coarsest_map_is_what_the_encoder_gives() -> None:
    encoder = Encoder(1, (6, 10, 16))
    x = torch.rand(1, 1, 8, 32, 32)
    maps = EncoderPyramid(encoder)(x, 2)
    assert torch.equal(maps[-1], encoder(x, 2))
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 8, 8, 8), (10, 4, 4, 4), (16, 2, 2, 2)]
    with pytest.raises(ValueError, match="first stride must be 4, got 8"):
        EncoderPyramid(Encoder(1, (8, 16), stem_stride=8))


def test_flat_images_and_wrong_sizes() -> None:
    model = build().eval()
    assert model(torch.rand(1, 1, 16, 32)).shape == (1, 3, 16, 32)
    with pytest.raises(ValueError, match="not a multiple"):
        model(torch.rand(1, 1, 1, 24, 32), 5)
    with pytest.raises(ValueError, match="has 5 levels"):
        TokenizerSegmentor(num_classes=2, widths=(4, 4))
