"""Maps show what models compute, at the place it was computed from."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spadnet.data.io import read_image
from spadnet.inference.encoder import Encoder, image_from_array
from spadnet.inference.maps import (
    attend,
    class_attention,
    code_colours,
    code_map,
    encoder_maps,
    heat,
    overlay,
    principal_components,
)
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.contract import contract_of


def tiny_vit(**changes: Any) -> SpadViT:
    arguments = {"in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "pos_grid": (2, 2, 2)}
    vit = SpadViT(**{**arguments, **changes}).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


@pytest.mark.parametrize("changes", [{}, {"num_registers": 2}, {"qkv_bias": False}])
def test_attention_is_that_of_the_layer(changes: dict[str, Any]) -> None:
    """The weights, applied to values, give what the layer gives for the class token."""
    vit = tiny_vit(**changes)
    layer = vit.blocks[-1].attn  # type: ignore[union-attr]
    tokens, grid = vit.embed(torch.rand(2, 1, 8, 32, 48), 2)
    cos, sin = vit.rope(grid, tokens.device)
    weights = class_attention(layer, tokens, cos, sin)  # type: ignore[arg-type]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2))
    v = nn.functional.linear(tokens, layer.qkv.weight.chunk(3)[2], layer.v_bias)  # type: ignore
    v = v.unflatten(-1, (2, -1)).transpose(1, 2)
    expected = layer(tokens, cos, sin)[:, 0]  # type: ignore[operator]
    found = layer.proj((weights[:, :, None] @ v)[:, :, 0].flatten(1))  # type: ignore
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_tokens_are_those_of_the_model() -> None:
    vit, x = tiny_vit(), torch.rand(1, 1, 4, 32, 32)
    tokens, weights = attend(vit, x, 2)
    torch.testing.assert_close(tokens, vit.forward_features(x, 2)[:, 1:])
    assert weights.shape == (1, 2, 4)


def test_components_separate_what_differs() -> None:
    tokens = torch.zeros(2, 4, 4, 8)
    tokens[..., 0] = torch.linspace(-1, 1, 4)  # along x: the largest variance
    tokens[..., 1] = 0.3 * torch.linspace(-1, 1, 4)[:, None]  # along y
    found = principal_components(tokens)
    assert found.shape == (2, 4, 4, 3)
    expected = torch.linspace(0, 1, 4).expand(2, 4, 4)
    torch.testing.assert_close(found[..., 0], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(found[..., 1], expected.transpose(1, 2), atol=0.02, rtol=0)
    assert (found[..., 2] == 0.5).all()
    assert principal_components(torch.rand(1, 1, 1, 8)).shape == (1, 1, 1, 3)


class BrightCode(Tokenizer):
    """A tokenizer whose code is the brightness of a patch in 16 steps."""

    def __init__(self) -> None:
        super().__init__(in_chans=1, widths=(8,), stem_stride=16, codebook_size=16)
        self.encoder, self.quantizer = BrightEncoder(), BrightSteps()  # type: ignore[assignment]


class BrightEncoder(nn.Module):
    """Means of patches."""

    def embed_patches(self, x: Tensor, degree: int) -> Tensor:
        return nn.functional.avg_pool3d((x + 1) / 2, (16 >> degree, 16, 16))

    def mix(self, z: Tensor, degree: int) -> Tensor:
        return z


class BrightSteps(nn.Module):
    """Nearness to each of 16 steps."""

    def logits(self, z: Tensor) -> Tensor:
        return -(torch.arange(16) / 15 - z.movedim(1, -1)).abs()


@pytest.mark.parametrize("max_tokens", [1, 5, 12])
@pytest.mark.parametrize("degree", [0, 2])
def test_codes_of_windows_are_those_of_the_whole(degree: int, max_tokens: int) -> None:
    torch.manual_seed(0)
    model = Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=64).eval()
    array = np.random.default_rng(0).integers(1, 4000, (33, 62, 50)).astype(np.int16)
    image = image_from_array(array, spacing=(2.0**degree, 1.0, 1.0))
    whole, cut = (
        code_map(model, image, contract=contract_of(model), max_tokens=number).values
        for number in (4096, max_tokens)
    )
    assert np.unique(whole).size > 8
    np.testing.assert_array_equal(cut, whole)
    prepared = Encoder(tiny_vit()).prepare(image).array
    patch = (16 >> degree, 16, 16)
    pad = [(0, -n % step) for n, step in zip(prepared.shape[1:], patch, strict=True)]
    padded = torch.from_numpy(np.pad(prepared[0], pad, mode="edge"))[None, None]
    expected = model.token_logits(padded, degree).argmax(-1)
    np.testing.assert_array_equal(whole.ravel(), expected[0])


def test_codes_of_a_vqgan_are_seen_window_by_window() -> None:
    torch.manual_seed(0)
    model = Tokenizer(
        in_chans=1, widths=(32, 32), stem_stride=1, codebook_size=64, num_residual_blocks=1
    ).eval()
    array = np.random.default_rng(0).integers(1, 4000, (4, 9, 8)).astype(np.int16)
    image = image_from_array(array, spacing=(4.0, 1.0, 1.0))
    for number in (4096, 30):
        codes = code_map(model, image, contract=contract_of(model), max_tokens=number).values
        assert codes.shape == (4, 5, 4)
        assert np.unique(codes).size > 1


def test_codes_lie_where_they_were_seen(tmp_path: Path) -> None:
    """A bright corner of a scan that is turned, flipped and cropped has the bright code."""
    voxels = np.zeros((64, 8, 48), np.int16)
    voxels[4:60, 1:7, 4:44] = 100
    voxels[44:60, 1:7, 4:20] = 1000
    affine = np.diag([-1.0, 5.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    contract = contract_of(Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8))
    for max_tokens in (4096, 2):
        tokens = code_map(BrightCode(), image, contract=contract, max_tokens=max_tokens)
        back = tokens.on_input()
        assert back.shape == image.array.shape[1:]
        bright = image.array[0] == 1000
        assert back[bright].mean() > 3 * back[~bright].mean()
        assert (back[image.array[0] == 0] == 0).mean() > 0.9  # cut off
    assert tokens.patch == (4, 16, 16)


def test_encoder_maps_cover_the_image() -> None:
    array = np.random.default_rng(0).integers(1, 4000, (9, 40, 33)).astype(np.int16)
    image = image_from_array(array, spacing=(4.0, 1.0, 1.0))
    whole = encoder_maps(Encoder(tiny_vit()), image)
    cut = encoder_maps(Encoder(tiny_vit(), max_tokens=4), image)
    for maps in (whole, cut):
        assert maps.components.values.shape == (3, 3, 3, 3)
        assert maps.components.values.dtype == np.uint8
        assert maps.attention.on_input().shape == array.shape
        assert maps.components.on_input().shape == (3, *array.shape)
    assert whole.attention.values.mean() < 1 + 1e-5  # some of it goes to the class token
    assert (whole.attention.values > 0).all()


def test_overlay_shows_the_image_beside_the_map() -> None:
    array = np.random.default_rng(0).integers(1, 4000, (8, 32, 32)).astype(np.int16)
    maps = encoder_maps(Encoder(tiny_vit()), image_from_array(array, spacing=(4.0, 2.0, 1.0)))
    picture = overlay(maps.components, maps.components.values)
    assert picture.shape == (
        3 * 32 * 2 * 8,
        64 * 8,
        3,
    )  # three slices, high pixels
    left = picture[:, : picture.shape[1] // 2]
    assert (left[..., 0] == left[..., 1]).all()
    assert (picture[:, picture.shape[1] // 2 :, 0] != picture[:, picture.shape[1] // 2 :, 2]).any()
    clear = overlay(maps.components, maps.components.values, opacity=0)
    assert (clear[:, : 32 * 8] == clear[:, 32 * 8 :]).all()


def test_colours() -> None:
    assert heat(np.array([0.0, 2.0])).tolist() == [[0, 0, 0], [255, 255, 255]]
    colours = code_colours(np.arange(64))
    assert len(np.unique(colours, axis=0)) == 64
