"""The study of image quality: which images are degraded, and the page that tells what it cost."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spadnet.data.task_images import TaskImage
from spadnet.evaluate.charts import draw_grids
from spadnet.evaluate.features import Change, Features
from spadnet.evaluate.records import Point
from spadnet.evaluate.study_page import study_page
from spadnet.losses.scores import CHOOSING


def chosen_cases(count: int, share: float, *, seed: int) -> Tensor:
    """Which of so many cases are degraded, [count], bool; a smaller share is part of a larger one.

    Args:
        count: Number of cases.
        share: To be degraded, in [0, 1].
        seed: Decides which.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[order[: round(share * count)]] = True
    return chosen


def mix_rows(clean: Features, worse: Features, split: str, chosen: Tensor) -> Tensor:
    """Features of a split, those of chosen cases from their degraded images.

    Args:
        clean: Of the images as they are.
        worse: Of all images degraded.
        split: Which.
        chosen: Cases, [N], bool.
    """
    rows = chosen.repeat_interleave(clean.grids[split].prod(1).long())
    return torch.where(rows[:, None], worse.values[split], clean.values[split])


def mix_images(images: Sequence[TaskImage], chosen: Tensor, change: Change) -> list[TaskImage]:
    """Images of a split, the chosen ones degraded."""
    return [
        case._replace(image=change(case.image.float(), case.spacing, case.key).half())
        if picked
        else case
        for case, picked in zip(images, chosen.tolist(), strict=True)
    ]


def quality_page(
    tasks: Sequence[tuple[str, str, Sequence[Point]]],
    records: Sequence[Mapping[str, Any]],
    *,
    rules: Mapping[str, Any],
    headline: str,
    facts: Mapping[str, str],
) -> str:
    """Render the study as HTML: a figure per task, models by amounts of labels.

    Args:
        tasks: Name, kind and points of each.
        records: Of ``results.json``.
        rules: Settings of the study.
        headline: Of the page.
        facts: Of its footer.
    """
    lead = (
        f"{', '.join(rules['kinds'])} at strength {rules['strength']:g}: a degraded image has one "
        "of them, drawn by its name. Validation is degraded like training. Numbers are means over "
        f"seeds; protocol: {rules['protocol']}."
    )
    sections = []
    for name, kind, points in tasks:
        metric = CHOOSING[kind]
        keys = {point.key for point in points}
        own = [r for r in records if r["key"] in keys and r["metric"] == metric]
        shares = list(rules["shares"])
        models = list(dict.fromkeys(record["model"] for record in own))
        amounts = list(dict.fromkeys(record["amount"] for record in own))
        panels = {}
        for model in models:
            for amount in amounts:
                panels[f"{model}, {amount} labels"] = _grid(own, model, amount, shares)
        figure = draw_grids(
            panels,
            columns=len(amounts),
            x_label="degraded in test",
            y_label="degraded in training",
            x_ticks=[f"{100 * share:g}%" for share in shares],
            y_ticks=[f"{100 * share:g}%" for share in shares],
            name=f"quality {name}",
        )
        sections.append(
            f"<section><h2>{escape(name)}: test {metric}</h2>"
            f"<figure class=chart>{figure}</figure></section>"
        )
    return study_page(headline, lead, sections, facts)


def _grid(
    records: Sequence[Mapping[str, Any]], model: str, amount: str, shares: Sequence[float]
) -> np.ndarray:
    """Means over seeds, [train share, test share]; NaN where nothing is defined."""
    grid = np.full((len(shares), len(shares)), np.nan)
    for i, train in enumerate(shares):
        for j, test in enumerate(shares):
            found = [
                record["value"]
                for record in records
                if (record["model"], record["amount"]) == (model, amount)
                and (record["train_degraded"], record["test_degraded"]) == (train, test)
            ]
            if found:
                grid[i, j] = np.mean(found)
    return grid
