"""What the points of an evaluation say together: means over seeds, intervals, comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spadnet.evaluate.intervals import (
    Difference,
    Outcome,
    Score,
    compare,
    interval,
    resamples,
    score_draws,
)
from spadnet.evaluate.records import Point
from spadnet.losses.scores import CHOOSING


class Cell(NamedTuple):
    """One model with one amount of labels.

    Attributes:
        score: Mean over seeds of the test score; its interval is that of resampled test cases.
        spread: Standard deviation over seeds; 0 for one.
        num_seeds: Seeds behind it.
        against: How much better the measured model is on the same cases; None for itself.
        num_train: Training cases, mean over seeds.
        costs: Trainable parameters, seconds and peak memory in MiB, mean over seeds.
    """

    score: Score
    spread: float
    num_seeds: int
    against: Difference | None
    num_train: float
    costs: Mapping[str, float]


class Table(NamedTuple):
    """All models of a task in one protocol.

    Attributes:
        task: Its name.
        protocol: Such as ``"knn"``.
        metric: What is scored.
        shares: Amounts of labels in order.
        rows: Cells by model and amount.
    """

    task: str
    protocol: str
    metric: str
    shares: list[str]
    rows: dict[str, dict[str, Cell]]


def build_tables(
    points: Sequence[Point],
    kind: str,
    outcomes: Mapping[Point, Outcome],
    records: Sequence[Mapping[str, Any]],
    *,
    draws: int,
    measured: str,
) -> list[Table]:
    """Tables of a task.

    Args:
        points: Of one task, in the order of the tables.
        kind: Of the task.
        outcomes: What came out of each.
        records: Of ``results.json``.
        draws: Resamples of the test cases.
        measured: The model that the others are compared with.
    """
    metric = CHOOSING[kind]
    facts = {record["key"]: record for record in records}
    index = resamples(kind, next(iter(outcomes.values())), draws=draws)
    tables = []
    for protocol in dict.fromkeys(point.protocol for point in points):
        own = [point for point in points if point.protocol == protocol]
        shares = list(dict.fromkeys(point.share for point in own))
        groups = {
            (model, share): [p for p in own if p.model == model and p.share == share]
            for model in dict.fromkeys(point.model for point in own)
            for share in shares
        }
        scores = {
            group: score_draws(kind, [outcomes[p] for p in members], index)[metric]
            for group, members in groups.items()
        }
        rows: dict[str, dict[str, Cell]] = {}
        for (model, share), members in groups.items():
            each = [score_draws(kind, [outcomes[p]], index[:0])[metric][0] for p in members]
            found = [facts[p.key] for p in members]
            against = None
            if model != measured and (measured, share) in scores:
                against = compare(scores[measured, share], scores[model, share])
            rows.setdefault(model, {})[share] = Cell(
                interval(scores[model, share]),
                float(np.std(each, ddof=1)) if len(each) > 1 else 0.0,
                len(each),
                against,
                float(np.mean([record["num_train"] for record in found])),
                {
                    name: float(np.mean([record[name] for record in found]))
                    for name in ("trainable_parameters", "seconds", "peak_memory_mib")
                },
            )
        tables.append(Table(points[0].task, protocol, metric, shares, rows))
    return tables
