"""The checksum of a training's data changes with a voxel, a name or a weight, and only then."""

from pathlib import Path

import torch

from spadnet.data.identity import identity_of_task, identity_of_volumes
from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import Case, TaskData
from spadnet.data.volume import Volume
from spadnet.spacing import Spacing


def volume(value: float = 0.5, **changed: object) -> Volume:
    image = torch.full((1, 2, 4, 4), value, dtype=torch.float16)
    made = Volume(image, Spacing(4, 1, 1), "a.nii", 1.0, "set", "CT")
    return made._replace(**changed)  # type: ignore[arg-type]


def test_volumes() -> None:
    told = identity_of_volumes([volume(), volume(key="b.nii", modality="")], num_held_out=1)
    assert (told["images"], told["held_out"], told["degrees"]) == (2, 1, {"2": 2})
    assert told["modalities"] == {"CT": 1, "unknown": 1}
    sums = [
        identity_of_volumes([one])["sha256"]
        for one in (volume(), volume(0.25), volume(key="b"), volume(weight=2.0))
    ]
    assert len(set(sums)) == 4
    assert identity_of_volumes([volume()])["sha256"] == sums[0]


def test_stores_are_known_by_their_catalogue(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.jsonl"
    sums = []
    for text in ("a", "b", "a"):
        file.write_text(text)
        sums.append(identity_of_volumes([], catalogues=[file])["sha256"])
    assert sums[0] == sums[2] != sums[1]


def test_tasks() -> None:
    case = Case("a", (Path("a.png"),), (1.0,), "train")
    task = TaskData("x", "classification", ["no", "yes"], [case])

    def told(target: float) -> dict[str, object]:
        image = TaskImage("a", torch.ones(1, 1, 2, 2), torch.tensor([target]), 5, Spacing.planar())
        return identity_of_task(task, [image])

    assert told(0.0)["cases"] == {"train": 1}
    assert told(0.0)["sha256"] != told(1.0)["sha256"]
