"""Foreign weights become spadnet's, every key accounted for."""

import pytest
import timm
import torch
from released import released_mim, released_pyramid, released_tokenizer, released_vit
from torch import Tensor, nn

from spadnet.models.mim import MaskedImageModel
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.convert import (
    convert_released_mim,
    convert_released_pyramid,
    convert_released_tokenizer,
    convert_released_vit,
    convert_timm_eva02,
    select,
    spad_vit_from_timm,
)


def vit(**arguments: object) -> SpadViT:
    """A tiny ViT with random weights everywhere."""
    defaults = {"in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "pos_grid": (1, 2, 2)}
    return randomise(SpadViT(**defaults | arguments))


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter a random value: zeros and ones would hide a mistake."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two state dicts are equal."""
    assert set(actual) == set(expected)
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


# --- released weights ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": (8, 16, 24)},
        {"widths": (8, 16), "stem_stride": 8, "in_chans": 1},
        {"widths": (8, 8, 8, 16), "stem_stride": 2, "decoder_widths": (16, 8, 8, 8), "code_dim": 4},
    ],
)
def test_released_tokenizer_comes_back(arguments: dict[str, object]) -> None:
    state = Tokenizer(**{"codebook_size": 6} | arguments).state_dict()
    assert_same(convert_released_tokenizer(released_tokenizer(state)), state)


@pytest.mark.parametrize("fused_qkv", [False, True])
@pytest.mark.parametrize(
    "arguments", [{}, {"sub_ln": False}, {"qkv_bias": False}, {"depth": 11, "in_chans": 3}]
)
def test_released_vit_comes_back(arguments: dict[str, object], fused_qkv: bool) -> None:
    state = vit(**arguments).state_dict()
    assert_same(convert_released_vit(released_vit(state, fused_qkv=fused_qkv)), state)


def test_released_mim_comes_back_without_its_tokenizer() -> None:
    state = MaskedImageModel(vit(), codebook_size=6).state_dict()
    released = released_mim(state)
    tokenizer = Tokenizer(widths=(8, 16), codebook_size=6).state_dict()
    inside = {f"tokenizer.{k}": v for k, v in released_tokenizer(tokenizer).items()}
    assert_same(convert_released_mim(released | inside), state)
    assert_same(convert_released_tokenizer(select(inside, "tokenizer.")), tokenizer)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("degree", range(5))
def test_released_pyramid_gives_the_same_maps_at_its_degree(degree: int, reduction: str) -> None:
    original = randomise(Pyramid(vit(), out_indices=(0, 0, 1, 1)))
    released = released_pyramid(original.state_dict(), degree=degree)
    assert released["patch_embed.proj.weight"].shape[2] == 16 >> degree
    loaded = Pyramid(vit(), out_indices=(0, 0, 1, 1), reduction=reduction).eval()
    loaded.load_state_dict(convert_released_pyramid(released, reduction=reduction))
    x = torch.rand(1, 1, 2 * (16 >> degree), 32, 32)
    for ours, theirs in zip(loaded(x, degree), original(x, degree), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("convert", "state"),
    [
        (convert_released_tokenizer, {"encoder.0.weight": 1, "loss.weight": 1}),
        (convert_released_vit, {"cls_token": 1, "blocks.0.ls1": 1}),
        (convert_released_mim, {"cls_token": 1, "ema.cls_token": 1}),
    ],
)
def test_a_key_left_over_is_an_error_that_names_it(convert: object, state: dict[str, int]) -> None:
    tensors = {key: torch.zeros(1) for key in state}
    with pytest.raises(ValueError, match=f"unexpected weights: .*{list(state)[1]}"):
        convert(tensors)


# --- timm's EVA-02 ---


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eva02_tiny_patch14_224", {"depth": 3}),
        ("eva02_base_patch14_224", {"depth": 2}),
        ("eva02_small_patch14_336", {"depth": 1, "num_classes": 5}),
        ("eva02_large_patch14_224", {"depth": 1, "embed_dim": 128, "num_heads": 2}),
        ("eva02_base_patch14_448", {"depth": 1, "embed_dim": 64, "num_heads": 1, "img_size": 112}),
        ("eva02_tiny_patch14_224", {"depth": 1, "in_chans": 1, "patch_size": 16, "img_size": 64}),
    ],
)
def test_converted_eva02_agrees_on_2d_images(name: str, arguments: dict[str, object]) -> None:
    source = timm.create_model(name, **arguments)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.05)
    source.eval()
    converted = spad_vit_from_timm(source).eval()
    x = torch.randn(1, source.patch_embed.proj.in_channels, *source.patch_embed.img_size)
    with torch.no_grad():
        for ours, theirs in (
            (converted.forward_features(x), source.forward_features(x)),
            (converted(x), source(x)),
        ):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 1e-4


def test_unknown_part_of_a_timm_model_is_an_error() -> None:
    source = timm.create_model("eva02_tiny_patch14_224", depth=1, embed_dim=64, num_heads=1)
    state = source.state_dict() | {"blocks.0.gamma_1": torch.zeros(64)}
    with pytest.raises(ValueError, match=r"blocks\.0\.gamma_1"):
        convert_timm_eva02(state)
