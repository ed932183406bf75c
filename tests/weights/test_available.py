"""What models there are and where weights lie."""

import shutil
from pathlib import Path

import pytest
import torch

from spadnet.models.registry import model_names
from spadnet.models.vit import SpadViT
from spadnet.models.vit_sizes import spad_vit_tiny
from spadnet.weights import available, source
from spadnet.weights.available import ModelInfo, find_downloads, find_weights, list_models
from spadnet.weights.hub import create_model, load_vit, save_pretrained

KINDS = {
    "spad_vt": "tokenizer",
    "spad_vit": "encoder",
    "spad_unet": "U-Net",
    "spad_conv": "classifier",
}


def folder_of_weights(folder: Path) -> Path:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1, pos_grid=(1, 2, 2))
    facts = {"data": ["IXI", "BUSI"]}
    return save_pretrained(vit, folder, name="mine", training=facts, licence="CC-BY-4.0")


def test_every_size_is_described() -> None:
    infos = {info.name: info for info in list_models()}
    assert list(infos) == model_names()
    assert infos["spad_vt_base"].num_parameters == 34_253_955
    assert infos["spad_vit_base"].num_parameters == 94_930_944
    assert infos["spad_vit_large"].num_parameters == 315_498_432
    for name, info in infos.items():
        family = name.rsplit("_", 1)[0]
        assert info.kind == KINDS[family]


def test_weights_are_found_below_a_folder_and_broken_ones_are_not(tmp_path: Path) -> None:
    encoder = folder_of_weights(tmp_path / "runs" / "a" / "encoder")
    broken = folder_of_weights(tmp_path / "runs" / "b")
    (broken / "config.json").write_text("{}")
    (folder_of_weights(tmp_path / "runs" / "c") / "model.safetensors").unlink()
    (info,) = find_weights(tmp_path / "runs")
    size = (encoder / "model.safetensors").stat().st_size / 1e6
    count = sum(value.numel() for value in load_vit(encoder).state_dict().values())
    assert info == ModelInfo(
        "mine", "encoder", count, size, ("IXI", "BUSI"), "CC-BY-4.0", str(encoder)
    )
    assert list(find_weights(encoder)) == [info]
    assert list(find_weights(tmp_path / "nowhere")) == []


def test_downloads_are_named_as_they_are_loaded(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    for commit in ("abc", "def"):
        folder_of_weights(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text("def")
    assert [info.source for info in find_downloads(tmp_path)] == [
        "hf-hub:org/name@abc",
        "hf-hub:org/name@v1",
    ]


def test_shipped_weights_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = spad_vit_tiny(depth=1)
    save_pretrained(vit, tmp_path / "spad_vit_tiny", training={"data": ["IXI"]})
    for module in (available, source):
        monkeypatch.setattr(module, "SHIPPED", tmp_path)
    info = next(info for info in list_models() if info.name == "spad_vit_tiny")
    assert (info.source, info.licence, info.data) == ("spad_vit_tiny", "Apache-2.0", ("IXI",))
    assert info.num_parameters is not None
    assert torch.equal(load_vit("spad_vit_tiny").pos_embed, vit.pos_embed)
    made = create_model("spad_vit_tiny", pretrained=True, depth=1)
    assert torch.equal(made.pos_embed, vit.pos_embed)
    shutil.rmtree(tmp_path / "spad_vit_tiny")
    with pytest.raises(ValueError, match="no weights are shipped"):
        load_vit("spad_vit_tiny")
