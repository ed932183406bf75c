"""A frozen network gives the output of the original."""

from typing import Any

import pytest
import torch
from torch import nn

from spadnet.inference.encoder import Encoder
from spadnet.inference.freeze import PackedAttention, PackedLinear, can_freeze, freeze
from spadnet.inference.specialise import specialise
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT

pytestmark = pytest.mark.skipif(
    not can_freeze(nn.Linear(1, 1)), reason="needs an x86 CPU and oneDNN"
)


def vit(**changes: Any) -> SpadViT:
    arguments = {"in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2, "pos_grid": (2, 2, 2)}
    model = SpadViT(**{**arguments, **changes}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_registers": 2}, {"qkv_bias": False, "mlp": "gelu"}, {"num_classes": 3}],
)
def test_vit_gives_the_same(changes: dict[str, Any]) -> None:
    model, x = vit(**changes), torch.rand(2, 1, 8, 32, 48)
    frozen = freeze(model)
    assert not [m for m in frozen.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for degree in (1, 2):
            torch.testing.assert_close(
                frozen.forward_features(x, degree), model.forward_features(x, degree)
            )
            torch.testing.assert_close(frozen(x, degree), model(x, degree))
            folded = specialise(model, degree, frozen=True)
            assert not [m for m in folded.modules() if isinstance(m, nn.Linear)]
            torch.testing.assert_close(folded(x), model(x, degree), atol=1e-5, rtol=1e-4)


def test_tokenizer_gives_the_same() -> None:
    model = Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11).eval()
    x = torch.rand(1, 1, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(freeze(model)(x, 2)[0], model(x, 2)[0])


def test_last_layer_may_compute_some_tokens_only() -> None:
    model = MaskedImageModel(vit(), codebook_size=11).eval()
    tokens = torch.rand(1, 5, 32)
    cos, sin = model.vit.rope((1, 2, 2), tokens.device)
    layer = model.vit.blocks[0].attn  # type: ignore[union-attr]
    with torch.no_grad():
        for count in (None, 1, 4):
            expected = layer(tokens, cos, sin, count)  # type: ignore[operator]
            found = PackedAttention(layer)(tokens, cos, sin, count)  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected)


def test_bfloat16_stays_bfloat16() -> None:
    model, x = vit(), torch.rand(1, 1, 4, 32, 32)
    low = specialise(model, 2, dtype=torch.bfloat16)
    if not can_freeze(low):
        with pytest.raises(ValueError, match="can be frozen"):
            freeze(low)
        return
    frozen = freeze(low)
    with torch.no_grad():
        output, expected = frozen(x), model(x, 2)
    assert output.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert (output.float() - expected).abs().mean() < 0.05 * expected.std()  # type: ignore


def test_leaves_the_model_as_it_is() -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = freeze(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert "blocks.0.attn.qkv.weight" not in frozen.state_dict()


def test_encoder_takes_a_frozen_model() -> None:
    model, image = vit(), torch.rand(40, 33)
    expected, found = Encoder(model)(image), Encoder(freeze(model))(image)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=1e-4)


def test_refuses_what_is_not_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="only a network on an x86 CPU"):
        freeze(nn.Linear(2, 2, device="meta"))
    assert PackedLinear(torch.rand(2, 3), None)(torch.rand(4, 5, 3)).shape == (4, 5, 2)
