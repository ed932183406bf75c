"""Where a checkpoint folder lies: on this machine, or on a Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from spadnet.models.registry import model_names
from spadnet.near_names import suggest
from spadnet.weights.checkpoint import (
    CONFIG_FILE,
    FILES,
    WEIGHTS_FILE,
    read_config,
    verify_files,
)

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the weights that come with the package, one folder for each name of a size."""

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^@\s]+))?")


class HubOptions(NamedTuple):
    """How to fetch from a hub; ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` are honoured as well.

    Attributes:
        revision: Branch, tag or commit; ``@revision`` in the source says the same.
        cache_dir: Where downloads are kept.
        token: Access token, True for the stored one.
        local_files_only: Whether to take only what is cached.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False


def find_folder(source: str | Path, options: HubOptions) -> Path:
    """Find the checkpoint folder that ``source`` names, downloading it if it lies on a hub.

    Args:
        source: ``folder``, ``local-dir:folder``, ``org/name``, ``org/name@revision``, or the same
            after ``hf-hub:``.
        options: How to fetch from a hub.

    Raises:
        ValueError: If there is no such folder or repository.
        OSError: If the hub cannot be reached.
    """
    text = str(source)
    if text.startswith("local-dir:"):
        return _local_folder(Path(text.removeprefix("local-dir:")).expanduser())
    if text.startswith("hf-hub:"):
        match = _HUB_ID.fullmatch(text.removeprefix("hf-hub:"))
        if match is None:
            raise ValueError(f"{text}: a hub id has the form hf-hub:org/name or org/name@revision")
        return _fetch(match["repo"], match["revision"], options)
    folder = Path(text).expanduser()
    if folder.exists():
        return _local_folder(folder)
    if text in model_names():
        if (SHIPPED / text).is_dir():
            return SHIPPED / text
        raise ValueError(
            f"{text}: no weights are shipped for this model yet; give a checkpoint folder or a hub "
            f"id, or take random weights: spadnet.create_model({text!r})"
        )
    match = _HUB_ID.fullmatch(text)
    # `runs/encoder` where `runs` exists is a misspelt folder, not a repository of somebody's.
    if isinstance(source, str) and match is not None and not folder.parent.is_dir():
        return _fetch(match["repo"], match["revision"], options)
    return _local_folder(folder)


def _local_folder(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(
            f"{folder}: is a file; give the checkpoint folder that holds {CONFIG_FILE}"
        )
    neighbours = [str(path) for path in _children(folder.parent) if path.is_dir()]
    known = [*neighbours, *(model_names() if folder.parent == Path() else [])]
    near = suggest(str(folder), known)
    raise ValueError(f"{folder}: no such folder{near if near.startswith('; did') else ''}")


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def hub_name(repo: str, revision: str | None) -> str:
    """How messages name a repository."""
    return f"hf-hub:{repo}" + (f"@{revision}" if revision else "")


def split_hub_id(text: str, revision: str | None) -> tuple[str, str | None]:
    """Repository and revision of ``org/name[@revision]``, with or without ``hf-hub:`` before it.

    Args:
        text: The id.
        revision: Revision given besides.

    Raises:
        ValueError: If it is no such id, or two revisions are named.
    """
    match = _HUB_ID.fullmatch(text.removeprefix("hf-hub:"))
    if match is None:
        raise ValueError(f"{text}: a hub id has the form hf-hub:org/name or org/name@revision")
    own = match["revision"]
    if own and revision and own != revision:
        raise ValueError(f"{match['repo']}@{own}: revision={revision!r} says otherwise")
    return match["repo"], own or revision


def _fetch(repo: str, revision: str | None, options: HubOptions) -> Path:
    """Download one revision's files, or find them in the cache; check the weights' SHA-256."""
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    repo, revision = split_hub_id(hub_name(repo, revision), options.revision)
    with one_line_errors(hub_name(repo, revision), "download"):
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=options.cache_dir,
                token=options.token,
                local_files_only=options.local_files_only,
                allow_patterns=list(FILES),
            )
        )
    try:
        verify_files(folder, read_config(folder))
    except ValueError as error:
        _forget(folder / WEIGHTS_FILE)
        raise ValueError(f"{hub_name(repo, revision)}: {error}") from error
    return folder


def _forget(file: Path) -> None:
    """Remove a cached file and what its link points to, so that it is downloaded anew."""
    blob = file.resolve()
    file.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


@contextmanager
def one_line_errors(name: str, action: str) -> Iterator[None]:
    """Turn whatever a hub's client throws into one line.

    Args:
        name: What was asked for.
        action: What was done, ``"download"`` or ``"upload"``.

    Raises:
        ValueError: If there is no such thing, or it may not be had.
        OSError: If the hub cannot be reached.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name}: access is restricted; ask for it on the hub and give token=..."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: no such folder here and no such repository on the hub, or it is private and "
            "needs token=..."
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{name}: {_one_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{name}: not in the cache, and the hub cannot be reached or must not be asked"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise OSError(f"{name}: {action} failed: HF_HUB_OFFLINE is set") from error
    except Exception as error:  # whatever the network stack throws
        raise OSError(f"{name}: {action} failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
