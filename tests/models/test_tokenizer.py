"""The tokenizer: published size, shapes, faults, and what degree means to it."""

import pytest
import torch
from torch import nn

from spadnet.models.autoencoder import Decoder, Encoder
from spadnet.models.tokenizer import Tokenizer, spad_vt_base, spad_vt_small, spad_vt_tiny


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_base_has_the_published_parameters() -> None:
    with torch.device("meta"):
        tokenizer = spad_vt_base()
    assert count(tokenizer.encoder) == 15_496_832
    assert count(tokenizer.quantizer) == 1_049_600
    assert count(tokenizer.decoder) == 17_707_523
    assert count(tokenizer) == 34_253_955


def test_sizes_are_in_order() -> None:
    with torch.device("meta"):
        sizes = [count(build()) for build in (spad_vt_tiny, spad_vt_small, spad_vt_base)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2.5e6


def tiny(**arguments: object) -> Tokenizer:
    """A tokenizer of a few thousand parameters."""
    return Tokenizer(**{"in_chans": 1, "widths": (8, 8, 16), "codebook_size": 12} | arguments)


@pytest.mark.parametrize("degree", range(6))
def test_repeated_slices_have_the_latents_of_the_thick_ones_in_patches(degree: int) -> None:
    # Down to the last patch, thick slices act as the thin ones they stand for.
    encoder = Encoder(1, (8, 8, 16))
    x = torch.rand(1, 1, 2 * max(16 >> degree, 1), 32, 16)
    thick, thin, level = x, x.repeat_interleave(16 // max(16 >> degree, 1), dim=2), 0
    for layer in (encoder.stem, *encoder.downs):
        thick, thin = layer(thick, max(degree - level, 0)), layer(thin, 0)
        level += layer.conv.stride.bit_length() - 1
    torch.testing.assert_close(thick, thin, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("degree", [0, 2, 5])
def test_mean_decoder_does_not_grow_with_the_degree(degree: int) -> None:
    decoder = Decoder(1, (8, 8, 16))
    z = torch.randn(1, 16, 1, 1, 1)
    level, thick, thin = 4, z, z
    for up in decoder.ups:
        level -= 1
        thick, thin = up.up(thick, max(degree - level, 0)), up.up(thin, 0)
    thick, thin = decoder.head(thick, degree), decoder.head(thin, 0)
    runs = thin.unflatten(2, (thick.shape[2], -1)).mean(3)
    torch.testing.assert_close(thick, runs, rtol=1e-4, atol=1e-5)


def test_forward_is_encode_quantize_decode() -> None:
    tokenizer, x = tiny(norm_latent=True).eval(), torch.rand(2, 1, 4, 32, 16)
    reconstruction, tokens = tokenizer(x, 2)
    z = tokenizer.encode(x, 2)
    expected = tokenizer.quantizer(z)
    torch.testing.assert_close(tokens.logits, expected.logits)
    torch.testing.assert_close(reconstruction, tokenizer.decode(expected.quantized, 2))
    torch.testing.assert_close(tokenizer.token_logits(x, 2), tokens.logits.reshape(2, 2, 12))


def test_decoder_may_differ_from_the_encoder() -> None:
    tokenizer = tiny(decoder_widths=(16, 8, 24), code_dim=6)
    reconstruction, tokens = tokenizer(torch.rand(1, 1, 1, 32, 32), 5)
    assert reconstruction.shape == (1, 1, 1, 32, 32)
    assert tokens.quantized.shape == (1, 6, 1, 2, 2)
    with pytest.raises(ValueError, match="decoder_widths"):
        tiny(decoder_widths=(8, 8))


@pytest.mark.parametrize(("stem_stride", "widths"), [(2, (8, 8, 8, 8)), (8, (8, 16)), (4, (8,))])
def test_other_strides(stem_stride: int, widths: tuple[int, ...]) -> None:
    tokenizer = tiny(stem_stride=stem_stride, widths=widths)
    assert tokenizer.stride == stem_stride * 2 ** (len(widths) - 1)
    for degree in range(6):
        x = torch.rand(1, 1, max(tokenizer.stride >> degree, 1), tokenizer.stride, 32)
        reconstruction, tokens = tokenizer(x, degree)
        assert reconstruction.shape == x.shape
        assert tokens.index.shape[1:3] == (1, 1)


def test_gumbel_reaches_the_quantizer_through_forward() -> None:
    tokenizer, x = tiny(quantizer="gumbel").train(), torch.rand(1, 1, 1, 32, 32)

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return tokenizer(x, 5, temperature=0.5, generator=generator)[0]

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_short_training_starts_from_identities() -> None:
    tokenizer = tiny(short_training=True)
    for block in (*tokenizer.encoder.blocks, *(up.block for up in tokenizer.decoder.ups)):
        centre = block.conv.weight[:, :, 1, 1, 1]
        assert centre.diagonal().min() > 0.9
        assert (block.conv.weight.sum((2, 3, 4)).diagonal() > 0.5).all()


@pytest.mark.parametrize("size", [(6, 32, 32), (4, 24, 32), (4, 32, 8), (0, 32, 32)])
def test_sizes_that_are_no_multiple_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"not a multiple of \(4, 16, 16\), which degree 2"):
        tiny()(torch.zeros(1, 1, *size), 2)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 1 channels, got 3"):
        tiny().encode(torch.zeros(1, 3, 1, 16, 16), 5)
