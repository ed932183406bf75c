"""Fine-tuned models come back from their folders as they were saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.weights.golden import check_golden
from spadnet.weights.hub import load_checkpoint, load_vit, save_pretrained


def vit() -> SpadViT:
    return SpadViT(in_chans=1, embed_dim=12, depth=2, num_heads=1, pos_grid=(2, 2, 2))


BUILD: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: SpadConvNet(num_classes=3, widths=(4, 8), first_stride=2, mean=[0.3]),
    "attention": lambda: AttentionClassifier(vit(), num_classes=3),
    "segmentor": lambda: VitSegmentor(vit(), num_classes=3, widths=(4, 4, 4, 4, 4, 4)),
    "tokenizer": lambda: TokenizerSegmentor(
        encoder_widths=(8, 8, 16), num_classes=3, widths=(4, 4, 4, 4, 4)
    ),
}


@pytest.mark.parametrize("kind", sorted(BUILD))
def test_folder_gives_back_what_was_saved(kind: str, tmp_path: Path) -> None:
    model = BUILD[kind]().eval()
    folder = save_pretrained(model, tmp_path / kind, training={"task": {"classes": ["a", "b"]}})
    loaded = load_checkpoint(folder)
    assert type(loaded.model) is type(model)
    x = torch.rand(1, 1, 8, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(x, 2), model(x, 2))
    assert loaded.config["training"]["task"] == {"classes": ["a", "b"]}
    assert check_golden(loaded.model, folder / "golden.safetensors")
    assert "load_pretrained" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["attention", "segmentor"])
def test_encoder_comes_out_of_a_larger_model(kind: str, tmp_path: Path) -> None:
    model = BUILD[kind]().eval()
    encoder = load_vit(save_pretrained(model, tmp_path / kind))
    assert torch.equal(encoder.cls_token, model.vit.cls_token)  # type: ignore[union-attr]


def test_channels_are_adapted(tmp_path: Path) -> None:
    model = BUILD["conv"]().eval()
    loaded = load_checkpoint(save_pretrained(model, tmp_path / "conv"), in_chans=3).model
    x = torch.rand(1, 1, 1, 16, 16)
    with torch.no_grad():
        ours, theirs = loaded(x.expand(-1, 3, -1, -1, -1), 5), model(x, 5)
    assert ours.shape == theirs.shape
