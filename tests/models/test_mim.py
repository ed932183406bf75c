"""Masked image modelling: what is seen, what is predicted, what counts."""

import pytest
import torch
from torch import Tensor

from spadnet.losses.mim import soft_cross_entropy
from spadnet.models.mim import MaskedImageModel, complement_index, gather_tokens
from spadnet.models.vit import SpadViT

CODES, DEGREE = 6, 4
LENGTH = 2 * 2 * 3


def model(num_mask_layers: int, *, depth: int = 3) -> MaskedImageModel:
    """A tiny model in evaluation, with weights large enough to matter."""
    vit = SpadViT(in_chans=1, embed_dim=16, depth=depth, num_heads=2, pos_grid=(2, 3, 3))
    built = MaskedImageModel(vit, codebook_size=CODES, num_mask_layers=num_mask_layers).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def volumes(batch: int = 2) -> Tensor:
    """Volumes of 2 x 2 x 3 tokens at the tests' degree."""
    return torch.rand(batch, 1, 2, 32, 48)


def visible_index(num_visible: int, batch: int = 2) -> Tensor:
    """Random positions, [B, V]."""
    return torch.stack([torch.randperm(LENGTH)[:num_visible] for _ in range(batch)])


def straightforward(mim: MaskedImageModel, x: Tensor, index: Tensor) -> Tensor:
    """Hidden tokens the long way: all positions, then masks by hand, sample by sample."""
    vit = mim.vit
    normalised, degree = vit.normalise(x, DEGREE)
    grid = vit.patch_embed.grid_size(x.shape[2:], degree)
    embedded = vit.patch_embed(normalised, degree) + vit.positions(grid)
    cos, sin = vit.rope(grid, x.device)
    rows = []
    for tokens, seen in zip(embedded, index, strict=True):
        kept = vit.with_class_token(tokens[seen][None])
        for layer, block in enumerate(vit.blocks):
            first = len(vit.blocks) - mim.num_mask_layers
            if layer == first:
                everything = mim.mask_token[0].repeat(LENGTH, 1)
                everything[seen] = kept[0, 1:]
                kept = torch.cat((kept[:, :1], everything[None]), dim=1)
            at = seen if layer < first else torch.arange(LENGTH)
            kept = block(kept, cos[at], sin[at])
        rows.append(vit.norm(kept)[:, 1:])
    return torch.cat(rows)


@pytest.mark.parametrize("num_mask_layers", [1, 2, 3])
def test_hidden_equals_the_straightforward_form(num_mask_layers: int) -> None:
    mim, x, index = model(num_mask_layers), volumes(), visible_index(5)
    with torch.no_grad():
        torch.testing.assert_close(mim.hidden(x, index, DEGREE), straightforward(mim, x, index))


@pytest.mark.parametrize("num_mask_layers", [1, 2, 3])
def test_logits_are_the_head_on_masked_positions(num_mask_layers: int) -> None:
    mim, x, index = model(num_mask_layers), volumes(), visible_index(5)
    target = torch.randn(2, LENGTH, CODES)
    output = mim(x, index, target, DEGREE)
    masked = torch.stack(
        [torch.tensor(sorted({*range(LENGTH)} - {*row.tolist()})) for row in index]
    )
    assert torch.equal(output.masked_index, masked)
    assert torch.equal(output.target, gather_tokens(target, masked))
    hidden = gather_tokens(mim.hidden(x, index, DEGREE), masked)
    torch.testing.assert_close(output.logits, mim.head(hidden))


def test_everything_visible_is_the_plain_forward() -> None:
    # With nothing masked it makes no difference where mask tokens would have entered.
    x = volumes()
    for num_mask_layers in (1, 3):
        mim = model(num_mask_layers)
        index = torch.arange(LENGTH).expand(2, -1)
        plain = mim.vit.forward_features(x, DEGREE)[:, 1:]
        torch.testing.assert_close(mim.hidden(x, index, DEGREE), plain)


def test_loss_ignores_what_is_targeted_at_visible_positions() -> None:
    mim, x, index = model(2), volumes(), visible_index(5)
    target = torch.randn(2, LENGTH, CODES)
    other = target.clone()
    for row, seen in zip(other, index, strict=True):
        row[seen] = torch.randn(len(seen), CODES)
    losses = []
    for t in (target, other):
        output = mim(x, index, t, DEGREE)
        losses.append(soft_cross_entropy(output.logits, output.target, from_logits=True))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("num_mask_layers", [1, 3])
def test_predictions_do_not_see_behind_the_mask(num_mask_layers: int) -> None:
    mim, x, index = model(num_mask_layers), volumes(1), torch.tensor([[0, 4, 7]])
    target = torch.randn(1, LENGTH, CODES)
    patches = mim.vit.patch_embed.patchify(x, DEGREE)
    other = torch.rand_like(x)
    # The visible patches of x, anything elsewhere.
    grid = (2, 2, 3)
    for token in index[0].tolist():
        z, y, column = token // 6, token // 3 % 2, token % 3
        place = (0, 0, z, slice(16 * y, 16 * y + 16), slice(16 * column, 16 * column + 16))
        other[place] = x[place]
    assert mim.vit.patch_embed.grid_size(x.shape[2:], DEGREE) == grid
    assert torch.equal(
        patches[:, index[0]], mim.vit.patch_embed.patchify(other, DEGREE)[:, index[0]]
    )
    torch.testing.assert_close(
        mim(x, index, target, DEGREE).logits, mim(other, index, target, DEGREE).logits
    )


@pytest.mark.parametrize("num_mask_layers", [1, 2, 3])
def test_order_of_visible_positions_means_nothing(num_mask_layers: int) -> None:
    mim, x, index = model(num_mask_layers), volumes(), visible_index(6)
    target = torch.randn(2, LENGTH, CODES)
    output, moved = mim(x, index, target, DEGREE), mim(x, index.flip(1), target, DEGREE)
    assert torch.equal(output.masked_index, moved.masked_index)
    torch.testing.assert_close(output.logits, moved.logits)


def test_samples_are_independent() -> None:
    mim, x, index = model(1), volumes(3), visible_index(5, batch=3)
    target = torch.randn(3, LENGTH, CODES)
    together = mim(x, index, target, DEGREE).logits
    apart = [mim(x[[i]], index[[i]], target[[i]], DEGREE).logits for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_complement_lists_what_is_missing_in_order() -> None:
    index = torch.tensor([[3, 0], [1, 2]])
    assert complement_index(index, 5).tolist() == [[1, 2, 4], [0, 3, 4]]
    assert complement_index(index[:, :0], 2).tolist() == [[0, 1], [0, 1]]
    assert complement_index(torch.tensor([[0, 1, 2]]), 3).shape == (1, 0)


@pytest.mark.parametrize("num_mask_layers", [0, 4, -1])
def test_mask_layers_must_exist(num_mask_layers: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 to 3, got {num_mask_layers}"):
        model(num_mask_layers)
