"""``spadnet report``: one page about a training run, also of one that is not finished."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.export_weights import read_settings
from spadnet.cli.usage import UsageError
from spadnet.evaluate.run_page import RunReport, render_run
from spadnet.near_names import suggest
from spadnet.train.checkpoint import write_atomic
from spadnet.train.metrics_log import CSV_NAME, read_rows
from spadnet.train.run_folder import (
    COMMAND_FILE,
    CONFIG_FILE,
    DATA_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    VERSIONS_FILE,
)
from spadnet.train.validation import CODE_USE_FILE, newest_panels

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
_LISTED = 5


def run(argv: Sequence[str]) -> int:
    """Write the page of a run."""
    folder, out = parse(argv)
    page = render_run(read_run(folder))
    path = out or folder / REPORT_NAME
    write_atomic(path, lambda file: file.write(page.encode("utf-8", "replace")))
    logger.info("report written to %s", path)
    return 0


def parse(argv: Sequence[str]) -> tuple[Path, Path | None]:
    """Folder of the run, and the file to write if it was named."""
    folders, out = [], None
    for text in argv:
        key, equals, value = text.partition("=")
        if key == "out" and equals:
            out = Path(value).expanduser()
        elif key == "in" and equals:
            folders.append(value)
        elif equals and not Path(text).exists():
            raise UsageError(f"report takes RUN and out=FILE, got {text!r}{suggest(key, ['out'])}")
        elif text.startswith("-"):
            raise UsageError(f"unknown option {text!r}; report takes RUN and out=FILE")
        else:
            folders.append(text)
    if len(folders) != 1:
        raise UsageError(f"report takes the folder of one run, got {len(folders)}")
    if out is not None and out.is_dir():
        raise UsageError(f"out={out}: a folder; name the file")
    return Path(folders[0]).expanduser(), out


def read_run(folder: Path) -> RunReport:
    """Read what a run folder tells; what is missing or damaged is left out, with a warning.

    Raises:
        ValueError: If there is no such folder, or it holds no run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if not (folder / CONFIG_FILE).is_file():
        below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; there are runs below: {', '.join(below[:_LISTED])}" if below else ""
        raise ValueError(f"{folder}: not the folder of a run, {CONFIG_FILE} is missing{hint}")
    settings = read_settings(folder)
    rows = to_numbers(read_rows(folder / CSV_NAME))
    summary = read_json(folder / SUMMARY_FILE, {})
    versions = read_json(folder / VERSIONS_FILE, {})
    data = read_json(folder / DATA_FILE, {})
    use = read_json(folder / CODE_USE_FILE, {})
    step, files = newest_panels(folder)
    commands = folder / COMMAND_FILE
    return RunReport(
        name=f"{settings.get('name', folder.name)}",
        lead=lead(settings, summary, rows),
        facts={
            "Run": run_facts(folder, settings, summary),
            "Data": flat(data),
            "Versions": flat(versions),
        },
        rows=rows,
        results=results(read_json(folder / RESULTS_FILE, [])),
        panels=[(file.stem, file.read_bytes()) for file in files],
        panels_step=step,
        code_use=[int(count) for count in use.get("counts", [])],
        settings=(folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace"),
        commands=commands.read_text(errors="replace").splitlines() if commands.is_file() else [],
    )


def to_numbers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Finite numbers of a metrics file; a row whose step is no number is left out."""
    numbers = []
    for row in rows:
        found = {}
        for name, text in row.items():
            try:
                value = float(text)
            except (TypeError, ValueError):
                continue
            if isinstance(name, str) and math.isfinite(value):
                found[name] = value
        if "step" in found:
            numbers.append(found)
    return sorted(numbers, key=lambda row: row["step"])


def lead(
    settings: Mapping[str, Any], summary: Mapping[str, Any], rows: Sequence[Mapping[str, float]]
) -> str:
    """How far the run is, in words."""
    trainer = settings.get("trainer")
    whole = trainer.get("max_steps") if isinstance(trainer, dict) else None
    step = max(int(summary.get("steps") or 0), int(rows[-1]["step"]) if rows else 0)
    status = str(summary.get("status", "not finished"))
    if not rows:
        return f"Stage {settings.get('stage', '?')}, {status}: nothing has been logged yet."
    loss = next((row["train/loss"] for row in reversed(rows) if "train/loss" in row), None)
    end = "" if loss is None else f"; the last training loss is {loss:.4g}"
    return f"Stage {settings.get('stage', '?')}, {status}: {step} of {whole} steps{end}."


def run_facts(
    folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, str]:
    """What the summary tells, without the metrics."""
    model = settings.get("model")
    facts = {"folder": str(folder)}
    if isinstance(model, dict):
        facts["model"] = str(model.get("name"))
    facts["seed"] = str(settings.get("seed"))
    plain = {name: value for name, value in summary.items() if name != "metrics"}
    return facts | flat(plain)


def results(records: Any) -> dict[str, float]:
    """Scores of a fine-tuned model on the test split."""
    found = {}
    for record in records if isinstance(records, list) else []:
        if isinstance(record, dict) and isinstance(record.get("value"), int | float):
            found[str(record.get("metric"))] = float(record["value"])
    return found


def flat(content: Any, prefix: str = "") -> dict[str, str]:
    """Nested plain types as text by dotted name; lists in short."""
    found: dict[str, str] = {}
    for name, value in content.items() if isinstance(content, dict) else []:
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            more = f" and {len(value) - _LISTED} more" if len(value) > _LISTED else ""
            found[prefix + name] = ", ".join(map(str, value[:_LISTED])) + more
        elif value is not None:
            found[prefix + name] = str(value)
    return found


def read_json(path: Path, default: Any) -> Any:
    """Content of a JSON file of the same kind as ``default``, which stands for a missing one."""
    if not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError):
        logger.warning("%s: not JSON; left out", path)
        return default
    if not isinstance(content, type(default)):
        logger.warning("%s: not what spadnet writes; left out", path)
        return default
    return content
