"""Suggest the name that a user probably meant."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or all names if none is near.

    >>> suggest("spad_vit_tny", ["spad_vit_tiny", "spad_vt_base"])
    "; did you mean 'spad_vit_tiny'?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""
