"""Quantizers: how a latent vector becomes a distribution over codes and a mixture of them.

All three share one form: ``logits = Linear(z)`` or negative squared distances, and a codebook whose
rows are mixed. Temperature is an argument, so that nothing is hidden in the module.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.ranks import num_ranks, own_rank, own_rows, sum_over_ranks

QuantizerKind = Literal["soft", "gumbel", "nearest"]


class QuantizerOutput(NamedTuple):
    """What a quantizer returns.

    Attributes:
        quantized: Mixture of codes, [B, C, d, h, w].
        logits: Unnormalised log-probabilities of the codes, [B, d, h, w, K].
        index: Most probable code, [B, d, h, w].
        losses: Losses of the quantizer itself (commitment), scalars by name.
    """

    quantized: Tensor
    logits: Tensor
    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index, on purpose
    losses: dict[str, Tensor]


def cosine_temperature(progress: float, *, start: float = 0.9, end: float = 1e-6) -> float:
    """Temperature of the gumbel quantizer after a share ``progress`` in [0, 1] of training."""
    share = min(max(progress, 0.0), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


class SoftQuantizer(nn.Module):
    """Soft or gumbel tokens: ``p = softmax(Linear(z))``, quantized = ``p @ codebook``.

    ``gumbel=True`` adds Gumbel noise in training and divides by the temperature; ``hard=True``
    passes the one-hot choice forward and the soft gradient back (straight-through).
    """

    def __init__(
        self,
        codebook_size: int,
        embed_dim: int,
        *,
        gumbel: bool = False,
        hard: bool = False,
        norm_latent: bool = False,
        latent_dim: int | None = None,
    ) -> None:
        """Build the quantizer.

        Args:
            codebook_size: Number of codes K.
            embed_dim: Width of a code.
            gumbel: Whether to sample in training.
            hard: Whether a sample is one code instead of a mixture.
            norm_latent: Whether a LayerNorm precedes the logits.
            latent_dim: Width of a latent, that of a code by default.
        """
        super().__init__()
        latent_dim = latent_dim or embed_dim
        self.gumbel = gumbel
        self.hard = hard
        self.norm = nn.LayerNorm(latent_dim) if norm_latent else nn.Identity()
        self.proj = nn.Linear(latent_dim, codebook_size)
        self.codebook = nn.Parameter(torch.empty(codebook_size, embed_dim))
        nn.init.normal_(self.codebook)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.shape[0]

    def logits(self, z: Tensor) -> Tensor:
        """Logits [B, d, h, w, K] of latents [B, C, d, h, w]."""
        return self.proj(self.norm(z.movedim(1, -1)))

    def lookup(self, index: Tensor) -> Tensor:
        """Codes [B, C, d, h, w] of an index [B, d, h, w]."""
        return self.codebook[index].movedim(-1, 1)

    def mix(self, probs: Tensor) -> Tensor:
        """Mix codes by probabilities [B, d, h, w, K] into [B, C, d, h, w]."""
        return (probs @ self.codebook.to(probs.dtype)).movedim(-1, 1)

    def forward(
        self, z: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> QuantizerOutput:
        """Quantize latents.

        Args:
            z: Latents, [B, C, d, h, w].
            temperature: Divides the logits of the gumbel form.
            generator: Source of the Gumbel noise, alike on all ranks.
        """
        logits = self.logits(z)
        index = logits.argmax(-1)
        noisy = logits
        if self.gumbel and self.training:
            # Drawn for the whole batch, so that a sample's noise does not depend on the ranks.
            whole = (logits.shape[0] * num_ranks(), *logits.shape[1:])
            uniform = own_rows(torch.rand(whole, generator=generator, device=z.device))
            noise = -torch.log((-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20))
            noisy = (logits.float() + noise) / max(temperature, 1e-6)
        probs = noisy.softmax(-1)
        if self.gumbel and self.hard:
            one_hot = F.one_hot(noisy.argmax(-1), self.codebook_size).to(probs.dtype)
            probs = one_hot + probs - probs.detach()
        return QuantizerOutput(self.mix(probs), logits, index, {})

    @torch.no_grad()
    def start_from(self, centroids: Tensor, *, temperature: float) -> None:
        """Start from cluster centres of normalised latents.

        The logits become ``-|z - c|^2 / temperature`` up to a constant per position.

        Args:
            centroids: Cluster centres of ``self.norm(z)``, [K, C].
            temperature: Softness; smaller is sharper.
        """
        self.codebook.copy_(centroids)
        self.proj.weight.copy_(2 * centroids / temperature)
        self.proj.bias.copy_(-centroids.square().sum(-1) / temperature)


class NearestQuantizer(nn.Module):
    """Vector quantization: nearest code, straight-through gradient, averaged codebook.

    The codebook is a moving average of the latents that chose each code (van den Oord et al.,
    arXiv 1711.00937, appendix A); a code used less than ``revive_below`` is moved onto a latent of
    the current batch. All ranks see the same statistics.
    """

    codebook: Tensor
    usage: Tensor
    latent_sum: Tensor

    def __init__(
        self,
        codebook_size: int,
        embed_dim: int,
        *,
        commitment: float = 0.25,
        decay: float = 0.99,
        revive_below: float = 0.03,
        norm_latent: bool = False,
    ) -> None:
        """Build the quantizer.

        Args:
            codebook_size: Number of codes K.
            embed_dim: Width of a code.
            commitment: Weight of the loss that keeps latents near their code.
            decay: Decay of the codebook's moving averages.
            revive_below: Expected uses per step under which a code counts as dead.
            norm_latent: Whether a LayerNorm precedes the distances.
        """
        super().__init__()
        self.commitment = commitment
        self.decay = decay
        self.revive_below = revive_below
        self.norm = nn.LayerNorm(embed_dim) if norm_latent else nn.Identity()
        self.register_buffer("codebook", torch.randn(codebook_size, embed_dim))
        self.register_buffer("usage", torch.ones(codebook_size))
        self.register_buffer("latent_sum", self.codebook.clone())

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.shape[0]

    def logits(self, z: Tensor) -> Tensor:
        """Negative squared distances [B, d, h, w, K] to the codes."""
        return self._distances(self.norm(z.movedim(1, -1)))

    def _distances(self, latent: Tensor) -> Tensor:
        latent, codebook = latent.float(), self.codebook.float()
        if self.training:
            codebook = codebook.clone()  # the update in place must not reach the gradient
        cross = latent @ codebook.t()
        return 2 * cross - latent.square().sum(-1, keepdim=True) - codebook.square().sum(-1)

    def lookup(self, index: Tensor) -> Tensor:
        """Codes [B, C, d, h, w] of an index [B, d, h, w]."""
        return self.codebook[index].movedim(-1, 1)

    def mix(self, probs: Tensor) -> Tensor:
        """Mix codes by probabilities [B, d, h, w, K] into [B, C, d, h, w]."""
        return (probs @ self.codebook.to(probs.dtype)).movedim(-1, 1)

    def forward(
        self, z: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> QuantizerOutput:
        """Quantize latents; ``temperature`` is accepted for a common call and has no effect.

        Args:
            z: Latents, [B, C, d, h, w].
            temperature: Unused.
            generator: Chooses which latents revive dead codes; alike on all ranks.
        """
        latent = self.norm(z.movedim(1, -1))
        logits = self._distances(latent)
        index = logits.argmax(-1)
        chosen = self.codebook[index].to(latent.dtype)
        loss = self.commitment * F.mse_loss(latent, chosen)
        if self.training:
            self._update(
                latent.detach().flatten(0, -2).to(self.codebook), index.flatten(), generator
            )
        quantized = latent + (chosen - latent).detach()
        return QuantizerOutput(quantized.movedim(-1, 1), logits, index, {"commitment": loss})

    @torch.no_grad()
    def _update(self, latent: Tensor, index: Tensor, generator: torch.Generator | None) -> None:
        count = torch.zeros_like(self.usage).index_add_(0, index, torch.ones_like(latent[:, 0]))
        total = torch.zeros_like(self.latent_sum).index_add_(0, index, latent)
        count, total = sum_over_ranks(count), sum_over_ranks(total)
        self.usage.lerp_(count, 1 - self.decay)
        self.latent_sum.lerp_(total, 1 - self.decay)
        dead = self.usage < self.revive_below
        pick = torch.randint(
            latent.shape[0] * num_ranks(),
            (self.codebook_size,),
            generator=generator,
            device=latent.device,
        )
        fresh = _rows_of_all_ranks(latent, pick)
        self.latent_sum.copy_(torch.where(dead[:, None], fresh, self.latent_sum))
        self.usage.copy_(torch.where(dead, torch.ones_like(self.usage), self.usage))
        self.codebook.copy_(self.latent_sum / self.usage.clamp_min(1e-5)[:, None])

    @torch.no_grad()
    def start_from(self, centroids: Tensor, *, temperature: float) -> None:
        """Start from cluster centres [K, C] of normalised latents; see :class:`SoftQuantizer`."""
        self.codebook.copy_(centroids)
        self.latent_sum.copy_(centroids)
        self.usage.fill_(1.0)


def _rows_of_all_ranks(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of the whole batch, of which ``x`` [N, C] is this rank's part."""
    if num_ranks() == 1:
        return x[index]
    place = index - own_rank() * x.shape[0]
    is_own = (place >= 0) & (place < x.shape[0])
    own = x[place.clamp(0, x.shape[0] - 1)]
    return sum_over_ranks(torch.where(is_own[:, None], own, torch.zeros_like(own)))


def build_quantizer(
    kind: QuantizerKind,
    codebook_size: int,
    embed_dim: int,
    *,
    norm_latent: bool = False,
    latent_dim: int | None = None,
) -> SoftQuantizer | NearestQuantizer:
    """Build the quantizer called ``soft``, ``gumbel`` or ``nearest``."""
    if kind == "nearest":
        if latent_dim not in (None, embed_dim):
            raise ValueError(
                f"a nearest code is as wide as the latent, got {embed_dim} and {latent_dim}"
            )
        return NearestQuantizer(codebook_size, embed_dim, norm_latent=norm_latent)
    if kind in ("soft", "gumbel"):
        return SoftQuantizer(
            codebook_size,
            embed_dim,
            gumbel=kind == "gumbel",
            norm_latent=norm_latent,
            latent_dim=latent_dim,
        )
    raise ValueError(f"quantizer must be 'soft', 'gumbel' or 'nearest', got {kind!r}")
