"""The contract that timm documents for its models, kept by spadnet's entries in its registry."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import FeatureInfo, group_parameters

import spadnet  # enters the names
from spadnet.models.registry import model_names
from spadnet.models.vit import SpadViT
from spadnet.models.vit_sizes import spad_vit_tiny
from spadnet.weights.hub import save_pretrained

NAMES = [name for name in model_names() if name.startswith("spad_vit_")]
BATCH = 2
DEPTH = 4


def make(name: str = "spad_vit_tiny", **arguments: Any) -> Any:
    """A model out of timm's factory, less deep than usual."""
    return timm.create_model(name, depth=DEPTH, **arguments)


def image(model: Any, *size: int) -> torch.Tensor:
    """Images of the model's default channels, and of a small size by default."""
    return torch.rand(BATCH, model.default_cfg["input_size"][0], *(size or (64, 48)))


# --- the registry ---


def test_names_are_those_of_spadnet() -> None:
    assert timm.list_models("spad_*") == sorted(NAMES)
    assert not timm.list_pretrained("spad_*")
    assert timm.is_model("spad_vit_base")


@pytest.mark.parametrize("name", NAMES)
def test_default_configuration_names_what_is_there(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
        own = spadnet.create_model(name, num_classes=7)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in own.state_dict().items()
    }
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg
    assert cfg["architecture"] == name
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    channels, height, width = cfg["input_size"]
    assert channels == model.in_chans == own.in_chans
    assert height % model.patch_embed.patch_size == width % model.patch_embed.patch_size == 0
    assert len(cfg["mean"]) == len(cfg["std"]) == channels
    assert timm.data.resolve_model_data_config(model)["input_size"] == cfg["input_size"]


def test_names_are_there_when_timm_is_imported_after_spadnet() -> None:
    program = (
        "import warnings; warnings.simplefilter('error', UserWarning); import spadnet, timm; "
        "print(timm.is_model('spad_vit_tiny'), timm.is_model('resnet18'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


# --- forward, backward, head ---


def test_forward_gives_one_row_per_image() -> None:
    model = make(num_classes=42).eval()
    output = model(image(model))
    assert output.shape == (BATCH, 42)
    assert output.isfinite().all()


def test_backward_reaches_every_parameter() -> None:
    model = make(num_classes=42).train()
    model(image(model)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_features_and_head_fit_together() -> None:
    model = make(num_classes=3).eval()
    x = image(model, *model.default_cfg["input_size"][1:])
    features = model.forward_features(x)
    assert features.ndim == 3
    assert features.shape[-1] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (BATCH, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(x))


def test_classifier_can_be_taken_away_with_and_without_pooling() -> None:
    model = make(num_classes=3).eval()
    x = image(model)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(x).shape == (BATCH, model.num_features)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))
    assert make(num_classes=0).eval()(x).shape == (BATCH, model.num_features)
    assert make(num_classes=0, global_pool="").eval()(x).shape == (
        BATCH,
        1 + 12,
        model.num_features,
    )
    model.reset_classifier(5, "avg")
    assert model(x).shape == (BATCH, 5)
    assert isinstance(model.get_classifier(), torch.nn.Linear)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = make(num_classes=3).train()
    x, gradients = image(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


# --- features ---


def check_maps(maps: Any, infos: Any, size: Any) -> None:
    assert len(maps) == len(infos.channels()) >= 3
    for feature, channels, reduction in zip(maps, infos.channels(), infos.reduction(), strict=True):
        assert feature.shape[:2] == (BATCH, channels)
        assert feature.shape[2:] == tuple(math.ceil(n / reduction) for n in size)
        assert feature.isfinite().all()


def test_features_only_gives_maps_as_described() -> None:
    model = make(features_only=True).eval()
    check_maps(model(image(model)), model.feature_info, (64, 48))
    chosen = make(features_only=True, out_indices=(0, -2)).eval()
    assert len(chosen(image(chosen))) == 2
    assert len(chosen.model.blocks) == DEPTH - 1  # what no map needs is gone


def test_intermediates_come_with_the_features() -> None:
    model = make().eval()
    x = image(model)
    output, maps = model.forward_intermediates(x, output_fmt="NCHW")
    check_maps(maps, FeatureInfo(model.feature_info, len(model.feature_info)), (64, 48))
    torch.testing.assert_close(output, model.forward_features(x))
    (tokens, prefix), *_ = model.forward_intermediates(
        x, indices=[1], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (4, 3)), maps[1])
    assert prefix.shape == (BATCH, model.num_prefix_tokens, model.num_features)
    short, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert not torch.allclose(short, output)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    model.train().set_grad_checkpointing()
    again, kept = model.forward_intermediates(x)
    torch.testing.assert_close((again, kept), (output, maps))


def test_pruning_keeps_what_the_maps_need() -> None:
    model = make(num_classes=3).eval()
    x = image(model)
    _, expected = model.forward_intermediates(x, indices=(0, -3))
    assert model.prune_intermediate_layers((0, -3), prune_norm=True) == [0, 1]
    assert (len(model.blocks), model.num_classes) == (2, 0)
    _, maps = model.forward_intermediates(x, indices=[0, 1])
    torch.testing.assert_close(maps, expected)


# --- arguments ---


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_other_channels(channels: int) -> None:
    model = make(in_chans=channels).eval()
    assert model(torch.rand(1, channels, 32, 32)).shape == (1, model.num_features)


def test_any_size_is_taken_and_a_named_size_has_positions_of_its_own() -> None:
    model = make(img_size=(64, 96), dynamic_img_size=True).eval()
    assert model.pos_embed.shape[-2:] == (4, 6)
    for size in ((64, 96), (32, 160)):
        assert model.forward_features(image(model, *size)).shape[1] == 1 + size[0] * size[1] // 256
    with pytest.raises(ValueError, match="img_size must be a multiple of 16, got 100"):
        make(img_size=100)
    with pytest.raises(ValueError, match="always takes images of any size"):
        make(dynamic_img_size=False)
    with pytest.raises(ValueError, match="is not a multiple of"):
        model(image(model, 60, 60))


def test_drop_rates_reach_their_layers() -> None:
    model = make(drop_rate=0.1, drop_path_rate=0.3, global_pool="avg")
    assert model.head_drop.p == 0.1
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.3)
    assert model.global_pool == "avg"


def test_parameter_groups_by_layer() -> None:
    model = make(num_classes=3)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["pos_embed"] < groups["blocks.0.attn.proj.weight"] < groups["norm.weight"]
    assert model.no_weight_decay() <= set(groups)


def test_flags_of_the_factory_are_taken() -> None:
    model = make(scriptable=True, exportable=True, no_jit=True).eval()
    assert model(image(model, 32, 32)).isfinite().all()


# --- weights ---


def test_factory_reads_a_file_of_weights(tmp_path: Path) -> None:
    source, file = make(num_classes=3), tmp_path / "model.safetensors"
    save_file(source.state_dict(), file)
    model = make(num_classes=3, checkpoint_path=str(file))
    assert all(value.equal(source.state_dict()[k]) for k, value in model.state_dict().items())


def test_pretrained_weights_come_from_a_checkpoint_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = spad_vit_tiny(depth=DEPTH, in_chans=3)
    folder = save_pretrained(source, tmp_path / "model")
    where = {"file": str(folder)}
    same = make(pretrained=True, pretrained_cfg_overlay=where, in_chans=3).eval()
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(same(x), source.eval()(x))
    grey = make(pretrained=True, pretrained_cfg_overlay=where, num_classes=2, img_size=32).eval()
    assert isinstance(grey, SpadViT)
    assert (grey.num_classes, tuple(grey.pos_embed.shape[-2:])) == (2, (2, 2))
    assert torch.equal(grey.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    features = make(pretrained=True, pretrained_cfg_overlay=where, features_only=True, in_chans=3)
    expected = source.forward_intermediates(x, indices=3, intermediates_only=True)
    torch.testing.assert_close(features.eval()(x), expected)
    monkeypatch.setattr("spadnet.weights.source.SHIPPED", tmp_path / "none")
    with pytest.raises(ValueError, match="no weights are shipped for this model yet"):
        make(pretrained=True)
