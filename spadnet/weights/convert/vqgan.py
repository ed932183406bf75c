"""VQGAN weights in the naming of taming-transformers, for a tokenizer of the VQGAN form."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.convert.inflation import inflate_convolutions
from spadnet.weights.convert.rename import Rule, StateDict, rename

_BLOCK = r"(norm1|norm2|conv1|conv2)\.(weight|bias)"
_ATTENTION = r"(norm|qkv|proj)\.(weight|bias)"
_RULES: list[Rule] = [
    (r"(encoder|decoder)\.conv_in\.(weight|bias)", r"\1.stem.\2"),
    (r"(encoder|decoder)\.conv_out\.(weight|bias)", r"\1.head.\2"),
    (r"(encoder|decoder)\.norm_out\.(weight|bias)", r"\1.norm.\2"),
    (rf"(encoder|decoder)\.mid\.block_1\.{_BLOCK}", r"\1.middle.first.\2.\3"),
    (rf"(encoder|decoder)\.mid\.block_2\.{_BLOCK}", r"\1.middle.second.\2.\3"),
    (rf"(encoder|decoder)\.mid\.attn_1\.{_ATTENTION}", r"\1.middle.attention.\2.\3"),
    (
        rf"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.{_BLOCK}",
        r"\1.stages.\2.blocks.\3.\4.\5",
    ),
    (
        r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut\.(weight|bias)",
        r"\1.stages.\2.blocks.\3.shortcut.\4",
    ),
    (
        rf"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)\.{_ATTENTION}",
        r"\1.stages.\2.attention.\3.\4.\5",
    ),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.(weight|bias)", r"encoder.downs.\1.\2"),
    (
        r"decoder\.up\.(\d+)\.upsample\.conv\.(weight|bias)",
        lambda match: f"decoder.ups.{int(match[1]) - 1}.{match[2]}",
    ),
    (r"post_quant_conv\.(weight|bias)", r"decoder.project.\1"),
    (r"quantize\.embedding\.weight", "quantizer.codebook"),
]


def _join_attention(state: Mapping[str, Tensor]) -> StateDict:
    """Join 1x1 convolutions ``q``, ``k``, ``v`` into one linear layer; ``proj_out`` becomes one."""
    joined = dict(state)
    for key in state:
        match = re.fullmatch(r"(.*\.attn(?:_1|\.\d+)\.)q\.(weight|bias)", key)
        if match is None:
            continue
        stem, kind = match[1], match[2]
        parts = [
            joined.pop(f"{stem}{name}.{kind}").flatten(1 if kind == "weight" else 0)
            for name in "qkv"
        ]
        joined[f"{stem}qkv.{kind}"] = torch.cat(parts)
        proj = joined.pop(f"{stem}proj_out.{kind}")
        joined[f"{stem}proj.{kind}"] = proj.flatten(1) if kind == "weight" else proj
    return joined


def _merge_quant_conv(state: Mapping[str, Tensor]) -> StateDict:
    """Merge ``quant_conv``, a 1x1 convolution, into the encoder's last convolution, exactly."""
    merged = dict(state)
    mix, shift = merged.pop("quant_conv.weight").flatten(1), merged.pop("quant_conv.bias")
    weight, bias = merged["encoder.conv_out.weight"], merged["encoder.conv_out.bias"]
    merged["encoder.conv_out.weight"] = torch.einsum("oc,cihw->oihw", mix, weight)
    merged["encoder.conv_out.bias"] = mix @ bias + shift
    return merged


def convert_vqgan(state: Mapping[str, Tensor]) -> StateDict:
    """Convert a VQGAN in the naming of taming-transformers.

    The losses inside a training checkpoint (``loss.*``: LPIPS and discriminator) are no part of the
    tokenizer and are left out.

    Args:
        state: State dict of a ``VQModel`` with nearest codes.

    Returns:
        State dict of a :class:`spadnet.models.tokenizer.Tokenizer` with
        ``quantizer="nearest"`` and ``num_residual_blocks``.

    Raises:
        ValueError: If it is no such model.
    """
    own = {key: value for key, value in state.items() if not key.startswith("loss.")}
    needed = ("quant_conv.weight", "quant_conv.bias", "encoder.conv_out.weight")
    if missing := [key for key in (*needed, "quantize.embedding.weight") if key not in own]:
        raise ValueError(f"not a VQGAN with nearest codes, missing weights: {', '.join(missing)}")
    try:
        own = _merge_quant_conv(_join_attention(own))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"not the weights of a VQGAN: {error}") from error
    converted = inflate_convolutions(rename(own, _RULES))
    codes = converted["quantizer.codebook"]
    converted["quantizer.usage"] = codes.new_ones(codes.shape[0])
    converted["quantizer.latent_sum"] = codes.clone()
    return converted


def tokenizer_from_vqgan(state: Mapping[str, Tensor]) -> Tokenizer:
    """Build the tokenizer that computes what a VQGAN computes, on 2D images at degree 5.

    It takes intensities in [0, 1], where the VQGAN takes -1 to 1.

    Args:
        state: State dict as for :func:`convert_vqgan`.

    Raises:
        ValueError: If it is that of something else than a VQGAN.
    """
    converted = convert_vqgan(state)

    def widths(part: str) -> list[int]:
        pattern = rf"{part}\.stages\.(\d+)\.blocks\.0\.conv1\.weight"
        found = {
            int(m[1]): converted[k].shape[0] for k in converted if (m := re.fullmatch(pattern, k))
        }
        return [found[level] for level in sorted(found)]

    blocks = {
        m[1] for key in converted if (m := re.match(r"encoder\.stages\.0\.blocks\.(\d+)", key))
    }
    attends = {
        m[1] for key in converted if (m := re.match(r"encoder\.stages\.(\d+)\.attention", key))
    }
    codebook_size, code_dim = converted["quantizer.codebook"].shape
    tokenizer = Tokenizer(
        in_chans=converted["encoder.stem.weight"].shape[1],
        widths=widths("encoder"),
        decoder_widths=widths("decoder"),
        stem_stride=1,
        codebook_size=codebook_size,
        code_dim=code_dim,
        quantizer="nearest",
        num_residual_blocks=len(blocks),
        attention_levels=sorted(int(level) for level in attends),
    )
    own = tokenizer.state_dict()
    odd = {k for k in own.keys() | converted.keys() if k not in own or k not in converted}
    odd |= {k for k in own.keys() & converted.keys() if own[k].shape != converted[k].shape}
    if odd:
        raise ValueError(f"a VQGAN of another form; it differs in {', '.join(sorted(odd)[:5])}")
    tokenizer.load_state_dict(converted)
    return tokenizer
