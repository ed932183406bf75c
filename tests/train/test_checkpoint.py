"""A checkpoint is whole or not there, and a full disk costs nothing that was saved before."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from spadnet.train.checkpoint import (
    AtomicCheckpointIO,
    checkpoint_path,
    find_last,
    list_checkpoints,
    read_checkpoint,
    write_atomic,
)


def save(run_dir: Path, step: int) -> Path:
    path = checkpoint_path(run_dir, step)
    state = {"spadnet_finished_steps": step, "weight": torch.full((1000,), float(step))}
    AtomicCheckpointIO().save_checkpoint(state, path)
    return path


class FullDisk:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file = file
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_newest_is_found_by_number_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    assert find_last(tmp_path) is None
    for step in (9, 10, 123456789):
        path = save(tmp_path, step)
    assert find_last(tmp_path) == path
    path.write_bytes(path.read_bytes()[:-100])
    assert find_last(tmp_path) == checkpoint_path(tmp_path, 10)
    with pytest.raises(ValueError, match="broken or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("room", [0, 500, 4000])
def test_full_disk_names_file_and_reason_and_keeps_the_one_before(
    tmp_path: Path, room: int
) -> None:
    before = save(tmp_path, 1)
    path = checkpoint_path(tmp_path, 2)
    state = {"weight": torch.zeros(10_000)}
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(path, lambda file: torch.save(state, FullDisk(file, room)))
    assert caught.value.filename == str(path)
    assert list_checkpoints(tmp_path) == [before]
    assert read_checkpoint(before)["spadnet_finished_steps"] == 1
    assert sorted(path.parent.iterdir()) == [before]


def test_error_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("no disk involved")

    with pytest.raises(RuntimeError, match="no disk involved"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.ckpt: broken or not a checkpoint"):
        read_checkpoint(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of a spadnet run"):
        read_checkpoint(path)
