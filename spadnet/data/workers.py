"""Processes that share a list of tasks and may die at one without harm to the others."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

_PATIENCE = 5.0  # seconds for a process to end; one that the system holds cannot


class Died(NamedTuple):
    """Instead of a result: the process that worked on the task is gone.

    Attributes:
        reason: In words.
    """

    reason: str


class _Worker(NamedTuple):
    process: Any
    pipe: Connection


class _Task(NamedTuple):
    worker: _Worker
    number: int
    start: float | None = None  # when the worker began; it may have had to be started first


class _Begun:
    """Told by a worker that begins a task."""


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int,
    time_limit: float | None = None,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each task.

    Args:
        function: At the top level of a module, so that other processes find it, or a partial of
            such a one.
        tasks: Its arguments, one per call.
        workers: Processes; 0 works in this one.
        time_limit: Seconds after which a process that works on a task is ended; None for no
            limit. What this process works on itself is not ended.

    Yields:
        Number of a task and what the function returned, or ``Died``, in the order in which they
        are done. What the function raises is raised here.
    """
    if workers == 0:
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    # A forked process would inherit locks that torch's threads may hold.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        module = getattr(function, "func", function).__module__  # of a partial, its function's
        context.set_forkserver_preload([module, "torch"])
    waiting = iter(range(len(tasks)))
    busy: dict[Connection, _Task] = {}

    def give(worker: _Worker | None) -> None:
        """Hand out the next task; start a process for it if none is idle."""
        index = next(waiting, None)
        if index is None:
            if worker is not None:
                worker.pipe.send(None)
                worker.process.join()
            return
        if worker is None:
            worker = _start(context, function)
        busy[worker.pipe] = _Task(worker, index)
        with suppress(OSError):  # it died while idle: what waits for its answer will see
            worker.pipe.send(tasks[index])

    try:
        for _ in range(min(workers, len(tasks))):
            give(None)
        while busy:
            for pipe in wait(list(busy), _seconds_left(busy.values(), time_limit)):
                assert isinstance(pipe, Connection)
                task = busy[pipe]
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    del busy[pipe]
                    task.worker.process.join()
                    give(None)
                    yield task.number, Died(_cause(task.worker.process.exitcode))
                    continue
                if isinstance(answer, _Begun):
                    busy[pipe] = task._replace(start=time.monotonic())
                    continue
                del busy[pipe]
                is_error, result = answer
                if is_error:
                    raise result
                give(task.worker)
                yield task.number, result
            for task in [task for task in busy.values() if _is_late(task, time_limit)]:
                del busy[task.worker.pipe]
                task.worker.process.kill()
                task.worker.process.join(_PATIENCE)
                give(None)
                yield task.number, Died(f"took longer than {time_limit:g} s and was given up")
    finally:
        for task in busy.values():
            task.worker.process.terminate()
            task.worker.process.join(_PATIENCE)


def _seconds_left(tasks: Iterable[_Task], time_limit: float | None) -> float | None:
    """Until the next task is late; None if none will be."""
    starts = [task.start for task in tasks if task.start is not None]
    if time_limit is None or not starts:
        return None
    return max(min(starts) + time_limit - time.monotonic(), 0.0)


def _is_late(task: _Task, time_limit: float | None) -> bool:
    if time_limit is None or task.start is None:
        return False
    return time.monotonic() >= task.start + time_limit


def _start(context: Any, function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Work on tasks until there are no more or the process that hands them out is gone."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        while (task := pipe.recv()) is not None:
            pipe.send(_Begun())
            try:
                answer = False, function(task)
            except Exception as error:
                answer = True, error
            pipe.send(answer)
    except (EOFError, OSError):
        return


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; perhaps the memory was full" if name == "SIGKILL" else ""
        return f"the process that read it was ended by {name}{hint}"
    return f"the process that read it ended with code {exitcode}"
