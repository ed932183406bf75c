"""The two forms of the three steps that ``bench_steps.py`` times."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from straightforward import StraightMim, StraightTokenizer
from torch import Tensor, nn

from spadnet.data.masking import random_visible_index
from spadnet.losses.mim import soft_cross_entropy
from spadnet.losses.tokenizer import TokenizerLoss
from spadnet.models.frozen import FrozenTargets
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple
from spadnet.train.optim import OptimSettings, build_adamw

PRIOR_WEIGHT, ENTROPY_WEIGHT, CLIP, MASK_RATIO = 0.03, 1.0, 0.5, 0.55
LR, WEIGHT_DECAY = 1e-4, 0.05


class Size(NamedTuple):
    """How large the networks and their inputs are.

    Attributes:
        widths: Channels of the tokenizer.
        embed_dim: Width of the ViT.
        depth: Blocks of the ViT.
        num_heads: Attention heads of the ViT.
        codes: Codes of the tokenizer.
        image_tokens: Token grid of ``encode`` and ``mim_step``.
        crop_tokens: Token grid of ``tokenizer_step``.
    """

    widths: tuple[int, ...] = (128, 256, 512)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    codes: int = 1024
    image_tokens: tuple[int, int, int] = (5, 10, 10)
    crop_tokens: tuple[int, int, int] = (4, 8, 8)


BASE = Size()
TINY = Size((16, 16, 64), 64, 2, 1, 32, (2, 3, 3), (2, 2, 2))


class Step(NamedTuple):
    """One form of one step.

    Attributes:
        run: Does it once.
        outputs: What must equal that of the other form, by name; called before any ``run``.
    """

    run: Callable[[], object]
    outputs: Callable[[], dict[str, Tensor]]


class Setting(NamedTuple):
    """What a step is built for."""

    form: str
    size: Size
    degree: int
    precision: str

    def autocast(self) -> torch.autocast:
        """Autocast of spadnet's training; the straightforward form is float32."""
        mixed = self.form == "spadnet" and self.precision == "bf16-mixed"
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed)

    def volume(self, tokens: Sequence[int], *, batch: int, channels: int) -> Tensor:
        """A smooth image with noise: every code has something to tell."""
        steps = required_multiple(self.degree)
        size = [n * step for n, step in zip(tokens, steps, strict=True)]
        coarse = torch.rand(batch, channels, *(max(n // 8, 2) for n in size))
        smooth = nn.functional.interpolate(coarse, size, mode="trilinear")
        return (0.8 * smooth + 0.2 * torch.rand_like(smooth)).clamp(0, 1)


def build_tokenizer(size: Size) -> Tokenizer:
    """Build the tokenizer, the same in both processes."""
    torch.manual_seed(1)
    return Tokenizer(in_chans=3, widths=size.widths, codebook_size=size.codes)


def frozen_targets(setting: Setting) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Logits and distribution over codes of a grey image, [B, L, K] each, without gradients."""
    tokenizer, degree = build_tokenizer(setting.size).eval(), setting.degree
    if setting.form == "straightforward":
        straight = StraightTokenizer(tokenizer).requires_grad_(False)

        def whole(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = straight.encode(x.expand(-1, 3, -1, -1, -1), degree)
            probs = straight.quantize(logits)[0]
            return logits.flatten(1, 3), probs.flatten(1, 3)

        return whole
    dtype = torch.bfloat16 if setting.precision == "bf16-mixed" else torch.float32
    targets = FrozenTargets(tokenizer, dtype=dtype)

    def frozen(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = targets(x, degree)
        return logits, logits

    return frozen


def encode(setting: Setting) -> Step:
    """A grey image becomes logits of its tokens."""
    torch.manual_seed(0)
    x = setting.volume(setting.size.image_tokens, batch=1, channels=1)
    if setting.form == "spadnet":
        targets = frozen_targets(setting)
        return Step(lambda: targets(x), lambda: {"logits": targets(x)[0]})
    straight = StraightTokenizer(build_tokenizer(setting.size))

    @torch.no_grad()
    def run() -> Tensor:
        return straight.encode(x.expand(-1, 3, -1, -1, -1), setting.degree).flatten(1, 3)

    return Step(run, lambda: {"logits": run()})


def tokenizer_step(setting: Setting) -> Step:
    """Train the tokenizer on one crop, without a perceptual network and a discriminator."""
    torch.manual_seed(0)
    x, degree = setting.volume(setting.size.crop_tokens, batch=1, channels=3), setting.degree
    tokenizer = build_tokenizer(setting.size)
    kept = {"stem": tokenizer.encoder.stem.conv.weight, "head": tokenizer.decoder.head.weight}
    model: nn.Module
    if setting.form == "straightforward":
        model = straight = StraightTokenizer(tokenizer)
        optimizer = torch.optim.AdamW(straight.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

        def forward() -> tuple[Tensor, Tensor, Tensor]:
            rebuilt, logits, prior, entropy = straight(x, degree)
            loss = (rebuilt - x).abs().mean() + PRIOR_WEIGHT * prior + ENTROPY_WEIGHT * entropy
            return loss, rebuilt, logits
    else:
        model = tokenizer.to(memory_format=torch.channels_last_3d)
        optimizer = build_adamw(tokenizer, settings=OptimSettings(lr=LR, weight_decay=WEIGHT_DECAY))
        criterion = TokenizerLoss(
            perceptual_weight=0, prior_weight=PRIOR_WEIGHT, entropy_weight=ENTROPY_WEIGHT
        )

        def forward() -> tuple[Tensor, Tensor, Tensor]:
            with setting.autocast():
                rebuilt, tokens = tokenizer(x, degree)
                terms = criterion(rebuilt, x, tokens.logits, degree=degree)
            return terms.total, rebuilt, tokens.logits

    def outputs() -> dict[str, Tensor]:
        loss, rebuilt, logits = forward()
        loss.backward()
        gradients = {
            f"gradient of {k}": p.grad.clone() for k, p in kept.items() if p.grad is not None
        }
        model.zero_grad()
        return {"loss": loss, "reconstruction": rebuilt, "logits": logits, **gradients}

    def run() -> None:
        forward()[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return Step(run, outputs)


def mim_step(setting: Setting) -> Step:
    """Train the ViT on two masked grey images."""
    size, degree = setting.size, setting.degree
    torch.manual_seed(2)
    vit = SpadViT(embed_dim=size.embed_dim, depth=size.depth, num_heads=size.num_heads)
    mim = MaskedImageModel(vit, codebook_size=size.codes, num_mask_layers=1)
    targets = frozen_targets(setting)
    torch.manual_seed(0)
    x = setting.volume(size.image_tokens, batch=2, channels=1)
    visible = random_visible_index(
        2,
        torch.Size(size.image_tokens).numel(),
        mask_ratio=MASK_RATIO,
        generator=torch.Generator().manual_seed(0),
    )
    model: nn.Module
    if setting.form == "straightforward":
        model = straight = StraightMim(mim)
        optimizer = torch.optim.AdamW(straight.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

        def forward() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                target = targets(x)[1]
            logits = straight(x.expand(-1, 3, -1, -1, -1), visible, degree)
            is_masked = torch.ones(target.shape[:2], dtype=torch.bool).scatter(1, visible, False)
            target = target[is_masked].view(logits.shape)
            return -(target * logits.log_softmax(-1)).sum(-1).mean(), logits
    else:
        model = mim
        optimizer = build_adamw(mim, settings=OptimSettings(lr=LR, weight_decay=WEIGHT_DECAY))

        def forward() -> tuple[Tensor, Tensor]:
            target = targets(x)[0]
            with setting.autocast():
                output = mim(x.expand(-1, 3, -1, -1, -1), visible, target, degree)
                loss = soft_cross_entropy(output.logits, output.target, from_logits=True)
            return loss, output.logits

    def outputs() -> dict[str, Tensor]:
        mim.num_mask_layers = size.depth
        loss, logits = forward()
        loss.backward()
        kernel = vit.patch_embed.proj.weight
        assert kernel.grad is not None
        gradient = kernel.grad.clone()
        model.zero_grad()
        mim.num_mask_layers = 1
        return {
            "loss": loss,
            "logits": logits,
            "gradient of patch": gradient,
            "target": targets(x)[0],
        }

    def run() -> None:
        forward()[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return Step(run, outputs)


STEPS: dict[str, Callable[[Setting], Step]] = {
    "encode": encode,
    "tokenizer_step": tokenizer_step,
    "mim_step": mim_step,
}
