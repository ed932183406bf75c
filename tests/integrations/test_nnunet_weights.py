"""Weights on their way into nnU-Net and out of it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_plans import build, plans

from spadnet.integrations.nnunet import __main__ as command
from spadnet.integrations.nnunet.network import PlannedUNet, PlannedVitSegmentor
from spadnet.integrations.nnunet.plans import spad_plans
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import load_checkpoint, load_vit, save_pretrained
from spadnet.weights.transfer import put_unet, put_vit

# --- pretrained weights ---


def saved_unet(folder: Path, **arguments: Any) -> SpadUNet:
    unet = SpadUNet(**{"features": (4, 6, 8, 10, 12), "num_classes": 2, **arguments})
    save_pretrained(unet, folder)
    return unet


def test_pretrained_levels_are_taken_over(tmp_path: Path) -> None:
    saved = saved_unet(tmp_path / "unet")
    network = build(spad_plans(plans())["configurations"]["3d_fullres"])
    heads = [head.weight.clone() for head in network.decoder.heads]
    transfer = put_unet(network.unet, tmp_path / "unet")
    assert "(4 levels of the encoder, 3 of the decoder)" in str(transfer)
    x = torch.rand(1, 1, 4, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(network.unet.encoder(x, 2), saved.encoder(x, 2), strict=False):
            torch.testing.assert_close(ours, theirs)
    assert all(key.startswith("decoder.heads") for key in transfer.fresh)
    assert all(".4." in key or ".3." in key or "heads" in key for key in transfer.unused)
    for head, before in zip(network.decoder.heads, heads, strict=True):
        assert torch.equal(head.weight, before)


# --- an encoder of tokens ---


def tiny_vit(**arguments: Any) -> SpadViT:
    sizes = {"in_chans": 1, "embed_dim": 16, "depth": 4, "num_heads": 1, "pos_grid": (1, 2, 2)}
    return SpadViT(**{**sizes, **arguments}).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "patch", "sizes"),
    [
        (
            "3d_fullres",
            [8, 32, 32],
            [(8, 32, 32), (8, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)],
        ),
        ("2d", [32, 32], [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]),
    ],
)
def test_a_vit_segments_as_planned(
    tmp_path: Path, name: str, patch: list[int], sizes: list[tuple[int, ...]]
) -> None:
    vit = tiny_vit(num_classes=2)
    save_pretrained(vit, tmp_path / "vit")
    own = load_vit(tmp_path / "vit", num_classes=0).config()
    configuration = spad_plans(plans(), vit=own)["configurations"][name]
    assert configuration["patch_size"] == patch
    arguments = json.loads(json.dumps(configuration["architecture"]["arch_kwargs"]))
    network = PlannedVitSegmentor(2, 3, **arguments, deep_supervision=True).eval()
    transfer = put_vit(network.segmentor.vit, tmp_path / "vit")
    assert sorted(transfer.unused) == ["head.bias", "head.weight"]
    blocks, copied = vit.state_dict(), network.segmentor.vit.state_dict()
    for key in (key for key in copied if key.startswith("blocks")):
        assert torch.equal(copied[key], blocks[key])
    z_scores = torch.randn(1, 2, *patch)
    logits = network(z_scores)
    assert [tuple(y.shape[2:]) for y in logits] == sizes
    size = torch.tensor(patch)
    for stride, at in zip(arguments["strides"], sizes, strict=False):
        size //= torch.tensor(stride)
        assert tuple(size.tolist()) == at
    network.decoder.deep_supervision = False
    assert torch.equal(network(z_scores), logits[0])


@torch.no_grad()
def test_a_vit_sees_standardised_images_as_they_are() -> None:
    vit = tiny_vit(mean=[0.4], std=[0.2])
    arguments = spad_plans(plans(), vit=vit.config())["configurations"]["3d_fullres"]
    network = PlannedVitSegmentor(1, 3, **arguments["architecture"]["arch_kwargs"]).eval()
    seen = []
    embed = network.segmentor.vit.patch_embed
    embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    z_scores = torch.randn(1, 1, 8, 32, 32)
    network(z_scores)
    torch.testing.assert_close(seen[0], z_scores)


def test_strides_of_a_vit_are_checked() -> None:
    strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
    with pytest.raises(ValueError, match="not those of degree 2"):
        PlannedVitSegmentor(1, 3, vit=tiny_vit().config(), strides=strides, degree=2)


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
