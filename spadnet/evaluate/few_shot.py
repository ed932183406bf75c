"""How many labels a model gets: shares of the training cases, or a number of each class."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spadnet.data.tasks import Case, TaskData, subsample


class Amount(NamedTuple):
    """A share of the training cases or, where that is None, a number of cases of each class.

    Attributes:
        share: In (0, 1].
        each: Cases of each class; of label maps and values, cases.
    """

    share: float | None
    each: int | None = None

    def __str__(self) -> str:
        return f"{self.each} each" if self.share is None else f"{100 * self.share:g}%"


def parse_amount(text: str | int) -> Amount:
    """Read ``"10%"``, or a whole number of cases of each class.

    >>> parse_amount("2.5%"), parse_amount(5)
    (Amount(share=0.025, each=None), Amount(share=None, each=5))
    """
    if isinstance(text, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())):
        share = float(found[1]) / 100
        if 0 < share <= 1:
            return Amount(share)
    elif isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return Amount(None, text)
    raise ValueError(f"shares are percentages such as 10% or numbers of cases, got {text!r}")


def few_shot(task: TaskData, amount: Amount, *, seed: int) -> TaskData:
    """Keep some of the training cases, drawn from each class; other splits stay whole.

    Args:
        task: The task.
        amount: How many.
        seed: Decides which; a smaller amount of the same seed and kind is part of a larger one.
    """
    if amount.share is not None:
        return task._replace(cases=subsample(task.cases, share=amount.share, seed=seed))
    assert amount.each is not None
    kept = _of_each(task.of("train"), amount.each, seed=seed, by_class=_has_classes(task))
    return task._replace(cases=[c for c in task.cases if c.split != "train" or c.key in kept])


def _has_classes(task: TaskData) -> bool:
    return task.kind not in ("segmentation", "regression")


def _of_each(cases: Sequence[Case], count: int, *, seed: int, by_class: bool) -> set[str]:
    strata: dict[object, list[str]] = defaultdict(list)
    for case in cases:
        is_one = not by_class or isinstance(case.target, Path)
        strata[None if is_one else case.target].append(case.key)
    rng = np.random.default_rng(seed)
    kept: set[str] = set()
    for stratum in sorted(strata, key=repr):
        keys = sorted(strata[stratum])
        kept |= {keys[index] for index in rng.permutation(len(keys))[:count]}
    return kept
