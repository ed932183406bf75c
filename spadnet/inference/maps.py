"""What models see in one image: principal components, attention of the class token, codes."""

import colorsys
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.image import Image
from spadnet.data.paste import paste_back
from spadnet.inference.encoder import MAX_TOKENS, Encoder, windows
from spadnet.inference.prepared import prepare_for
from spadnet.inference.sliding_window import pad_to_multiple
from spadnet.layers.attention import RotaryAttention
from spadnet.layers.block import Block
from spadnet.layers.rope import rotate
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.models.vqgan import VqganEncoder
from spadnet.spacing import required_multiple
from spadnet.weights.contract import InputContract

_TAILS = (0.01, 0.99)  # quantiles of a component that become 0 and 1
_MAX_ROWS = 20_000  # tokens that the components are fitted to
_GOLDEN = 0.618034  # turns of hue between neighbouring codes
_MIN_SIDE = 256  # pixels of a picture's shorter side


class TokenMap(NamedTuple):
    """A value for each token of an image.

    Attributes:
        values: On the token grid, [D, H, W] or [D, H, W, 3].
        patch: Voxels (z, y, x) that one token covers.
        image: The prepared image, float32 in [0, 1], that the tokens lie on.
    """

    values: np.ndarray
    patch: tuple[int, int, int]
    image: Image

    def voxels(self) -> np.ndarray:
        """The values on the prepared image's grid, [D, H, W] or [3, D, H, W]."""
        spread = self.values
        for axis, step in enumerate(self.patch):
            spread = spread.repeat(step, axis=axis)
        depth, height, width = self.image.array.shape[1:]
        spread = spread[:depth, :height, :width]
        return np.moveaxis(spread, -1, 0) if spread.ndim == 4 else spread

    def on_input(self) -> np.ndarray:
        """The values on the grid of the image as read; 0 where it was cut off."""
        return paste_back(np.ascontiguousarray(self.voxels()), self.image)


class EncoderMaps(NamedTuple):
    """What an encoder sees.

    Attributes:
        components: First three principal components of the patch tokens as red, green and blue,
            uint8 [D, H, W, 3].
        attention: Attention of the class token in the last block, mean of the heads; 1 is what
            each token would get if all got the same. float32 [D, H, W].
    """

    components: TokenMap
    attention: TokenMap


@torch.no_grad()
def encoder_maps(encoder: Encoder, image: Image) -> EncoderMaps:
    """Look at an image as an encoder does; a large one is seen window by window."""
    model = encoder.model
    grid, patch, degree, prepared, cuts = _cut(encoder.contract, image, encoder.max_tokens)
    encoder.watch.look_at(prepared)
    tokens = torch.empty(*grid, model.embed_dim)
    attention = torch.empty(grid)
    for window, part in cuts(model.patch_embed.proj.weight):
        shape = [w.stop - w.start for w in window]
        features, weights = attend(model, part, degree)
        tokens[window] = features[0].unflatten(0, shape).float().cpu()
        attention[window] = weights[0].mean(0).unflatten(0, shape).float().cpu() * math.prod(shape)
    components = (principal_components(tokens) * 255).round().to(torch.uint8)
    return EncoderMaps(
        TokenMap(components.numpy(), patch, prepared),
        TokenMap(attention.numpy(), patch, prepared),
    )


@torch.no_grad()
def code_map(
    tokenizer: Tokenizer, image: Image, *, contract: InputContract, max_tokens: int = MAX_TOKENS
) -> TokenMap:
    """Most probable code of each token, int32 [D, H, W].

    The map is that of the whole image, however small ``max_tokens`` is. A VQGAN alone, which
    mixes at every resolution, sees a large image window by window.
    """
    grid, patch, degree, prepared, cuts = _cut(contract, image, max_tokens)
    codes = torch.empty(grid, dtype=torch.int32)
    encoder, quantizer = tokenizer.encoder, tokenizer.quantizer
    latents = torch.empty(0)
    for window, part in cuts(next(tokenizer.parameters())):
        tokenizer.check_input(part, degree)
        if isinstance(encoder, VqganEncoder):
            codes[window] = (
                quantizer.logits(encoder(2 * part - 1, degree))[0].argmax(-1).int().cpu()
            )
            continue
        patches = encoder.embed_patches(2 * part - 1, degree)
        if not len(latents):
            latents = patches.new_empty(1, patches.shape[1], *grid)
        latents[(..., *window)] = patches
    if not isinstance(encoder, VqganEncoder):
        latents = encoder.mix(latents, degree)
        for z in range(grid[0]):  # logits are many times larger than latents
            codes[z] = quantizer.logits(latents[:, :, [z]])[0, 0].argmax(-1).int().cpu()
    return TokenMap(codes.numpy(), patch, prepared)


def attend(model: SpadViT, x: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Patch tokens after the final norm, and the class token's attention in the last block.

    Args:
        model: In evaluation mode.
        x: Image in [0, 1], [B, C_in, D, H, W].
        degree: Degree of anisotropy.

    Returns:
        Tokens [B, L, C], and weights [B, heads, L], whose rest to 1 is on the prefix tokens.
    """
    tokens, grid = model.embed(x, degree)
    cos, sin = model.rope(grid, x.device)
    last = model.blocks[-1]
    assert isinstance(last, Block)
    tokens = model.run_blocks(tokens, cos, sin, stop=len(model.blocks) - 1)
    weights = class_attention(last.attn, last.norm1(tokens), cos, sin)
    tokens = model.norm(last(tokens, cos, sin))
    return tokens[:, model.num_prefix_tokens :], weights[..., model.num_prefix_tokens :]


def class_attention(layer: RotaryAttention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Weights [B, heads, P + L] with which the class token attends to tokens [B, P + L, C]."""
    q_weight, k_weight, _ = layer.qkv.weight.chunk(3)
    q = F.linear(x[:, :1], q_weight, layer.q_bias).unflatten(-1, (layer.num_heads, -1))
    k = F.linear(x, k_weight).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    num_prefix = x.shape[1] - cos.shape[0]  # these do not turn
    k = torch.cat((k[:, :, :num_prefix], rotate(k[:, :, num_prefix:], cos, sin)), dim=2)
    scores = q.transpose(1, 2) @ k.to(q).transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.softmax(-1)[:, :, 0]


def principal_components(tokens: Tensor, *, count: int = 3) -> Tensor:
    """First principal components of features [..., C], each scaled to [0, 1].

    The sign of each is such that its largest loading is positive. What does not vary is 0.5.
    """
    rows = tokens.flatten(0, -2)
    fitted = rows[:: max(len(rows) // _MAX_ROWS, 1)].double()
    mean = fitted.mean(0)
    _, _, axes = torch.linalg.svd(fitted - mean, full_matrices=False)
    axes = axes[:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scores = (rows.double() - mean) @ axes.T
    scores = F.pad(scores, (0, count - scores.shape[1]))
    low, high = np.quantile(scores.numpy(), _TAILS, axis=0)
    span = torch.from_numpy(high - low)
    scaled = (scores - torch.from_numpy(low)) / span.clamp_min(1e-9)
    scaled = torch.where(span > 1e-9, scaled, torch.full_like(scaled, 0.5))
    return scaled.clamp(0, 1).float().unflatten(0, tokens.shape[:-1])


# --- pictures ---


def heat(values: np.ndarray) -> np.ndarray:
    """Colours from black over red and yellow to white (the largest value), uint8 [..., 3]."""
    share = values / max(float(values.max()), 1e-9)
    steps = np.stack([3 * share, 3 * share - 1, 3 * share - 2], axis=-1)
    return np.rint(255 * steps.clip(0, 1)).astype(np.uint8)


def code_colours(codes: np.ndarray) -> np.ndarray:
    """A colour for each code, unlike that of its neighbours in number, uint8 [..., 3]."""
    count = int(codes.max()) + 1
    palette = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.55 + 0.45 * (i % 3) / 2, 1 - 0.4 * (i % 2))
        for i in range(count)
    ]
    return np.rint(255 * np.array(palette)).astype(np.uint8)[codes]


def overlay(token_map: TokenMap, colours: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Picture of an image beside itself under a map, uint8 [H, W, 3].

    Args:
        token_map: The map; its prepared image is shown.
        colours: A colour for each token, uint8 [D, H, W, 3].
        opacity: Of the map.

    Returns:
        The image on the left, under the map on the right; a volume at a quarter, a half and three
        quarters of its depth.
    """
    grey = token_map.image.array.mean(0)
    painted = np.moveaxis(token_map._replace(values=colours).voxels(), 0, -1)
    depth = len(grey)
    places = [0] if depth == 1 else sorted({depth // 4, depth // 2, 3 * depth // 4})
    rows = []
    for place in places:
        plain = np.repeat(255 * grey[place][..., None], 3, axis=-1)
        mixed = (1 - opacity) * plain + opacity * painted[place]
        rows.append(np.concatenate([plain, mixed], axis=1))
    picture = np.rint(np.concatenate(rows)).astype(np.uint8)
    spacing = token_map.image.spacing
    pixel = min(spacing.y, spacing.x)
    zoom = max(_MIN_SIDE / min(grey.shape[1:]), 1)
    size = [
        round(n * mm / pixel * zoom)
        for n, mm in zip(picture.shape[:2], (spacing.y, spacing.x), strict=True)
    ]
    square = F.interpolate(
        torch.from_numpy(picture).movedim(-1, 0)[None].float(), size=size, mode="nearest-exact"
    )
    return square[0].movedim(0, -1).to(torch.uint8).numpy()


_Cuts = Callable[[Tensor], Iterator[tuple[tuple[slice, slice, slice], Tensor]]]


def _cut(
    contract: InputContract, image: Image, max_tokens: int
) -> tuple[tuple[int, int, int], tuple[int, int, int], int, Image, _Cuts]:
    """Token grid, patch, degree, prepared image, and what cuts it into windows [1, C, D, H, W]."""
    prepared = prepare_for(contract, image).image
    degree = prepared.spacing.degree(contract.max_degree)
    patch = required_multiple(degree, stride=contract.stride)
    volume = pad_to_multiple(torch.from_numpy(prepared.array), patch)
    z, y, x = (n // step for n, step in zip(volume.shape[1:], patch, strict=True))

    def cuts(like: Tensor) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
        for window in windows((z, y, x), max_tokens):
            cut = [slice(w.start * p, w.stop * p) for w, p in zip(window, patch, strict=True)]
            yield window, volume[:, cut[0], cut[1], cut[2]][None].to(like)

    return (z, y, x), patch, degree, prepared, cuts
