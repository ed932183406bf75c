"""Processes share tasks; one that hangs is ended and costs its task alone."""

import os
import signal
import time

import pytest

from spadnet.data.workers import Died, run_tasks


def work(task: str) -> str:
    """Sleep, or stop the process, or raise, as the task says."""
    if task == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if task == "raise":
        raise OSError("disk full")
    if task == "sleep":
        time.sleep(1000)
    return task.upper()


def test_task_that_hangs_is_given_up() -> None:
    tasks = ["a", "sleep", "stop", "b", "c"]
    done = dict(run_tasks(work, tasks, workers=2, time_limit=1))
    late = Died("took longer than 1 s and was given up")
    assert done == {0: "A", 1: late, 2: late, 3: "B", 4: "C"}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_task_raises_is_raised(workers: int) -> None:
    with pytest.raises(OSError, match="disk full"):
        list(run_tasks(work, ["a", "raise", "b"], workers=workers))


def test_nothing_to_do() -> None:
    assert list(run_tasks(work, [], workers=2, time_limit=1.0)) == []
