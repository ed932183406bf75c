"""The command line finds the verb, helps, and turns mistakes into one line and an exit code."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import spadnet.cli
from spadnet.cli import VERBS, main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_verb_with_an_example(capsys: Capture) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, verb in VERBS.items():
        assert f"  {name} " in out
        assert verb.example in out
        assert verb.example.split()[1] == name


@pytest.mark.parametrize("name", sorted(VERBS))
def test_help_of_each_verb_shows_its_example(capsys: Capture, name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert VERBS[name].summary in out
    assert VERBS[name].example in out


def test_help_shows_the_groups_experiments_and_keys_of_the_verb(capsys: Capture) -> None:
    _, out, _ = run(capsys, "finetune", "--help")
    assert "pneumonia_tiny" in out
    assert "tokenizer_tiny" not in out
    assert "  layer_decay: 1.0" in out
    _, out, _ = run(capsys, "demo", "--help")
    assert "groups" not in out
    assert "  minutes: " in out


def test_no_verb_shows_the_help_and_fails(capsys: Capture) -> None:
    code, out, _ = run(capsys)
    assert code == 2
    assert "usage: spadnet VERB" in out


def test_misspelt_verb_suggests_the_near_one(capsys: Capture) -> None:
    code, out, err = run(capsys, "pretrain-tokeniser")
    assert (code, out) == (2, "")
    assert err == "error: unknown verb 'pretrain-tokeniser'; did you mean 'pretrain-tokenizer'?\n"


def test_version(capsys: Capture) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("spadnet ")


def test_models_are_listed(capsys: Capture) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "spad_vt_base" in out
    assert "34,253,955" in out
    assert run(capsys, "models", "x")[0] == 2


def test_doctor_finds_a_working_place(capsys: Capture, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "doctor", f"out={tmp_path / 'new' / 'runs'}")
    assert code == 0
    assert "FAIL" not in out
    assert "bfloat16" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_fails_where_nothing_can_be_written(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, out, _ = run(capsys, "doctor", f"out={file / 'runs'}")
    assert code == 1
    assert "FAIL run folder" in out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("scan.nii: broken\nreally"), 1, "error: scan.nii: broken really\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a.ckpt"),
            1,
            "error: runs/a.ckpt: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_are_one_line_without_traceback(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("spadnet.cli.models.run", fail)
    monkeypatch.delenv("SPADNET_DEBUG", raising=False)
    assert run(capsys, "models") == (code, "", line)
    monkeypatch.setenv("SPADNET_DEBUG", "1")
    assert "Traceback" in run(capsys, "models")[2]


def test_fault_of_the_program_is_named_as_such(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spadnet.cli.models.run", lambda argv: 1 // 0)
    code, _, err = run(capsys, "models")
    assert code == 1
    assert err.startswith("error: ZeroDivisionError")
    assert err.count("\n") == 1


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; from spadnet.cli import main; main(['--help']); "
        "main(['pretrain-mim', '--help']); "
        "print('heavy:', *{'torch', 'lightning', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(spadnet.cli.__file__).parents[2],
        check=False,
        timeout=60,
    )
    assert done.stdout.endswith("heavy:\n"), done.stdout + done.stderr


def test_python_m_returns_the_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spadnet", "nonsense"],
        capture_output=True,
        text=True,
        cwd=Path(spadnet.cli.__file__).parents[2],
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown verb 'nonsense'")
