"""The report stands alone, says what is not reached, and is written whole or not at all."""

import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from spadnet.evaluate.charts import Curve
from spadnet.evaluate.page import caption
from spadnet.evaluate.panels import Panel
from spadnet.evaluate.pretraining import TARGETS
from spadnet.evaluate.report import (
    figure_rows,
    not_reached,
    print_table,
    write_demo_report,
    write_summary,
)
from spadnet.spacing import Spacing

GOOD = {
    "psnr_gain_db": 3.4,
    "psnr_gain_db_min": 0.9,
    "ssim": 0.81,
    "codes_used_share": 0.9,
    "perplexity_share": 0.5,
    "mutual_information_nats": 2.4,
    "mim_gain_share": 0.14,
    "mim_gain_own_share": 0.05,
}


def make_summary(**changed: float) -> dict[str, Any]:
    figures: dict[str, Any] = {**GOOD, "minutes": 8.0, **changed}
    figures["by_degree"] = {"0": GOOD, "5": GOOD}
    row = {"name": "ct <chest>", "modality": "CT", "degree": 0, "size": [16, 32, 32]}
    row |= {"spacing_mm": [1.0, 1.0, 1.0], "psnr_db": 26.0, "psnr_blocks_db": 22.0}
    row |= {"psnr_gain_db": 4.0, "ssim": 0.8, "ssim_blocks": 0.6, "mim_loss_nats": 3.0}
    row |= {"mim_constant_nats": 3.5, "mim_own_nats": 3.2, "mim_gain_share": 0.1}
    figures["images"] = [row]
    figures["baselines"] = {
        "psnr_db": 26.0,
        "psnr_blocks_db": 22.0,
        "ssim_blocks": 0.6,
        "codebook_size": 128,
        "codes_used": 115,
        "perplexity": 64.0,
        "entropy_of_mean_nats": 4.0,
        "mean_entropy_nats": 1.6,
        "mim_loss_nats": 3.0,
        "mim_constant_nats": 3.5,
        "mim_own_nats": 3.2,
        "mim_target_entropy_nats": 1.6,
    }
    figures["targets"] = {name: target.value for name, target in TARGETS.items()}
    figures["reached"] = {name: t.reached_by(figures[name]) for name, t in TARGETS.items()}
    return figures


def make_panel(name: str, spacing: Spacing, plane: str) -> Panel:
    pictures = [np.full((20, 30), 40 * i, dtype=np.uint8) for i in range(4)]
    return Panel(name, "CT", spacing, spacing.degree(), plane, *pictures)


def write(folder: Path, summary: dict[str, Any]) -> str:
    path = write_demo_report(
        folder,
        summary=summary,
        panels=[
            make_panel("ct <chest>", Spacing(5, 0.8, 0.8), "axial slice"),
            make_panel("ct <chest>", Spacing(5, 0.8, 0.8), "coronal slice"),
            make_panel("fundus", Spacing.planar(), "2D image"),
        ],
        curves=[Curve("Stage 1", "loss", {"model": ([0, 1, 2], [3.0, 2.0, 1.0])})],
        histogram=[5, 0, 3],
        trained="Trained on samples & synthesis.",
        facts={"torch": "2.x"},
    )
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Reader(html.parser.HTMLParser):
    """Checks that tags are balanced and collects what they refer to."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.stack.append(tag)
        self.references += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path: Path) -> None:
    page = write(tmp_path, make_summary())
    reader = Reader()
    reader.feed(page)
    assert reader.stack == []
    assert reader.tags.count("img") == 12
    assert not {"script", "link", "iframe", "object"}.intersection(reader.tags)
    assert reader.references
    assert all(ref.startswith(("data:image/png;base64,", "#")) for ref in reader.references)
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_says_what_was_trained_and_escapes_names(tmp_path: Path) -> None:
    page = write(tmp_path, make_summary())
    assert "in 8.0 minutes" in page
    assert "samples &amp; synthesis" in page
    assert "ct &lt;chest&gt;" in page
    assert "<chest>" not in page
    assert "spadnet pretrain-mim" in page
    assert "All figures reach their targets." in page


def test_the_page_says_plainly_what_is_not_reached(tmp_path: Path) -> None:
    page = write(tmp_path, make_summary(mim_gain_share=0.05, minutes=12.0))
    assert "2 figures are not reached." in page
    assert "Masked loss below constant (5.0 %, wanted at least 12.0 %)" in page
    assert "Time (12.0 min, wanted at most 10.0 min)" in page
    assert "All figures reach" not in page
    assert page.count('<td class="no">no</td>') == 2
    assert "1 figure is not reached." in write(tmp_path, make_summary(psnr_gain_db_min=-1.0))


def test_a_near_miss_is_not_rounded_up_to_its_target() -> None:
    assert not_reached(make_summary(psnr_gain_db=2.9996)) == [
        "PSNR gain, mean (+2.9996 dB, wanted at least 3.0000 dB)"
    ]
    assert not_reached(make_summary(mim_gain_share=0.11999)) == [
        "Masked loss below constant (11.999 %, wanted at least 12.000 %)"
    ]
    assert not_reached(make_summary(psnr_gain_db=3.0)) == []


def test_figures_that_are_not_defined_are_not_reached(tmp_path: Path) -> None:
    summary = make_summary(mim_gain_share=float("nan"))
    assert len(not_reached(summary)) == 1
    assert "not defined" in write(tmp_path, summary)
    path = write_summary(tmp_path, summary)
    assert json.loads(path.read_text())["mim_gain_share"] is None


def test_summary_file_holds_the_summary(tmp_path: Path) -> None:
    summary = make_summary()
    assert json.loads(write_summary(tmp_path / "new", summary).read_text()) == summary


def test_an_unwritable_place_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_summary(tmp_path, {"old": 1})

    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*summary\.json'"):
        write_summary(tmp_path, {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"old": 1}


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_table_has_every_figure(width: int) -> None:
    summary = make_summary(mim_gain_own_share=0.01)
    out = io.StringIO()
    print_table(summary, console=Console(file=out, width=width))
    text = out.getvalue()
    for row in figure_rows(summary):
        assert row.value in text
    assert "yes" in text
    assert "Not reached: Masked loss below own mean" in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_captions_tell_spacing_in_mm_where_it_is_known() -> None:
    volume = [make_panel("ct", Spacing(5, 0.84, 0.84), plane) for plane in ("axial", "coronal")]
    assert caption(volume) == "ct, CT, axial and coronal, 5 x 0.84 x 0.84 mm (z, y, x), degree 2"
    known = make_panel("x-ray", Spacing.planar(0.143, 0.143), "2D image")
    assert "pixels of 0.143 x 0.143 mm, degree 5" in caption([known])
    assert "no pixel size known" in caption([make_panel("fundus", Spacing.planar(), "2D image")])
