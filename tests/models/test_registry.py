"""Names of models, and what a misspelt one answers."""

import pytest

from spadnet.models.registry import create_model
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT


def test_models_are_created_by_name_and_arguments() -> None:
    vit = create_model("spad_vit_tiny", in_chans=2, num_classes=3)
    assert isinstance(vit, SpadViT)
    assert (vit.in_chans, vit.num_classes) == (2, 3)
    assert isinstance(create_model("spad_vt_tiny", quantizer="nearest"), Tokenizer)


def test_a_misspelt_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(ValueError, match="'spad_vit_tny'; did you mean 'spad_vit_tiny'"):
        create_model("spad_vit_tny")
    with pytest.raises(ValueError, match="known are spad_vt_tiny"):
        create_model("resnet50")
