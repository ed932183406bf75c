"""``spadnet models``: the sizes, the weights that are here, and what is known about them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spadnet.cli.usage import UsageError
from spadnet.near_names import suggest
from spadnet.weights.available import ModelInfo, find_downloads, find_weights, list_models

_WIDTH_OF_A_FILE = 240  # where output goes to no terminal, nothing is cut


def run(argv: Sequence[str]) -> int:
    """Print a table of the sizes and one of the weights that are here."""
    folder = Path("runs")
    for text in argv:
        key, equals, value = text.partition("=")
        if key != "in" or not equals:
            raise UsageError(f"models takes in=FOLDER, got {text!r}{suggest(key, ['in'])}")
        folder = Path(value).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    console.print(_table("sizes", list_models(), where="pretrained weights"))
    here = [*find_weights(folder), *find_downloads()]
    console.print()
    if here:
        console.print(_table(f"weights in {folder} and downloaded ones", here, where="load with"))
    else:
        console.print(
            f"No weights in {folder}, and none were downloaded; in=FOLDER looks elsewhere."
        )
    return 0


def _table(title: str, infos: Sequence[ModelInfo], *, where: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("name", "kind", "parameters", "MB", "data", "licence", where):
        right = name in ("parameters", "MB")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for info in infos:
        table.add_row(
            info.name,
            info.kind,
            "-" if info.num_parameters is None else f"{info.num_parameters:,}",
            "-" if info.megabytes is None else f"{info.megabytes:.1f}",
            _names(info.data),
            info.licence or "-",
            info.source or "-",
        )
    return table


def _names(data: Sequence[str], *, count: int = 3) -> str:
    """The first names and how many there are."""
    more = f" and {len(data) - count} more" if len(data) > count else ""
    return ", ".join(data[:count]) + more or "-"
