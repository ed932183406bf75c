"""Services log into the same run when it resumes; one that is not installed is refused by name."""

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from spadnet.train import loggers
from spadnet.train.loggers import build_loggers, check_services, show_picture
from spadnet.train.metrics_log import CsvLog


class FakeService:
    """Stands for Lightning's logger of a service: no package, no network."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)
        self.run_id = settings.get("run_id") or "run-7"
        self.shown: list[Any] = []

    def log_image(self, name: str, pictures: Any, *, step: int) -> None:
        self.shown.append((name, len(pictures), step))


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Both services as if they were installed; what they were made with."""
    monkeypatch.setattr(FakeService, "made", [])
    monkeypatch.setattr(loggers, "WandbLogger", FakeService)
    monkeypatch.setattr(loggers, "MLFlowLogger", FakeService)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return FakeService.made


def test_a_resumed_run_goes_on_under_its_name(
    services: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    for _ in range(2):
        built = build_loggers(
            folder, tensorboard=False, services=["wandb", "mlflow"], project="spad"
        )
        assert [type(logger) for logger in built] == [CsvLog, FakeService, FakeService]
    wandb, mlflow, wandb_again, mlflow_again = services
    assert wandb["id"] == wandb_again["id"]
    assert (wandb["project"], wandb["name"], wandb["resume"]) == ("spad", "mine", "allow")
    assert (mlflow["run_id"], mlflow_again["run_id"]) == (None, "run-7")
    assert mlflow["save_dir"] == str(folder / "mlruns")


def test_services_show_pictures(services: list[dict[str, Any]], tmp_path: Path) -> None:
    built = build_loggers(tmp_path, tensorboard=False, csv_file=False, services=["wandb"])
    show_picture(built, "panels/a", np.zeros((4, 4), np.uint8), step=3)
    assert built[0].shown == [("panels/a", 1, 3)]  # type: ignore[attr-defined]


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'spadnet\[mlflow\]'"):
        check_services(["mlflow"])
    with pytest.raises(ValueError, match="unknown service 'neptune'"):
        check_services(["neptune"])
