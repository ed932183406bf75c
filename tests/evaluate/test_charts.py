"""Charts: complete without outside references, in the colours of the page."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from spadnet.evaluate.charts import Curve, draw_code_use, draw_curve, running_mean


def test_running_mean_keeps_constants_and_lines() -> None:
    assert running_mean(np.full(9, 3.0), width=4) == pytest.approx(np.full(9, 3.0))
    line = np.arange(20.0)
    assert running_mean(line, width=4)[2:-2] == pytest.approx(line[2:-2])


def test_a_chart_names_its_axes_series_and_levels_and_refers_to_nothing() -> None:
    steps = list(range(200))
    curve = Curve(
        "Stage 2",
        "loss (nats)",
        {"model": (steps, [1 / (1 + step) for step in steps]), "empty": ([], [])},
        levels={"best constant": 0.4},
        events={"code start": 50},
    )
    svg = draw_curve(curve)
    for text in ("loss (nats)", "optimiser step", "model", "best constant", "code start"):
        assert f">{text}<" in svg
    assert "http" not in svg
    assert "<style" not in svg
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_values_that_are_not_finite_are_left_out() -> None:
    steps = [0, 1, 2, 3]
    svg = draw_curve(Curve("a", "loss", {"a": (steps, [1.0, float("nan"), float("inf"), 2.0])}))
    assert "nan" not in svg
    assert "inf" not in svg


def test_charts_of_one_page_have_names_of_their_own_and_are_reproducible() -> None:
    first, second = (draw_curve(Curve(t, "loss", {"a": ([0, 1], [0, 1])})) for t in ("A 1", "B"))
    assert not set(re.findall(r'id="([^"]+)"', first)) & set(re.findall(r'id="([^"]+)"', second))
    assert first == draw_curve(Curve("A 1", "loss", {"a": ([0, 1], [0, 1])}))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first))
    assert used <= set(re.findall(r'id="([^"]+)"', first))


@pytest.mark.parametrize("counts", [[5, 0, 3, 0], [1, 1], [0, 0, 0]])
def test_code_use_is_drawn_for_any_histogram(counts: list[int]) -> None:
    svg = draw_code_use(counts)
    assert ("unused beyond 2" in svg) == (counts == [5, 0, 3, 0])
    ET.fromstring(svg.replace("xlink:", ""))  # well-formed
