"""docs/api.md is what the docstrings say."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

import spadnet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("make_api_reference")


def test_page_is_current(tool: ModuleType) -> None:
    assert (ROOT / "docs" / "api.md").read_text() == tool.reference(), (
        "run python tools/make_api_reference.py"
    )


def test_every_public_name_is_described(tool: ModuleType) -> None:
    page = tool.reference()
    for name in spadnet.__all__:
        assert name.startswith("_") or f"### `spadnet.{name}`" in page
    for group in tool.GROUPS:
        for name in group.names:
            assert getattr(importlib.import_module(group.module), name).__doc__, name
    assert "#### `Encoder.encode_many`" in page
    assert "Encoder._view" not in page


def test_sections_become_lists(tool: ModuleType) -> None:
    text = tool.markdown(
        "Add :func:`a.b` to ``c``.\n\n>>> add(1)  # doctest: +SKIP\n2\n\nArgs:\n"
        "    x: A number,\n        any.\n    *more: Others.\n\nReturns:\n    The sum\n    of all."
    )
    assert text == (
        "Add `a.b` to `c`.\n\n```text\n>>> add(1)\n2\n```\n\nArgs:\n\n- `x`: A number, any.\n"
        "- `*more`: Others.\n\nReturns:\n\nThe sum of all.\n"
    )
