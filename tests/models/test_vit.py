"""SPAD-ViT: published sizes, timm's manners, what the degree and the positions mean."""

import math

import pytest
import torch
from torch import nn

from spadnet.models.vit import IMAGENET_MEAN, IMAGENET_STD, SpadViT
from spadnet.models.vit_sizes import spad_vit_base, spad_vit_large, spad_vit_small, spad_vit_tiny


def tiny(**arguments: object) -> SpadViT:
    """A ViT of a few thousand parameters, in evaluation."""
    defaults = {
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
        "pos_grid": (2, 3, 3),
    }
    return SpadViT(**defaults | arguments).eval()


@pytest.mark.parametrize(
    ("build", "parameters", "width", "depth"),
    [
        (spad_vit_base, 94_930_944, 768, 12),
        (spad_vit_large, 315_498_432, 1024, 24),
        (spad_vit_small, None, 384, 12),
        (spad_vit_tiny, None, 192, 12),
    ],
)
def test_sizes_are_those_published(
    build: type, parameters: int | None, width: int, depth: int
) -> None:
    with torch.device("meta"):
        vit = build()
    assert (vit.num_features, len(vit.blocks)) == (width, depth)
    assert vit.rope.head_dim == 64
    if parameters is not None:
        assert sum(p.numel() for p in vit.parameters()) == parameters


def test_a_2d_image_is_one_thick_slice() -> None:
    vit, image = tiny(num_classes=3), torch.rand(2, 1, 32, 48)
    assert torch.equal(vit(image), vit(image.unsqueeze(2), 5))


@pytest.mark.parametrize("degree", range(1, 6))
def test_a_thick_volume_is_its_repeated_slices(degree: int) -> None:
    vit = tiny()
    x = torch.rand(1, 1, 2 * max(16 >> degree, 1), 32, 32)
    thin = x.repeat_interleave(16 // max(16 >> degree, 1), dim=2)
    torch.testing.assert_close(
        vit.forward_features(x, degree), vit.forward_features(thin, 0), rtol=1e-4, atol=1e-4
    )


def test_permuting_tokens_permutes_features_where_positions_are_the_same() -> None:
    # Without learned positions and with angles that never turn, order means nothing.
    vit = tiny(rope_rescale=(1, 1, 1))
    nn.init.zeros_(vit.pos_embed)
    patches, order = torch.rand(2, 3, 16, 2, 16), torch.tensor([4, 1, 5, 0, 3, 2])

    def features(order: torch.Tensor) -> torch.Tensor:
        tokens = vit.patch_embed.project(patches.reshape(2, 6, 256)[:, order], 5)
        cos, sin = torch.ones(6, 8), torch.zeros(6, 8)
        return vit.norm(vit.run_blocks(vit.with_class_token(tokens), cos, sin))

    vit.patch_embed.proj.weight.data = torch.randn(16, 1, 16, 16, 16)
    plain, moved = features(torch.arange(6)), features(order)
    torch.testing.assert_close(moved[:, 1:], plain[:, 1:][:, order])
    torch.testing.assert_close(moved[:, 0], plain[:, 0])


def test_order_matters_with_positions() -> None:
    vit, x = tiny(), torch.rand(1, 1, 1, 32, 32)
    moved = x.flip(4)
    assert not torch.allclose(vit(x, 5), vit(moved, 5), atol=1e-4)


def test_normalisation_is_inside() -> None:
    vit = tiny(in_chans=3)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1, 1)
    raw = tiny(in_chans=3, mean=(0,) * 3, std=(1,) * 3)
    raw.load_state_dict(vit.state_dict())
    x = torch.rand(1, 3, 1, 16, 16)
    torch.testing.assert_close(vit(x, 5), raw((x - mean) / std, 5))
    assert "mean" not in vit.state_dict()
    with pytest.raises(ValueError, match="std has 2 values for 3 channels"):
        tiny(in_chans=3, std=(1, 1))


def test_learned_positions_follow_the_token_grid() -> None:
    vit = tiny()
    own = vit.positions((2, 3, 3))
    torch.testing.assert_close(own, vit.pos_embed.flatten(2).transpose(1, 2))
    assert vit.positions((5, 7, 1)).shape == (1, 35, 16)


# --- timm's manners ---


def test_head_features_and_logits_fit_together() -> None:
    vit, x = tiny(num_classes=3), torch.rand(2, 1, 2, 32, 32)
    features = vit.forward_features(x, 4)
    assert features.shape == (2, 1 + 2 * 2 * 2, 16)
    pooled = vit.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features[:, 0])
    torch.testing.assert_close(vit(x, 4), vit.get_classifier()(pooled))


def test_classifier_can_be_replaced_and_removed() -> None:
    vit, x = tiny(num_classes=3), torch.rand(2, 1, 32, 32)
    vit.reset_classifier(7, "avg")
    assert vit(x).shape == (2, 7)
    assert vit.num_classes == 7
    vit.reset_classifier(0)
    torch.testing.assert_close(vit(x), vit.forward_features(x)[:, 1:].mean(1))


def test_norm_after_pool_is_the_norm_of_the_mean() -> None:
    vit, x = tiny(global_pool="avg", norm_after_pool=True), torch.rand(2, 1, 32, 32)
    nn.init.normal_(vit.norm.weight)
    torch.testing.assert_close(vit(x), vit.norm(vit.forward_features(x)[:, 1:].mean(1)))


def test_intermediates_are_the_blocks_outputs_as_maps() -> None:
    vit, x = tiny(), torch.rand(2, 1, 4, 32, 48)
    outputs = []
    hooks = [b.register_forward_hook(lambda m, i, o: outputs.append(o)) for b in vit.blocks]
    features = vit.forward_features(x, 3)
    for hook in hooks:
        hook.remove()
    end, maps = vit.forward_intermediates(x, 3)
    torch.testing.assert_close(end, features)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 2, 2, 3)] * 3
    for feature_map, output in zip(maps, outputs, strict=True):
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), output[:, 1:])
    _, (last,) = vit.forward_intermediates(x, 3, indices=1, norm=True)
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), features[:, 1:])
    chosen = vit.forward_intermediates(x, 3, indices=[2, 0, -1], intermediates_only=True)
    for feature_map, index in zip(chosen, (2, 0, 2), strict=True):
        assert torch.equal(feature_map, maps[index])


def test_parameter_groups_name_every_parameter() -> None:
    vit = tiny(num_classes=3)
    names = dict(vit.named_parameters())
    assert vit.no_weight_decay() <= set(names)
    matcher = vit.group_matcher()
    assert set(matcher) == {"stem", "blocks"}


def test_stochastic_depth_rises_to_its_rate() -> None:
    vit = tiny(drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(vit(x), vit(x))
    vit.train()
    assert not torch.equal(vit(x.expand(16, -1, -1, -1)), vit(x.expand(16, -1, -1, -1)))


def test_half_precision_stays_near() -> None:
    vit, x = tiny(), torch.rand(1, 1, 2, 32, 32)
    expected = vit(x, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (vit(x, 4) - expected).abs().max() < 0.1


# --- faults ---


@pytest.mark.parametrize("shape", [(1, 3, 1, 16, 16), (1, 3, 16, 16), (1, 16, 16)])
def test_other_channels_or_axes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 1, D, H, W\] or \[B, 1, H, W\]"):
        tiny()(torch.zeros(shape), 5)


def test_a_volume_needs_a_degree() -> None:
    with pytest.raises(ValueError, match="needs a degree"):
        tiny()(torch.zeros(1, 1, 4, 16, 16))


def test_sizes_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 16, 16\) is not a multiple of \(4, 16, 16\)"):
        tiny()(torch.zeros(1, 1, 3, 16, 16), 2)


def test_initial_features_have_a_sane_scale() -> None:
    features = tiny(embed_dim=64, depth=6).forward_features(torch.rand(4, 1, 2, 32, 32), 4)
    assert math.isclose(features.var().item(), 1, rel_tol=0.1)


# --- the plain ViT's form ---


def test_registers_stand_beside_the_class_token_and_for_no_place() -> None:
    vit, x = tiny(num_registers=3, global_pool="avg"), torch.rand(2, 1, 4, 32, 48)
    features = vit.forward_features(x, 3)
    assert features.shape == (2, 1 + 3 + 2 * 2 * 3, 16)
    torch.testing.assert_close(vit(x, 3), features[:, 4:].mean(1))
    _, ((feature_map, prefix),) = vit.forward_intermediates(
        x, 3, indices=1, norm=True, return_prefix_tokens=True
    )
    torch.testing.assert_close(prefix, features[:, :4])
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), features[:, 4:])
    assert "reg_token" in vit.no_weight_decay()


def test_angles_that_never_turn_leave_order_to_the_learned_positions() -> None:
    vit, x = tiny(rope_rescale=(0, 0, 0), mlp="gelu", sub_ln=False), torch.rand(1, 1, 1, 32, 32)
    assert not torch.allclose(vit(x, 5), vit(x.flip(4), 5), atol=1e-4)
    nn.init.zeros_(vit.pos_embed)
    patches = vit.forward_features(x, 5)[:, 1:]
    swapped = torch.cat((x[..., 16:], x[..., :16]), dim=-1)
    moved = vit.forward_features(swapped, 5)[:, 1:]
    torch.testing.assert_close(moved, patches[:, [1, 0, 3, 2]])


def test_statistics_of_the_tokens_are_twice_as_wide_and_can_be_trained() -> None:
    vit, x = tiny(num_classes=3, global_pool="avgstd", num_registers=2), torch.rand(2, 1, 32, 48)
    patches = vit.forward_features(x)[:, 3:]
    pooled = vit.forward_head(vit.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled[:, :16], patches.mean(1))
    torch.testing.assert_close(pooled[:, 16:], patches.std(1, correction=0), atol=1e-4, rtol=1e-4)
    assert vit(x).shape == (2, 3)
    one = vit(x[..., :16, :16])  # a single token has no spread
    one.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vit.parameters())
    vit.reset_classifier(2, "avg")
    assert vit.head.in_features == vit.head_hidden_size == 16
    with pytest.raises(ValueError, match="'avgstd' cannot have a norm after it"):
        tiny(norm_after_pool=True, global_pool="avgstd")
    normed = tiny(norm_after_pool=True, num_classes=3)
    with pytest.raises(ValueError, match="'avgstd' cannot have a norm after it"):
        normed.reset_classifier(5, "avgstd")
    assert (normed.num_classes, normed.head.out_features) == (3, 3)


def test_no_pooling_classifies_every_token() -> None:
    vit, x = tiny(num_classes=3, global_pool=""), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(vit(x), vit.head(vit.forward_features(x)))
    for build in (tiny, lambda **kwargs: vit.reset_classifier(3, **kwargs)):
        with pytest.raises(
            ValueError, match="global_pool must be 'token', 'avg', 'avgstd' or '', got 'map'"
        ):
            build(global_pool="map")
    with pytest.raises(ValueError, match="mlp must be one of swiglu, gelu, got 'relu'"):
        tiny(mlp="relu")


@pytest.mark.parametrize("indices", [0, 4, [], [3], [-4]])
def test_blocks_that_are_not_there_are_refused(indices: object) -> None:
    with pytest.raises(ValueError, match=r"of 3 blocks do not exist|numbered 0 to 2"):
        tiny().forward_intermediates(torch.rand(1, 1, 16, 16), indices=indices)
