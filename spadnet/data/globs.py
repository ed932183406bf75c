"""Find paths by patterns with braces, ``**`` and a name that repeats."""

import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from spadnet.data.image import file_name, one_line

_log = logging.getLogger(__name__)
_MAGIC = re.compile(r"[*?\[]")
_CASE = "{case}"


def find_glob(root: Path, pattern: str) -> list[Path]:
    """Paths below a folder that a pattern matches, sorted; names with a leading dot never match.

    Args:
        root: Where to look.
        pattern: ``*``, ``?`` and ``[0-9]`` within a name, ``**`` for folders of any depth (links
            are not followed), ``{a,b}`` for either, and ``{case}`` for what the last part with a
            wildcard before it matched.

    Returns:
        Files and folders, each once.
    """
    found = {path for plain in expand_braces(pattern) for path in _walk(root, plain.split("/"), "")}
    return sorted(found)


def expand_braces(pattern: str) -> list[str]:
    """All patterns that one with braces stands for.

    >>> expand_braces("{a,b}/{c,d}.png")
    ['a/c.png', 'a/d.png', 'b/c.png', 'b/d.png']
    """
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    start, stop = braces.span()
    return [
        expanded
        for option in braces[1].split(",")
        for expanded in expand_braces(pattern[:start] + option + pattern[stop:])
    ]


def _walk(folder: Path, parts: list[str], case: str) -> Iterator[Path]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _walk(folder, rest, case)
        for name in _names(folder):
            below = folder / name
            if below.is_dir() and not below.is_symlink():
                yield from _walk(below, parts, case)
        return
    if _MAGIC.search(part):
        wanted = part.replace(_CASE, re.sub(r"([*?\[])", r"[\1]", case))
        names = [name for name in _names(folder) if fnmatch.fnmatchcase(name, wanted)]
    else:
        names = [part.replace(_CASE, case)]
    for name in names:
        path = folder / name
        if rest and path.is_dir():
            yield from _walk(path, rest, name if _MAGIC.search(part) else case)
        elif not rest and os.path.lexists(path):
            yield path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except PermissionError as error:
        reason = (error.strerror or one_line(error)).lower()
        _log.warning("%s: %s; left out", file_name(folder), reason)
        return []
