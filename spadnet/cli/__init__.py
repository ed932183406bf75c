"""The command line: find the verb, run it, and turn a user's mistake into one clear line.

Nothing heavy is imported before the verb is known.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

from spadnet.cli.usage import UsageError, configuration_help
from spadnet.cli.verbs import VERBS, Verb
from spadnet.near_names import suggest
from spadnet.train.host import ask_for_huge_pages
from spadnet.train.launch import rank_label

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Write to whatever ``sys.stderr`` is now: a progress bar replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if arguments else USAGE_EXIT
    if arguments[0] in ("-V", "--version", "version"):
        import spadnet

        sys.stdout.write(f"spadnet {spadnet.__version__}\n")
        return 0
    name, *rest = arguments
    _log_to_stderr()
    try:
        if name not in VERBS:
            raise UsageError(f"unknown verb {name!r}{suggest(name, VERBS)}")
        if any(argument in ("-h", "--help") for argument in rest):
            sys.stdout.write(_verb_help(name, VERBS[name]))
            return 0
        return _run(VERBS[name], rest)
    except BrokenPipeError:  # the reader of our output has left: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED_EXIT)
    except UsageError as error:
        return _fail(str(error), USAGE_EXIT)
    except OSError as error:
        return _fail(_describe_os_error(error), 1)
    except ValueError as error:
        return _fail(str(error), 1)
    except Exception as error:
        kind = type(error).__name__
        return _fail(f"{kind}: {error} (a fault of spadnet? SPADNET_DEBUG=1 shows where)", 1)


def _run(verb: Verb, argv: Sequence[str]) -> int:
    """Run a verb; a wrong override is found before the seconds that its imports take."""
    if verb.config is not None and not (len(argv) == 1 and argv[0] in verb.words):
        configure = importlib.import_module("spadnet.cli.configure")
        if configure.configure(verb.config, argv) is None:
            return 0
    ask_for_huge_pages()
    return int(importlib.import_module(verb.module).run(argv) or 0)


def _fail(message: str, code: int) -> int:
    """Report an error on one line; where it came from only on request."""
    if os.environ.get("SPADNET_DEBUG") == "1":
        traceback.print_exc()
    sys.stderr.write(f"{rank_label()}error: {' '.join(message.split()) or 'unknown'}\n")
    return code


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _log_to_stderr() -> None:
    """Show what the package logs, once, and leave other packages' logging alone."""
    logger = logging.getLogger("spadnet")
    if not any(isinstance(handler, _CurrentStderr) for handler in logger.handlers):
        handler = _CurrentStderr()
        # What goes well, the first of several ranks tells for all.
        is_first = rank_label() in ("", "rank 0: ")
        handler.setFormatter(logging.Formatter(("" if is_first else rank_label()) + "%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if is_first else logging.WARNING)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    examples = [f"  {verb.example}" for verb in VERBS.values()]
    return "\n".join(
        [
            "Spacing-aware foundation models for medical images.",
            "",
            "usage: spadnet VERB [KEY=VALUE ...]",
            "",
            *lines,
            "",
            "examples:",
            *examples,
            "",
            "spadnet VERB --help explains a verb; spadnet --version tells the version.",
            "",
        ]
    )


def _verb_help(name: str, verb: Verb) -> str:
    lines = [f"{verb.summary}.", "", f"usage: spadnet {name} {verb.usage}".rstrip()]
    lines += ["", "example:", f"  {verb.example}", ""]
    if verb.notes:
        lines += [*verb.notes, ""]
    if verb.config is not None:
        lines += configuration_help(verb.config)
    return "\n".join(lines)
