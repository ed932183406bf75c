"""Write docs/api.md, the reference of spadnet's public names, from their docstrings.

python tools/make_api_reference.py          # after a change of a docstring; a test compares
"""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import spadnet

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

_SECTIONS = ("Args", "Returns", "Raises", "Attributes", "Yields")
_ROLE = re.compile(r":(?:func|class|meth|data|attr|mod):`~?([^`]+)`")
_ENTRY = re.compile(r"(\*{0,2}\w+): (.*)")
_HEAD = """\
# Python interface

What a program may rely on, made from the docstrings by `tools/make_api_reference.py`. Axes are
always z, y, x, spacings in millimetres, intensities in [0, 1]; tensors are volumes
`[B, C, D, H, W]` and tokens `[B, L, C]`.
"""


class Group(NamedTuple):
    """A part of the page.

    Attributes:
        title: Its heading.
        module: Where its names are.
        names: Functions and classes; of a class with methods, those that are public.
    """

    title: str
    module: str
    names: Sequence[str]


GROUPS = (
    Group("spadnet", "spadnet", [name for name in spadnet.__all__ if not name.startswith("_")]),
    Group("Encoders", "spadnet.inference.encoder", ["Encoder", "Embedding"]),
    Group(
        "Checkpoint folders",
        "spadnet.weights.hub",
        ["load_checkpoint", "Loaded", "load_pretrained", "load_vit"],
    ),
    Group("Large images", "spadnet.inference.sliding_window", ["stitch", "segment", "with_flips"]),
    Group("Specialised networks", "spadnet.inference.specialise", ["Specialised"]),
    Group("Faster on CPUs", "spadnet.inference.freeze", ["can_freeze", "freeze"]),
    Group("Images", "spadnet.data.io", ["read_image", "write_like"]),
    Group("Back to the image's grid", "spadnet.data.paste", ["paste_back"]),
    Group("Stores", "spadnet.data.catalogue", ["read_catalogue", "load_store"]),
    Group("Images of the package", "spadnet.data.samples", ["list_samples", "load_samples"]),
    Group("Synthesis", "spadnet.synthesis", ["SyntheticDataset"]),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    PAGE.write_text(reference(), encoding="utf-8")
    return 0


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for group in GROUPS:
        module = importlib.import_module(group.module)
        parts.append(f"## {group.title}\n")
        for name in group.names:
            parts.extend(_described(name, getattr(module, name), module=group.module))
    return "\n".join(parts)


def _described(name: str, thing: object, *, module: str) -> list[str]:
    """Paragraphs about one function or class."""
    full = f"{module}.{name}"
    parts = [f"### `{full}`\n"]
    fields = getattr(thing, "_fields", None)
    if not (inspect.isclass(thing) and fields is not None):
        parts.append(f"```text\n{_signature(name, thing)}\n```\n")
    parts.append(markdown(inspect.getdoc(thing) or ""))
    if inspect.isclass(thing) and fields is None:
        parts.append(markdown(inspect.getdoc(thing.__init__) or ""))
    for method, function in _methods(thing):
        parts.append(f"#### `{name}.{method}`\n")
        if not isinstance(function, property):
            parts.append(f"```text\n{_signature(method, function)}\n```\n")
        parts.append(markdown(inspect.getdoc(function) or ""))
    return parts


def _methods(thing: object) -> list[tuple[str, object]]:
    """Public methods and properties that a class itself defines, in order."""
    if not inspect.isclass(thing):
        return []
    return [
        (name, getattr(thing, name))
        for name, value in vars(thing).items()
        if inspect.getdoc(getattr(thing, name))
        and (name == "__call__" or not name.startswith("_"))
        and isinstance(value, staticmethod | classmethod | property | type(_methods))
    ]


def _signature(name: str, thing: object) -> str:
    """Name and parameters, one a line where they are long."""
    assert callable(thing)
    found = inspect.signature(thing)
    parameters = [p for key, p in found.parameters.items() if key != "self"]
    found = found.replace(parameters=parameters)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z_a-z])", "", str(found))  # spadnet.spacing.Spacing
    if len(name) + len(text) <= 92:
        return name + text
    lines, named = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            lines.append("    *,")
            named = True
        lines.append(f"    {re.sub(r'(?:[a-z_][a-z_0-9]*[.])+(?=[A-Za-z])', '', str(parameter))},")
    end = text.rpartition(" -> ")
    return "\n".join([f"{name}(", *lines, ")" + (f" -> {end[2]}" if end[1] else "")])


def markdown(docstring: str) -> str:
    """Turn a docstring with ``Args:`` and its kin into Markdown.

    >>> print(markdown("Add.\\n\\nArgs:\\n    x: A number,\\n        any."))
    Add.
    <BLANKLINE>
    Args:
    <BLANKLINE>
    - `x`: A number, any.
    <BLANKLINE>
    """
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`")
    lines, out = text.splitlines(), []
    i = 0
    while i < len(lines):
        heading = lines[i].removesuffix(":")
        if heading in _SECTIONS and lines[i].endswith(":"):
            start = i + 1
            i = start
            while i < len(lines) and (not lines[i] or lines[i].startswith("    ")):
                i += 1
            out += ["", f"{heading}:", "", *_entries(lines[start:i]), ""]
        elif lines[i].startswith(">>>"):
            start = i
            while i < len(lines) and lines[i]:
                i += 1
            code = [re.sub(r"\s*# doctest: .*", "", line) for line in lines[start:i]]
            out += ["```text", *code, "```"]
        else:
            out.append(lines[i])
            i += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip() + "\n"


def _entries(lines: Sequence[str]) -> list[str]:
    """List items of a section; lines that go on are joined."""
    items: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        is_more = line.startswith("        ")
        found = _ENTRY.fullmatch(line.strip())
        if is_more and items:
            items[-1] += f" {line.strip()}"
        elif found is not None:
            items.append(f"- `{found[1]}`: {found[2]}")
        elif items and not items[-1].startswith("- "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return items


if __name__ == "__main__":
    sys.exit(main())
