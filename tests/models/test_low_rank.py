"""Corrections of low rank: nothing at first, learned alone, and merged without a trace."""

import pytest
import torch

from spadnet.models.low_rank import LowRank, add_low_rank, merge_low_rank
from spadnet.models.vit import SpadViT


def build() -> SpadViT:
    torch.manual_seed(0)
    return SpadViT(
        in_chans=1, num_classes=3, embed_dim=12, depth=2, num_heads=1, pos_grid=(1, 2, 2)
    )


def test_starts_as_nothing_learns_everywhere_and_merges() -> None:
    plain, vit = build().eval(), build().eval()
    add_low_rank(vit, rank=2)
    x = torch.rand(2, 1, 1, 32, 32)
    torch.testing.assert_close(vit(x, 5), plain(x, 5))
    trained = {name: p for name, p in vit.named_parameters() if p.requires_grad}
    assert all("head." in name or name.endswith((".up", ".down")) for name in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for _ in range(3):  # the first step moves the heads, the second what feeds them
        optimizer.zero_grad()
        vit(x, 5).square().sum().backward()
        optimizer.step()
    corrections = [m for m in vit.modules() if isinstance(m, LowRank)]
    assert len(corrections) == 2 * 5  # queries to values, projection, and three of the MLP
    assert all(correction.up.abs().sum() > 0 for correction in corrections)
    merged = merge_low_rank(vit)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(merged(x, 5), vit(x, 5))
    assert not torch.allclose(merged(x, 5), plain(x, 5))
    assert any(isinstance(module, LowRank) for module in vit.modules())


def test_models_without_corrections_are_left_alone() -> None:
    vit = build()
    assert merge_low_rank(vit) is vit
    with pytest.raises(ValueError, match="rank must be positive"):
        add_low_rank(vit, rank=0)
