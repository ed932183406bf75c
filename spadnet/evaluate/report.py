"""The report of ``spadnet demo``: the same figures on the terminal, on a page and as JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spadnet.evaluate.charts import Curve
from spadnet.evaluate.page import FigureRow, Page, render_page
from spadnet.evaluate.panels import Panel
from spadnet.evaluate.pretraining import TARGETS

REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"


class Command(NamedTuple):
    """One way to go on.

    Attributes:
        what: What it does.
        command: What to type.
    """

    what: str
    command: str


NEXT_COMMANDS = (
    Command(
        "Train the tokenizer longer, or on images of your own",
        "spadnet pretrain-tokenizer experiment=tokenizer_tiny",
    ),
    Command(
        "Train the ViT on a tokenizer's codes",
        "spadnet pretrain-mim experiment=mim_tiny tokenizer=FOLDER",
    ),
    Command("See what a verb can do", "spadnet pretrain-mim --help"),
)


def write_demo_report(
    folder: Path,
    *,
    summary: Mapping[str, Any],
    panels: Sequence[Panel],
    curves: Sequence[Curve],
    histogram: Sequence[float] | np.ndarray,
    trained: str = "",
    facts: Mapping[str, str] | None = None,
    commands: Sequence[Command] = NEXT_COMMANDS,
) -> Path:
    """Write ``report.html``: one page that needs no other file, no network and no JavaScript.

    Args:
        folder: Folder of the run; it is made where missing.
        summary: What ``pretraining.summary`` returns.
        panels: Pictures of the held-out images.
        curves: Losses of both stages.
        histogram: Number of held-out tokens per code, [K].
        trained: One or two sentences on what was trained, on which images, and for how long.
        facts: Versions, device, seed and the like, by name.
        commands: How to go on.

    Returns:
        The file written.

    Raises:
        OSError: Naming the file, if it cannot be written; nothing half-written is left.
    """
    page = Page(
        headline=f"Both stages of pre-training in {_number(summary['minutes'], 1)} minutes",
        trained=trained,
        missed=not_reached(summary),
        rows=figure_rows(summary),
        by_degree=summary["by_degree"],
        images=summary["images"],
        panels=panels,
        curves=curves,
        histogram=histogram,
        facts=facts or {},
        commands=commands,
    )
    path = folder / REPORT_NAME
    _write_whole(path, render_page(page))
    return path


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``summary.json``, whole or not at all; figures without a finite value become null.

    Raises:
        OSError: Naming the file, if it cannot be written.
    """
    path = folder / SUMMARY_NAME
    _write_whole(path, json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")
    return path


def figure_rows(summary: Mapping[str, Any]) -> list[FigureRow]:
    """Rows of the table of figures: label, value, baseline, target, reached in words."""
    base = summary["baselines"]
    codes = base["codebook_size"]
    worst = min(summary["images"], key=lambda row: row["psnr_gain_db"])
    rows = [
        _row(
            summary,
            "psnr_gain_db",
            "PSNR gain, mean",
            f"{_number(base['psnr_db'], 2)}, block means {_number(base['psnr_blocks_db'], 2)} dB",
        ),
        _row(
            summary,
            "psnr_gain_db_min",
            "PSNR gain, worst image",
            f"{worst['name']}: {_number(worst['psnr_db'], 2)},"
            f" block means {_number(worst['psnr_blocks_db'], 2)} dB",
        ),
        FigureRow(
            "SSIM, mean",
            _number(summary["ssim"], 3),
            f"block means {_number(base['ssim_blocks'], 3)}",
            "",
            "",
        ),
        _row(
            summary,
            "codes_used_share",
            "Codes in use",
            f"{base['codes_used']} of {codes}, by argmax",
        ),
        _row(
            summary,
            "perplexity_share",
            "Perplexity of use",
            f"{_number(base['perplexity'], 1)} of {codes}",
        ),
        _row(
            summary,
            "mutual_information_nats",
            "Mutual information",
            f"entropy of the mean {_number(base['entropy_of_mean_nats'], 2)}"
            f" less mean entropy {_number(base['mean_entropy_nats'], 2)}",
        ),
        _row(
            summary,
            "mim_gain_share",
            "Masked loss below constant",
            f"{_number(base['mim_loss_nats'], 3)}, best constant"
            f" {_number(base['mim_constant_nats'], 3)} nats",
        ),
        _row(
            summary,
            "mim_gain_own_share",
            "Masked loss below own mean",
            f"{_number(base['mim_loss_nats'], 3)}, each image's own mean"
            f" {_number(base['mim_own_nats'], 3)} nats",
        ),
        _row(summary, "minutes", "Time", ""),
    ]
    return rows


def not_reached(summary: Mapping[str, Any]) -> list[str]:
    """Names, values and targets of the figures that miss theirs, in words."""
    return [
        f"{row.label} ({row.value}, wanted {row.target})"
        for row in figure_rows(summary)
        if row.reached == "no"
    ]


def format_table(summary: Mapping[str, Any]) -> Table:
    """Table of figures for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("held-out figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("beside")
    table.add_column("wanted", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for row in figure_rows(summary):
        style = {"yes": "green", "no": "bold red"}.get(row.reached, "")
        target = row.target.replace("at least", ">=").replace("at most", "<=")
        table.add_row(row.label, row.value, row.beside, target, Text(row.reached, style))
    return table


def print_table(summary: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print the table of figures, and plainly which are not reached."""
    console = console or Console()
    console.print(format_table(summary))
    if missed := not_reached(summary):
        console.print(f"Not reached: {'; '.join(missed)}", style="bold red", highlight=False)


def _row(summary: Mapping[str, Any], name: str, label: str, beside: str) -> FigureRow:
    value, bound = summary[name], summary["targets"][name]
    reached = bool(summary["reached"][name])
    extra = 0
    # A near miss is not rounded up to its target.
    while not reached and extra < 6 and _figure(name, value, extra) == _figure(name, bound, extra):
        extra += 1
    bound_text = _figure(name, bound, extra).lstrip("+")
    target = f"at {'most' if TARGETS[name].at_most else 'least'} {bound_text}"
    return FigureRow(label, _figure(name, value, extra), beside, target, "yes" if reached else "no")


def _figure(name: str, value: float, extra: int = 0) -> str:
    """A figure with its unit, and ``extra`` more decimals."""
    if name.endswith("_share"):
        return f"{_number(100 * value, 1 + extra)} %"
    if name == "minutes":
        return f"{_number(value, 1 + extra)} min"
    unit = "dB" if "_db" in name else "nats"
    sign = "+" if unit == "dB" and value >= 0 else ""
    return f"{sign}{_number(value, 2 + extra)} {unit}"


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "not defined"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
