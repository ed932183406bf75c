"""Results as they come: ``results.json``, and what each model said of each test case."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from spadnet.data.atomic import write_atomic
from spadnet.data.journal import hash_of
from spadnet.evaluate.intervals import Outcome, interval, resamples, score_draws

logger = logging.getLogger(__name__)

VERSION = 2
"""Part of every point's settings: higher whenever the same ones come to give other results."""


class Point(NamedTuple):
    """One training and its scores on the test split.

    Attributes:
        task: Name of the task.
        model: Name of the model.
        protocol: Such as ``"knn"``.
        share: Text of the amount of labels.
        seed: Decides which labels, and all else that is random.
        settings: Hash of what else decides the outcome: data, weights, options.
    """

    task: str
    model: str
    protocol: str
    share: str
    seed: int
    settings: str

    @property
    def key(self) -> str:
        """Names the point's files."""
        return hash_of(list(self))


class Results:
    """The records of a folder; a point that is there is not computed again."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; a damaged list is told of and begun anew."""
        self.folder = folder
        self.file = folder / "results.json"
        self.records: list[dict[str, Any]] = []
        if self.file.is_file():
            try:
                found = json.loads(self.file.read_text(encoding="utf-8"))
                if not isinstance(found, list) or not all("key" in record for record in found):
                    raise ValueError("not a list of records")
                self.records = found
            except (ValueError, TypeError) as error:
                logger.warning("%s: damaged (%s); begun anew", self.file, error)

    def of(self, point: Point) -> list[dict[str, Any]]:
        """Records of a point."""
        return [record for record in self.records if record["key"] == point.key]

    def outcome(self, point: Point) -> Outcome | None:
        """What was found of a point before; None where it is not there, or not whole."""
        if not self.of(point):
            return None
        path = self._path(point)
        try:
            found = load_file(path)
            return Outcome(found["values"], found.get("target"))
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("%s: damaged or missing (%s); computed again", path, error)
            return None

    def add(
        self,
        point: Point,
        kind: str,
        outcome: Outcome,
        cost: Mapping[str, Any],
        *,
        share: float,
        extra: Mapping[str, Any],
        draws: int,
    ) -> None:
        """Score a point and write its records.

        Args:
            point: Which.
            kind: Of the task.
            outcome: Of its test cases.
            cost: Seconds and memory.
            share: Of the training cases.
            extra: Further facts.
            draws: Resamples of the test cases.
        """
        tensors = {"values": np.ascontiguousarray(outcome.values)}
        if outcome.target is not None:
            tensors["target"] = np.ascontiguousarray(outcome.target)
        write_atomic(self._path(point), save(tensors))
        same = (point.task, point.model, point.protocol, point.share, point.seed)
        own = [record for record in self.records if _identity(record) != same]
        scores = score_draws(kind, [outcome], resamples(kind, outcome, draws=draws))
        for metric, found in scores.items():
            score = interval(found)
            if not math.isfinite(score.value):
                continue  # a split of one class has no AUC
            own.append(
                {
                    "task": point.task,
                    "model": point.model,
                    "protocol": point.protocol,
                    "share": round(share, 6),
                    "seed": point.seed,
                    "metric": metric,
                    "value": round(score.value, 6),
                    "low": round(score.low, 6),
                    "high": round(score.high, 6),
                    "seconds": cost["seconds"],
                    "labels": point.share,
                    **{name: value for name, value in cost.items() if name != "seconds"},
                    **extra,
                    "key": point.key,
                }
            )
        self.records = own
        self.write()

    def write(self) -> None:
        """Write the list."""
        write_atomic(self.file, (json.dumps(self.records, indent=1) + "\n").encode())

    def write_page(self, page: str) -> None:
        """Write the page beside the records."""
        write_atomic(self.folder / "report.html", page.encode())
        logger.info("report: %s; records: %s", self.folder / "report.html", self.file)

    def _path(self, point: Point) -> Path:
        return self.folder / "outcomes" / f"{point.key}.safetensors"


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which point a record is of, whatever the settings were."""
    return tuple(record.get(name) for name in ("task", "model", "protocol", "labels", "seed"))
