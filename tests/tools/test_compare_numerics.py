"""The comparison with reference vectors reproduces them, takes other sizes, and misses nothing."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_folder import write_other_sizes
from safetensors.torch import load_file, save_file
from torch import Tensor

TESTS = Path(__file__).resolve().parents[1]
TOOL = TESTS.parent / "tools" / "compare_numerics.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool as a user does."""
    return subprocess.run(
        [sys.executable, str(TOOL), "--reference", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
        timeout=300,
    )


@pytest.fixture(scope="module")
def other_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the same form whose sizes all differ."""
    return write_other_sizes(tmp_path_factory.mktemp("reference") / "other")


@pytest.fixture(scope="module")
def tool() -> Any:
    """The tool as a module: a process for each miss would take too long."""
    sys.path.insert(0, str(TOOL.parent))
    import compare_numerics

    yield compare_numerics
    sys.path.remove(str(TOOL.parent))


def run_inside(tool: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the tool in this process."""
    command = [str(TOOL), "--reference", str(folder), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return int(tool.main())


def references() -> list[Path]:
    """The copied folder, and one more that a release is checked by."""
    more = os.environ.get("SPADNET_REFERENCE")
    return [TESTS / "reference", *([Path(more)] if more else [])]


@pytest.mark.parametrize("folder", references(), ids=str)
def test_reference_is_reproduced(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    cases = json.loads((folder / "cases.json").read_text())
    assert list(figures) == list(cases)
    assert len(done.stdout.splitlines()) == 1 + len(cases)  # a heading and a row per group
    for name, figure in figures.items():
        settings = cases[name]
        listed = settings if isinstance(settings, list) else settings.get("cases", [settings])
        assert figure["cases"] == len(listed)
        layer = name in ("spad_conv", "rope", "resample")
        assert figure["tolerance"] == (1e-5 if layer else 1e-4)
        assert figure["max_error"] <= figure["tolerance"]


def test_other_widths_depths_and_shapes_are_taken(
    other_sizes: Path,
    tool: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run_inside(tool, other_sizes, monkeypatch)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert printed.out.count(" ok") == 7


# --- nothing is missed ---

Change = Callable[[dict[str, Any], Path], None]


def edit(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Change:
    """Change the tensors of a group."""

    def apply(_: dict[str, Any], folder: Path) -> None:
        tensors = load_file(folder / f"{name}.safetensors")
        change(tensors)
        save_file(tensors, folder / f"{name}.safetensors")

    return apply


def add_to_one_value(tensors: dict[str, Tensor], key: str, value: float) -> None:
    """Corrupt a single number."""
    tensors[key].view(-1)[-1] += value


MISSES: dict[str, tuple[Change, str]] = {
    "one number off": (
        edit("tokenizer_wide", lambda t: add_to_one_value(t, "b.rec", 3e-4)),
        "tokenizer_wide: b: rec differs by 3.0",
    ),
    "not a number": (
        edit("rope", lambda t: add_to_one_value(t, "r.cos", math.nan)),
        "rope: r: cos differs by nan",
    ),
    "a block off": (
        edit("vit_plain", lambda t: add_to_one_value(t, "v.block0", 3e-4)),
        "vit_plain: v: block0 differs",
    ),
    "another weight": (
        edit("mim_middle", lambda t: add_to_one_value(t, "state.mask_token", 1.0)),
        "mim_middle: m: ",
    ),
    "another shape": (
        edit("adapter_pd2", lambda t: t.update(feature3=t["feature3"][..., :1].contiguous())),
        "adapter_pd2: : feature3 is",
    ),
    "an output gone": (edit("vit_plain", lambda t: t.pop("v.block1")), "no reference for block1"),
    "an input gone": (edit("rope", lambda t: t.pop("r.q")), "rope: r: no tensors ['q']"),
    "a tensor too many": (
        edit("mim_middle", lambda t: t.update({"m.extra": torch.zeros(1)})),
        "mim_middle: m: extra is not compared",
    ),
    "a case too many": (
        edit("rope", lambda t: t.update({"s.q": torch.zeros(1)})),
        "rope: s: tensors without a case",
    ),
    "a weight too many": (
        edit("vit_plain", lambda t: t.update({"state.extra": torch.zeros(1)})),
        "vit_plain: unexpected weights: extra",
    ),
    "a weight gone": (edit("vit_plain", lambda t: t.pop("state.cls_token")), "cls_token"),
    "a case without tensors": (
        lambda groups, _: groups["rope"].append(groups["rope"][0] | {"name": "none"}),
        "rope: none: no tensors ['q']",
    ),
    "no cases": (lambda groups, _: groups.update(rope=[]), "rope: no cases"),
    "an unknown group": (lambda groups, _: groups.update(upscaler=[]), "upscaler: unknown group"),
    "a group not listed": (
        lambda groups, _: groups.pop("rope") and None,
        "rope: not listed in cases.json",
    ),
    "an unknown form": (
        lambda groups, _: groups["tokenizer_wide"].update(mode="vq"),
        "tokenizer_wide: mode='vq' has no counterpart",
    ),
    "a setting gone": (
        lambda groups, _: groups["vit_plain"].pop("depth") and None,
        "vit_plain: no 'depth'",
    ),
    "another input shape": (
        lambda groups, _: groups["vit_plain"]["cases"][0].update(input_shape=[1, 3, 4, 16, 16]),
        "vit_plain: v: x is [1, 3, 4, 24, 16], the case says",
    ),
    "mask layers in between": (
        lambda groups, _: groups["mim_middle"].update(mask_layer_ids=[1, 2]),
        "mask_layer_ids [1, 2] are not the last of 4",
    ),
}


@pytest.mark.parametrize("miss", MISSES)
def test_a_miss_is_reported_and_fails(
    miss: str,
    other_sizes: Path,
    tmp_path: Path,
    tool: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, report = MISSES[miss]
    groups = json.loads((other_sizes / "cases.json").read_text())
    for file in other_sizes.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(groups, tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps(groups))
    assert run_inside(tool, tmp_path, monkeypatch) == 1
    printed = capsys.readouterr()
    assert report in printed.err
    assert printed.out.count("MISS") == 1  # the others are compared all the same


def test_unreadable_folders_are_one_clear_line(
    other_sizes: Path,
    tmp_path: Path,
    tool: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(reason: str) -> None:
        assert run_inside(tool, tmp_path, monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.startswith("compare_numerics: ")
        assert reason in error
        assert error.count("\n") == 1

    fails("No such file")
    cases = tmp_path / "cases.json"
    for content in ("", "{", "[]", "{}", '{"rope": 3}', '{"rope": [1]}'):
        cases.write_text(content)
        fails("")
    groups = json.loads((other_sizes / "cases.json").read_text())
    cases.write_text(json.dumps({"rope": groups["rope"]}))
    fails("rope.safetensors")
    whole = (other_sizes / "rope.safetensors").read_bytes()
    for content in (b"", b"not a tensor", whole[: len(whole) // 2]):
        (tmp_path / "rope.safetensors").write_bytes(content)
        fails("rope.safetensors")
