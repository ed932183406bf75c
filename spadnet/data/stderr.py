"""Silence what C libraries print on their own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what C code prints from standard error, for the whole process while it lasts.

    For decoders that raise a proper error and also print a page about it.
    """
    with _lock:
        try:
            saved = os.dup(2)
        except OSError:  # there is no standard error, so there is nothing to keep clean
            saved = -1
        if saved < 0:
            yield
            return
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
