"""The figures of both stages of pre-training in one summary: baselines, targets, what is reached.

What is measured on images and masks lies in ``tokenizer_figures`` and ``mim_figures``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.mim_figures import MimFigures
from spadnet.evaluate.tokenizer_figures import (
    CodeFigures,
    ReconstructionFigures,
    TokenizerFigures,
)


class Target(NamedTuple):
    """What a figure should reach.

    Attributes:
        value: The bound.
        at_most: Whether smaller is better; otherwise larger is.
    """

    value: float
    at_most: bool = False

    def reached_by(self, figure: float) -> bool:
        """Whether a figure meets the target; NaN never does."""
        return figure <= self.value if self.at_most else figure >= self.value


TARGETS: dict[str, Target] = {
    "psnr_gain_db": Target(3.0),
    "psnr_gain_db_min": Target(0.5),
    "codes_used_share": Target(3 / 4),
    "perplexity_share": Target(1 / 3),
    "mutual_information_nats": Target(2.0),
    "mim_gain_share": Target(0.12),
    "mim_gain_own_share": Target(0.03),
    "minutes": Target(10.0, at_most=True),
}
"""Targets of ``spadnet demo``. Structural similarity has a baseline but no target."""


def summary(
    images: Sequence[HeldOut],
    tokenizer: TokenizerFigures,
    mim: MimFigures,
    *,
    minutes: float,
) -> dict[str, Any]:
    """Put all figures into one dictionary of plain types that JSON can hold.

    Args:
        images: Images that both were measured on, in the same order.
        tokenizer: Figures of stage 1.
        mim: Figures of stage 2.
        minutes: Duration of the whole run.

    Returns:
        The figures by name; the same under ``by_degree`` (keys are text, as in JSON; ``minutes``
        has no meaning there); ``images``, ``baselines``, ``targets`` and ``reached``.
    """
    figures: dict[str, Any] = {
        **_quality(tokenizer.images),
        **_codes(tokenizer.codes),
        "mim_gain_share": mim.pooled.gain,
        "mim_gain_own_share": mim.pooled.own_gain,
        "minutes": minutes,
    }
    figures["by_degree"] = {
        str(degree): {
            **_quality(
                [
                    quality
                    for quality, held_out in zip(tokenizer.images, images, strict=True)
                    if held_out.degree == degree
                ]
            ),
            **_codes(codes),
            "mim_gain_share": mim.by_degree[degree].gain,
            "mim_gain_own_share": mim.by_degree[degree].own_gain,
        }
        for degree, codes in tokenizer.codes_by_degree.items()
    }
    figures["images"] = [
        {
            "name": held_out.name,
            "modality": held_out.modality,
            "degree": held_out.degree,
            "size": list(held_out.image.shape[-3:]),
            "spacing_mm": list(held_out.spacing),
            "psnr_db": quality.psnr,
            "psnr_blocks_db": quality.psnr_blocks,
            "psnr_gain_db": quality.psnr_gain,
            "ssim": quality.ssim,
            "ssim_blocks": quality.ssim_blocks,
            "mim_loss_nats": score.loss,
            "mim_constant_nats": score.constant,
            "mim_own_nats": score.own,
            "mim_gain_share": score.gain,
            "mim_gain_own_share": score.own_gain,
        }
        for held_out, quality, score in zip(images, tokenizer.images, mim.images, strict=True)
    ]
    figures["baselines"] = {
        "psnr_db": _mean([quality.psnr for quality in tokenizer.images]),
        "psnr_blocks_db": _mean([quality.psnr_blocks for quality in tokenizer.images]),
        "ssim_blocks": _mean([quality.ssim_blocks for quality in tokenizer.images]),
        "codebook_size": tokenizer.codes.codebook_size,
        "codes_used": tokenizer.codes.codes_used,
        "perplexity": tokenizer.codes.perplexity,
        "entropy_of_mean_nats": tokenizer.codes.entropy_of_mean,
        "mean_entropy_nats": tokenizer.codes.mean_entropy,
        "mim_loss_nats": mim.pooled.loss,
        "mim_constant_nats": mim.pooled.constant,
        "mim_own_nats": mim.pooled.own,
        "mim_target_entropy_nats": mim.pooled.target_entropy,
    }
    figures["targets"] = {name: target.value for name, target in TARGETS.items()}
    figures["reached"] = {
        name: target.reached_by(figures[name]) for name, target in TARGETS.items()
    }
    return figures


def _quality(images: Sequence[ReconstructionFigures]) -> dict[str, float]:
    gains = [image.psnr_gain for image in images]
    return {
        "psnr_gain_db": _mean(gains),
        "psnr_gain_db_min": min(gains),
        "ssim": _mean([image.ssim for image in images]),
    }


def _codes(codes: CodeFigures) -> dict[str, float]:
    return {
        "codes_used_share": codes.codes_used / codes.codebook_size,
        "perplexity_share": codes.perplexity / codes.codebook_size,
        "mutual_information_nats": codes.mutual_information,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
