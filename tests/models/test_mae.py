"""Masked autoencoding: the contract, what is seen, what is predicted, what learns."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract import DEGREES, GRID, ModelContract
from torch import Tensor, nn
from torch.export import Dim

from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.vit import SpadViT
from spadnet.spacing import depth_stride

DEGREE, LENGTH = 4, 2 * 2 * 3


def tiny_mae(*, in_chans: int = 1, decoder_depth: int = 1) -> MaskedAutoencoder:
    """A model of two blocks and a decoder, with weights large enough to matter."""
    vit = SpadViT(in_chans=in_chans, embed_dim=16, depth=2, num_heads=1, pos_grid=(2, 3, 3))
    built = MaskedAutoencoder(vit, decoder_dim=16, decoder_depth=decoder_depth, head_dim=16)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.2)
    return built.eval()


def some_tokens(batch: int, length: int, num_visible: int) -> Tensor:
    """Sorted random positions, [B, V]."""
    orders = torch.stack([torch.randperm(length) for _ in range(batch)])
    return orders[:, :num_visible].sort(1).values


class TestMaskedAutoencoder(ModelContract):
    def build(self) -> nn.Module:
        return tiny_mae()

    def inputs(self, degree: int, *, batch: int = 3, grid: Sequence[int] = GRID) -> tuple[Any, ...]:
        length = grid[0] * grid[1] * grid[2]
        visible = some_tokens(batch, length, length // 4)
        return self.volume(degree, batch=batch, grid=grid), visible, degree

    def dynamic_shapes(self) -> tuple[Any, ...]:
        volume, degree = super().dynamic_shapes()
        return volume, {0: Dim.AUTO, 1: Dim.AUTO}, degree

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        length = grid[0] * grid[1] * grid[2]
        masked = length - length // 4
        patch = (batch, masked, depth_stride(16, degree) * 16 * 16)
        return [patch, patch, (batch, masked)]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_patches_are_the_voxels_behind_the_mask(degree: int, in_chans: int) -> None:
    mae, (depth, rows, columns) = tiny_mae(in_chans=in_chans), (1 if degree == 5 else 2, 2, 3)
    deep = depth_stride(16, degree)
    x = torch.rand(2, in_chans, depth * deep, rows * 16, columns * 16)
    index = some_tokens(2, depth * rows * columns, 3)
    output = mae(x, index, degree)
    for sample in range(2):
        seen = set(index[sample].tolist())
        masked = [i for i in range(depth * rows * columns) if i not in seen]
        assert output.masked_index[sample].tolist() == masked
        for token, patch in zip(masked, output.patches[sample], strict=True):
            z, y, column = token // (rows * columns), token // columns % rows, token % columns
            block = x[sample, :, z * deep :, y * 16 :, column * 16 :][:, :deep, :16, :16]
            torch.testing.assert_close(patch, block.flatten())


def test_predictions_do_not_see_behind_the_mask() -> None:
    mae, index = tiny_mae(decoder_depth=2), torch.tensor([[0, 4, 7]])
    x = torch.rand(1, 1, 2, 32, 48)
    other = torch.rand_like(x)
    for token in index[0].tolist():
        z, y, column = token // 6, token // 3 % 2, token % 3
        place = (0, 0, z, slice(16 * y, 16 * y + 16), slice(16 * column, 16 * column + 16))
        other[place] = x[place]
    assert torch.equal(mae(x, index, DEGREE).predicted, mae(other, index, DEGREE).predicted)
    changed = x.clone()
    changed[0, 0, 0, :16, :16] = 0.0  # token 0, which is seen
    assert not torch.allclose(mae(x, index, DEGREE).predicted, mae(changed, index, DEGREE)[0])


def test_no_gradient_comes_from_behind_the_mask() -> None:
    mae, index = tiny_mae(), torch.tensor([[1, 6, 11]])
    x = torch.rand(1, 1, 2, 32, 48, requires_grad=True)
    mae(x, index, DEGREE).predicted.square().sum().backward()
    assert x.grad is not None
    by_token = mae.vit.patch_embed.patchify(x.grad, DEGREE).abs().sum(-1)[0]
    assert by_token.nonzero().flatten().tolist() == [1, 6, 11]


@pytest.mark.parametrize("decoder_depth", [1, 2])
def test_order_of_visible_positions_means_nothing(decoder_depth: int) -> None:
    mae, x = tiny_mae(decoder_depth=decoder_depth), torch.rand(2, 1, 2, 32, 48)
    index = some_tokens(2, LENGTH, 6)
    output, moved = mae(x, index, DEGREE), mae(x, index.flip(1), DEGREE)
    assert torch.equal(output.masked_index, moved.masked_index)
    torch.testing.assert_close(output.predicted, moved.predicted)


def test_samples_are_independent() -> None:
    mae, x, index = tiny_mae(), torch.rand(3, 1, 2, 32, 48), some_tokens(3, LENGTH, 5)
    together = mae(x, index, DEGREE).predicted
    apart = [mae(x[[i]], index[[i]], DEGREE).predicted for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_predicted_patches_lie_in_the_order_of_the_images() -> None:
    # Of a kernel that is its own position in the patch, every predicted patch is that position.
    mae = tiny_mae(in_chans=2)
    with torch.no_grad():
        mae.norm.weight.zero_()
        mae.norm.bias.copy_(torch.eye(16)[0])
        position = torch.arange(2.0 * 16 * 16).view(2, 1, 16, 16).expand(2, 16, 16, 16)
        mae.to_voxels[0] = position
        mae.bias.copy_(torch.tensor([0.0, 1000.0]))
    output = mae(torch.rand(1, 2, 2, 32, 48), some_tokens(1, LENGTH, 3), DEGREE)
    image = position[:, 0].clone()
    image[1] += 1000.0
    expected = mae.vit.patch_embed.patchify(image[None, :, None], DEGREE)
    torch.testing.assert_close(output.predicted, expected.expand_as(output.predicted))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"decoder_depth": 0}, "decoder_depth must be positive, got 0"),
        ({"decoder_dim": 96}, "decoder_dim must be a multiple of 64, got 96"),
        ({"decoder_dim": 0}, "decoder_dim must be a multiple of 64, got 0"),
    ],
)
def test_impossible_decoder_is_named(arguments: dict[str, int], named: str) -> None:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1)
    with pytest.raises(ValueError, match=named):
        MaskedAutoencoder(vit, **arguments)
