"""Saved weights go into networks that are to be trained further."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained
from spadnet.weights.transfer import put_tokenizer, put_unet, put_vit


def saved_unet(folder: Path, **arguments: Any) -> SpadUNet:
    unet = SpadUNet(**{"features": (4, 6, 8, 10), "num_classes": 2, **arguments})
    save_pretrained(unet, folder)
    return unet


def tiny_vit(**arguments: Any) -> SpadViT:
    sizes = {"in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 1, "pos_grid": (1, 2, 2)}
    return SpadViT(**{**sizes, **arguments}).eval()


def tokenizer(**arguments: Any) -> Tokenizer:
    sizes = {"in_chans": 1, "widths": (8, 8, 16), "codebook_size": 5}
    return Tokenizer(**{**sizes, **arguments}).eval()


def segmentor(**arguments: Any) -> TokenizerSegmentor:
    sizes = {"encoder_widths": (8, 8, 16), "num_classes": 3, "widths": (4, 4, 4, 4, 4)}
    return TokenizerSegmentor(**{**sizes, **arguments}).eval()


def test_a_unet_takes_the_levels_it_has(tmp_path: Path) -> None:
    saved = saved_unet(tmp_path / "unet")
    own = SpadUNet(features=(4, 6, 8), num_classes=5)
    head = own.decoder.heads[0].weight.clone()
    transfer = put_unet(own, tmp_path / "unet")
    assert "(3 levels of the encoder, 2 of the decoder)" in str(transfer)
    assert torch.equal(own.decoder.heads[0].weight, head)
    x = torch.rand(1, 1, 4, 16, 16)
    with torch.no_grad():
        for ours, theirs in zip(own.encoder(x, 2), saved.encoder(x, 2), strict=False):
            assert torch.equal(ours, theirs)


def test_first_layers_are_adapted_to_channels(tmp_path: Path) -> None:
    saved = saved_unet(tmp_path / "unet")
    own = SpadUNet(in_chans=3, features=(4, 6, 8))
    put_unet(own, tmp_path / "unet")
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        ours = own.encoder(x.expand(-1, 3, -1, -1, -1), 0)[0]
        torch.testing.assert_close(ours, saved.encoder(x, 0)[0])
    grey = tokenizer()
    save_pretrained(grey, tmp_path / "tokenizer")
    colour = segmentor(in_chans=3)
    put_tokenizer(colour, tmp_path / "tokenizer")
    with torch.no_grad():
        found = colour.coarse_maps(x.expand(-1, 3, -1, -1, -1), 0)[-1]
        torch.testing.assert_close(found, grey.encode(x, 0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"features": (4, 6, 9)}, r"stages\.2.*\[9, 6, 3, 3, 3\].*same widths"),
        ({"num_convs": (2, 3, 2, 2)}, "number of convolutions"),
    ],
)
def test_levels_that_differ_are_refused(
    tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    saved_unet(tmp_path / "unet", **arguments)
    unet = SpadUNet(features=(4, 6, 8, 10))
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        put_unet(unet, tmp_path / "unet")
    for key, value in unet.state_dict().items():
        assert torch.equal(value, before[key])


def test_encoders_of_another_kind_or_size_are_refused(tmp_path: Path) -> None:
    save_pretrained(tiny_vit(), tmp_path / "vit")
    save_pretrained(tokenizer(widths=(8, 8, 32)), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="holds a SpadViT, not a SpadUNet"):
        put_unet(SpadUNet(features=(4, 6)), tmp_path / "vit")
    with pytest.raises(ValueError, match="holds a Tokenizer, not a SpadViT"):
        put_vit(tiny_vit(), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="vit: does not fit the encoder"):
        put_vit(tiny_vit(embed_dim=32), tmp_path / "vit")
    with pytest.raises(ValueError, match=r"does not fit the encoder: .* \(32,\) there"):
        put_tokenizer(segmentor(), tmp_path / "tokenizer")


def test_a_classifier_starts_afresh(tmp_path: Path) -> None:
    save_pretrained(tiny_vit(num_classes=2), tmp_path / "vit")
    own = tiny_vit(num_classes=3)
    head = own.head.weight.clone()
    transfer = put_vit(own, tmp_path / "vit")
    assert sorted(transfer.fresh) == sorted(transfer.unused) == ["head.bias", "head.weight"]
    assert torch.equal(own.head.weight, head)
