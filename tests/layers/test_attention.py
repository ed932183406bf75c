"""Attention and the block: equivariance, the class token, the parts that can be left out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.layers.attention import RotaryAttention, attend
from spadnet.layers.block import Block, SwiGLU
from spadnet.layers.norm import ChannelLayerNorm
from spadnet.layers.rope import rotary_angles, rotate

GRID = (2, 3, 2)
LENGTH = 12


def angles(head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine for the tests' token grid."""
    theta = rotary_angles(GRID, head_dim)
    return theta.cos(), theta.sin()


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a random value, biases too."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("make", [RotaryAttention, Block])
def test_permuting_tokens_with_their_angles_permutes_outputs(make: type) -> None:
    layer = randomise(make(16, num_heads=2))
    x, (cos, sin), order = torch.randn(2, 1 + LENGTH, 16), angles(8), torch.randperm(LENGTH)
    moved = torch.cat((x[:, :1], x[:, 1:][:, order]), dim=1)
    out, out_moved = layer(x, cos, sin), layer(moved, cos[order], sin[order])
    torch.testing.assert_close(out_moved[:, 1:], out[:, 1:][:, order])
    torch.testing.assert_close(out_moved[:, 0], out[:, 0])


def test_without_positions_attention_is_blind_to_order() -> None:
    layer = randomise(RotaryAttention(16, num_heads=2))
    x, order = torch.randn(2, LENGTH, 16), torch.randperm(LENGTH)
    cos, sin = torch.ones(LENGTH, 8), torch.zeros(LENGTH, 8)
    torch.testing.assert_close(layer(x[:, order], cos, sin), layer(x, cos, sin)[:, order])


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_is_softmax_of_turned_products(qkv_bias: bool) -> None:
    layer = randomise(RotaryAttention(16, num_heads=2, qkv_bias=qkv_bias))
    assert (layer.q_bias is not None) == qkv_bias
    x, (cos, sin) = torch.randn(1, 1 + LENGTH, 16), angles(8)
    q, k, v = layer.qkv(x)[0].chunk(3, dim=-1)
    if layer.q_bias is not None and layer.v_bias is not None:
        q, v = q + layer.q_bias, v + layer.v_bias  # keys have none
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        turned = [torch.cat((t[:1, head], rotate(t[1:, head], cos, sin))) for t in (q, k)]
        heads.append((turned[0] @ turned[1].t() / 8**0.5).softmax(-1) @ v[:, head])
    torch.testing.assert_close(layer(x, cos, sin)[0], layer.proj(torch.cat(heads, dim=-1)))


def test_short_sequences_in_bfloat16_attend_as_the_fused_kernel_does() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 33, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    own = attend(*parts)
    with torch.no_grad():
        fused = attend(*parts)
    exact = F.scaled_dot_product_attention(*(part.float() for part in parts))
    assert own.dtype == torch.bfloat16
    assert (own.float() - exact).abs().max() < 0.02
    assert not torch.equal(own, fused)  # another way to the same result
    gradients = torch.autograd.grad(own.float().square().sum(), parts)
    wanted = torch.autograd.grad(exact.square().sum(), parts)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert (gradient - want).abs().max() < 0.02 * want.abs().max()


def test_angles_may_differ_between_samples() -> None:
    layer = randomise(RotaryAttention(8, num_heads=1))
    x, (cos, sin) = torch.randn(2, 1 + 4, 8), angles(8)
    index = torch.tensor([[0, 3, 5, 9], [1, 2, 10, 11]])
    together = layer(x, cos[index].unsqueeze(1), sin[index].unsqueeze(1))
    apart = [layer(x[[i]], cos[index[i]], sin[index[i]]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"10 .* 4"):
        RotaryAttention(10, num_heads=4)


@pytest.mark.parametrize("sub_ln", [True, False])
def test_feed_forward_is_gated_and_normalised_inside(sub_ln: bool) -> None:
    layer = randomise(SwiGLU(8, 21, sub_ln=sub_ln))
    x = torch.randn(2, 5, 8)
    hidden = F.silu(layer.w1(x)) * layer.w2(x)
    if sub_ln:
        hidden = F.layer_norm(hidden, (21,), layer.norm.weight, layer.norm.bias)
    torch.testing.assert_close(layer(x), layer.w3(hidden))


def test_hidden_width_is_the_whole_part() -> None:
    assert Block(16, num_heads=1).mlp.w1.out_features == 42
    assert Block(768, num_heads=12).mlp.w1.out_features == 2048


def test_channel_norm_is_layer_norm_of_each_position() -> None:
    norm = randomise(ChannelLayerNorm(6))
    x = torch.randn(2, 6, 3, 4, 5)
    out = norm(x)
    expected = F.layer_norm(x[1, :, 2, 3, 4], (6,), norm.weight, norm.bias)
    torch.testing.assert_close(out[1, :, 2, 3, 4], expected)
    assert out.shape == x.shape
