"""An encoder starts from EVA-02 or from its own kind, adapted to its channels and grid."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva

from spadnet.models.vit import SpadViT
from spadnet.models.vit_sizes import spad_vit_tiny
from spadnet.spacing import MAX_DEGREE
from spadnet.train.initial_weights import EVA02_MEAN, EVA02_STD, start_from
from spadnet.weights.convert import spad_vit_from_timm
from spadnet.weights.hub import save_pretrained


def eva02(**changes: Any) -> Eva:
    """A tiny EVA-02 in the form of timm's base size."""
    arguments: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 8 / 3,
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "use_rot_pos_emb": True,
        "num_classes": 0,
    }
    model = Eva(**{**arguments, **changes}).eval()
    torch.nn.init.normal_(model.pos_embed)
    return model


def encoder(**changes: Any) -> SpadViT:
    arguments: dict[str, Any] = {"in_chans": 3, "embed_dim": 48, "depth": 2, "num_heads": 2}
    return SpadViT(**{**arguments, **changes}).eval()


def test_eva02_of_the_same_patches_gives_the_same_features(tmp_path: Path) -> None:
    source = eva02()
    save_file(source.state_dict(), tmp_path / "eva.safetensors")
    vit = encoder(
        pos_grid=(1, 4, 4),
        norm_eps=1e-6,
        mean=EVA02_MEAN,
        std=EVA02_STD,
        global_pool=source.global_pool,
        norm_after_pool="fc_norm.weight" in source.state_dict(),
    )
    start_from(vit, tmp_path / "eva.safetensors")
    image = torch.rand(2, 3, 1, 64, 64)
    normalised = (image - vit.get_buffer("mean")) / vit.get_buffer("std")
    with torch.no_grad():
        expected = spad_vit_from_timm(source)(normalised, MAX_DEGREE)
        torch.testing.assert_close(vit(image, MAX_DEGREE), expected, atol=1e-4, rtol=1e-4)


def test_eva02_is_adapted_to_patches_channels_and_positions(tmp_path: Path) -> None:
    source = eva02(img_size=56, patch_size=14, num_classes=5)
    torch.save({"model": source.state_dict()}, tmp_path / "eva.pt")
    vit = encoder(in_chans=1, num_classes=3)
    start_from(vit, str(tmp_path / "eva.pt"))
    torch.testing.assert_close(
        vit.state_dict()["blocks.1.attn.proj.weight"],
        source.state_dict()["blocks.1.attn.proj.weight"],
    )
    assert vit.pos_embed.shape[2:] == (5, 10, 10)
    torch.testing.assert_close(vit.pos_embed[:, :, 0], vit.pos_embed[:, :, 4])
    assert vit(torch.rand(1, 1, 4, 32, 32), 2).isfinite().all()


def test_own_checkpoint_is_taken(tmp_path: Path) -> None:
    source = encoder(pos_grid=(2, 4, 4))
    folder = save_pretrained(source, tmp_path / "encoder")
    vit = encoder(in_chans=1, num_classes=4)
    start_from(vit, folder)
    assert torch.equal(vit.norm.weight, source.norm.weight)
    assert torch.equal(vit.cls_token, source.cls_token)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_file(eva02(depth=3).state_dict(), tmp_path / "eva.safetensors")
    with pytest.raises(ValueError, match=r"eva\.safetensors: does not fit .* blocks\.2"):
        start_from(encoder(), tmp_path / "eva.safetensors")


@pytest.mark.parametrize("name", ["file.safetensors", "file.pt"])
def test_foreign_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a file of weights"):
        start_from(encoder(), path)
    with pytest.raises(ValueError, match="no such folder"):
        start_from(encoder(), tmp_path / "missing")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not the weights of a timm EVA-02"):
        start_from(encoder(), tmp_path / "other.pt")


@pytest.mark.parametrize(("keep_pool", "pool"), [(True, "token"), (False, "avgstd")])
def test_pool_of_the_source_is_taken_over_where_it_is_asked_for(
    tmp_path: Path, keep_pool: bool, pool: str
) -> None:
    source = spad_vit_tiny(in_chans=1, depth=1, global_pool="avgstd")
    vit = spad_vit_tiny(in_chans=1, depth=1, num_classes=3)
    start_from(vit, save_pretrained(source, tmp_path / "first"), keep_pool=keep_pool)
    assert vit.global_pool == pool
    assert vit.head.weight.shape == (3, vit.head_hidden_size)
