"""Released PUMIT weights: tokenizer, ViT, masked image model, feature pyramid."""

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from spadnet.layers.spad_conv import Reduction
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.convert.rename import VIT_RULES, StateDict, join_qkv, rename, select


def convert_released_tokenizer(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released tokenizer (``encoder.{i}``, ``decoder.{i}``, ``quantize``).

    Args:
        state: Released state dict of a soft tokenizer; its transposed convolutions sum depth taps.

    Returns:
        State dict of a :class:`spadnet.models.tokenizer.Tokenizer` with ``reduction="sum"``.
    """
    indices = [int(m[1]) for key in state if (m := re.match(r"encoder\.(\d+)\.1\.weight", key))]
    num_widths = len(indices)
    first_block = 3 * num_widths
    head = max((int(m[1]) for key in state if (m := re.match(r"decoder\.(\d+)\.", key))), default=0)

    def encoder(match: re.Match[str]) -> str:
        index, parameter = int(match[1]), match[3]
        place, part = divmod(index, 3)
        if index >= first_block:
            return (
                f"encoder.blocks.{place - num_widths}.{'conv' if part == 0 else 'norm'}.{parameter}"
            )
        name = "stem" if place == 0 else f"downs.{place - 1}"
        return f"encoder.{name}.{'conv' if part == 0 else 'norm'}.{parameter}"

    def decoder(match: re.Match[str]) -> str:
        index, parameter = int(match[1]), match[2]
        if index == head:
            return f"decoder.head.{parameter}"
        place, part = divmod(index, 3)
        return f"decoder.blocks.{place}.{'conv' if part == 0 else 'norm'}.{parameter}"

    def up(match: re.Match[str]) -> str:
        place = int(match[1]) - 6
        part = {"transposed_conv": "up", "conv.0": "block.conv", "conv.1": "block.norm"}[match[2]]
        return f"decoder.ups.{place}.{part}.{match[3]}"

    return rename(
        state,
        [
            (r"encoder\.(\d+)\.(1\.)?(weight|bias)", encoder),
            (r"decoder\.(\d+)\.(weight|bias)", decoder),
            (r"decoder\.(\d+)\.(transposed_conv|conv\.0|conv\.1)\.(weight|bias)", up),
            (r"quantize\.proj\.(weight|bias)", r"quantizer.proj.\1"),
            (r"quantize\.embedding\.weight", "quantizer.codebook"),
        ],
    )


def convert_released_vit(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released ViT into the state dict of a :class:`spadnet.models.vit.SpadViT`."""
    return rename(join_qkv(state), VIT_RULES)


def convert_released_mim(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released MIM model into that of :class:`spadnet.models.mim.MaskedImageModel`.

    The tokenizer inside a released file (keys ``tokenizer.*``) goes through
    :func:`convert_released_tokenizer` on its own.
    """
    own = {k: v for k, v in state.items() if not k.startswith("tokenizer.")}
    heads = select(own, "mim_head.")
    vit = {k: v for k, v in own.items() if not k.startswith(("mim_head.", "mask_token"))}
    converted = {f"vit.{k}": v for k, v in convert_released_vit(vit).items()}
    converted |= {f"head.{k}": v for k, v in heads.items()}
    if "mask_token" in own:
        converted["mask_token"] = own["mask_token"]
    return converted


def convert_released_pyramid(
    state: Mapping[str, Tensor], *, patch_size: int = 16, reduction: Reduction = "mean"
) -> StateDict:
    """Convert a released feature pyramid with a fixed patch depth.

    Its kernels have the depth of one degree; they are inflated to isotropic ones that fold back to
    the same kernel at that degree.

    Args:
        state: Released state dict with ``fpn.*`` and ``norms.*`` beside the ViT's.
        patch_size: In-plane patch size.
        reduction: Reduction of the transposed convolutions of the model to be loaded.

    Returns:
        State dict of a :class:`spadnet.models.pyramid.Pyramid`.
    """

    def isotropic(weight: Tensor, *, transposed: bool) -> Tensor:
        depth, size = weight.shape[-3], weight.shape[-1]
        copies = size // depth
        scale = 1.0 if transposed and reduction == "mean" else 1 / copies
        return weight.repeat_interleave(copies, dim=-3) * scale

    vit = {k: v for k, v in state.items() if not k.startswith(("fpn.", "norms."))}
    vit["patch_embed.proj.weight"] = isotropic(vit["patch_embed.proj.weight"], transposed=False)
    converted = {f"vit.{k}": v for k, v in convert_released_vit(vit).items()}
    rest = {k: v for k, v in state.items() if k.startswith(("fpn.", "norms."))}
    rest = rename(
        rest,
        [
            (r"(norms\.\d\.(?:weight|bias))", r"\1"),
            (r"fpn\.0\.0\.(weight|bias)", r"up4_first.\1"),
            (r"fpn\.0\.1\.(weight|bias)", r"up4_norm.\1"),
            (r"fpn\.0\.3\.(weight|bias)", r"up4_second.\1"),
            (r"fpn\.1\.(weight|bias)", r"up8.\1"),
        ],
    )
    for key, value in rest.items():
        converted[key] = isotropic(value, transposed=True) if value.ndim == 5 else value
    return converted


# --- models out of released weights ---

_Model = TypeVar("_Model", bound=nn.Module)

HEAD_DIM = 64
"""Width of an attention head in all released models; weights do not tell it."""


def tokenizer_from_released(state: Mapping[str, Tensor]) -> Tokenizer:
    """Build the tokenizer of released weights, see :func:`convert_released_tokenizer`."""
    converted = convert_released_tokenizer(state)
    _require(converted, "encoder.stem.conv.weight", "decoder.head.weight", "quantizer.codebook")
    stem = converted["encoder.stem.conv.weight"]
    downs = [
        converted[key].shape[0] for key in _numbered(converted, "encoder.downs.{}.conv.weight")
    ]
    ups = [converted[key].shape[1] for key in _numbered(converted, "decoder.ups.{}.up.weight")]
    deepest = converted["decoder.blocks.0.conv.weight"].shape[0]
    codebook_size, code_dim = converted["quantizer.codebook"].shape
    tokenizer = Tokenizer(
        in_chans=stem.shape[1],
        widths=(stem.shape[0], *downs),
        decoder_widths=[*reversed(ups), deepest],
        stem_stride=stem.shape[-1],
        codebook_size=codebook_size,
        code_dim=code_dim,
        reduction="sum",
    )
    return _filled(tokenizer, converted)


def vit_from_released(state: Mapping[str, Tensor]) -> SpadViT:
    """Build the ViT of released weights, see :func:`convert_released_vit`."""
    converted = convert_released_vit(state)
    return _filled(_empty_vit(converted), converted)


def mim_from_released(state: Mapping[str, Tensor], *, num_mask_layers: int) -> MaskedImageModel:
    """Build the masked image model of released weights, see :func:`convert_released_mim`.

    Args:
        state: Released state dict.
        num_mask_layers: Blocks that see mask tokens, counted from the end; weights do not tell it:
            all of them in the base model, 6 in the large one.
    """
    converted = convert_released_mim(state)
    _require(converted, "head.2.weight", "mask_token")
    vit = _empty_vit(select(converted, "vit."))
    codebook_size = converted["head.2.weight"].shape[0]
    model = MaskedImageModel(vit, codebook_size=codebook_size, num_mask_layers=num_mask_layers)
    return _filled(model, converted)


def _empty_vit(converted: Mapping[str, Tensor]) -> SpadViT:
    _require(converted, "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.w1.weight")
    embed_dim, in_chans, patch_size = converted["patch_embed.proj.weight"].shape[:3]
    return SpadViT(
        in_chans=in_chans,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=len(_numbered(converted, "blocks.{}.norm1.weight")),
        num_heads=max(embed_dim // HEAD_DIM, 1),
        # Half a unit above, so that rounding never costs the last one.
        mlp_ratio=(converted["blocks.0.mlp.w1.weight"].shape[0] + 0.5) / embed_dim,
        qkv_bias="blocks.0.attn.q_bias" in converted,
        sub_ln="blocks.0.mlp.norm.weight" in converted,
        pos_grid=converted["pos_embed"].shape[2:],
    )


def _numbered(state: Mapping[str, Tensor], pattern: str) -> list[str]:
    """Keys of a pattern with 0, 1, ... in its gap, as far as they go."""
    keys: list[str] = []
    while (key := pattern.format(len(keys))) in state:
        keys.append(key)
    return keys


def _require(state: Mapping[str, Tensor], *keys: str) -> None:
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"missing weights: {', '.join(missing)}")


def _filled(model: _Model, state: Mapping[str, Tensor]) -> _Model:
    own = model.state_dict()
    odd = own.keys() ^ state.keys()
    odd |= {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    if odd:
        raise ValueError(f"weights of another form; they differ in {', '.join(sorted(odd)[:5])}")
    model.load_state_dict(state)
    return model
