"""Compiled training: one graph per degree whatever the sizes, and the same losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spadnet.data.batch import Batch
from spadnet.train.datamodule import StepDataModule
from spadnet.train.graphs import compile_modules, num_graphs
from spadnet.train.metrics_log import read_rows
from spadnet.train.run import FitResult, fit
from spadnet.train.step_task import StepTask

BuildTask = Callable[[int], StepTask]
DEGREES = (5, 3)


class ChangingSteps(torch.utils.data.Dataset[list[Batch]]):
    """Random crops of two degrees; counts and sizes change from step to step."""

    def __getitem__(self, step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(step)
        batch = []
        for degree in DEGREES:
            depth = 1 if degree == 5 else 4 + 2 * (step % 2)
            size = (2 + step % 3, 1, depth, 32 + 16 * (step % 2), 48)
            keys = [f"{step}-{i}" for i in range(size[0])]
            image = torch.rand(size, generator=generator)
            batch.append(Batch(image, degree, torch.ones(size[0], 3), keys))
        return batch


def train(task: StepTask, folder: Path, **options: Any) -> FitResult:
    return fit(
        task,
        StepDataModule(ChangingSteps(), max_steps=6),
        folder,
        accelerator="cpu",
        precision="32-true",
        tensorboard=False,
        show_progress=False,
        log_every_steps=1,
        **options,
    )


@pytest.mark.parametrize("build_task", ["mim"], indirect=True)
def test_one_graph_per_degree_and_the_same_losses(build_task: BuildTask, tmp_path: Path) -> None:
    torch._dynamo.reset()
    before = num_graphs()
    task = build_task(6)
    names = list(task.state_dict())
    train(task, tmp_path / "compiled", compile_backend="eager")
    assert num_graphs() - before == len(DEGREES) * len(task.to_compile())
    assert list(task.state_dict()) == names
    train(build_task(6), tmp_path / "plain")
    losses = [
        [float(row["train/loss"]) for row in read_rows(tmp_path / name / "metrics.csv")]
        for name in ("compiled", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile_backend=gcc: choose one of .*inductor"):
        compile_modules([], backend="gcc")
