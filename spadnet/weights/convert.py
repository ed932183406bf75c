"""Pure functions from foreign state dicts to spadnet's: state dict in, state dict out.

Every function names all keys it expects; a key that is left over is an error, so nothing is lost in
silence.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from spadnet.layers.spad_conv import Reduction, inflate
from spadnet.models.vit import SpadViT

StateDict = dict[str, Tensor]
_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _rename(state: Mapping[str, Tensor], rules: list[_Rule]) -> StateDict:
    """Rename each key by the first rule that matches it whole; an unmatched key is an error."""
    renamed: StateDict = {}
    unknown = []
    for key, value in state.items():
        for pattern, target in rules:
            match = re.fullmatch(pattern, key)
            if match:
                new = match.expand(target) if isinstance(target, str) else target(match)
                renamed[new] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"unexpected weights: {', '.join(sorted(unknown)[:5])}")
    return renamed


def select(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """Return the entries below ``prefix``, without it."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


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

    return _rename(
        state,
        [
            (r"encoder\.(\d+)\.(1\.)?(weight|bias)", encoder),
            (r"decoder\.(\d+)\.(weight|bias)", decoder),
            (r"decoder\.(\d+)\.(transposed_conv|conv\.0|conv\.1)\.(weight|bias)", up),
            (r"quantize\.proj\.(weight|bias)", r"quantizer.proj.\1"),
            (r"quantize\.embedding\.weight", "quantizer.codebook"),
        ],
    )


def _join_qkv(state: Mapping[str, Tensor]) -> StateDict:
    """Join ``attn.{q,k,v}_proj.weight`` into the one product ``attn.qkv.weight``."""
    joined = dict(state)
    for key in state:
        if key.endswith(".attn.q_proj.weight"):
            stem = key.removesuffix("q_proj.weight")
            parts = [joined.pop(f"{stem}{name}_proj.weight") for name in "qkv"]
            joined[f"{stem}qkv.weight"] = torch.cat(parts)
    return joined


def _split_gate(state: Mapping[str, Tensor]) -> StateDict:
    """Split timm's packed ``mlp.fc1`` into gate ``fc1_g`` and value ``fc1_x``."""
    split = dict(state)
    for key in state:
        if ".mlp.fc1." in key:
            gate, value = split.pop(key).chunk(2)
            split[key.replace("fc1", "fc1_g")] = gate
            split[key.replace("fc1", "fc1_x")] = value
    return split


_VIT_RULES: list[_Rule] = [
    (r"(patch_embed\.proj\.(?:weight|bias))", r"\1"),
    (r"(cls_token|pos_embed|mask_token)", r"\1"),
    (r"(norm\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.proj)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.attn\.(?:qkv\.weight|q_bias|v_bias))", r"\1"),
    (r"(blocks\.\d+\.mlp\.w[123]\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.mlp\.)ffn_ln\.(weight|bias)", r"\1norm.\2"),
]


def convert_released_vit(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a released ViT into the state dict of a :class:`spadnet.models.vit.SpadViT`."""
    return _rename(_join_qkv(state), _VIT_RULES)


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
    rest = _rename(
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


def convert_timm_eva02(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a timm EVA-02 (``eva02_*``) into the state dict of a SPAD-ViT.

    The patch kernel is inflated evenly along depth and the position grid gets a depth of one,
    so that at degree 5 both models agree on 2D images. The class token's position is added to the
    token itself. Build the target with ``rope_rescale=(-1, 16, 16)`` (timm's reference grid),
    ``pos_grid=(1, H, W)``, ``sub_ln`` as in the source and ``norm_after_pool`` where the source
    has an ``fc_norm``.

    Args:
        state: State dict of a timm ``Eva`` model with a square position grid.

    Returns:
        State dict of a :class:`spadnet.models.vit.SpadViT` of the same size.
    """
    derived = ("rope.", ".attn.k_bias")  # timm's buffers of fixed angles and zeros
    state = {
        key: value
        for key, value in _split_gate(_join_qkv(state)).items()
        if not key.startswith(derived[0]) and not key.endswith(derived[1])
    }
    position = state.pop("pos_embed")
    side = round((position.shape[1] - 1) ** 0.5)
    state["cls_token"] = state["cls_token"] + position[:, :1]
    state["pos_embed"] = position[:, 1:].transpose(1, 2).unflatten(2, (1, side, side))
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = inflate(kernel, kernel.shape[-1])
    return _rename(
        state,
        [
            *_VIT_RULES,
            (r"fc_norm\.(weight|bias)", r"norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
            (r"(blocks\.\d+\.attn\.)([qv])_proj\.bias", r"\1\2_bias"),
            (r"(blocks\.\d+\.mlp\.)fc1_g\.(weight|bias)", r"\1w1.\2"),
            (r"(blocks\.\d+\.mlp\.)fc1_x\.(weight|bias)", r"\1w2.\2"),
            (r"(blocks\.\d+\.mlp\.)norm\.(weight|bias)", r"\1norm.\2"),
            (r"(blocks\.\d+\.mlp\.)fc2\.(weight|bias)", r"\1w3.\2"),
        ],
    )


def spad_vit_from_timm(model: Any) -> SpadViT:
    """Build the SPAD-ViT that computes what a timm EVA-02 computes, on 2D images at degree 5.

    The result takes normalised images, as timm's models do (mean 0, std 1).

    >>> source = timm.create_model("eva02_tiny_patch14_224")  # doctest: +SKIP
    >>> vit = spad_vit_from_timm(source)  # doctest: +SKIP

    Args:
        model: A timm ``Eva`` model such as ``eva02_base_patch14_224``.
    """
    state = model.state_dict()
    converted = convert_timm_eva02(state)
    embed_dim, in_chans, patch_size = converted["patch_embed.proj.weight"].shape[:3]
    # timm leaves two-dimensional reference positions in its rotary embedding.
    reference = model.rope.ref_feat_shape
    vit = SpadViT(
        in_chans=in_chans,
        num_classes=converted["head.weight"].shape[0] if "head.weight" in converted else 0,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        # Half a unit above, so that rounding never costs the last one.
        mlp_ratio=(converted["blocks.0.mlp.w1.weight"].shape[0] + 0.5) / embed_dim,
        sub_ln="blocks.0.mlp.norm.weight" in converted,
        pos_grid=converted["pos_embed"].shape[2:],
        rope_rescale=(-1, *reference) if reference else (-1, -1, -1),
        global_pool=model.global_pool,
        norm_after_pool="fc_norm.weight" in state,
        norm_eps=model.blocks[0].norm1.eps,
        mean=(0.0,) * in_chans,
        std=(1.0,) * in_chans,
    )
    vit.load_state_dict(converted)
    return vit
