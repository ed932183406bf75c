"""How well a tokenizer reconstructs held-out images, and how it uses its codes (stage 1)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.evaluate.held_out import HeldOut, block_means, by_degree, evaluating
from spadnet.losses.perceptual import Perceptual
from spadnet.models.tokenizer import Tokenizer

_SMALLEST_MSE = 1e-10  # 100 dB: keeps the figures of a perfect copy finite
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5


class ReconstructionFigures(NamedTuple):
    """Reconstruction of one image beside the predictor of block means.

    Attributes:
        psnr: Of the reconstruction, clamped to [0, 1], in dB.
        psnr_blocks: Of the block means, in dB.
        ssim: Structural similarity of the reconstruction.
        ssim_blocks: Structural similarity of the block means.
        lpips: Perceptual distance of the reconstruction; None where it was not asked for.
    """

    psnr: float
    psnr_blocks: float
    ssim: float
    ssim_blocks: float
    lpips: float | None = None

    @property
    def psnr_gain(self) -> float:
        """What the reconstruction is better by, in dB."""
        return self.psnr - self.psnr_blocks


class CodeFigures(NamedTuple):
    """Use of the codebook over all tokens of a set of images.

    Attributes:
        histogram: How many tokens have each code as their most probable one, [K].
        entropy_of_mean: Entropy of the mean distribution, nats.
        mean_entropy: Mean entropy of the tokens' distributions, nats.
    """

    histogram: Tensor
    entropy_of_mean: float
    mean_entropy: float

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return len(self.histogram)

    @property
    def codes_used(self) -> int:
        """Number of codes that are some token's most probable one."""
        return int((self.histogram > 0).sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the histogram's entropy: how many codes an even use would amount to."""
        return math.exp(_entropy(self.histogram.double() / self.histogram.sum()))

    @property
    def mutual_information(self) -> float:
        """What a token's distribution tells about its image content, nats."""
        return self.entropy_of_mean - self.mean_entropy


class TokenizerFigures(NamedTuple):
    """Figures of stage 1.

    Attributes:
        images: One entry per image, in the order given.
        codes: Use of the codebook, pooled over all images.
        codes_by_degree: The same, pooled over the images of each degree.
    """

    images: list[ReconstructionFigures]
    codes: CodeFigures
    codes_by_degree: dict[int, CodeFigures]


def tokenizer_figures(
    tokenizer: Tokenizer, images: Sequence[HeldOut], *, perceptual: Perceptual | None = None
) -> TokenizerFigures:
    """Reconstruct whole images and count the codes they use.

    Args:
        tokenizer: Trained tokenizer; its mode is left as it was.
        images: Images held out of training.
        perceptual: A perceptual distance to measure as well, on the tokenizer's device.
    """
    device = next(tokenizer.parameters()).device
    qualities: list[ReconstructionFigures] = []
    counts: list[_CodeSums] = []
    with evaluating(tokenizer):
        for held_out in images:
            image = held_out.image.to(device)
            reconstruction, tokens = tokenizer(image, held_out.degree)
            means = block_means(image, held_out.degree, stride=tokenizer.stride)
            reconstruction = reconstruction.clamp(0, 1)
            qualities.append(
                ReconstructionFigures(
                    psnr=psnr(reconstruction, image),
                    psnr_blocks=psnr(means, image),
                    ssim=ssim(reconstruction, image, held_out.degree),
                    ssim_blocks=ssim(means, image, held_out.degree),
                    lpips=None
                    if perceptual is None
                    else float(perceptual(reconstruction, image, degree=held_out.degree)),
                )
            )
            counts.append(_CodeSums.of(tokens.logits))
    degrees = [held_out.degree for held_out in images]
    return TokenizerFigures(qualities, _pool_codes(counts), by_degree(degrees, counts, _pool_codes))


def psnr(prediction: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of intensities in [0, 1], at most 100."""
    mse = (prediction.double() - image.double()).square().mean().item()
    return -10 * math.log10(max(mse, _SMALLEST_MSE))


def ssim(prediction: Tensor, image: Tensor, degree: int) -> float:
    """Structural similarity of intensities in [0, 1] (Wang et al. 2004), mean over voxels.

    The Gaussian window is 11 pixels wide and, in millimetres, about as deep: 11, 5 or 3 slices at
    degree 0, 1 or 2. Thicker slices and 2D images are so compared slice by slice. Equal to MONAI's
    with the same window, whose dense 3D kernel is slow on CPU.

    Args:
        prediction: [B, C, D, H, W].
        image: Same shape.
        degree: Degree of anisotropy.
    """
    y, x = prediction.float(), image.float()
    moments = torch.stack((y, x, y * y, x * x, y * x))
    widths = ((_SSIM_WINDOW >> degree) | 1, _SSIM_WINDOW, _SSIM_WINDOW)
    sigmas = (_SSIM_SIGMA / 2**degree, _SSIM_SIGMA, _SSIM_SIGMA)
    for axis, (width, sigma) in enumerate(zip(widths, sigmas, strict=True), start=3):
        width = (min(width, moments.shape[axis]) - 1) | 1  # odd, and it fits
        offset = torch.arange(width, dtype=torch.float64) - width // 2
        kernel = torch.exp(-((offset / sigma) ** 2) / 2)
        moments = _smooth(moments, (kernel / kernel.sum()).tolist(), axis)
    mean_y, mean_x, square_y, square_x, product = moments
    c1, c2 = 0.01**2, 0.03**2
    variance = square_y - mean_y**2 + square_x - mean_x**2
    structure = (2 * (product - mean_y * mean_x) + c2) / (variance + c2)
    luminance = (2 * mean_y * mean_x + c1) / (mean_y**2 + mean_x**2 + c1)
    return (luminance * structure).double().mean().item()


def _smooth(x: Tensor, kernel: Sequence[float], axis: int) -> Tensor:
    """Correlate one axis with a kernel, without padding."""
    size = x.shape[axis] - len(kernel) + 1
    smooth = kernel[0] * x.narrow(axis, 0, size)
    for start, weight in enumerate(kernel[1:], start=1):
        smooth.add_(x.narrow(axis, start, size), alpha=weight)
    return smooth


class _CodeSums(NamedTuple):
    """Sums over tokens that the figures of any set of images follow from."""

    histogram: Tensor
    probs: Tensor
    entropy: float

    @classmethod
    def of(cls, logits: Tensor) -> "_CodeSums":
        rows = logits.flatten(0, -2)
        probs = rows.double().softmax(-1)
        return cls(
            torch.bincount(rows.argmax(-1), minlength=rows.shape[-1]).cpu(),
            probs.sum(0).cpu(),
            torch.special.entr(probs).sum().item(),
        )


def _pool_codes(parts: Sequence[_CodeSums]) -> CodeFigures:
    histogram = torch.stack([part.histogram for part in parts]).sum(0)
    total = int(histogram.sum())
    mean = torch.stack([part.probs for part in parts]).sum(0) / total
    return CodeFigures(histogram, _entropy(mean), sum(part.entropy for part in parts) / total)


def _entropy(probs: Tensor) -> float:
    return torch.special.entr(probs).sum().item()
