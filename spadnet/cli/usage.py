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
    """Lines about the configuration of a verb: its groups with their options, and its own keys.

    Args:
        config: Name of its primary configuration.
    """
    text = (config_root() / f"{config}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    keys = lines[next(n for n, line in enumerate(lines) if not line.startswith("#")) :]
    choices: list[str] = []
    if "defaults:" in keys:
        start = keys.index("defaults:") + 1
        end = next(n for n in range(start, len(keys)) if not keys[n].startswith("  - "))
        used = [line.removeprefix("  - ").removeprefix("optional ") for line in keys[start:end]]
        keys = keys[: start - 1] + keys[end:]
        options = config_groups([config_root()])
        options["experiment"] = _experiments(keys, options["experiment"])
        groups = [name for line in used if (name := line.partition(":")[0]) in options]
        if len(groups) > 1:
            choices = [
                "groups (GROUP=NAME chooses; GROUP.KEY=VALUE changes one value):",
                *(f"  {group}: {', '.join(options[group])}" for group in groups),
                "",
            ]
    return [
        "options:",
        "  --cfg job         print the composed configuration and stop",
        "  --config-dir DIR  folder with configuration files of your own",
        "",
        *choices,
        "keys:",
        *(f"  {line}" for line in keys if line),
        "",
        f"All keys and their values: spadnet {config.replace('_', '-')} --cfg job",
        "",
    ]


def _experiments(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those that are for the stage that a verb's configuration names."""
    stage = next((line for line in keys if line.startswith("stage: ")), "stage: none")
    folder = config_root() / "experiment"
    lines = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in names}
    return [name for name in names if stage in lines[name].splitlines()]
