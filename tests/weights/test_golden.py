"""Golden outputs prove that a copy computes what the saved model did."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.contract import Model
from spadnet.weights.golden import check_golden, golden_tensors
from spadnet.weights.hub import load_pretrained, save_pretrained


def vit(**changes: object) -> SpadViT:
    arguments = {"in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2, "pos_grid": (2, 3, 3)}
    return SpadViT(**arguments | changes)


MODELS: dict[str, Callable[[], Model]] = {
    "soft": lambda: Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8),
    "nearest": lambda: Tokenizer(widths=(8, 16), codebook_size=300, quantizer="nearest"),
    "vit": lambda: vit(num_classes=3, drop_rate=0.5, drop_path_rate=0.5),
    "odd patch": lambda: vit(patch_size=14),
    "mim": lambda: MaskedImageModel(vit(num_registers=2), codebook_size=8),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]().train()


def test_a_loaded_copy_agrees(model: Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = save_pretrained(model, tmp_path / "model")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    checks = check_golden(load_pretrained(folder), folder / "golden.safetensors")
    assert checks
    assert max(check.error for check in checks) < 1e-5
    degrees = {check.name.split(".")[0] for check in checks}
    odd = isinstance(model, SpadViT) and model.patch_embed.patch_size == 14
    assert degrees == ({"degree5"} if odd else {"degree0", "degree2", "degree5"})


def test_every_parameter_matters(model: Model) -> None:
    # What no golden output depends on could change without a word.
    golden = golden_tensors(model)
    assert golden is not None
    unseen = []
    for name, parameter in model.eval().named_parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter += 0.5 * torch.randn_like(parameter) + 0.5
            after = golden_tensors(model)
            parameter.copy_(before)
        if after is not None and all(torch.equal(after[key], golden[key]) for key in golden):
            unseen.append(name)
    assert unseen == []


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    folder = save_pretrained(vit(), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["blocks.1.attn.qkv.weight"] *= 1.05
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"computes something else .* degree\d\.\w+ differs by"):
        check_golden(load_pretrained(folder), folder / "golden.safetensors")


def test_golden_outputs_of_another_model_or_none_are_refused(tmp_path: Path) -> None:
    folder = save_pretrained(vit(), tmp_path / "model")
    other = save_pretrained(MODELS["soft"](), tmp_path / "other")
    file, loaded = folder / "golden.safetensors", load_pretrained(folder)
    shutil.copy(other / "golden.safetensors", file)
    with pytest.raises(ValueError, match="not the golden outputs of this model"):
        check_golden(loaded, file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"golden.safetensors: damaged or truncated"):
        check_golden(loaded, file)


def test_half_precision_is_saved_with_the_outputs_of_what_is_stored(tmp_path: Path) -> None:
    folder = save_pretrained(vit().to(torch.bfloat16), tmp_path / "model")
    check_golden(load_pretrained(folder), folder / "golden.safetensors")


def test_a_model_that_computes_nan_is_saved_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_pretrained(vit(), tmp_path / "model")
    assert (folder / "golden.safetensors").is_file()
    broken = vit()
    nn.init.constant_(broken.pos_embed, float("nan"))
    save_pretrained(broken, folder)
    assert not (folder / "golden.safetensors").exists()
    assert "not finite" in caplog.text
