"""README's Python runs as written."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
EXEMPT = "<!-- no-test -->"


class Block(NamedTuple):
    """A Python example, the line it starts at, and whether it is exempt from running."""

    code: str
    line: int
    exempt: bool


def python_blocks(text: str) -> list[Block]:
    """Find the fenced Python blocks of a Markdown text."""
    pattern = re.compile(
        r"^(?P<mark>[^\n]*\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
    )
    return [
        Block(
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            (match["mark"] or "").strip() == EXEMPT,
        )
        for match in re.finditer(pattern, text)
    ]


def test_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    blocks = python_blocks(README)
    assert len(blocks) == README.count("```python")
    for block in blocks:
        # Padding with empty lines makes a traceback name README's own line.
        code = compile("\n" * (block.line - 1) + block.code, "README.md", "exec")
        if not block.exempt:
            exec(code, namespace)
    assert any(not block.exempt for block in blocks)


def test_blocks_are_found_and_only_marked_ones_are_exempt() -> None:
    text = f"a\n\n```python\nx = 1\n```\n{EXEMPT}\n```python\ny\n```\n```sh\nls\n```\n"
    assert python_blocks(text) == [Block("x = 1\n", 4, False), Block("y\n", 8, True)]
