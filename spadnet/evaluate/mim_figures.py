"""How well a model predicts held-out images behind masks, beside constants (stage 2).

Constants are measured on the very same masked positions as the model, and take their mean over the
held-out targets themselves: no predictor could know it beforehand, so the comparison favours the
baseline.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.data.masking import random_visible_index
from spadnet.evaluate.held_out import (
    HeldOut,
    Window,
    by_degree,
    cover,
    evaluating,
    mask_generator,
    repeat_grey,
)
from spadnet.losses.mim import soft_cross_entropy
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer


class MimScore(NamedTuple):
    """Loss at masked positions beside predictions that ignore the visible tokens, nats.

    Attributes:
        loss: Soft cross-entropy of the model.
        constant: Of the best constant, the mean target; its cross-entropy is its entropy where
            the mean is taken over these very positions.
        own: Of each image's own mean target.
        target_entropy: Mean entropy of the targets, which no predictor can beat.
        num_positions: How many masked positions were counted.
    """

    loss: float
    constant: float
    own: float
    target_entropy: float
    num_positions: int

    @property
    def gain(self) -> float:
        """Share by which the loss is below the best constant's."""
        return 1 - self.loss / self.constant if self.constant > 0 else 0.0

    @property
    def own_gain(self) -> float:
        """Share by which the loss is below that of each image's own mean."""
        return 1 - self.loss / self.own if self.own > 0 else 0.0


class MimFigures(NamedTuple):
    """Figures of stage 2.

    Attributes:
        images: One entry per image; ``constant`` is the cross-entropy of the pooled mean there.
        pooled: All masked positions of all images.
        by_degree: The images of each degree; ``constant`` is the best one for that degree.
    """

    images: list[MimScore]
    pooled: MimScore
    by_degree: dict[int, MimScore]


def mim_figures(
    model: MaskedImageModel,
    tokenizer: Tokenizer,
    images: Sequence[HeldOut],
    *,
    window: Window,
    mask_ratio: float,
    num_masks: int = 4,
    seed: int = 0,
) -> MimFigures:
    """Loss behind random masks on windows of the training size that cover each image.

    Targets are computed on each window, as in training. All masked positions of all images count
    alike, so large images weigh more.

    Args:
        model: Trained model; its mode is left as it was.
        tokenizer: The frozen tokenizer that gives the targets.
        images: Images held out of training.
        window: Token grid (z, y, x) of a training crop, or one per degree.
        mask_ratio: Share of tokens that are hidden.
        num_masks: Masks per window.
        seed: Seed of the masks; those of an image depend on its place in the list alone.
    """
    parts: list[_MimSums] = []
    with evaluating(model, tokenizer):
        for place, held_out in enumerate(images):
            generator = mask_generator(seed, place)
            batches = []
            for batch in cover(held_out, window, stride=tokenizer.stride):
                batch = batch.to(model.mask_token.device)
                colour = repeat_grey(batch, tokenizer.in_chans)
                target = tokenizer.token_logits(colour, held_out.degree)
                batches += [
                    _masked_sums(model, batch, target, held_out.degree, mask_ratio, generator)
                    for _ in range(num_masks)
                ]
            parts.append(_MimSums.add(batches))
    pooled = _MimSums.add(parts)
    mean = pooled.target / pooled.num
    scores = [_score([part])._replace(constant=_cross_entropy(part, mean)) for part in parts]
    degrees = [held_out.degree for held_out in images]
    return MimFigures(scores, _score(parts), by_degree(degrees, parts, _score))


class _MimSums(NamedTuple):
    """Sums over masked positions that the scores of any set of images follow from."""

    loss: float
    target: Tensor
    entropy: float
    num: int

    @classmethod
    def add(cls, parts: Sequence["_MimSums"]) -> "_MimSums":
        return cls(
            math.fsum(part.loss for part in parts),
            torch.stack([part.target for part in parts]).sum(0),
            math.fsum(part.entropy for part in parts),
            sum(part.num for part in parts),
        )


def _masked_sums(
    model: MaskedImageModel,
    batch: Tensor,
    target: Tensor,
    degree: int,
    mask_ratio: float,
    generator: torch.Generator,
) -> _MimSums:
    visible = random_visible_index(
        len(batch), target.shape[1], mask_ratio=mask_ratio, generator=generator
    )
    image = repeat_grey(batch, model.vit.in_chans)
    output = model(image, visible.to(batch.device), target, degree)
    num = output.target[..., 0].numel()
    loss = soft_cross_entropy(output.logits, output.target, from_logits=True)
    probs = output.target.flatten(0, -2).double().softmax(-1)
    entropy = torch.special.entr(probs).sum().item()
    return _MimSums(loss.item() * num, probs.sum(0).cpu(), entropy, num)


def _score(parts: Sequence[_MimSums]) -> MimScore:
    """Score of a set of images; the constants are the best ones for this very set."""
    whole = _MimSums.add(parts)
    own = math.fsum(part.num * _entropy(part.target / part.num) for part in parts)
    return MimScore(
        loss=whole.loss / whole.num,
        constant=_entropy(whole.target / whole.num),
        own=own / whole.num,
        target_entropy=whole.entropy / whole.num,
        num_positions=whole.num,
    )


def _cross_entropy(part: _MimSums, prediction: Tensor) -> float:
    return -torch.xlogy(part.target / part.num, prediction).sum().item()


def _entropy(probs: Tensor) -> float:
    return torch.special.entr(probs).sum().item()
