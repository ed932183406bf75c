"""Packages that spadnet does without, and what brings them where they are wanted."""

import importlib
from types import ModuleType


class MissingPackageError(ValueError):
    """An optional package is not there. The message names the extra that brings it."""


def optional_package(name: str, *, extra: str, used_for: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: Of the package, or of a module in it.
        extra: The extra of spadnet that brings it.
        used_for: What cannot be done without.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(
            f"{used_for} needs the package {package}: pip install 'spadnet[{extra}]'"
        ) from error
