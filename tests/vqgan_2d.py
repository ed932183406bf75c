"""A 2D VQGAN with the weights' names of taming-transformers, as the papers describe it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # [B, C, L]
        scores = torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5
        mixed = torch.einsum("bij,bcj->bci", scores.softmax(-1), v)
        return x + self.proj_out(mixed.unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = Residual(channels, channels), Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, 2 if down else 1, 0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, before: int, after: int, count: int, *, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(after if i else before, after) for i in range(count))
        self.attn = nn.ModuleList(Attention(after) for _ in range(count if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return x


class Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], z: int, count: int, attends: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, count, attends=i in attends)
            if i < len(widths) - 1:
                level.downsample = Resample(width, down=True)
            self.down.append(level)
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], z: int, count: int, attends: Sequence[int]) -> None:
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(z, widths[-1], 3, padding=1), Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[min(i + 1, len(widths) - 1)]
            level = Level(before, width, count + 1, attends=i in attends)
            if i:
                level.upsample = Resample(width, down=False)
            self.up.append(level)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Vqgan(nn.Module):
    """Images in [-1, 1] to codes and back."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 32, 64),
        *,
        codes: int = 16,
        code_dim: int = 8,
        count: int = 2,
        attends: Sequence[int] = (2,),
    ) -> None:
        super().__init__()
        self.encoder = Encoder(widths, code_dim, count, attends)
        self.decoder = Decoder(widths, code_dim, count, attends)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, code_dim)
        self.quant_conv = nn.Conv2d(code_dim, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, code_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct [B, 3, H, W]; also return the chosen codes [B, h, w]."""
        z = self.quant_conv(self.encoder(x)).movedim(1, -1)
        codes = self.quantize.embedding.weight
        index = torch.cdist(z.flatten(0, 2), codes).argmin(-1).view(z.shape[:3])
        return self.decoder(self.post_quant_conv(codes[index].movedim(-1, 1))), index
