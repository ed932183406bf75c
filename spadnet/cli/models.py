"""``spadnet models``: the sizes and what is known about them."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from spadnet.cli.usage import UsageError
from spadnet.models.registry import list_models


def run(argv: Sequence[str]) -> int:
    """Print a table of the models."""
    if argv:
        raise UsageError(f"models takes no arguments, got {argv[0]!r}")
    table = Table(box=None, pad_edge=False)
    for title in ("name", "kind", "parameters", "pretrained", "licence"):
        table.add_column(title, justify="right" if title == "parameters" else "left")
    for info in list_models():
        table.add_row(
            info.name,
            info.kind,
            f"{info.num_parameters:,}",
            info.pretrained or "-",
            info.licence or "-",
        )
    Console().print(table)
    return 0
