"""Metrics of a step told apart by degree of anisotropy."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from spadnet.spacing import MAX_DEGREE

_MARK = "_degree"


def metrics_per_degree(name: str, values: Iterable[tuple[int, Tensor]]) -> dict[str, Tensor]:
    """Name a metric by degree; NaN stands for degrees that a step does not hold.

    Lightning would log the value of an earlier step for a metric that a step leaves out.

    Args:
        name: Name of the metric.
        values: Degree and value of each micro-batch; values of one degree are averaged.
    """
    there: dict[int, list[Tensor]] = {}
    for degree, value in values:
        there.setdefault(degree, []).append(value)
    absent = [torch.full((), math.nan)]
    return {
        f"{name}{_MARK}{d}": torch.stack(there.get(d, absent)).mean() for d in range(MAX_DEGREE + 1)
    }


def is_absent(name: str, value: float) -> bool:
    """Whether a logged value only says that its degree was not there."""
    return _MARK in name and math.isnan(value)
