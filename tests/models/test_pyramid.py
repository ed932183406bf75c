"""The pyramid halves depth by the same rule as the network it stands on."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.models.pyramid import Pyramid
from spadnet.models.vit import SpadViT


def pyramid(*, depth: int = 4, **arguments: object) -> Pyramid:
    """A tiny pyramid in evaluation."""
    vit = SpadViT(
        in_chans=1, num_classes=2, embed_dim=8, depth=depth, num_heads=1, pos_grid=(2,) * 3
    )
    return Pyramid(vit, **{"out_indices": (0, 1, 2, 3)} | arguments).eval()


@pytest.mark.parametrize("degree", range(6))
def test_thick_maps_are_depth_averages_of_thin_ones(degree: int) -> None:
    net = pyramid()
    # Up to the first norm-free product, which is linear: transposed taps average.
    tokens = torch.randn(1, 8, 2, 2, 2)
    thin, thick = net.up8(tokens, 0), net.up8(tokens, max(degree - 3, 0))
    runs = thin.unflatten(2, (thick.shape[2], -1)).mean(3)
    torch.testing.assert_close(thick, runs)


def test_third_map_is_the_normalised_feature_map() -> None:
    net, x = pyramid(), torch.rand(1, 1, 4, 32, 32)
    (features,) = net.vit.forward_intermediates(x, 3, indices=[2], intermediates_only=True)
    torch.testing.assert_close(net(x, 3)[2], F.instance_norm(features))
    (features,) = net.vit.forward_intermediates(x, 3, indices=[3], intermediates_only=True)
    expected = F.max_pool3d(F.instance_norm(features), 2)
    torch.testing.assert_close(net(x, 3)[3], expected)


def test_one_position_is_no_obstacle() -> None:
    maps = pyramid()(torch.rand(1, 1, 1, 32, 32), 5)
    assert [tuple(m.shape[2:]) for m in maps] == [(1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)]


def test_other_patch_sizes_have_strides_in_proportion() -> None:
    vit = SpadViT(in_chans=1, patch_size=8, embed_dim=8, depth=1, num_heads=1, pos_grid=(1, 2, 2))
    net = Pyramid(vit, out_indices=(0, 0, 0, 0))
    for degree in range(6):
        depth = 2 * max(8 >> degree, 1)
        maps = net(torch.rand(1, 1, depth, 32, 32), degree)
        assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
        # Depth is halved last of all: once the pending halvings are spent.
        assert [m.shape[2] for m in maps[:3]] == [depth // max(s >> degree, 1) for s in (2, 4, 8)]


def test_what_no_map_passes_is_frozen() -> None:
    net = pyramid(out_indices=(0, 0, 1, 1))
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    expected = ("vit.blocks.2.", "vit.blocks.3.", "vit.norm.", "vit.head.")
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(expected)}


def test_four_blocks_are_needed() -> None:
    with pytest.raises(ValueError, match="four levels, got 3"):
        pyramid(out_indices=(0, 1, 2))
