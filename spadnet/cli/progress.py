"""How far a verb is with its files: a bar in a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int, int], None]
"""Called with the numbers of files done, of all files and of those that cannot be used."""

logger = logging.getLogger(__name__)

_LINE_EVERY = 10.0  # seconds, where there is no terminal


class _Lines:
    """Progress where there is no terminal: a line now and then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int, bad: int) -> None:
        """Take note."""
        if self._first is None:
            self._first = done
        now = time.monotonic()
        if now - self._last < _LINE_EVERY or done == self._first:
            return
        self._last = now
        left = (now - self._start) / (done - self._first) * (total - done)
        logger.info(
            "%s %d/%d  %d bad  %s left", self.name, done, total, bad, timedelta(seconds=round(left))
        )


@contextmanager
def progress(name: str) -> Iterator[Report]:
    """A bar with the time left, or lines; gives what to call with done, total and bad."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(name)
        return
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bad]} bad"),
        TimeElapsedColumn(),
        TextColumn("so far"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, bad=0)
        yield lambda done, total, bad: bar.update(task, completed=done, total=total, bad=bad)
