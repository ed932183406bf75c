"""SPAD-ViT: an EVA-02 style vision transformer whose patches and positions follow the spacing.

Pre-norm blocks with sub-LN SwiGLU, queries and values with bias, a learned position grid resampled
to the token grid, a class token, and 3D rotary positions. At degree 5 it is the 2D EVA-02.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spadnet.layers.block import Block, MlpKind
from spadnet.layers.patch_embed import PatchEmbed, resample_position_grid
from spadnet.layers.rope import RotaryEmbedding3d
from spadnet.models.intermediates import FeatureMap, TokenFormat, as_feature_map, chosen_blocks
from spadnet.models.pooling import GlobalPool, known_pool, pool_tokens, pooled_width
from spadnet.models.vit_init import init_linear, init_transformer
from spadnet.spacing import MAX_DEGREE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = (0.5,)
GREY_STD = (0.25,)


class SpadViT(nn.Module):
    """Vision transformer for 2D and 3D images of any spacing.

    >>> vit = SpadViT(in_chans=1, num_classes=3, embed_dim=64, depth=2, num_heads=1)
    >>> vit(torch.rand(2, 1, 8, 32, 32), degree=2).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 0,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 8 / 3,
        qkv_bias: bool = True,
        sub_ln: bool = True,
        mlp: MlpKind = "swiglu",
        num_registers: int = 0,
        pos_grid: Sequence[int] = (5, 10, 10),
        rope_base: float = 10000.0,
        rope_depth_base: float = 2333.0,
        rope_rescale: Sequence[int] = (-1, -1, -1),
        global_pool: GlobalPool = "token",
        norm_after_pool: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-5,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Build the model; the defaults are the published base size.

        Args:
            in_chans: Channels of the image.
            num_classes: Width of the classifier's output, 0 for features only.
            patch_size: In-plane patch size in pixels.
            embed_dim: Token width.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            mlp_ratio: Hidden width of the feed-forward layers over the token width.
            qkv_bias: Whether queries and values have a bias.
            sub_ln: Whether the feed-forward layers have an inner LayerNorm.
            mlp: Kind of the feed-forward layers, ``"swiglu"`` or the plain ViT's ``"gelu"``.
            num_registers: Learned tokens beside the class token that stand for no place.
            pos_grid: Size (D, H, W) of the learned position grid.
            rope_base: In-plane base of the rotary frequencies.
            rope_depth_base: Depth base of the rotary frequencies.
            rope_rescale: Positions that the axes are mapped to, -1 to count tokens, 0 to leave an
                axis unturned.
            global_pool: ``"token"`` classifies the class token, ``"avg"`` the mean token,
                ``"avgstd"`` mean and standard deviation of the tokens, ``""`` each token.
            norm_after_pool: Whether the final norm acts on the pooled token (timm's ``fc_norm``).
            drop_rate: Dropout before the classifier.
            drop_path_rate: Chance of dropping a residual branch in the last block, rising to it.
            norm_eps: Epsilon of all LayerNorms; 1e-5 as released, 1e-6 in timm's EVA-02.
            mean: Mean per channel subtracted from intensities in [0, 1].
            std: Standard deviation per channel they are divided by.
        """
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1 + num_registers
        self.global_pool: GlobalPool = known_pool(global_pool, norm_after_pool=norm_after_pool)
        self.norm_after_pool = norm_after_pool
        self.mlp_kind: MlpKind = mlp
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate
        self.grad_checkpointing = False
        # Plain floats beside the buffers: those round to the precision the model is moved to.
        default_mean = IMAGENET_MEAN if in_chans == 3 else GREY_MEAN * in_chans
        default_std = IMAGENET_STD if in_chans == 3 else GREY_STD * in_chans
        self.intensity_mean = tuple(float(v) for v in (default_mean if mean is None else mean))
        self.intensity_std = tuple(float(v) for v in (default_std if std is None else std))
        self.register_intensity()
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        registers = torch.zeros(1, num_registers, embed_dim)
        self.reg_token = nn.Parameter(registers) if num_registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *pos_grid))
        self.rope = RotaryEmbedding3d(
            embed_dim // num_heads,
            base=rope_base,
            depth_base=rope_depth_base,
            rescale=rope_rescale,
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                sub_ln=sub_ln,
                mlp=mlp,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_eps=norm_eps,
            )
            for i in range(depth)
        )
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size}
            for i in range(depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head_drop = nn.Dropout(drop_rate)
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.head: nn.Module = head
        init_transformer(self, self.blocks, tokens=(self.pos_embed, self.cls_token, self.reg_token))

    @property
    def head_hidden_size(self) -> int:
        """Width of the pooled feature, which the classifier takes."""
        return pooled_width(self.global_pool, self.embed_dim)

    def register_intensity(self) -> None:
        """Make the buffers ``mean`` and ``std``; needed again after a build on the meta device."""
        for name, values in (("mean", self.intensity_mean), ("std", self.intensity_std)):
            if len(values) != self.in_chans:
                raise ValueError(f"{name} has {len(values)} values for {self.in_chans} channels")
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        return {
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "patch_size": self.patch_embed.patch_size,
            "embed_dim": self.embed_dim,
            "depth": len(self.blocks),
            "num_heads": first.attn.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": first.attn.q_bias is not None,
            "sub_ln": isinstance(first.mlp.norm, nn.LayerNorm),
            "mlp": self.mlp_kind,
            "num_registers": self.num_prefix_tokens - 1,
            "pos_grid": list(self.pos_embed.shape[2:]),
            "rope_base": self.rope.base,
            "rope_depth_base": self.rope.depth_base,
            "rope_rescale": list(self.rope.rescale),
            "global_pool": self.global_pool,
            "norm_after_pool": self.norm_after_pool,
            "drop_rate": self.head_drop.p,
            "drop_path_rate": self.drop_path_rate,
            "norm_eps": first.norm1.eps,
            "mean": list(self.intensity_mean),
            "std": list(self.intensity_std),
        }

    # --- tokens ---

    def normalise(self, x: Tensor, degree: int | None) -> tuple[Tensor, int]:
        """Check and normalise an image in [0, 1]; a 4D tensor is a batch of 2D images."""
        if x.ndim == 4:
            x, degree = x.unsqueeze(2), MAX_DEGREE
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the model takes [B, {self.in_chans}, D, H, W] or [B, {self.in_chans}, H, W], "
                f"got {list(x.shape)}"
            )
        if degree is None:
            raise ValueError("a volume needs a degree: Spacing(z, y, x).degree()")
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (x - mean.to(x.dtype)) / std.to(x.dtype), degree

    def positions(self, grid_size: Sequence[int]) -> Tensor:
        """Learned positions [1, L, C] of a token grid (D, H, W)."""
        return resample_position_grid(self.pos_embed, grid_size).flatten(2).transpose(1, 2)

    def run_blocks(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        start: int = 0,
        stop: int | None = None,
        num_outputs: int | None = None,
    ) -> Tensor:
        """Send tokens [B, P + L, C] through the blocks ``start`` to ``stop``.

        The last of these blocks computes only the last ``num_outputs`` tokens, None for all.
        """
        blocks = self.blocks[start:stop]
        for left, block in zip(reversed(range(len(blocks))), blocks, strict=True):
            wanted = num_outputs if left == 0 else None
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, cos, sin, wanted, use_reentrant=False)
            else:
                x = block(x, cos, sin, wanted)
        return x

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """Put the class token and the registers before tokens [B, L, C]."""
        own = (self.cls_token,) if self.reg_token is None else (self.cls_token, self.reg_token)
        prefix = (token.expand(tokens.shape[0], -1, -1).to(tokens) for token in own)
        return torch.cat((*prefix, tokens), dim=1)

    def embed(self, x: Tensor, degree: int | None) -> tuple[Tensor, tuple[int, int, int]]:
        """Tokens [B, P + L, C] before the first block, and the token grid (D, H, W)."""
        x, known = self.normalise(x, degree)
        grid = self.patch_embed.grid_size(x.shape[-3:], known)
        return self.with_class_token(self.patch_embed(x, known) + self.positions(grid)), grid

    # --- timm's manners ---

    def forward_features(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Return tokens [B, P + L, C] after the final norm, class token and registers first.

        Args:
            x: Image in [0, 1], [B, C_in, D, H, W], or [B, C_in, H, W] for 2D.
            degree: Degree of anisotropy; 2D images need none.
        """
        tokens, grid = self.embed(x, degree)
        tokens = self.run_blocks(tokens, *self.rope(grid, x.device))
        return tokens if self.norm_after_pool else self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens [B, P + L, C] and classify them; ``pre_logits`` stops before."""
        x = pool_tokens(x, self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(self.norm(x) if self.norm_after_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Return logits [B, num_classes], or pooled features [B, C or 2C] without a classifier."""
        return self.forward_head(self.forward_features(x, degree))

    def forward_intermediates(
        self,
        x: Tensor,
        degree: int | None = None,
        *,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: TokenFormat = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return features as :meth:`forward_features` does, and feature maps after chosen blocks.

        Args:
            x: Image in [0, 1], as for :meth:`forward_features`.
            degree: Degree of anisotropy; 2D images need none.
            indices: Blocks by number, the last n, or all.
            return_prefix_tokens: Whether each map comes with its class token and registers,
                [B, P, C].
            norm: Whether to apply the final norm to each map.
            stop_early: Whether to leave out the blocks after the last chosen one.
            output_fmt: ``"NCHW"`` for maps [B, C, d, h, w], or [B, C, h, w] of a 4D input;
                ``"NLC"`` for tokens [B, L, C].
            intermediates_only: Whether to return the list of maps alone.

        Returns:
            Features [B, P + L, C] and the list of maps in the order of the blocks.
        """
        wanted = chosen_blocks(len(self.blocks), indices)
        tokens, grid = self.embed(x, degree)
        cos, sin = self.rope(grid, x.device)
        shape = grid[1:] if x.ndim == 4 else grid
        maps: dict[int, FeatureMap] = {}
        for i in range(max(wanted) + 1 if stop_early or intermediates_only else len(self.blocks)):
            tokens = self.run_blocks(tokens, cos, sin, start=i, stop=i + 1)
            if i in wanted:
                kept = self.norm(tokens) if norm else tokens
                prefix, patches = kept.tensor_split([self.num_prefix_tokens], dim=1)
                feature_map = as_feature_map(patches, shape, output_fmt)
                maps[i] = (feature_map, prefix) if return_prefix_tokens else feature_map
        chosen = [maps[i] for i in wanted]
        if intermediates_only:
            return chosen
        return tokens if self.norm_after_pool else self.norm(tokens), chosen

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the feature maps of chosen blocks do not need; return the blocks' numbers."""
        wanted = chosen_blocks(len(self.blocks), indices)
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the classifier by a new one, or by none for ``num_classes=0``."""
        if global_pool is not None:
            self.global_pool = known_pool(global_pool, norm_after_pool=self.norm_after_pool)
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.head_hidden_size, num_classes).to(self.cls_token)
            init_linear(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute blocks in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return {"pos_embed", "cls_token"} | ({"reg_token"} if self.reg_token is not None else set())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }
