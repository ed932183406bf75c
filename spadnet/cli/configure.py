"""Compose a verb's configuration with Hydra, and say in one line what is wrong with an override."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from spadnet.cli.usage import UsageError, config_groups, config_root
from spadnet.near_names import suggest

# Values of these keys are paths and are taken as they are, whatever characters they hold.
_PATH_KEYS = (
    "in",
    "out",
    "labels",
    "recipe",
    "resume",
    "tokenizer",
    "model",
    "init",
    "data.path",
    "data.label_maps",
    "paths.runs",
)
_SAFE = re.compile(r"[\w./\-:@+]*", re.ASCII)


class Flags(NamedTuple):
    """A verb's command line.

    Attributes:
        overrides: Hydra overrides.
        config_dir: Folder of the user's own configuration files.
        show: Whether to print the configuration and stop.
    """

    overrides: list[str]
    config_dir: Path | None
    show: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse_flags(argv: Sequence[str]) -> Flags:
    """Take a verb's command line apart.

    Raises:
        UsageError: If an argument is neither a known flag nor KEY=VALUE.
    """
    parser = _Parser(prog="spadnet", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--multirun", "-m", action="store_true")
    known, overrides = parser.parse_known_args(list(argv))
    if known.multirun:
        raise UsageError("--multirun: start one run per command; a shell loop does a sweep")
    if known.config_dir is not None and not known.config_dir.is_dir():
        raise UsageError(f"--config-dir: no such folder: {known.config_dir}")
    for text in overrides:
        if text.startswith("-"):
            raise UsageError(
                f"unknown option {text!r}{suggest(text, ['--config-dir', '--cfg', '--help'])}"
            )
        if "=" not in text and not text.startswith("~"):
            raise UsageError(f"expected KEY=VALUE, got {text!r}")
    return Flags([_quote_path(text) for text in overrides], known.config_dir, known.cfg is not None)


def _quote_path(text: str) -> str:
    key, _, value = text.partition("=")
    plain = _SAFE.fullmatch(value) or value[:1] in "'\"" or "${" in value
    if key.lstrip("+") not in _PATH_KEYS or plain:
        return text
    return f"{key}='" + value.replace("'", "\\'") + "'"


def configure(config_name: str, argv: Sequence[str]) -> DictConfig | None:
    """Compose a verb's configuration.

    Args:
        config_name: Primary configuration.
        argv: The verb's command line.

    Returns:
        The configuration, read-only; None if it was printed because ``--cfg`` asked for it.

    Raises:
        UsageError: If it cannot be composed; one line with the near name where there is one.
    """
    flags = parse_flags(argv)
    roots = [config_root(), *([flags.config_dir.resolve()] if flags.config_dir else [])]
    search = [f"hydra.searchpath=['file://{root}']" for root in roots[1:]]
    with initialize_config_dir(str(roots[0]), version_base="1.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A verb may have a value named like a group, as model=FOLDER; Hydra would see a choice.
        plain = _plain_keys(roots[0] / f"{config_name}.yaml")
        groups = {name: found for name, found in config_groups(roots).items() if name not in plain}
        chosen, rest = _split(flags.overrides, groups)
        _check_experiment(chosen, roots, config_name)
        try:
            base = compose(config_name, [*search, *chosen])
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_reason(error)) from error
        free = _free_keys(roots[0] / f"{config_name}.yaml")
        own = [o for o in rest if _is_own(o, plain, free)]
        others = [override for override in rest if override not in own]
        for override in rest:
            if override.key_or_group.partition(".")[0] not in free:
                _check_value(override, base, groups)
        changes = [str(override.input_line) for override in others]
        try:
            config = compose(config_name, [*search, *chosen, *changes]) if changes else base
            with open_dict(config):
                for override in own:
                    OmegaConf.update(config, override.key_or_group, override.value())
            OmegaConf.to_container(config, resolve=True)  # a wrong ${...} shows here
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_reason(error)) from error
    _check_stage(config, config_name)
    if flags.show:
        sys.stdout.write(OmegaConf.to_yaml(config))
        return None
    OmegaConf.set_readonly(config, True)
    return config


def _plain_keys(file: Path) -> set[str]:
    """Keys of a verb's configuration that are values, and not groups that it chooses from."""
    content = OmegaConf.load(file)
    assert isinstance(content, DictConfig)
    return {str(key) for key in content if key != "defaults"} & set(config_groups([file.parent]))


def _free_keys(file: Path) -> set[str]:
    """Keys of a verb's configuration that take any mapping: empty ones."""
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(content, dict)
    return {str(key) for key, value in content.items() if value == {}}


def _is_own(override: Override, plain: set[str], free: set[str]) -> bool:
    """Whether Hydra cannot apply an override: it sees a choice, or knows no such key."""
    key = override.key_or_group
    return key in plain or (key.partition(".")[0] in free and not override.is_delete())


def _split(
    overrides: Sequence[str], groups: dict[str, list[str]]
) -> tuple[list[str], list[Override]]:
    """Split overrides into choices of a group, checked here, and changes of values."""
    parser = OverridesParser.create()
    chosen, rest = [], []
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except HydraException as error:
            raise UsageError(f"cannot read {text!r}; quote it like KEY='\"VALUE\"'") from error
        if override.is_sweep_override():
            raise UsageError(f"{text}: write a list as [a,b]; sweeps are not supported")
        group = override.key_or_group
        if group not in groups:
            rest.append(override)
            continue
        option = override.value()
        if option is None or override.is_delete():
            if group != "experiment":
                raise UsageError(f"{text}: cannot do without; choose of {', '.join(groups[group])}")
            chosen.append("~experiment")
            continue
        if isinstance(option, str) and option not in groups[group]:
            raise UsageError(f"unknown {group} {option!r}{suggest(option, groups[group])}")
        chosen.append(text)
    return chosen, rest


def _check_value(override: Override, base: DictConfig, groups: Iterable[str]) -> None:
    """Refuse an unknown key, and a value of another type than the one it replaces."""
    if override.is_add() or override.is_force_add():
        return
    key = override.key_or_group
    keys = _keys(OmegaConf.to_container(base, resolve=False))
    if key not in keys:
        near = suggest(key, [*keys, *groups])
        if not near.startswith("; did you mean"):
            near = "; --cfg job shows all keys"
        raise UsageError(f"unknown key {key!r}{near}")
    if override.is_delete():
        return
    old: Any = OmegaConf.to_container(base, resolve=False)
    for part in key.split("."):
        old = old[part]
    wanted = _kind_missed(old, override.value())
    if wanted is not None:
        raise UsageError(f"{key} must be {wanted}, got {override.get_value_string()}")


def _kind_missed(old: Any, new: Any) -> str | None:
    """What a new value should be and is not; None if it may replace the old one."""
    if old is None or new is None or (isinstance(new, str) and "${" in new):
        return None
    is_whole = isinstance(new, int) and not isinstance(new, bool)
    if isinstance(old, bool):
        return None if isinstance(new, bool) else "true or false"
    if isinstance(old, int):
        return None if is_whole else "a whole number"
    if isinstance(old, float):
        return None if is_whole or isinstance(new, float) else "a number"
    if isinstance(old, list):
        return None if isinstance(new, list) else "a list such as [1,2]"
    return None


def _keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of a nested dictionary, inner ones included."""
    found = []
    for name, value in node.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{name}.")
    return found


def _check_experiment(chosen: Sequence[str], roots: Sequence[Path], config_name: str) -> None:
    """Refuse an experiment of another verb before what it overrides is missed."""
    for text in chosen:
        group, _, name = text.partition("=")
        if group == "experiment":
            files = [root / "experiment" / f"{name}.yaml" for root in roots]
            content = OmegaConf.load(next(file for file in files if file.is_file()))
            assert isinstance(content, DictConfig)
            _check_stage(content, config_name)


def _check_stage(config: DictConfig, config_name: str) -> None:
    """Refuse an experiment of the other stage: it says which one it is for."""
    stage = config.get("stage")
    if stage is None:
        return
    own = ("finetune", "evaluate")
    wanted = stage if stage in own else f"pretrain_{stage}"
    if config_name != wanted:
        raise UsageError(f"this experiment is for spadnet {wanted.replace('_', '-')}")


def _reason(error: BaseException) -> str:
    """First line of an error and of what caused it."""
    lines = [str(error).strip().splitlines()]
    if error.__cause__ is not None:
        lines.append(str(error.__cause__).strip().splitlines())
    return ": ".join(dict.fromkeys(part[0] for part in lines if part)) or type(error).__name__
