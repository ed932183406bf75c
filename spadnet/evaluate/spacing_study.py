"""The study of spacing: conditions, and the page that tells what thick slices cost."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from spadnet.evaluate.charts import Curve, draw_curve
from spadnet.evaluate.records import Point
from spadnet.evaluate.study_page import study_page

AXES = ("z", "y", "x")

_LEAD = (
    "Networks that were trained on thin slices see slices averaged by a factor along one axis; "
    "all predictions are scored on the thin grid. spadnet takes thick slices as they are, with the "
    "degree of their spacing; a plain network (the same one, always at degree 0) sees them "
    "repeated or interpolated back. spadnet and 'slab averaging' met averaged slices in training, "
    "as often; the others did not. Where spadnet is a U-Net that met them, it encodes thick slices "
    "and decodes thin ones; otherwise its logits are interpolated between its slices. All "
    "trainings use thin label maps."
)


class Condition(NamedTuple):
    """Thick slices: ``slab`` thin ones averaged along an axis (0 z, 1 y, 2 x); 1 for none."""

    axis: int
    slab: int

    @property
    def label(self) -> str:
        """Names the condition."""
        return "as they are" if self.slab == 1 else f"{AXES[self.axis]} by {self.slab}"


def conditions(slabs: Sequence[int]) -> list[Condition]:
    """Thin slices, then each factor along each axis."""
    return [Condition(0, 1), *(Condition(axis, slab) for slab in slabs for axis in range(3))]


def spacing_page(
    tasks: Sequence[tuple[str, Sequence[Point]]],
    records: Sequence[Mapping[str, Any]],
    *,
    slabs: Sequence[int],
    headline: str,
    facts: Mapping[str, str],
) -> str:
    """Render the study as HTML: a figure and a table per task.

    Args:
        tasks: Name and points of each.
        records: Of ``results.json``.
        slabs: Slices averaged.
        headline: Of the page.
        facts: Of its footer.
    """
    sections = []
    for name, points in tasks:
        values = mean_dice_by(points, records)
        networks = list(dict.fromkeys(network for network, _ in values))
        series = {
            network: ([1.0, *slabs], [worst(values, network, slab) for slab in (1, *slabs)])
            for network in networks
        }
        ticks = {float(slab): str(slab) for slab in (1, *slabs)}
        curve = Curve(
            f"spacing {name}", "Dice, worst axis", series, "slices averaged", x_ticks=ticks
        )
        sections.append(
            f"<section><h2>{escape(name)}: test Dice</h2><div class='charts single'>"
            f"<figure class=chart>{draw_curve(curve)}</figure></div>"
            f"{_table(values, networks, slabs)}</section>"
        )
    return study_page(headline, _LEAD, sections, facts)


def mean_dice_by(
    points: Sequence[Point], records: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], float]:
    """Mean over seeds of the Dice by network and condition."""
    keys = {point.key for point in points}
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["key"] in keys and record["metric"] == "dice":
            found.setdefault((record["model"], record["labels"]), []).append(record["value"])
    return {place: float(np.mean(values)) for place, values in found.items()}


def worst(values: Mapping[tuple[str, str], float], network: str, slab: int) -> float:
    """Lowest Dice over the axes of a network with so many slices averaged."""
    labels = {Condition(axis, slab).label for axis in range(3)}
    return min(
        value for (name, label), value in values.items() if name == network and label in labels
    )


def _table(
    values: Mapping[tuple[str, str], float], networks: Sequence[str], slabs: Sequence[int]
) -> str:
    labels = [condition.label for condition in conditions(slabs)]
    head = "".join(f"<th scope=col>{escape(label)}</th>" for label in labels)
    body = []
    for network in networks:
        thin = values[network, labels[0]]
        cells = [f"<td><b>{thin:.3f}</b></td>"]
        for label in labels[1:]:
            value = values[network, label]
            cells.append(f"<td>{value:.3f}<br><small>{value - thin:+.3f}</small></td>")
        worst_drop = thin - worst(values, network, max(slabs))
        body.append(
            f"<tr><th scope=row>{escape(network)}</th>{''.join(cells)}"
            f"<td class=value>{worst_drop:.3f}</td></tr>"
        )
    return f"""<div class=scroll><table class=scores><thead><tr><th scope=col>network</th>{head}
<th scope=col>largest drop<br>by {max(slabs)}</th></tr></thead>
<tbody>{"".join(body)}</tbody></table>
</div>"""
