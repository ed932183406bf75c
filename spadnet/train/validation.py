"""Look at held-out images now and then while a training runs, without disturbing it by a bit."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from spadnet.train.checkpoint import finished_steps, write_atomic
from spadnet.train.loggers import show_histogram, show_picture
from spadnet.train.run_folder import write_json

logger = logging.getLogger(__name__)

PANELS = "panels"
CODE_USE_FILE = "code_use.json"


class Scores(NamedTuple):
    """What a model reaches on held-out images.

    Attributes:
        values: Scores by name.
        code_use: How many tokens have each code, [K]; None where codes are not counted.
    """

    values: Mapping[str, float]
    code_use: Tensor | None = None


class Picture(NamedTuple):
    """One picture of what a model makes of a held-out image.

    Attributes:
        name: Of the image.
        pixels: uint8, [H, W] or [H, W, 3].
    """

    name: str
    pixels: np.ndarray


class Judge(NamedTuple):
    """How a model is judged; both are given what the training will save in the end.

    Attributes:
        score: Scores of a model.
        draw: Pictures of what it makes of the images.
    """

    score: Callable[[nn.Module], Scores]
    draw: Callable[[nn.Module], Iterable[Picture]]


class Validate(Callback):
    """Score and picture the task's ``final_model``; must come before checkpoints are saved.

    All ranks do the same work, as a model split among them needs; the first writes. Modes and
    random states are afterwards what they were.
    """

    def __init__(
        self, judge: Judge, run_dir: Path, *, every_steps: int, panels_every_steps: int | None
    ) -> None:
        """Configure.

        Args:
            judge: Scores and pictures.
            run_dir: Run folder; gets ``panels/step-N`` and ``code_use.json``.
            every_steps: Steps between two validations; the last step has one too.
            panels_every_steps: Steps between two sets of pictures; the last step has one too.
                None for none.
        """
        for name, steps in (
            ("every_steps", every_steps),
            ("panels_every_steps", panels_every_steps),
        ):
            if steps is not None and steps < 1:
                raise ValueError(f"{name} must be positive, got {steps}")
        self.judge = judge
        self.run_dir = run_dir
        self.every_steps = every_steps
        self.panels_every_steps = panels_every_steps
        self.latest: dict[str, float] = {}
        self.seconds_aside = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate when it is time."""
        step = finished_steps(trainer)
        is_last = step >= trainer.num_training_batches
        draws = self.panels_every_steps is not None and (
            is_last or step % self.panels_every_steps == 0
        )
        scores = is_last or step % self.every_steps == 0
        if not draws and not scores:
            return
        begin = time.perf_counter()
        model: Any = pl_module.final_model
        with undisturbed(model, device=pl_module.device):
            if scores:
                self._score(trainer, model, step)
            if draws:
                self._draw(trainer, model, step)
        self.seconds_aside += time.perf_counter() - begin

    def _score(self, trainer: Trainer, model: nn.Module, step: int) -> None:
        found = self.judge.score(model)
        self.latest = {f"val/{name}": float(value) for name, value in found.values.items()}
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.values.items())
        logger.info("step %d: held-out %s", step, words)
        for log in trainer.loggers:
            log.log_metrics(self.latest, step=step - 1)
        if found.code_use is not None and trainer.is_global_zero:
            show_histogram(trainer.loggers, "val/code_use", found.code_use, step=step - 1)
            counts = found.code_use.long().tolist()
            write_json(self.run_dir / CODE_USE_FILE, {"step": step, "counts": counts})

    def _draw(self, trainer: Trainer, model: nn.Module, step: int) -> None:
        for number, picture in enumerate(self.judge.draw(model)):
            if not trainer.is_global_zero:
                continue
            name = f"{number:02d}-{_file_name(picture.name)}"
            show_picture(trainer.loggers, f"{PANELS}/{name}", picture.pixels, step=step - 1)
            image = PIL.Image.fromarray(picture.pixels)
            path = panel_folder(self.run_dir, step) / f"{name}.png"
            write_atomic(path, lambda file, image=image: image.save(file, format="PNG"))  # type: ignore[misc]


def panel_folder(run_dir: Path, step: int) -> Path:
    """Where the pictures of a step lie."""
    return run_dir / PANELS / f"step-{step:08d}"


def newest_panels(run_dir: Path) -> tuple[int, list[Path]]:
    """Step and files of the newest pictures of a run; 0 and none where there are none."""
    folders = sorted(path for path in (run_dir / PANELS).glob("step-*") if any(path.glob("*.png")))
    if not folders:
        return 0, []
    return int(folders[-1].name.removeprefix("step-")), sorted(folders[-1].glob("*.png"))


@contextmanager
def undisturbed(model: nn.Module, *, device: torch.device) -> Iterator[None]:
    """Evaluate without gradients; modes and all global random states come back afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        random.setstate(python)
        np.random.set_state(numpy)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-80:].strip("_.") or "image"
