"""Whether an encoder gives one volume the same feature however thick its slices are.

A volume of degree 0 is seen at degree 0, and with its slices averaged by 2 and by 4 at degree 1 and
2. What a plain network would do with thick slices is to repeat each until voxels are isotropic: the
baseline, the same weights at degree 0 on repeated slices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.evaluate.held_out import fit_to_multiple
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple

DEGREES = (0, 1, 2)
_MAX_GRID = (8, 16, 16)  # tokens (z, y, x) about the centre of a large volume


class Consistency(NamedTuple):
    """How alike the features of a volume are at degree 0 and at another one.

    Attributes:
        cosine: Cosine of the features, mean over volumes.
        retrieval: Share of volumes whose feature at this degree is nearest, by cosine, to their own
            at degree 0 among those of all volumes. Chance is one over their number.
        baseline_cosine: The same of the repeat-slices baseline.
        baseline_retrieval: The same of the repeat-slices baseline.
    """

    cosine: float
    retrieval: float
    baseline_cosine: float
    baseline_retrieval: float


class Report(NamedTuple):
    """Figures of one model.

    Attributes:
        by_degree: One row for each of ``DEGREES``. That of degree 0 compares a feature with itself:
            cosine 1, and a retrieval below 1 only where two volumes have the same feature.
        different: Cosine of the features of different volumes at degree 0, mean over pairs;
            None for a single volume.
    """

    by_degree: dict[int, Consistency]
    different: float | None


def average_slices(volume: Tensor, count: int) -> Tensor:
    """Average groups of neighbouring slices of [..., D, H, W], whose number must divide D."""
    return volume.unflatten(-3, (-1, count)).mean(-3)


@torch.no_grad()
def consistency(model: SpadViT, volumes: Sequence[Tensor]) -> Report:
    """Compare features at degrees 0, 1 and 2.

    Args:
        model: In evaluation mode.
        volumes: Isotropic volumes in [0, 1], [C, D, H, W]; large ones are seen about their centre.
    """
    own: dict[int, list[Tensor]] = {degree: [] for degree in DEGREES}
    baseline: dict[int, list[Tensor]] = {degree: [] for degree in DEGREES}
    for volume in volumes:
        whole = _centre(volume, model.patch_embed.patch_size)[None]
        for degree in DEGREES:
            thick = average_slices(whole, 2**degree)
            own[degree].append(_feature(model, thick, degree))
            repeated = thick.repeat_interleave(2**degree, dim=2)
            baseline[degree].append(_feature(model, repeated, 0))
    reference = torch.stack(own[0])
    found = {}
    for degree in DEGREES:
        first, second = (_compare(torch.stack(x[degree]), reference) for x in (own, baseline))
        found[degree] = Consistency(*first, *second)
    cosines = reference.double() @ reference.double().T
    count = len(cosines)
    different = None
    if count > 1:
        different = ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()
    return Report(found, different)


def _centre(volume: Tensor, stride: int) -> Tensor:
    """Whole tokens about the centre, at most ``_MAX_GRID``."""
    fitted = fit_to_multiple(volume, 0, stride=stride)
    for axis, (most, step) in enumerate(
        zip(_MAX_GRID, required_multiple(0, stride=stride), strict=True), start=1
    ):
        spare = fitted.shape[axis] - most * step
        if spare > 0:
            fitted = fitted.narrow(axis, spare // 2, most * step)
    return fitted


def _feature(model: SpadViT, volume: Tensor, degree: int) -> Tensor:
    """Pooled feature [C], float32 on the CPU."""
    features = model.forward_features(volume.to(model.cls_token), degree)
    return F.normalize(model.forward_head(features, pre_logits=True)[0].float().cpu(), dim=0)


def _compare(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean cosine with the own reference, and the share whose own is the nearest."""
    cosines = features.double() @ reference.double().T
    own = cosines.diagonal()
    others = cosines.masked_fill(torch.eye(len(own), dtype=torch.bool), -torch.inf)
    return own.mean().item(), (own > others.amax(1)).double().mean().item()
