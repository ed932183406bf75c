"""Where the configuration files are, and what a verb's help says about them. No Hydra here."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path


class UsageError(ValueError):
    """A command line that cannot be understood; exit code 2."""


def config_root() -> Path:
    """Folder of the packaged configuration files, also in a checkout that is not installed."""
    spec = importlib.util.find_spec("spadnet.conf")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "conf"


def config_groups(roots: Sequence[Path]) -> dict[str, list[str]]:
    """Configuration groups and their options, of all ``roots`` together."""
    groups: dict[str, set[str]] = {}
    for root in roots:
        for path in root.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(groups[group]) for group in sorted(groups)}


def configuration_help(config: str) -> list[str]:
    """Lines about the configuration of a verb.

    Args:
        config: Name of its primary configuration.
    """
    groups = config_groups([config_root()])
    text = (config_root() / f"{config}.yaml").read_text(encoding="utf-8")
    if "\ndefaults:" in text:
        choices = [
            "groups (GROUP=NAME chooses; GROUP.KEY=VALUE changes one value):",
            *(f"  {group}: {', '.join(names)}" for group, names in groups.items()),
        ]
    else:  # few keys, each explained by its file
        choices = ["keys:", *(f"  {line}" for line in text.splitlines()[1:])]
    return [
        "options:",
        "  --cfg job         print the composed configuration and stop",
        "  --config-dir DIR  folder with configuration files of your own",
        "",
        *choices,
        "",
        f"All keys and their values: spadnet {config.replace('_', '-')} --cfg job",
        "",
    ]
