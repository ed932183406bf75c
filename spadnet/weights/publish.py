"""Publish a checkpoint folder on a Hugging Face hub."""

from pathlib import Path

from spadnet.weights.checkpoint import CARD_FILE, FILES, read_config, verify_files
from spadnet.weights.source import hub_name, one_line_errors, split_hub_id


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = "Upload spadnet weights",
) -> str:
    """Upload a checkpoint folder in one commit; the repository is made if there is none.

    >>> push_to_hub("runs/demo/mim/encoder", "org/name")  # doctest: +SKIP

    Args:
        folder: Checkpoint folder, as :func:`spadnet.weights.hub.save_pretrained` writes it.
        repo: ``org/name``, or ``org/name@branch``.
        revision: Branch, made if there is none.
        private: Whether a repository that is made is private.
        token: Access token, True for the stored one.
        message: Message of the commit.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If the folder is damaged, or the hub does not allow it.
        OSError: If the hub cannot be reached.
    """
    path = Path(folder).expanduser()
    verify_files(path, read_config(path))
    if not (path / CARD_FILE).is_file():
        raise ValueError(f"{path}: has no model card, {CARD_FILE}")
    name, branch = split_hub_id(repo, revision)
    from huggingface_hub import HfApi  # slow to import, rarely needed

    with one_line_errors(hub_name(name, branch), "upload"):
        api = HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=path,
            revision=branch,
            commit_message=message,
            allow_patterns=list(FILES),
        )
    return str(commit.commit_url)
