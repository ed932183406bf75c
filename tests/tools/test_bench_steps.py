"""The benchmark runs, compares what it times, and tells when outputs differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TOOL = TOOLS / "bench_steps.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "--tiny", "--repeats", "1", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_writes_a_ratio(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--only", "encode", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "precision of (b): " in done.stdout
    figures = json.loads(file.read_text())
    assert set(figures) == {"encode"}
    row = figures["encode"]
    assert set(row) == {"ratio", "baseline_ms", "ours_ms"}
    assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ours_ms"])


def test_refuses_an_unknown_step() -> None:
    done = run("--only", "decode")
    assert done.returncode == 2
    assert "decode" in done.stderr


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tool's own modules importable."""
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("degree", [0, 2, 5])
@pytest.mark.parametrize("name", ["encode", "tokenizer_step", "mim_step"])
def test_both_forms_agree(name: str, degree: int) -> None:
    from bench_steps import relative_error
    from step_forms import STEPS, TINY, Setting

    expected, actual = (
        STEPS[name](Setting(form, TINY, degree, "32-true")).outputs()
        for form in ("straightforward", "spadnet")
    )
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert relative_error(actual[key], value) < 1e-4, key


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("name", ["encode", "tokenizer_step", "mim_step"])
def test_bfloat16_agrees_roughly(name: str) -> None:
    from bench_steps import TOLERANCE, relative_error
    from step_forms import STEPS, TINY, Setting

    expected, actual = (
        STEPS[name](Setting(form, TINY, 1, "bf16-mixed")).outputs()
        for form in ("straightforward", "spadnet")
    )
    for key, value in expected.items():
        tolerance = TOLERANCE["bf16-mixed"][key.startswith("gradient")]
        assert relative_error(actual[key].float(), value) < tolerance, key


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("form", ["straightforward", "spadnet"])
@pytest.mark.parametrize("name", ["tokenizer_step", "mim_step"])
def test_a_step_changes_the_weights(name: str, form: str) -> None:
    from step_forms import STEPS, TINY, Setting

    step = STEPS[name](Setting(form, TINY, 1, "32-true"))
    before = step.outputs()["loss"].item()
    assert step.outputs()["loss"].item() == before
    step.run()
    assert step.outputs()["loss"].item() != before


@pytest.mark.usefixtures("forms")
def test_different_outputs_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_steps

    result = bench_steps.Result(2.0, 1.0, {"logits": 0.5, "loss": float("nan")})
    monkeypatch.setattr(bench_steps, "measure", lambda name, arguments: result)
    assert bench_steps.main(["--only", "encode"]) == 1
    assert "logits differs" in capsys.readouterr().out
