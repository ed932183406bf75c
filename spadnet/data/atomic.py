"""Files that are whole or not there at all."""

import os
from pathlib import Path

_PART = ".part"


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that what it replaces stays until the new one is whole.

    Args:
        path: File to write; its folder is made.
        content: All of it.

    Raises:
        OSError: If it cannot be written; the error names the file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:  # Ctrl-C
        part.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what interrupted writes left below a folder."""
    for part in folder.rglob(f".*{_PART}"):
        part.unlink(missing_ok=True)
