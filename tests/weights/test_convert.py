"""Foreign weights become spadnet's, every key accounted for."""

import pytest
import timm
import torch
from released import released_mim, released_pyramid, released_tokenizer, released_vit
from torch import Tensor, nn
from vqgan_2d import Vqgan

from spadnet.layers.spad_conv import SpadConv3d, SpadConvTranspose3d
from spadnet.models.frozen import FrozenTargets
from spadnet.models.mim import MaskedImageModel
from spadnet.models.plain import fold_network
from spadnet.models.pyramid import Pyramid
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.convert import (
    convert_released_mim,
    convert_released_pyramid,
    convert_released_tokenizer,
    convert_released_vit,
    convert_timm_eva02,
    inflate_convolutions,
    select,
    spad_vit_from_timm,
    tokenizer_from_vqgan,
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


# --- timm's plain ViTs ---

PLAIN = [
    ("vit_tiny_patch16_224", {"depth": 2, "img_size": 96}),
    ("vit_base_patch16_224", {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": (32, 64)}),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 48, "global_pool": "avg", "num_classes": 5}),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 48, "in_chans": 1, "num_classes": 0}),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 48, "qkv_bias": False}),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 48, "reg_tokens": 2}),
    ("deit3_small_patch16_224", {"depth": 2, "img_size": 64}),
    ("vit_small_patch14_dinov2", {"depth": 2, "img_size": 98}),
    ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 70}),
    ("vit_giant_patch14_dinov2", {"depth": 1, "embed_dim": 96, "num_heads": 2, "img_size": 56}),
    ("eva_giant_patch14_224", {"depth": 1, "embed_dim": 64, "num_heads": 2, "img_size": 56}),
]


@pytest.mark.parametrize(("name", "arguments"), PLAIN, ids=lambda value: str(value))
def test_converted_plain_vit_agrees_on_2d_images(name: str, arguments: dict[str, object]) -> None:
    source = timm.create_model(name, **arguments)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.05)
    source.eval()
    converted = spad_vit_from_timm(source).eval()
    x = torch.randn(2, source.patch_embed.proj.in_channels, *source.patch_embed.img_size)
    with torch.no_grad():
        for ours, theirs in (
            (converted.forward_features(x), source.forward_features(x)),
            (converted(x), source(x)),
        ):
            assert ours.shape == theirs.shape
            assert ours.std() > 1e-3
            assert (ours - theirs).abs().max() <= 1e-4


def test_patches_are_resampled_to_a_power_of_two_on_request() -> None:
    source = timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=56)
    vit = spad_vit_from_timm(source, patch_size=16, mean=(0.4,) * 3, std=(0.2,) * 3).eval()
    assert (vit.patch_embed.patch_size, vit.intensity_mean) == (16, (0.4, 0.4, 0.4))
    for degree in range(6):
        depth = 2 * max(16 >> degree, 1)
        assert vit(torch.rand(1, 3, depth, 32, 32), degree).isfinite().all()
    # A flat image looks the same to a resampled kernel.
    flat = torch.full((1, 3, 64, 64), 0.7)
    ours = vit.patch_embed(((flat - 0.4) / 0.2).unsqueeze(2), 5)[0, 0]
    theirs = source.patch_embed((flat[..., :56, :56] - 0.4) / 0.2)[0, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qk_norm": True}, "unexpected weights: .*q_norm"),
        ({"class_token": False, "global_pool": "avg"}, "missing weights: cls_token"),
        ({"pre_norm": True}, "unexpected weights: norm_pre|missing weights: patch_embed.proj.bias"),
        ({"global_pool": "map"}, "unexpected weights: attn_pool"),
        ({"act_layer": "quick_gelu"}, "a SPAD-ViT has no activation"),
        ({"act_layer": "gelu_tanh"}, "a SPAD-ViT has no activation"),
    ],
)
def test_a_vit_that_computes_something_else_is_refused(
    arguments: dict[str, object], message: str
) -> None:
    source = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, **arguments)
    with pytest.raises(ValueError, match=message):
        spad_vit_from_timm(source)


def test_other_rotary_positions_than_those_of_eva02_are_refused() -> None:
    source = timm.create_model("vit_small_patch16_dinov3", depth=1, embed_dim=64, num_heads=1)
    with pytest.raises(ValueError, match="a SPAD-ViT has no RotaryEmbeddingDinoV3"):
        spad_vit_from_timm(source)


# --- inflation ---


@pytest.mark.parametrize("mode", ["average", "center"])
def test_inflated_network_is_the_2d_network_at_degree_5(mode: str) -> None:
    flat = nn.Sequential(
        nn.Conv2d(2, 8, 4, 4), nn.Conv2d(8, 8, 3, 1, 1), nn.ConvTranspose2d(8, 3, 4, 4)
    )
    thick = nn.ModuleList(
        [SpadConv3d(2, 8, 4, stride=4), SpadConv3d(8, 8, 3), SpadConvTranspose3d(8, 3, 4, stride=4)]
    )
    state = inflate_convolutions(flat.state_dict(), mode=mode, transposed=["2.weight"])
    thick.load_state_dict(state)
    x = torch.randn(1, 2, 16, 24)
    y = x.unsqueeze(2)
    for layer, degree in zip(thick, (5, 3, 5), strict=True):
        y = layer(y, degree)
    torch.testing.assert_close(y.squeeze(2), flat(x), atol=1e-5, rtol=1e-4)
    assert torch.equal(state["0.bias"], flat[0].bias)


def test_kernels_without_an_isotropic_form_are_refused() -> None:
    with pytest.raises(ValueError, match="a kernel of 1 x 3 has no isotropic form"):
        inflate_convolutions({"a": torch.zeros(1, 1, 1, 3)})
    with pytest.raises(ValueError, match="no kernels of transposed convolutions: b"):
        inflate_convolutions({"a": torch.zeros(1, 1, 3, 3)}, transposed=["b"])


# --- VQGAN ---


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"widths": (32, 64), "count": 1, "attends": ()},
        {"widths": (32, 64, 64), "attends": (0, 2), "codes": 5, "code_dim": 4},
    ],
)
def test_converted_vqgan_agrees_on_2d_images(arguments: dict[str, object]) -> None:
    source = randomise(Vqgan(**arguments))
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1)}
    tokenizer = tokenizer_from_vqgan(source.state_dict() | extra).eval()
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected, index = source(2 * x - 1)
        ours, tokens = tokenizer(x.unsqueeze(2), 5)
    assert index.unique().numel() > 1
    assert torch.equal(tokens.index.squeeze(1), index)
    scale = expected.abs().max()
    assert ((2 * ours.squeeze(2) - 1) - expected).abs().max() / scale <= 1e-5


@pytest.mark.parametrize("degree", range(6))
def test_converted_vqgan_takes_volumes_of_every_degree(degree: int) -> None:
    tokenizer = tokenizer_from_vqgan(randomise(Vqgan()).state_dict()).eval()
    assert tokenizer.stride == 4
    depth = 2 * max(4 >> degree, 1)
    x = torch.rand(1, 3, depth, 16, 24)
    reconstruction, tokens = tokenizer(x, degree)
    assert reconstruction.shape == x.shape
    assert tokens.index.shape == (1, 2, 4, 6)
    assert tokenizer.token_logits(x, degree).shape == (1, 48, 16)
    folded = fold_network(tokenizer, degree)
    torch.testing.assert_close(folded(x, degree)[1].logits, tokens.logits, rtol=1e-3, atol=1e-3)
    targets = FrozenTargets(tokenizer)(x[:, :1], degree)
    grey = tokenizer.token_logits(x[:, :1].expand(-1, 3, -1, -1, -1), degree)
    torch.testing.assert_close(targets, grey)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("quantize.embedding.weight"), "missing weights: quantize.embedding"),
        (
            lambda s: s.update({"quantize.embed.weight": torch.zeros(1)}),
            "unexpected weights: quant",
        ),
        (lambda s: s.pop("encoder.mid.attn_1.k.weight"), "not the weights of a VQGAN"),
        (lambda s: s.pop("decoder.norm_out.bias"), "another form; it differs in decoder.norm.bias"),
    ],
)
def test_something_else_than_a_vqgan_is_refused(change: object, message: str) -> None:
    state = dict(Vqgan().state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        tokenizer_from_vqgan(state)
