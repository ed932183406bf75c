"""Charts as inline SVG: no outside references, text and axes in the colour of the page's text."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

COLOURS = ("#2b8aa6", "#c9692c", "#7a8f2a", "#9a62b3", "#b5495b", "#7d8590")
"""Readable on light and on dark paper."""

_INK = "#010203"  # stands for the page's own text colour until the SVG is written
_INCHES = (5.0, 3.1)
_MANY_POINTS = 60


class Curve(NamedTuple):
    """One chart of lines over training.

    Attributes:
        title: What is shown.
        y_label: What is on the y axis, with its unit.
        series: x and y values by name.
        x_label: What is on the x axis.
        levels: Horizontal lines by name, such as a baseline.
        events: Vertical lines by name, such as a change of phase.
        x_ticks: Labels of places on a logarithmic x axis, whose values are then marked; None for
            a linear one.
    """

    title: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_label: str = "optimiser step"
    levels: Mapping[str, float] | None = None
    events: Mapping[str, float] | None = None
    x_ticks: Mapping[float, str] | None = None


def draw_curve(curve: Curve) -> str:
    """Draw a chart of lines as an ``<svg>`` element; long series also as a running mean."""
    with _chart(curve.x_label, curve.y_label, name=curve.title) as (axes, svg):
        shown: list[np.ndarray] = []
        for i, (name, (x, y)) in enumerate(curve.series.items()):
            xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            finite = np.isfinite(ys)
            xs, ys = xs[finite], ys[finite]
            colour = COLOURS[i % len(COLOURS)]
            if len(ys) > _MANY_POINTS:
                axes.plot(xs, ys, color=colour, linewidth=0.6, alpha=0.35)
                ys = running_mean(ys, width=len(ys) // 25)
            marker = "o" if curve.x_ticks else None
            axes.plot(
                xs, ys, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=name
            )
            shown.append(ys[len(ys) // 50 :])  # the first steps are often far off the scale
        for name, level in (curve.levels or {}).items():
            axes.axhline(level, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), label=name)
            shown.append(np.array([level]))
        _fit_height(axes, shown)
        if curve.x_ticks:
            axes.set_xscale("log")
            axes.set_xticks(list(curve.x_ticks), list(curve.x_ticks.values()))
            axes.set_xticks([], minor=True)
        for name, place in (curve.events or {}).items():
            axes.axvline(place, color=_INK, linewidth=0.8, linestyle=":")
            axes.annotate(
                name,
                (place, 1),
                (3, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=8,
            )
        if len(curve.series) + len(curve.levels or {}) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return svg[0]


def draw_grids(
    panels: Mapping[str, np.ndarray],
    *,
    columns: int,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[str],
    y_ticks: Sequence[str],
    name: str,
) -> str:
    """Draw tables of numbers as coloured squares with the numbers in them, as an ``<svg>`` element.

    Args:
        panels: Numbers [Y, X] by title; one scale of colours for all.
        columns: Panels beside each other.
        x_label: What the columns of a panel are.
        y_label: What its rows are.
        x_ticks: Names of the columns.
        y_ticks: Names of the rows, the first below.
        name: Of the chart, unlike others on the page.
    """
    rows = -(-len(panels) // columns)
    values = np.concatenate([np.ravel(panel) for panel in panels.values()])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    size = (2.2 * columns + 0.4, 2.0 * rows + 0.4)
    with _figure(size, name=name) as (figure, svg):
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for place, ((title, panel), axes) in enumerate(
            zip(panels.items(), grid.flat, strict=False)
        ):
            axes.pcolormesh(panel, cmap="viridis", vmin=low, vmax=high)
            axes.set_title(title, fontsize=8, color=_INK)
            for (row, column), value in np.ndenumerate(panel):
                is_bright = value > (low + high) / 2
                colour = "#101010" if is_bright else "#f4f4f4"
                text = f"{value:.3f}"
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
            axes.set_xticks([i + 0.5 for i in range(len(x_ticks))], x_ticks, fontsize=7)
            axes.set_yticks([i + 0.5 for i in range(len(y_ticks))], y_ticks, fontsize=7)
            axes.tick_params(colors=_INK, labelcolor=_INK, length=2)
            if place % columns == 0:
                axes.set_ylabel(y_label, fontsize=8, color=_INK)
            if place // columns == rows - 1:
                axes.set_xlabel(x_label, fontsize=8, color=_INK)
    return svg[0]


def draw_code_use(histogram: Sequence[float] | np.ndarray) -> str:
    """Draw how often each code is used, most used first, as an ``<svg>`` element.

    Args:
        histogram: Number of tokens per code, [K].
    """
    counts = np.sort(np.asarray(histogram, dtype=float))[::-1]
    shares = 100 * counts / max(counts.sum(), 1)
    used = int((counts > 0).sum())
    with _chart("code, most used first", "share of tokens (%)", name="codes") as (axes, svg):
        axes.stairs(shares, np.arange(len(shares) + 1), fill=True, color=COLOURS[0], alpha=0.8)
        even = 100 / max(len(shares), 1)
        axes.axhline(
            even, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), label="even use of all codes"
        )
        if used < len(shares):
            axes.axvline(
                used, color=_INK, linewidth=0.8, linestyle=":", label=f"unused beyond {used}"
            )
        axes.set_xlim(0, len(shares))
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return svg[0]


def running_mean(y: np.ndarray, *, width: int) -> np.ndarray:
    """Centred mean over ``width`` values or, near the ends, as many as there are."""
    half = max(width // 2, 1)
    total = np.concatenate(([0.0], np.cumsum(y)))
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (total[last] - total[first]) / (last - first)


def _fit_height(axes: Any, shown: Sequence[np.ndarray]) -> None:
    values = np.concatenate(shown) if shown else np.empty(0)
    if values.size:
        low, high = values.min(), values.max()
        margin = 0.06 * (high - low) or 0.5
        axes.set_ylim(low - margin, high + margin)


@contextmanager
def _chart(x_label: str, y_label: str, *, name: str) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; afterwards the list holds the finished element."""
    with _figure(_INCHES, name=name) as (figure, finished):
        axes = figure.add_subplot()
        yield axes, finished
        axes.set_xlabel(x_label, color=_INK)
        axes.set_ylabel(y_label, color=_INK)
        axes.tick_params(colors=_INK, labelcolor=_INK, length=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        axes.set_facecolor("none")
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        for text in axes.texts:
            text.set_color(_INK)


@contextmanager
def _figure(inches: tuple[float, float], *, name: str) -> Iterator[tuple[Any, list[str]]]:
    """A figure to draw on; afterwards the list holds the finished element."""
    import matplotlib as mpl  # a heavy import, for reports only
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "spadnet", "font.size": 9}
    finished: list[str] = []
    with mpl.rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure, finished
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        finished.append(_inline(file.getvalue(), prefix=re.sub(r"\W+", "-", name)))


def _inline(svg: str, *, prefix: str) -> str:
    """Make a written SVG file part of a page: no prologue, no namespaces, names of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#|url\(#', lambda found: f"{found[0]}{prefix}-", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)  # the page's own
    return svg.replace(_INK, "currentColor").strip()
