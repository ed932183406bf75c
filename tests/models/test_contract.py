"""Every model keeps the contract."""

from collections.abc import Sequence
from typing import Any

import torch
from contract import ModelContract
from torch import nn
from torch.export import Dim

from spadnet.models.discriminator import SpadDiscriminator
from spadnet.models.mim import MaskedImageModel
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride

CODES = 11  # unlike any size, or a compiler takes them for one


def tiny_vit(*, num_classes: int = 0) -> SpadViT:
    """A ViT of two blocks."""
    return SpadViT(
        in_chans=1,
        num_classes=num_classes,
        embed_dim=16,
        depth=2,
        num_heads=1,
        pos_grid=(2, 3, 3),
    )


class TestTokenizer(ModelContract):
    def build(self) -> nn.Module:
        return Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=CODES)

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [
            tuple(self.volume(degree, batch=batch, grid=grid).shape),
            (batch, 16, *grid),
            (batch, *grid, CODES),
            (batch, *grid),
        ]


class TestNearestTokenizer(TestTokenizer):
    def build(self) -> nn.Module:
        return Tokenizer(
            in_chans=1,
            widths=(8, 16),
            stem_stride=8,
            codebook_size=CODES,
            quantizer="nearest",
            norm_latent=True,
        )

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [*super().output_shapes(degree, batch=batch, grid=grid), ()]


class TestVqganTokenizer(ModelContract):
    stride = 2

    def build(self) -> nn.Module:
        return Tokenizer(
            in_chans=1,
            widths=(32, 32),
            stem_stride=1,
            codebook_size=CODES,
            code_dim=5,
            quantizer="nearest",
            num_residual_blocks=1,
            attention_levels=(1,),
        )

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        size = tuple(self.volume(degree, batch=batch, grid=grid).shape)
        return [size, (batch, 5, *grid), (batch, *grid, CODES), (batch, *grid), ()]


class TestPlainViT(ModelContract):
    def build(self) -> nn.Module:
        return SpadViT(
            in_chans=1,
            num_classes=3,
            embed_dim=16,
            depth=2,
            num_heads=2,
            mlp="gelu",
            sub_ln=False,
            num_registers=2,
            rope_rescale=(0, 0, 0),
            pos_grid=(1, 3, 3),
        )

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3)]


class TestSpadViT(ModelContract):
    def build(self) -> nn.Module:
        return tiny_vit(num_classes=3)

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        return [(batch, 3)]

    def test_open_sizes(self) -> None:
        self.check_compiled(2, backend="eager")


class TestMaskedImageModel(ModelContract):
    def build(self) -> nn.Module:
        return MaskedImageModel(tiny_vit(), codebook_size=CODES, num_mask_layers=1)

    def inputs(
        self, degree: int, *, batch: int = 3, grid: Sequence[int] = (2, 3, 4)
    ) -> tuple[Any, ...]:
        length = grid[0] * grid[1] * grid[2]
        orders = torch.stack([torch.randperm(length) for _ in range(batch)])
        visible = orders[:, : int(0.45 * length)].sort(1).values
        target = torch.randn(batch, length, CODES)
        return self.volume(degree, batch=batch, grid=grid), visible, target, degree

    def dynamic_shapes(self) -> tuple[Any, ...]:
        volume, degree = super().dynamic_shapes()
        return volume, {0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}, degree

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        length = grid[0] * grid[1] * grid[2]
        masked = length - int(0.45 * length)
        return [(batch, masked, CODES), (batch, masked, CODES), (batch, masked)]


class TestPyramid(ModelContract):
    def build(self) -> nn.Module:
        return Pyramid(tiny_vit(), out_indices=(0, 0, 1, 1))

    def volume(self, degree: int, *, batch: int, grid: Sequence[int]) -> torch.Tensor:
        """Twice as many tokens: the coarsest map halves them once more."""
        return super().volume(degree, batch=batch, grid=[2 * n for n in grid])

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        _, _, *size = self.volume(degree, batch=batch, grid=grid).shape
        return [
            (batch, 16, size[0] // depth_stride(s, degree), size[1] // s, size[2] // s)
            for s in (4, 8, 16, 32)
        ]


class TestSpadDiscriminator(ModelContract):
    def build(self) -> nn.Module:
        return SpadDiscriminator(1, (8, 16, 16))

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        _, _, *size = self.volume(degree, batch=batch, grid=grid).shape
        return [(batch, 1, size[0] // depth_stride(8, degree), size[1] // 8, size[2] // 8)]
