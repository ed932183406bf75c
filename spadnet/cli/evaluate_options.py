"""The options of ``spadnet evaluate``, checked before anything is read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spadnet.cli.configure import parse_flags
from spadnet.cli.evaluate_tasks import PROTOCOLS
from spadnet.cli.trained import number, required
from spadnet.cli.usage import UsageError
from spadnet.near_names import suggest

STUDIES = ("quality", "spacing")
SPLITS = ("test", "val")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot work.

    Raises:
        UsageError: In one line, with the near name where there is one.
    """
    if options["study"] != "spacing":  # which trains its own networks
        required(options, "model", "FOLDER is missing: the folder of a trained encoder")
    if options["study"] is not None and options["study"] not in STUDIES:
        raise UsageError(f"unknown study {options['study']!r}{suggest(options['study'], STUDIES)}")
    if options["score_on"] not in SPLITS:
        raise UsageError(f"score_on must be test or val, got {options['score_on']!r}")
    for protocol in options["protocols"]:
        if protocol not in PROTOCOLS:
            raise UsageError(f"unknown protocol {protocol!r}{suggest(str(protocol), PROTOCOLS)}")
    for key in ("protocols", "shares", "seeds"):
        if not options[key] or len(set(map(str, options[key]))) != len(options[key]):
            raise UsageError(f"{key} must name each once and one at least, got {options[key]}")
    if not all(isinstance(seed, int) and 0 <= seed < 1 << 31 for seed in options["seeds"]):
        raise UsageError(f"seeds must be whole numbers from 0, got {options['seeds']}")
    rates = options["rates"]
    if rates is not None and not (
        isinstance(rates, list)
        and rates
        and all(map(_is_rate, rates))
        and len(set(rates)) == len(rates)
    ):
        raise UsageError(f"rates must be a list of different positive numbers, got {rates}")
    if rates is not None and (options["study"] or "finetune" not in options["protocols"]):
        raise UsageError("rates are for protocols=[finetune], without study=")
    number(options, "duplicates", low=0.5, high=1)
    for key, low in (("draws", 20), ("batch_size", 1), ("cells", 100), ("generalist_size", 32)):
        number(options, key, low=low, high=1e9)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def config_dir_flags(argv: Sequence[str]) -> list[str]:
    """The flags that name the user's own configurations, for what is composed on the way."""
    folder = parse_flags(argv).config_dir
    return [] if folder is None else [f"--config-dir={folder}"]
