"""State dicts whose keys get other names, every one of them accounted for."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def rename(state: Mapping[str, Tensor], rules: list[Rule]) -> StateDict:
    """Rename each key by the first rule that matches it whole.

    Raises:
        ValueError: If no rule matches a key.
    """
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


def join_qkv(state: Mapping[str, Tensor]) -> StateDict:
    """Join ``attn.{q,k,v}_proj.weight`` into the one product ``attn.qkv.weight``."""
    joined = dict(state)
    for key in state:
        if key.endswith(".attn.q_proj.weight"):
            stem = key.removesuffix("q_proj.weight")
            parts = [joined.pop(f"{stem}{name}_proj.weight") for name in "qkv"]
            joined[f"{stem}qkv.weight"] = torch.cat(parts)
    return joined


VIT_RULES: list[Rule] = [
    (r"(patch_embed\.proj\.(?:weight|bias))", r"\1"),
    (r"(cls_token|pos_embed|mask_token)", r"\1"),
    (r"(norm\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.proj)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.attn\.(?:qkv\.weight|q_bias|v_bias))", r"\1"),
    (r"(blocks\.\d+\.mlp\.w[123]\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.mlp\.)ffn_ln\.(weight|bias)", r"\1norm.\2"),
]
