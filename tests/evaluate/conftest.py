"""Images of several degrees and tiny models with random weights."""

import pytest
import torch

from spadnet.evaluate.held_out import HeldOut
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing

CODES = 8
SPACINGS = {0: Spacing(1, 1, 1), 2: Spacing(4, 1, 1), 5: Spacing.planar()}


def held_out(degree: int, *size: int) -> HeldOut:
    return HeldOut(f"image{degree}", torch.rand(1, 1, *size), SPACINGS[degree], degree, "CT")


@pytest.fixture
def images() -> list[HeldOut]:
    return [held_out(5, 1, 64, 80), held_out(2, 8, 48, 32), held_out(5, 1, 32, 32)]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(in_chans=1, widths=(8, 8, 8), codebook_size=CODES, norm_latent=True)


@pytest.fixture
def model() -> MaskedImageModel:
    vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=2)
    return MaskedImageModel(vit, codebook_size=CODES)
