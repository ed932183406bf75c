"""A bundle passes MONAI's own checks and computes what the model computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out

from spadnet.inference.monai_bundle import BundleNetwork, export_bundle
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.mim import MaskedImageModel
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.weights.hub import Loaded, load_checkpoint, save_pretrained

# Mandatory entries of metadata.json by MONAI's bundle specification, at least as strict as MONAI's
# schema of 2024-07-25. That one lies on a server, which tests do not ask.
_TEXT = {"type": "string"}
_TENSORS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range",
                     "is_patch_data", "channel_def"],
        "properties": {
            "type": _TEXT,
            "format": _TEXT,
            "num_channels": {"type": "integer"},
            "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
            "dtype": _TEXT,
            "value_range": {"type": "array", "items": {"type": "number"}},
            "is_patch_data": {"type": "boolean"},
            "channel_def": {"type": "object"},
        },
    },
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "required": ["schema", "version", "monai_version", "pytorch_version", "numpy_version",
                 "required_packages_version", "task", "description", "authors", "copyright",
                 "network_data_format"],
    "properties": {
        **{name: _TEXT for name in ("schema", "version", "monai_version", "pytorch_version",
                                    "numpy_version", "task", "description", "authors",
                                    "copyright")},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _TENSORS, "outputs": _TENSORS},
        },
    },
}  # fmt: skip


FINE_TUNED = ("classes", "attention", "conv", "unet", "segmentor")


def load(kind: str, folder: Path) -> Loaded:
    torch.manual_seed(0)
    model: Any
    vit = SpadViT(in_chans=3, embed_dim=24, depth=4, num_heads=1, pos_grid=(2, 2, 2))
    model = {
        "tokenizer": lambda: Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11),
        "encoder": lambda: vit,
        "classes": lambda: SpadViT(
            in_chans=1, num_classes=2, embed_dim=16, depth=1, num_heads=1, pos_grid=(2, 2, 2)
        ),
        "attention": lambda: AttentionClassifier(vit, num_classes=3),
        "conv": lambda: SpadConvNet(in_chans=1, num_classes=2, widths=(8, 16)),
        "unet": lambda: SpadUNet(
            in_chans=1, num_classes=2, features=(8, 16), deep_supervision=False
        ),
        "segmentor": lambda: VitSegmentor(vit, num_classes=2, widths=(8,) * 6),
    }[kind]()
    facts = {"data": ["IXI"], "task": {"classes": ["background", "heart"]}}
    return load_checkpoint(save_pretrained(model, folder / kind, training=facts))


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")
@pytest.mark.parametrize("degree", [0, 2, 5])
@pytest.mark.parametrize("kind", ["tokenizer", "encoder", *FINE_TUNED])
def test_bundle_passes_the_checks_of_monai(kind: str, degree: int, tmp_path: Path) -> None:
    loaded, folder = load(kind, tmp_path), tmp_path / "new" / "bundle"
    export_bundle(loaded, folder, degree=degree)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    meta, config = folder / "configs" / "metadata.json", folder / "configs" / "inference.json"
    for n in (1, 3):
        verify_net_in_out(
            "network_def", meta_file=str(meta), config_file=str(config), device="cpu", n=n
        )
    pytest.importorskip("jsonschema")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(meta), filepath=schema)
    broken = json.loads(meta.read_text())
    del broken["network_data_format"]["inputs"]["image"]["dtype"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="Failed validating"):  # the schema can fail
        verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=schema)


@pytest.mark.parametrize("kind", ["tokenizer", "encoder", *FINE_TUNED])
def test_bundle_computes_what_the_model_computes(kind: str, tmp_path: Path) -> None:
    loaded, folder = load(kind, tmp_path), tmp_path / "bundle"
    export_bundle(loaded, folder, degree=2)
    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    parser["device"] = "cpu"
    parser.get_parsed_content("load")
    network = parser.get_parsed_content("network").eval()
    patch = required_multiple(2, stride=loaded.contract.stride)
    x = torch.rand(2, loaded.contract.channels, *(2 * step for step in patch))
    with torch.no_grad():
        found = network(x)
        if kind == "tokenizer":
            expected = loaded.model(x, 2)[0]
        elif kind in FINE_TUNED:
            expected = loaded.model(x, 2)
        else:
            tokens = loaded.model.forward_features(x, 2)[:, 1:]  # type: ignore[union-attr,operator]
            expected = tokens.transpose(1, 2).unflatten(2, (2, 2, 2))
    torch.testing.assert_close(found, expected)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["spadnet"]["contract"]["intensity"]["percentiles"] == [0.5, 99.5]
    assert metadata["data_source"] == "IXI"
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert ("heart" in names.values()) == (kind in ("classes", "conv", "unet", "segmentor"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    loaded = load("tokenizer", tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: exists already"):
        export_bundle(loaded, tmp_path / "there", degree=2)
    with pytest.raises(ValueError, match="degree must be 0 to 5, got 7"):
        export_bundle(loaded, tmp_path / "bundle", degree=7)
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1, pos_grid=(2, 2, 2))
    mim = load_checkpoint(save_pretrained(MaskedImageModel(vit, codebook_size=8), tmp_path / "m"))
    with pytest.raises(ValueError, match="holds a MaskedImageModel"):
        export_bundle(mim, tmp_path / "bundle", degree=2)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ValueError, match="unknown model class 'SpadUnet'; did you mean 'SpadUNet'"):
        BundleNetwork("SpadUnet", {}, 2)
