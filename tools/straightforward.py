"""Tokenizer and masked image model as one would write them down first: the yardstick of speed.

A competent port of the published networks without a thought of the machine: float32, the default
layout, taps summed at every call, a convolution for every convolution, queries, keys and values by
a product each, attention spelled out, mask tokens in every layer, the whole quantizer for a target.
Weights are copied from spadnet's models, so that outputs can be compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.attention import RotaryAttention
from spadnet.layers.block import Block
from spadnet.layers.patch_embed import resample_position_grid
from spadnet.layers.rope import rotary_angles
from spadnet.layers.spad_conv import SpadConv3d, SpadConvTranspose3d
from spadnet.models.autoencoder import ConvBlock
from spadnet.models.mim import MaskedImageModel, complement_index
from spadnet.models.quantizer import SoftQuantizer
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import depth_stride


def sum_taps(weight: Tensor, taps: int) -> Tensor:
    """Sum groups of adjacent depth taps of [.., k, k, k] so that ``taps`` remain."""
    size = weight.shape[-3]
    return weight if taps == size else weight.unflatten(-3, (taps, size // taps)).sum(-3)


class Conv(nn.Module):
    """Convolution that folds its kernel at every call."""

    def __init__(self, source: SpadConv3d) -> None:
        super().__init__()
        self.stride = source.stride
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor, degree: int) -> Tensor:
        size, stride = self.weight.shape[-1], self.stride
        if size == stride:
            step = depth_stride(stride, degree)
            kernel = sum_taps(self.weight, step)
            return F.conv3d(x, kernel, self.bias, stride=(step, stride, stride))
        if degree == 0:
            return F.conv3d(x, self.weight, self.bias, stride=stride, padding=1)
        kernel = sum_taps(self.weight, 1)
        return F.conv3d(x, kernel, self.bias, stride=(1, stride, stride), padding=(0, 1, 1))


class ConvTranspose(nn.Module):
    """Transposed convolution with kernel = stride that folds its kernel at every call."""

    def __init__(self, source: SpadConvTranspose3d) -> None:
        super().__init__()
        self.stride = source.stride
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor, degree: int) -> Tensor:
        step = depth_stride(self.stride, degree)
        kernel = sum_taps(self.weight, step) * (step / self.stride)
        return F.conv_transpose3d(x, kernel, self.bias, stride=(step, self.stride, self.stride))


class NormGelu(nn.Module):
    """Channel LayerNorm and GELU."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
        self.norm.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.movedim(1, -1)).movedim(-1, 1).contiguous()
        return F.gelu(x)


class Block3(nn.Module):
    """3x3x3 convolution, GroupNorm, LeakyReLU."""

    def __init__(self, source: ConvBlock) -> None:
        super().__init__()
        self.conv, self.norm = Conv(source.conv), source.norm

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x, degree)), 0.01)


class StraightTokenizer(nn.Module):
    """The tokenizer with the soft quantizer."""

    def __init__(self, source: Tokenizer) -> None:
        super().__init__()
        encoder, decoder, quantizer = source.encoder, source.decoder, source.quantizer
        assert isinstance(quantizer, SoftQuantizer)
        stages = [encoder.stem, *encoder.downs]
        self.downs = nn.ModuleList(Conv(stage.conv) for stage in stages)
        self.norms = nn.ModuleList(NormGelu(stage.norm) for stage in stages)
        self.encoder_blocks = nn.ModuleList(Block3(block) for block in encoder.blocks)
        self.proj, self.codebook = quantizer.proj, quantizer.codebook
        self.decoder_blocks = nn.ModuleList(Block3(block) for block in decoder.blocks)
        self.ups = nn.ModuleList(ConvTranspose(up.up) for up in decoder.ups)
        self.up_blocks = nn.ModuleList(Block3(up.block) for up in decoder.ups)
        self.head = ConvTranspose(decoder.head)

    def encode(self, x: Tensor, degree: int) -> Tensor:
        """Logits [B, d, h, w, K] of volumes [B, C, D, H, W] in [0, 1]."""
        x, level = 2 * x - 1, 0
        for conv, norm in zip(self.downs, self.norms, strict=True):
            x = norm(conv(x, max(degree - level, 0)))
            level += conv.stride.bit_length() - 1
        for block in self.encoder_blocks:
            x = block(x, max(degree - level, 0))
        return self.proj(x.movedim(1, -1))

    def quantize(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Probabilities, mixture of codes [B, C, d, h, w], prior loss, mean entropy."""
        probs = logits.softmax(-1)
        mean = probs.flatten(0, -2).mean(0)
        prior = (mean * mean.log()).sum()
        entropy = -(probs * logits.log_softmax(-1)).sum(-1).mean()
        mixture = (probs @ self.codebook).movedim(-1, 1).contiguous()
        return probs, mixture, prior, entropy

    def forward(self, x: Tensor, degree: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruction, logits, prior loss and mean entropy."""
        logits = self.encode(x, degree)
        _, z, prior, entropy = self.quantize(logits)
        level = len(self.ups) + self.head.stride.bit_length() - 1
        for block in self.decoder_blocks:
            z = block(z, max(degree - level, 0))
        for up, block in zip(self.ups, self.up_blocks, strict=True):
            level -= 1
            z = block(up(z, max(degree - level, 0)), max(degree - level, 0))
        return (self.head(z, degree) + 1) / 2, logits, prior, entropy


class StraightBlock(nn.Module):
    """Transformer block with separate products and attention spelled out."""

    def __init__(self, source: Block) -> None:
        super().__init__()
        attn: RotaryAttention = source.attn
        width = attn.proj.in_features
        assert attn.q_bias is not None
        assert attn.v_bias is not None
        self.num_heads = attn.num_heads
        self.norm1, self.norm2, self.mlp, self.proj = (
            source.norm1,
            source.norm2,
            source.mlp,
            attn.proj,
        )
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width, bias=with_bias) for with_bias in (True, False, True)
        )
        with torch.no_grad():
            parts = attn.qkv.weight.chunk(3)
            for linear, part in zip((self.q_proj, self.k_proj, self.v_proj), parts, strict=True):
                linear.weight.copy_(part)
            self.q_proj.bias.copy_(attn.q_bias)
            self.v_proj.bias.copy_(attn.v_bias)

    def heads(self, x: Tensor) -> Tensor:
        """Split [B, T, C] into [B, heads, T, d]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn all tokens but the class token."""
        token, rest = x[:, :, :1], x[:, :, 1:]
        half = torch.stack((-rest[..., 1::2], rest[..., ::2]), dim=-1).flatten(-2)
        return torch.cat((token, rest * cos + half * sin), dim=2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Transform tokens [B, 1 + L, C]."""
        y = self.norm1(x)
        q, k, v = (self.heads(linear(y)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class StraightMim(nn.Module):
    """Masked image model whose mask tokens enter at the first layer."""

    def __init__(self, source: MaskedImageModel) -> None:
        super().__init__()
        vit = source.vit
        self.mean, self.std = vit.get_buffer("mean"), vit.get_buffer("std")
        self.patch_weight, self.patch_bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
        self.pos_embed, self.cls_token = vit.pos_embed, vit.cls_token
        self.mask_token, self.head, self.norm = source.mask_token, source.head, vit.norm
        self.blocks = nn.ModuleList(StraightBlock(block) for block in vit.blocks)
        self.head_dim = vit.rope.head_dim

    def forward(self, x: Tensor, visible_index: Tensor, degree: int) -> Tensor:
        """Logits [B, M, K] at masked positions of volumes [B, C, D, H, W] in [0, 1]."""
        size = self.patch_weight.shape[-1]
        step = depth_stride(size, degree)
        kernel = sum_taps(self.patch_weight, step)
        x = F.conv3d((x - self.mean) / self.std, kernel, self.patch_bias, stride=(step, size, size))
        grid = x.shape[2:]
        angles = rotary_angles(grid, self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        positions = resample_position_grid(self.pos_embed, grid).flatten(2).transpose(1, 2)
        tokens = x.flatten(2).transpose(1, 2) + positions
        index = visible_index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        sequence = self.mask_token.expand(tokens.shape).scatter(1, index, tokens.gather(1, index))
        sequence = torch.cat((self.cls_token.expand(len(x), -1, -1), sequence), dim=1)
        for block in self.blocks:
            sequence = block(sequence, cos, sin)
        hidden = self.norm(sequence)[:, 1:]
        masked = complement_index(visible_index, hidden.shape[1]).unsqueeze(-1)
        return self.head(hidden.gather(1, masked.expand(-1, -1, hidden.shape[-1])))
