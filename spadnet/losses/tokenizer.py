"""Losses of the visual tokenizer (stage 1).

``L1 + w_p * perceptual + w_prior * prior + w_entropy * entropy + w_gan * adversarial``: rebuild the
image, use every code over the data, and be decided at each position.

Source: the SPAD-VT of arXiv 2312.07630; prior and entropy as in its published run.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.losses.perceptual import Perceptual
from spadnet.ranks import num_ranks, sum_over_ranks

ReconstructionKind = Literal["l1", "l2"]

_SMALLEST_PROBABILITY = 1e-30  # log of it is finite in float32
_LOWEST_LOG_PROBABILITY = -1e4  # exp of it is zero in float32; stands for -inf


def reconstruction_loss(x: Tensor, y: Tensor, *, kind: ReconstructionKind = "l1") -> Tensor:
    """Mean absolute (``l1``) or squared (``l2``) difference, in float32.

    Args:
        x: Reconstruction, any shape, intensities around [0, 1].
        y: Image, same shape.
        kind: Which norm.

    Returns:
        Scalar.
    """
    if x.shape != y.shape:
        raise ValueError(f"shapes of the images differ: {tuple(x.shape)} and {tuple(y.shape)}")
    if kind == "l1":
        return F.l1_loss(x.float(), y.float())
    if kind == "l2":
        return F.mse_loss(x.float(), y.float())
    raise ValueError(f"reconstruction loss must be 'l1' or 'l2', got {kind!r}")


def mean_probability(probs: Tensor) -> Tensor:
    """Mean distribution over batch, positions and ranks; gradients cross ranks too.

    Each rank counts by its number of positions. Where gradients are averaged over ranks afterwards,
    the result has the gradient that one process with the whole batch would see.

    Args:
        probs: Probabilities, [..., K].

    Returns:
        Mean distribution in float32, [K].
    """
    flat = probs.float().flatten(0, -2)
    if num_ranks() == 1:
        return flat.mean(0)
    count = flat.new_full((1,), flat.shape[0])
    total = sum_over_ranks(torch.cat([flat.sum(0), count]))
    return total[:-1] / total[-1]


def prior_loss(p_mean: Tensor) -> Tensor:
    """Negative entropy of the mean distribution, ``sum(p log p)``: small when all codes are used.

    Args:
        p_mean: Mean distribution over codes, [K], see :func:`mean_probability`.

    Returns:
        Scalar in [-ln K, 0]; the minimum is reached by the uniform distribution alone.
    """
    p = p_mean.float()
    return (p * p.clamp_min(_SMALLEST_PROBABILITY).log()).sum()


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean over positions of the entropy ``-sum(p log p)``: small when each position is decided.

    Args:
        logits: Unnormalised log-probabilities, [..., K]; -inf rules a code out.

    Returns:
        Scalar in [0, ln K], nats.
    """
    log_p = logits.float().log_softmax(-1).clamp_min(_LOWEST_LOG_PROBABILITY)
    return -(log_p.exp() * log_p).sum(-1).mean()


class TokenizerTerms(NamedTuple):
    """Terms of the tokenizer's loss before weighting, and their weighted total; all scalars.

    Attributes:
        total: What to minimise.
        reconstruction: L1 or L2.
        perceptual: Zero without a perceptual loss.
        prior: Negative entropy of the mean distribution, nats.
        entropy: Mean entropy per position, nats.
        quantizer: Sum of the quantizer's own losses (commitment).
        adversarial: Generator's hinge loss; zero while the gate is closed.
    """

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    prior: Tensor
    entropy: Tensor
    quantizer: Tensor
    adversarial: Tensor

    @property
    def mutual_information(self) -> Tensor:
        """Entropy of the mean distribution minus the mean entropy, nats."""
        return -self.prior - self.entropy


class TokenizerLoss(nn.Module):
    """Weighted sum of the tokenizer's losses; the default weights are those of the published run.

    A term of weight zero gets no gradient. Prior and entropy are computed all the same, since
    they tell how the codebook is used.

    >>> loss = TokenizerLoss(kind="l2", reconstruction_weight=100.0, prior_weight=0.1)
    >>> x = torch.rand(1, 1, 4, 32, 32)
    >>> terms = loss(x, x, torch.zeros(1, 1, 2, 2, 128), degree=2)
    >>> round(terms.prior.item(), 2), round(terms.entropy.item(), 2)
    (-4.85, 4.85)
    """

    def __init__(
        self,
        *,
        perceptual: Perceptual | None = None,
        kind: ReconstructionKind = "l1",
        reconstruction_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        prior_weight: float = 0.03,
        entropy_weight: float = 1.0,
        adversarial_weight: float = 3e-3,
    ) -> None:
        """Build the loss.

        Args:
            perceptual: Perceptual loss, see :func:`spadnet.losses.perceptual.build_perceptual`.
            kind: ``"l1"`` or ``"l2"``.
            reconstruction_weight: Weight of the L1 or L2 term.
            perceptual_weight: w_p; no work is done at 0.
            prior_weight: w_prior.
            entropy_weight: w_entropy.
            adversarial_weight: w_gan, not adaptive.
        """
        super().__init__()
        if kind not in ("l1", "l2"):
            raise ValueError(f"reconstruction loss must be 'l1' or 'l2', got {kind!r}")
        self.perceptual = perceptual
        self.kind: ReconstructionKind = kind
        self.reconstruction_weight = reconstruction_weight
        self.perceptual_weight = perceptual_weight
        self.prior_weight = prior_weight
        self.entropy_weight = entropy_weight
        self.adversarial_weight = adversarial_weight

    @torch.no_grad()
    def of_samples(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """L1 or L2 of each sample by itself, [B]."""
        difference = (reconstruction.float() - image.float()).flatten(1)
        norm = difference.abs() if self.kind == "l1" else difference.square()
        return norm.mean(1)

    def forward(
        self,
        reconstruction: Tensor,
        image: Tensor,
        logits: Tensor | None,
        *,
        degree: int,
        quantizer_losses: Mapping[str, Tensor] | None = None,
        adversarial: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenizerTerms:
        """Compute the loss of one batch.

        Args:
            reconstruction: [B, C, D, H, W].
            image: Target in [0, 1], [B, C, D, H, W].
            logits: Logits of the codes, [B, d, h, w, K]; None while the quantizer is bypassed.
            degree: Degree of anisotropy of the batch.
            quantizer_losses: Losses of the quantizer with their weights already in them.
            adversarial: Generator's loss, see :mod:`spadnet.losses.adversarial`; None while the
                gate is closed.
            generator: Chooses the slices of a perceptual network.
        """
        zero = image.new_zeros((), dtype=torch.float32)
        rebuilt = reconstruction_loss(reconstruction, image, kind=self.kind)
        total = self.reconstruction_weight * rebuilt

        perceptual = zero
        if self.perceptual is not None and self.perceptual_weight != 0:
            perceptual = self.perceptual(reconstruction, image, degree=degree, generator=generator)
            total = total + self.perceptual_weight * perceptual

        prior = entropy = zero
        if logits is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.prior_weight != 0):
                prior = prior_loss(mean_probability(logits.float().softmax(-1)))
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_weight != 0):
                entropy = entropy_loss(logits)
            total = total + self.prior_weight * prior + self.entropy_weight * entropy

        quantizer = zero
        for value in (quantizer_losses or {}).values():
            quantizer = quantizer + value
        total = total + quantizer
        if adversarial is not None:
            total = total + self.adversarial_weight * adversarial
        return TokenizerTerms(
            total,
            rebuilt,
            perceptual,
            prior,
            entropy,
            quantizer,
            zero if adversarial is None else adversarial,
        )
