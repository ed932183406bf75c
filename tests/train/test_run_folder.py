"""A run folder says what was run and is not mixed with another run."""

import json
import subprocess
from pathlib import Path

import pytest

from spadnet.train.run_folder import checkpoint_to_resume, git_state, record_run


def test_record_keeps_every_command(tmp_path: Path) -> None:
    for resume in ("", "resume=auto"):
        record_run(tmp_path, config="seed: 0\n", command=["spadnet", "x y", resume])
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
    assert (tmp_path / "command.txt").read_text() == "spadnet 'x y' ''\nspadnet 'x y' resume=auto\n"
    assert json.loads((tmp_path / "versions.json").read_text())["python"].startswith("3.")


def test_git_state_names_the_commit_and_notices_a_change(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "new").write_text("")
    changed = git_state(tmp_path)
    assert changed is not None
    assert changed["changed"]


def test_named_checkpoint_must_exist(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path, "auto") is None
    assert checkpoint_to_resume(tmp_path, None) is None
    with pytest.raises(ValueError, match="no such checkpoint"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "missing.ckpt"))
