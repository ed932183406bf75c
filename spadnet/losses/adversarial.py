"""Hinge losses of generator and discriminator, and the gate that lets the adversary in.

The generator hears the discriminator only while the latter is clearly ahead: its hinge loss and
that loss's moving average are both at most 0.025. Source: the SPAD-VT of arXiv 2312.07630; hinge
losses as in VQGAN, arXiv 2012.09841.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator, ``(mean relu(1 - real) + mean relu(1 + fake)) / 2``.

    Args:
        real_logits: Logits of images, any shape.
        fake_logits: Logits of reconstructions that carry no gradient, any shape.

    Returns:
        Scalar; 0 when both sides are told apart with margin, 1 for an undecided discriminator.
    """
    real = F.relu(1 - real_logits.float()).mean()
    fake = F.relu(1 + fake_logits.float()).mean()
    return 0.5 * (real + fake)


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Hinge loss of the generator, ``-mean(fake)``.

    Args:
        fake_logits: Logits of reconstructions, any shape.

    Returns:
        Scalar.
    """
    return -fake_logits.float().mean()


class AdversarialGate(nn.Module):
    """Open while ``max(moving average of the discriminator's loss, its last loss) <= threshold``.

    The state lies in the ``state_dict`` and is the same on all ranks, so that a resumed run opens
    and closes as the unbroken one would, and no rank waits for another. Per step: ask
    :attr:`is_open` for the generator's turn, then :meth:`update` after the discriminator's.

    >>> gate = AdversarialGate()
    >>> for _ in range(14):
    ...     gate.update(torch.tensor(0.0))
    >>> gate.is_open
    True
    """

    average: Tensor
    last: Tensor

    def __init__(
        self, *, threshold: float = 0.025, momentum: float = 0.9, start: float = 0.1
    ) -> None:
        """Build the gate.

        Args:
            threshold: Largest discriminator loss at which the gate is open.
            momentum: Share of the old average that is kept at each update.
            start: Average before the first update.
        """
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.threshold = threshold
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(start, dtype=torch.float32))
        self.register_buffer("last", torch.tensor(torch.inf, dtype=torch.float32))

    @property
    def is_open(self) -> bool:
        """Whether the generator's adversarial term counts now."""
        return bool(torch.maximum(self.average, self.last) <= self.threshold)

    @torch.no_grad()
    def update(self, discriminator_loss: Tensor) -> None:
        """Take note of this step's discriminator loss; call it on every rank.

        A loss that is not finite closes the gate for the next step and leaves the average alone.

        Args:
            discriminator_loss: Scalar of this rank.
        """
        loss = discriminator_loss.detach().to(self.average, copy=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        finite = loss.isfinite()
        moved = torch.lerp(loss, self.average, self.momentum)
        self.average.copy_(torch.where(finite, moved, self.average))
        self.last.copy_(torch.where(finite, loss, torch.full_like(loss, torch.inf)))
