"""The page of a run stands alone, whatever has been logged so far."""

import io
import re

import numpy as np
import PIL.Image

from spadnet.evaluate.run_page import RunReport, render_run


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def report(**changed: object) -> RunReport:
    rows = [
        {"step": 10.0 * i, "train/loss": 3.0 / i, "val/psnr": 20.0 + i, "train/perceptual": 0.0}
        | {f"loss_per_dataset/set<{d}>": 1.0 / d for d in range(1, 9)}
        | {f"train/reconstruction_degree{d}": 0.1 for d in (5, 0)}
        for i in range(1, 10)
    ]
    made = RunReport(
        name="my <run>",
        lead="Half way.",
        facts={"Run": {"seed": "0"}, "Data": {}},
        rows=rows,
        results={"auc": 0.9},
        panels=[("a", png())],
        panels_step=40,
        code_use=[3, 2, 0],
        settings="seed: 0 # <b>",
        commands=["spadnet x"],
    )
    return made._replace(**changed)  # type: ignore[arg-type]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_everything_that_is_there_is_shown_and_nothing_is_fetched() -> None:
    page = render_run(report())
    assert headings(page) == [
        "Test split",
        "Validation",
        "Pictures after step 40",
        "On held-out images",
        "Training",
        "Run",
        "Settings",
    ]
    assert "my &lt;run&gt;" in page
    assert "<b>" not in page
    assert not re.search(r"<script|<link|src=\"(?!data:)|url\(http", page)
    charts = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert charts == [
        "PSNR",
        "Use of the codes",
        "Loss",
        "Reconstruction by degree",
        "Loss by data set",
    ]  # a term that is always zero has none
    assert page.index("degree 0") < page.index("degree 5")


def test_more_sources_than_a_chart_can_show_are_in_a_table() -> None:
    page = render_run(report())
    assert all(f"dataset set&lt;{d}&gt;" in page for d in range(1, 9))


def test_of_many_validations_some_are_in_the_table() -> None:
    page = render_run(report())
    assert "6 of 9 validations" in page
    assert re.findall(r"step (\d+)</th>", page)[0] == "10"
    assert re.findall(r"step (\d+)</th>", page)[-1] == "90"


def test_an_empty_run_has_a_page() -> None:
    page = render_run(report(rows=[], results={}, panels=[], code_use=[]))
    assert headings(page) == ["Run", "Settings"]
