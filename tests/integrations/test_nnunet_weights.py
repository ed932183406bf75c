"""Weights on their way into nnU-Net and out of it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_plans import build, plans

from spadnet.integrations.nnunet import __main__ as command
from spadnet.integrations.nnunet.network import PlannedUNet
from spadnet.integrations.nnunet.plans import spad_plans
from spadnet.integrations.nnunet.pretrained import put_pretrained
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import load_checkpoint, save_pretrained

# --- pretrained weights ---


def saved_unet(folder: Path, **arguments: Any) -> SpadUNet:
    unet = SpadUNet(**{"features": (4, 6, 8, 10, 12), "num_classes": 2, **arguments})
    save_pretrained(unet, folder)
    return unet


def test_pretrained_levels_are_taken_over(tmp_path: Path) -> None:
    saved = saved_unet(tmp_path / "unet")
    network = build(spad_plans(plans())["configurations"]["3d_fullres"])
    heads = [head.weight.clone() for head in network.decoder.heads]
    transfer = put_pretrained(network.unet, tmp_path / "unet")
    assert "4 levels of the encoder and 3 of the decoder" in str(transfer)
    x = torch.rand(1, 1, 4, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(network.unet.encoder(x, 2), saved.encoder(x, 2), strict=False):
            torch.testing.assert_close(ours, theirs)
    assert all(key.startswith("decoder.heads") for key in transfer.fresh)
    assert all(".4." in key or ".3." in key or "heads" in key for key in transfer.unused)
    for head, before in zip(network.decoder.heads, heads, strict=True):
        assert torch.equal(head.weight, before)


def test_pretrained_channels_are_adapted(tmp_path: Path) -> None:
    saved = saved_unet(tmp_path / "unet")
    own = SpadUNet(in_chans=3, features=(4, 6, 8))
    put_pretrained(own, tmp_path / "unet")
    x = torch.rand(1, 1, 4, 8, 8)
    with torch.no_grad():
        ours = own.encoder(x.expand(-1, 3, -1, -1, -1), 0)[0]
        torch.testing.assert_close(ours, saved.encoder(x, 0)[0])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"features": (4, 6, 9)}, r"stages\.2.*\[9, 6, 3, 3, 3\].*same widths"),
        ({"num_convs": (2, 3, 2, 2, 2)}, "number of convolutions"),
    ],
)
def test_levels_that_differ_are_refused(
    tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    saved_unet(tmp_path / "unet", **arguments)
    unet = build(spad_plans(plans())["configurations"]["3d_fullres"]).unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        put_pretrained(unet, tmp_path / "unet")
    for key, value in unet.state_dict().items():
        assert torch.equal(value, before[key])


def test_an_encoder_of_tokens_is_refused(tmp_path: Path) -> None:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1, pos_grid=(1, 2, 2))
    save_pretrained(vit, tmp_path / "vit")
    with pytest.raises(ValueError, match="holds a SpadViT, not a SpadUNet"):
        put_pretrained(SpadUNet(features=(4, 6)), tmp_path / "vit")


# --- what was trained ---


def trained(file: Path, **entries: Any) -> PlannedUNet:
    """Write a checkpoint as nnU-Net does; return the network in it."""
    changed = spad_plans(plans())
    changed["configurations"]["3d_fullres"] |= {"normalization_schemes": ["ZScoreNormalization"]}
    network = build(changed["configurations"]["3d_fullres"])
    checkpoint = {
        "network_weights": network.state_dict(),
        "logging": {"mean_fg_dice": [np.float32(0.5), np.float64(0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 7,
        "init_args": {
            "plans": changed,
            "configuration": "3d_cascade_fullres",
            "fold": 0,
            "dataset_json": {},
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainerSpadnet",
    }
    torch.save(checkpoint | entries, file)
    return network


def test_what_nnunet_trained_becomes_a_checkpoint_folder(tmp_path: Path) -> None:
    network = trained(tmp_path / "final.pth")
    assert command.main(["save", str(tmp_path / "final.pth"), str(tmp_path / "unet")]) == 0
    loaded = load_checkpoint(tmp_path / "unet")
    assert loaded.config["training"]["data"] == ["Dataset001_Thick"]
    assert loaded.config["training"]["epochs"] == 7
    x = torch.rand(1, 1, 4, 32, 24)
    with torch.no_grad():
        assert torch.equal(loaded.model(x, 2), network(x))


@pytest.mark.parametrize("content", ["text", "script", "pickle", "other", "plain"])
def test_other_files_are_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "final.pth"
    match content:
        case "text":
            file.write_text("not a checkpoint")
        case "script":  # its first letters are valid instructions of a pickle
            file.write_text("export nnUNet_raw=somewhere")
        case "pickle":
            trained(file, trap=Trap(tmp_path / "sprung"))
        case "other":
            torch.save({"state_dict": {}}, file)
        case "plain":
            started = {"plans": plans(), "configuration": "3d_fullres", "fold": 0}
            trained(file, init_args=started)
    assert command.main(["save", str(file), str(tmp_path / "unet")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["final.pth"]


class Trap:
    """What a hostile pickle does when it is read: here it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)
