"""Names of models, and what a misspelt one answers."""

import pytest

from spadnet.models.registry import create_model, list_models, model_names
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT


def test_every_listed_model_is_described() -> None:
    infos = {info.name: info for info in list_models()}
    assert list(infos) == model_names()
    assert infos["spad_vt_base"].num_parameters == 34_253_955
    assert infos["spad_vit_base"].num_parameters == 94_930_944
    assert infos["spad_vit_large"].num_parameters == 315_498_432
    for name, info in infos.items():
        assert info.kind == ("tokenizer" if name.startswith("spad_vt") else "encoder")


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
