"""Configurations compose, and a wrong override is told in one line with the near name."""

from pathlib import Path

import pytest

from spadnet.cli.configure import configure
from spadnet.cli.usage import UsageError, config_groups, config_root

EXPERIMENTS = config_groups([config_root()])["experiment"]


def tokenizer(*argv: str) -> object:
    config = configure("pretrain_tokenizer", argv)
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "experiment=tokenizer_tny",
            "unknown experiment 'tokenizer_tny'; did you mean 'tokenizer_tiny'",
        ),
        ("experiment=mim_tiny", "this experiment is for spadnet pretrain-mim"),
        ("model=spad_vt_bas", "unknown model 'spad_vt_bas'; did you mean 'spad_vt_base'"),
        ("model=null", "model=null: cannot do without"),
        ("trainer.max_stps=3", "unknown key 'trainer.max_stps'; did you mean 'trainer.max_steps'"),
        ("experimnt=tokenizer_tiny", "unknown key 'experimnt'; did you mean 'experiment'"),
        ("trainer.max_steps=many", "trainer.max_steps must be a whole number, got many"),
        ("trainer.max_steps=1.5", "trainer.max_steps must be a whole number, got 1.5"),
        ("optim.lr=fast", "optim.lr must be a number, got fast"),
        ("optim.betas=0.9", "optim.betas must be a list"),
        ("discriminator.enabled=3", "discriminator.enabled must be true or false, got 3"),
        ("seed=1,2", "sweeps are not supported"),
        ("seed=${nothing}", "nothing"),
        ("seed='", "cannot read"),
        ("nothing", "expected KEY=VALUE, got 'nothing'"),
        ("--cgf", "unknown option '--cgf'; did you mean '--cfg'"),
        ("--multirun", "start one run per command"),
        ("--config-dir=/does/not/exist", "no such folder: /does/not/exist"),
        ("+loss.kind=l1", "already at 'loss.kind'"),
    ],
)
def test_mistake_is_told_in_one_line(argument: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tokenizer(argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_experiment_changes_the_defaults_and_overrides_change_the_experiment() -> None:
    assert configure("pretrain_tokenizer", ["experiment=null"]).name == "tokenizer"  # type: ignore[union-attr]
    config = configure(
        "pretrain_tokenizer",
        ["experiment=tokenizer_tiny", "optim.lr=1", "trainer.threads=2", "model=spad_vt_small"],
    )
    assert config is not None
    assert config.optim.lr == 1
    assert config.trainer.threads == 2
    assert config.model.name == "spad_vt_small"
    assert config.code_start.share > 0


@pytest.mark.parametrize("path", ["a b", "a=b", "a(b", "it's", "a,b", "über", "~/x", "[x]", "#1"])
def test_paths_are_taken_as_they_are(path: str) -> None:
    config = configure("pretrain_tokenizer", [f"out={path}"])
    assert config is not None
    assert config.out == path


def test_out_follows_paths_and_name() -> None:
    config = configure("pretrain_tokenizer", ["paths.runs=/there", "name=mine"])
    assert config is not None
    assert config.out == "/there/mine"


def test_own_folder_adds_experiments(tmp_path: Path) -> None:
    folder = tmp_path / "my configs"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: spad_vt_small\nname: mine\n"
    )
    config = configure("pretrain_tokenizer", [f"--config-dir={folder}", "experiment=mine"])
    assert config is not None
    assert (config.name, config.model.name) == ("mine", "spad_vt_small")
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        tokenizer(f"--config-dir={folder}", "experiment=min")


def test_cfg_prints_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert configure("pretrain_mim", ["--cfg", "job", "seed=7"]) is None
    assert "seed: 7\n" in capsys.readouterr().out


def test_files_are_short_and_name_no_absolute_path() -> None:
    for path in config_root().rglob("*.yaml"):
        text = path.read_text()
        assert len(text.splitlines()) < 40, path
        assert ": /" not in text.replace("override /", ""), path
