"""The frozen tokenizer gives the logits of the one it was made of."""

from collections.abc import Iterator

import pytest
import torch

from spadnet.models.frozen import FrozenTargets
from spadnet.models.quantizer import QuantizerKind
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import MAX_DEGREE, required_multiple

DEGREES = range(MAX_DEGREE + 1)


def build(
    in_chans: int = 1, *, width: int = 16, quantizer: QuantizerKind = "soft", norm: bool = False
) -> Tokenizer:
    return Tokenizer(
        in_chans=in_chans,
        widths=(8, 8, width),
        codebook_size=11,
        quantizer=quantizer,
        norm_latent=norm,
    ).eval()


def volume(degree: int, *, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, *required_multiple(degree, stride=32))


@pytest.fixture(params=["highest", "high"])
def _any_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_any_precision")
@pytest.mark.parametrize("degree", DEGREES)
def test_equals_the_tokenizer(degree: int) -> None:
    tokenizer, x = build(width=64), volume(degree)
    with torch.no_grad():
        expected = tokenizer.token_logits(x, degree)
    torch.testing.assert_close(FrozenTargets(tokenizer)(x, degree), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantizer", ["soft", "gumbel", "nearest"])
@pytest.mark.parametrize("norm", [False, True])
def test_serves_every_quantizer(quantizer: QuantizerKind, norm: bool) -> None:
    tokenizer, x = build(quantizer=quantizer, norm=norm), volume(1)
    with torch.no_grad():
        expected = tokenizer.token_logits(x, 1)
    torch.testing.assert_close(FrozenTargets(tokenizer)(x, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", [0, 5])
def test_grey_and_colour_images_share_one_object(degree: int) -> None:
    tokenizer = build(in_chans=3)
    targets, grey = FrozenTargets(tokenizer), volume(degree)
    colour = grey.expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        expected = tokenizer.token_logits(colour, degree)
    for image in (grey, colour, grey):
        torch.testing.assert_close(targets(image, degree), expected, rtol=1e-4, atol=1e-4)


def test_leaves_the_tokenizer_as_it_is() -> None:
    tokenizer = build()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    FrozenTargets(tokenizer, dtype=torch.bfloat16)(volume(1), 1)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in tokenizer.parameters())


def test_bfloat16_is_near() -> None:
    tokenizer, x = build(), volume(2)
    with torch.no_grad():
        expected = tokenizer.token_logits(x, 2)
    actual = FrozenTargets(tokenizer, dtype=torch.bfloat16)(x, 2)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).abs().mean() < 0.05 * expected.std()


def test_autocast_around_it_changes_nothing() -> None:
    tokenizer, x = build(), volume(2)
    expected = FrozenTargets(tokenizer)(x, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FrozenTargets(tokenizer)(x, 2), expected)


def test_refuses_what_the_tokenizer_refuses() -> None:
    targets = FrozenTargets(build(in_chans=3))
    with pytest.raises(ValueError, match="channels"):
        targets(volume(0, channels=2), 0)
    with pytest.raises(ValueError, match="multiple"):
        targets(volume(1)[..., :24], 1)
