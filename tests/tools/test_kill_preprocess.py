"""The tool kills runs, finds them whole when they are continued, and notices where they are not."""

import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spadnet.cli import preprocess

SHORT = ["--workers", "0", "--images", "4"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "kill_preprocess.py"
    spec = importlib.util.spec_from_file_location("kill_preprocess", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_runs_end_with_the_same_bytes(
    tool: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert tool.main(["--kills", "2", *SHORT, "--folder", str(tmp_path / "x")]) == 0
    assert caplog.text.count("continued: same bytes") == 2
    assert "2 kills, 0 with differing bytes" in caplog.text
    files = {path.name for path in (tmp_path / "x/out").iterdir()}
    assert {"catalogue.jsonl", "quarantine.jsonl", "SHA256SUMS", "fingerprint.html"} <= files


def test_a_differing_byte_fails(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_text: Any = preprocess.as_text
    monkeypatch.setattr(preprocess, "as_text", lambda found: f"{as_text(found)}{os.getpid()}")
    with caplog.at_level(logging.INFO):
        assert tool.main(["--kills", "1", *SHORT]) == 1
    assert "continued: DIFFERENT: SHA256SUMS, fingerprint.txt" in caplog.text
