"""Weights of timm's vision transformers: EVA-02, plain ViT, DeiT III, DINOv2.

A converted SPAD-ViT computes at degree 5 what the 2D model computes. What has no place of its own
in SPAD-ViT is folded into what has, exactly.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from spadnet.layers.spad_conv import inflate
from spadnet.models.vit import SpadViT
from spadnet.weights.convert.rename import VIT_RULES, Rule, StateDict, join_qkv, rename

_PLAIN_RULES: list[Rule] = [
    (r"(patch_embed\.proj\.(?:weight|bias))", r"\1"),
    (r"(cls_token|reg_token|pos_embed)", r"\1"),
    (r"(norm\.(?:weight|bias)|head\.(?:weight|bias))", r"\1"),
    (r"fc_norm\.(weight|bias)", r"norm.\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.proj)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.attn\.(?:qkv\.weight|q_bias|v_bias))", r"\1"),
    (r"(blocks\.\d+\.mlp\.)(?:fc1|fc1_g)\.(weight|bias)", r"\1w1.\2"),
    (r"(blocks\.\d+\.mlp\.)fc1_x\.(weight|bias)", r"\1w2.\2"),
    (r"(blocks\.\d+\.mlp\.)norm\.(weight|bias)", r"\1norm.\2"),
    (r"(blocks\.\d+\.mlp\.)fc2\.(weight|bias)", r"\1w3.\2"),
]


_EVA_RULES: list[Rule] = [(r"(blocks\.\d+\.attn\.)([qv])_proj\.bias", r"\1\2_bias")]


def _split_gate(state: Mapping[str, Tensor]) -> StateDict:
    """Split timm's packed ``mlp.fc1`` into gate ``fc1_g`` and value ``fc1_x``."""
    split = dict(state)
    for key in state:
        if ".mlp.fc1." in key:
            gate, value = split.pop(key).chunk(2)
            split[key.replace("fc1", "fc1_g")] = gate
            split[key.replace("fc1", "fc1_x")] = value
    return split


def _fold_layer_scale(state: Mapping[str, Tensor]) -> StateDict:
    """Multiply the last layer of each residual branch by its layer scale (``ls1``, ``ls2``)."""
    folded = dict(state)
    for key in state:
        match = re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", key)
        if match is None:
            continue
        gamma = folded.pop(key)
        layer = match[1] + ("attn.proj" if match[2] == "1" else "mlp.fc2")
        folded[f"{layer}.weight"] = folded[f"{layer}.weight"] * gamma[:, None]
        if f"{layer}.bias" in folded:
            folded[f"{layer}.bias"] = folded[f"{layer}.bias"] * gamma
    return folded


def _split_qkv_bias(state: Mapping[str, Tensor]) -> StateDict:
    """Keep the biases of queries and values.

    That of the keys adds the same to all scores of a query, which the softmax takes away again;
    where keys turn with their position this would not hold.
    """
    split = dict(state)
    for key in state:
        if key.endswith(".attn.qkv.bias"):
            stem = key.removesuffix("qkv.bias")
            split[f"{stem}q_bias"], _, split[f"{stem}v_bias"] = split.pop(key).chunk(3)
    return split


def _place_positions(state: Mapping[str, Tensor], grid_size: Sequence[int] | None) -> StateDict:
    """Bring positions [1, P + H * W, C] into a grid [1, C, 1, H, W].

    Those of the class token and the registers, where there are any, are added to the tokens.
    """
    placed = dict(state)
    position = placed.pop("pos_embed")
    num_prefix = 1 + (placed["reg_token"].shape[1] if "reg_token" in placed else 0)
    count = position.shape[1]
    if grid_size is None:
        side = math.isqrt(count - num_prefix)
        side = side if side * side == count - num_prefix else math.isqrt(count)
        grid_size = side, side
    height, width = grid_size
    own, patches = position.tensor_split([count - height * width], dim=1)
    if own.shape[1] not in (0, num_prefix) or patches.shape[1] != height * width:
        raise ValueError(f"pos_embed has {count} positions, which no grid {height} x {width} has")
    if own.shape[1]:
        placed["cls_token"] = placed["cls_token"] + own[:, :1]
        if "reg_token" in placed:
            placed["reg_token"] = placed["reg_token"] + own[:, 1:]
    placed["pos_embed"] = patches.transpose(1, 2).unflatten(2, (1, height, width))
    return placed


def _inflate_patches(state: Mapping[str, Tensor]) -> StateDict:
    """Spread the patch kernel evenly along depth."""
    kernel = state["patch_embed.proj.weight"]
    return {**state, "patch_embed.proj.weight": inflate(kernel, kernel.shape[-1])}


def convert_timm_vit(
    state: Mapping[str, Tensor], *, grid_size: Sequence[int] | None = None
) -> StateDict:
    """Convert a timm ViT (``vit_*``, ``deit3_*``, DINOv2) into the state dict of a SPAD-ViT.

    Layer scale is folded into the layers before it, positions of class token and registers into
    the tokens, and the bias of the keys is left out: it has no effect. Build the target with
    ``rope_rescale=(0, 0, 0)``, ``pos_grid=(1, H, W)``, ``sub_ln=False``, ``mlp="gelu"`` or
    ``"swiglu"`` and ``norm_after_pool`` where the source has an ``fc_norm``.

    Args:
        state: State dict of a timm ``VisionTransformer`` with a class token.
        grid_size: Position grid (H, W); by default it is square.

    Returns:
        State dict of a :class:`spadnet.models.vit.SpadViT` of the same size.
    """
    _require(state, "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    state = _split_qkv_bias(_fold_layer_scale(state))
    fc1, fc2 = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[1]:
        state = _split_gate(state)
    return rename(_inflate_patches(_place_positions(state, grid_size)), _PLAIN_RULES)


def _require(state: Mapping[str, Tensor], *keys: str) -> None:
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"missing weights: {', '.join(missing)}")


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
    _require(state, "cls_token", "pos_embed", "patch_embed.proj.weight")
    derived = ("rope.", ".attn.k_bias")  # timm's buffers of fixed angles and zeros
    state = {
        key: value
        for key, value in _split_gate(join_qkv(state)).items()
        if not key.startswith(derived[0]) and not key.endswith(derived[1])
    }
    return rename(
        _inflate_patches(_place_positions(state, None)), [*VIT_RULES, *_PLAIN_RULES, *_EVA_RULES]
    )


def spad_vit_from_timm(
    model: nn.Module,
    *,
    patch_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> SpadViT:
    """Build the SPAD-ViT that computes what a timm ViT or EVA-02 computes, on 2D images.

    >>> source = timm.create_model("vit_small_patch14_dinov2")  # doctest: +SKIP
    >>> vit = spad_vit_from_timm(source, patch_size=16)  # doctest: +SKIP

    Args:
        model: A timm ``Eva`` or ``VisionTransformer`` such as ``eva02_base_patch14_224``.
        patch_size: Patch size to resample the kernel to: volumes of every degree need a power of
            two. By default it stays, and outputs are the same.
        mean: Mean per channel that the model itself subtracts; 0 by default, as timm's models take
            images that are normalised before.
        std: Standard deviation per channel that the model itself divides by, 1 by default.

    Raises:
        ValueError: If the model does something that a SPAD-ViT cannot.
    """
    source: Any = model
    state = dict(source.state_dict())
    if patch_size is not None and "patch_embed.proj.weight" in state:
        from timm.layers.patch_embed import resample_patch_embed  # seconds that loading can spare

        kernel = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, [patch_size, patch_size])
    if (rope := getattr(source, "rope", None)) is not None:
        if type(rope).__name__ != "RotaryEmbeddingCat":
            raise ValueError(f"a SPAD-ViT has no {type(rope).__name__}")
        converted = convert_timm_eva02(state)
        # timm leaves two-dimensional reference positions in its rotary embedding.
        reference = rope.ref_feat_shape
        rescale = (-1, *reference) if reference else (-1, -1, -1)
    else:
        _check_plain(source)
        converted = convert_timm_vit(state, grid_size=source.patch_embed.grid_size)
        rescale = (0, 0, 0)
    embed_dim, in_chans, size = converted["patch_embed.proj.weight"].shape[:3]
    vit = SpadViT(
        in_chans=in_chans,
        num_classes=converted["head.weight"].shape[0] if "head.weight" in converted else 0,
        patch_size=size,
        embed_dim=embed_dim,
        depth=len(source.blocks),
        num_heads=source.blocks[0].attn.num_heads,
        # Half a unit above, so that rounding never costs the last one.
        mlp_ratio=(converted["blocks.0.mlp.w1.weight"].shape[0] + 0.5) / embed_dim,
        qkv_bias="blocks.0.attn.q_bias" in converted,
        sub_ln="blocks.0.mlp.norm.weight" in converted,
        mlp="swiglu" if "blocks.0.mlp.w2.weight" in converted else "gelu",
        num_registers=converted["reg_token"].shape[1] if "reg_token" in converted else 0,
        pos_grid=converted["pos_embed"].shape[2:],
        rope_rescale=rescale,
        global_pool=source.global_pool,
        norm_after_pool="fc_norm.weight" in state,
        norm_eps=source.blocks[0].norm1.eps,
        mean=(0.0,) * in_chans if mean is None else mean,
        std=(1.0,) * in_chans if std is None else std,
    )
    missing = vit.state_dict().keys() - converted.keys()
    if missing:
        raise ValueError(f"missing weights: {', '.join(sorted(missing)[:5])}")
    vit.load_state_dict(converted)
    return vit


def _check_plain(source: Any) -> None:
    """Refuse what leaves no trace in the weights."""
    activation = getattr(source.blocks[0].mlp, "act", None)
    if (
        not isinstance(activation, nn.SiLU | nn.GELU)
        or getattr(activation, "approximate", "none") != "none"
    ):
        raise ValueError(f"a SPAD-ViT has no activation {activation}")
    if getattr(source, "pool_include_prefix", False):
        raise ValueError("a SPAD-ViT does not average the class token")
