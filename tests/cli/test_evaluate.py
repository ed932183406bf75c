"""``spadnet evaluate``: what it writes, how it goes on, and what it refuses in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from spadnet.cli import main
from spadnet.cli.configure import configure
from spadnet.cli.evaluate_tasks import find_subjects
from spadnet.cli.evaluate_training import Trained, train_best
from spadnet.cli.evaluate_training import test_outcome as score_test
from spadnet.cli.training import plain
from spadnet.evaluate.intervals import Outcome
from spadnet.models.registry import create_model
from spadnet.weights.hub import save_pretrained

Capture = pytest.CaptureFixture[str]
Run = Callable[..., int]

FINETUNE = (
    "trainer: {accelerator: cpu, precision: 32-true, max_steps: 2}, validate: {every_steps: 2}"
)
DATA = "batch_size: 4, read_workers: 0"
MAPS = "classes: [background,blob], crop: [16,16,16]"
FIELDS = {
    *("task", "model", "protocol", "share", "seed", "metric", "value", "low", "high", "seconds"),
    *("num_train", "num_test", "trainable_parameters", "peak_memory_mib"),
}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A random encoder's folder."""
    torch.manual_seed(3)
    model = create_model("spad_vit_tiny", in_chans=1, depth=2)
    return save_pretrained(model, tmp_path / "run" / "encoder", name="spad_vit_tiny")


@pytest.fixture
def evaluate(encoder: Path, folders: Path, tmp_path: Path) -> Run:
    """Run the verb on dark and bright pictures."""

    def run(*argv: str, path: Path | None = folders) -> int:
        own = [] if path is None else [f"data.path={path}", "data.size=[1,32,32]"]
        fast = ("draws=50", "device=cpu", "seeds=[0,1]", "shares=[50%,100%]")
        fine = f"finetune={{{FINETUNE}, data: {{{DATA}}}}}"
        out = f"out={tmp_path / 'out'}"
        return main(["evaluate", f"model={encoder.parent}", *own, *fast, fine, out, *argv])

    return run


@pytest.fixture
def thin_maps(tmp_path: Path) -> Path:
    """Thin volumes with bright blobs, and their label maps."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    root = tmp_path / "thin"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i, split in enumerate(["train"] * 3 + ["val"] + ["test"] * 2):
        label = np.zeros((20, 18, 17), np.uint8)
        label[4 + i : 12 + i, 6:14, 5:12] = 1
        image = (rng.random(label.shape) * 50 + 200 * label).astype(np.int16)
        for folder, array in (("images", image), ("labels", label)):
            file = root / folder / f"c{i}.nii.gz"
            nib.save(nib.Nifti1Image(array, np.eye(4)), file)  # type: ignore[no-untyped-call]
        splits[split].append(f"c{i}")
    (root / "split.json").write_text(json.dumps(splits))
    return root


def read(out: Path) -> list[dict[str, Any]]:
    found = json.loads((out / "results.json").read_text())
    assert isinstance(found, list)
    return found


def test_models_stand_beside_each_other_and_a_second_run_keeps_them(
    evaluate: Run, tmp_path: Path
) -> None:
    assert evaluate() == 0
    out = tmp_path / "out"
    records = read(out)
    assert set(records[0]) >= FIELDS
    models = {record["model"] for record in records}
    assert {"given", "scratch", "hand-made", "control"} <= models
    for protocol in ("knn", "probe"):
        control = [r for r in records if (r["model"], r["protocol"]) == ("control", protocol)]
        auc = [r["value"] for r in control if r["metric"] == "auc" and r["share"] == 1]
        assert auc == [1.0]  # brightness alone tells dark from bright: the shortcut shows
    for record in records:
        assert record["low"] <= record["value"] <= record["high"]
        assert record["num_train"] == 12 * record["share"]
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "src=" not in page  # nothing is fetched
    assert "No image of one split looks like one of another" in page
    before = (out / "results.json").read_bytes()
    assert evaluate() == 0
    assert (out / "results.json").read_bytes() == before


def test_damaged_and_missing_parts_are_made_again(
    evaluate: Run, tmp_path: Path, capsys: Capture
) -> None:
    assert evaluate("protocols=[knn]", "shares=[100%]") == 0
    out = tmp_path / "out"
    values = {(r["model"], r["metric"]): r["value"] for r in read(out)}
    for file in (out / "features").iterdir():
        content = bytearray(file.read_bytes())
        content[-3] ^= 0xFF
        file.write_bytes(content)
    first, *_ = (out / "outcomes").iterdir()
    first.write_bytes(b"")
    assert evaluate("protocols=[knn]", "shares=[100%]") == 0
    told = capsys.readouterr().err
    assert "damaged (its content was changed); computed again" in told
    assert f"{first.name}: damaged or missing" in told
    assert {(r["model"], r["metric"]): r["value"] for r in read(out)} == values
    (out / "results.json").write_text("{")
    assert evaluate("protocols=[knn]", "shares=[100%]") == 0
    assert {(r["model"], r["metric"]): r["value"] for r in read(out)} == values


def test_other_weights_are_computed_anew(evaluate: Run, encoder: Path, tmp_path: Path) -> None:
    arguments = ("protocols=[probe]", "shares=[100%]")
    assert evaluate(*arguments) == 0
    before = {(r["model"], r["metric"]): r["key"] for r in read(tmp_path / "out")}
    torch.manual_seed(4)
    model = create_model("spad_vit_tiny", in_chans=1, depth=2)
    save_pretrained(model, encoder, name="spad_vit_tiny")
    assert evaluate(*arguments) == 0
    after = {(r["model"], r["metric"]): r["key"] for r in read(tmp_path / "out")}
    assert before.keys() == after.keys()
    assert {model for model, metric in before if before[model, metric] != after[model, metric]} == {
        "given"
    }


def test_fine_tuned_points_and_images_in_two_splits(
    evaluate: Run, folders: Path, tmp_path: Path
) -> None:
    copied = (folders / "train" / "dark" / "0.png").read_bytes()
    (folders / "test" / "dark" / "copy.png").write_bytes(copied)
    assert evaluate("protocols=[finetune]", "shares=[2]", "seeds=[0]") == 0
    out = tmp_path / "out"
    records = read(out)
    assert {r["model"] for r in records} == {"given", "scratch", "recipe:spad_vit_tiny"}
    assert {r["num_train"] for r in records} == {4}  # two of each class
    assert not list((out / "training").iterdir())
    (pair,) = json.loads((out / "duplicates.json").read_text())["data"]
    assert pair["exact"]
    assert pair["second"].endswith("copy")
    assert "1 images look like one of another" in (out / "report.html").read_text()


def test_fine_tuning_from_a_probe(evaluate: Run, tmp_path: Path, capsys: Capture) -> None:
    fine = f"finetune={{{FINETUNE}, data: {{{DATA}}}, recipe: {{first_head: probe}}}}"
    assert evaluate(fine, "protocols=[finetune]", "shares=[2]", "seeds=[0]") == 0
    assert capsys.readouterr().err.count("head: linear probe of 4 cases") == 3
    records = read(tmp_path / "out")
    # Dark from bright is learned before the first step, or by it.
    assert {r["value"] for r in records if r["metric"] == "auc"} == {1.0}


def test_each_network_takes_the_rate_that_validation_prefers(
    evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, list[Trained]] = {}
    scored: list[Trained] = []

    def train(*args: Any, extra: list[str], **kwargs: Any) -> Trained:
        found = train_best(*args, extra=extra, **kwargs)
        assert 0 <= found.score <= 1
        found = found._replace(score=0.5 + (extra == ["optim.lr=0.001"]))
        trained.setdefault(extra[0], []).append(found)
        return found

    def outcome(chosen: Trained, *args: Any) -> Outcome:
        scored.append(chosen)
        return score_test(chosen, *args)

    monkeypatch.setattr("spadnet.cli.evaluate.train_best", train)
    monkeypatch.setattr("spadnet.cli.evaluate.test_outcome", outcome)
    line = ["protocols=[finetune]", "shares=[100%]", "seeds=[0]"]
    assert evaluate(*line, "rates=[1e-4,1e-3,1e-2]") == 0
    both = read(tmp_path / "out")
    assert len(trained) == 3
    assert [id(one) for one in scored] == [id(one) for one in trained["optim.lr=0.001"]]
    slow, fast = (trained[f"optim.lr={rate}"][0].model.state_dict() for rate in (1e-4, 1e-2))
    assert any(not torch.equal(slow[key], fast[key]) for key in slow)
    assert {record["learning_rate"] for record in both} == {1e-3}
    assert {record["validation_score"] for record in both} == {1.5}
    assert evaluate(*line, "rates=[1e-4]") == 0  # other rates are other points
    alone = [record for record in read(tmp_path / "out") if record not in both]
    assert {record["learning_rate"] for record in alone} == {1e-4}


def test_label_maps_and_several_tasks(
    evaluate: Run, folders: Path, thin_maps: Path, tmp_path: Path
) -> None:
    entries = (
        f"tasks={{flat: {{path: {folders}, shares: [100%], "
        f"finetune: {{data: {{size: [1,32,32]}}}}}}, blobs: {{path: {thin_maps}, "
        f"finetune: {{data: {{{MAPS}}}, model: spad_unet_tiny}}, "
        "features: {data: {spacing: [0.25,0.25,0.25]}}, shares: [1]}}"
    )
    assert evaluate(entries, "seeds=[0]", path=None) == 0
    records = read(tmp_path / "out")
    assert {r["task"] for r in records} == {"flat", "blobs"}
    dice = {r["model"]: r["value"] for r in records if r["metric"] == "dice"}
    assert dice["hand-made"] > 0.5  # brightness tells the blob
    assert {r["num_train"] for r in records if r["task"] == "blobs"} == {1}
    assert evaluate(entries, "seeds=[0]", "protocols=[finetune]", path=None) == 0
    tuned = [r for r in read(tmp_path / "out") if r["protocol"] == "finetune"]
    assert {r["model"] for r in tuned if r["metric"] == "dice"} == {
        "given",
        "scratch",
        "recipe:spad_unet_tiny",
    }


def unet_folder(root: Path) -> Path:
    """A run's folder with a pre-trained U-Net: all of its weights are far from a random start."""
    torch.manual_seed(3)
    model = create_model("spad_unet_tiny", in_chans=1, num_classes=1)
    for weight in model.parameters():
        weight.data.add_(0.5)
    save_pretrained(model, root / "unet", name="spad_unet_tiny")
    return root


def test_unet_is_fine_tuned_beside_its_own_random_start(
    evaluate: Run, thin_maps: Path, tmp_path: Path
) -> None:
    source = unet_folder(tmp_path / "pretrained")
    settings = f"finetune={{{FINETUNE}, data: {{{DATA}, {MAPS}}}, model: spad_unet_tiny}}"
    arguments = [f"model={source}", f"tasks={{blobs: {{path: {thin_maps}}}}}", settings]
    arguments += ["protocols=[finetune]", "seeds=[0]", "shares=[2]"]
    assert evaluate(*arguments, path=None) == 0
    records = [r for r in read(tmp_path / "out") if r["metric"] == "dice"]
    dice = {r["model"]: r["value"] for r in records}
    assert set(dice) == {"given", "scratch"}  # the settings build no third network
    assert dice["given"] != dice["scratch"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("protocols=[probe,finetune]", "is a U-Net, which has no features of images"),
        ("study=quality", "is a U-Net, which study= is not for"),
        ("seeds=[0]", "is a U-Net, which needs label maps; data has none"),
    ],
)
def test_unet_is_asked_for_label_maps_alone(
    evaluate: Run, tmp_path: Path, capsys: Capture, argument: str, message: str
) -> None:
    source = unet_folder(tmp_path / "pretrained")
    assert evaluate(f"model={source}", "protocols=[finetune]", argument) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("protocol", ["probe", "finetune"])
def test_quality_of_images(evaluate: Run, tmp_path: Path, protocol: str) -> None:
    arguments = (
        *("study=quality", f"quality.protocol={protocol}", "seeds=[0]", "shares=[100%]"),
        "quality.shares=[0.0,1.0]",
    )
    assert evaluate(*arguments) == 0
    out = tmp_path / "out"
    records = [r for r in read(out) if r["metric"] == "auc" and r["model"] == "given"]
    grid = {(r["train_degraded"], r["test_degraded"]) for r in records}
    assert grid == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert (out / "report.html").read_text().count("<svg") == 1
    before = (out / "results.json").read_bytes()
    assert evaluate(*arguments) == 0
    assert (out / "results.json").read_bytes() == before


def test_spacing_shift(evaluate: Run, thin_maps: Path, tmp_path: Path) -> None:
    data = f"{DATA}, {MAPS}"
    settings = f"finetune={{{FINETUNE}, model: spad_unet_tiny, data: {{{data}}}}}"
    arguments = ("study=spacing", settings, "seeds=[0]")
    single = (f"tasks={{blobs: {{path: {thin_maps}}}}}", "spacing.slabs=[4]")
    assert evaluate(*arguments, *single, path=None) == 0
    records = [r for r in read(tmp_path / "out") if r["metric"] == "dice"]
    assert {r["labels"] for r in records} == {"as they are", "z by 4", "y by 4", "x by 4"}
    networks = {r["model"] for r in records}
    assert {"spadnet", "plain, slices repeated", "plain, slab averaging"} <= networks
    thin = {r["model"]: r["value"] for r in records if r["labels"] == "as they are"}
    # One network, however it takes thick slices: thin ones are the same to it.
    assert thin["plain, slices repeated"] == thin["plain, resampled first"]
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model=null"], 2, "model=FOLDER is missing"),
        (["model=/no/such"], 1, "/no/such"),
        (["data.path=null"], 2, "data.path=FILE|FOLDER is missing"),
        (["data.path=/no/such"], 1, "/no/such: no such file or folder"),
        (["data.task=segmentation"], 1, "no label map"),
        (["protocols=[knm]"], 2, "unknown protocol 'knm'; did you mean 'knn'"),
        (["shares=[0%]"], 2, "shares are percentages such as 10%"),
        (["seeds=[]"], 2, "seeds must name each once"),
        (["score_on=train"], 2, "score_on must be test or val"),
        (["study=qualty"], 2, "did you mean 'quality'"),
        (["study=quality", "quality.kinds=[noize]"], 2, "did you mean 'noise'"),
        (["study=spacing"], 2, "study=spacing is for label maps"),
        (["generalist=resnet18:/no/such"], 1, "/no/such: no such file of weights"),
        (["tasks={a: {pth: x}}"], 2, "tasks.a.pth: no such key; did you mean 'path'"),
        (
            ["finetune={recipe: {first_head: prob}}", "protocols=[finetune]"],
            2,
            "unknown recipe.first_head 'prob'; did you mean 'probe'",
        ),
        (
            ["rates=[]", "protocols=[finetune]"],
            2,
            "rates must be a list of different positive numbers",
        ),
        (["rates=[3e-4,fast]"], 2, "rates must be a list of different positive numbers"),
        (["rates=[3e-4,3e-4]"], 2, "rates must be a list of different positive numbers"),
        (["rates=[3e-4]"], 2, "rates are for protocols=[finetune], without study="),
        (["finetune={trainer: {max_stps: 1}}"], 2, "did you mean 'trainer.max_steps'"),
        (["experiment=mim_tiny"], 2, "this experiment is for spadnet pretrain-mim"),
        (["protocol=[knn]"], 2, "unknown key 'protocol'; did you mean 'protocols'"),
    ],
)
def test_wrong_setting_is_told_in_one_line(
    evaluate: Run, tmp_path: Path, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert evaluate(*arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert message in lines[-1]
    assert not (tmp_path / "out" / "results.json").exists()


def test_splits_and_folders_that_cannot_be_used(
    evaluate: Run, folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "out").write_text("a file")
    assert evaluate() == 1
    assert str(tmp_path / "out") in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "out").unlink()
    shutil.rmtree(folders / "test")
    assert evaluate() == 1
    assert "the split 'test' is empty" in capsys.readouterr().err.splitlines()[-1]
    for file in (folders / "train" / "dark").iterdir():
        file.rename(folders / "val" / "dark" / f"more{file.name}")
    (folders / "train" / "dark").rmdir()
    assert evaluate() == 1
    assert "all training cases are 'bright'" in capsys.readouterr().err.splitlines()[-1]


def test_scores_on_validation_leave_the_test_split_alone(
    evaluate: Run, folders: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folders / "test")
    assert evaluate("score_on=val", "protocols=[knn]", "shares=[100%]", "seeds=[0]") == 0
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    count = len(list((folders / "val").glob("*/*")))
    assert {record["num_test"] for record in records} == {count}
    assert all(record["task"].endswith(" (validation)") for record in records)


def test_the_experiment_of_three_sets_composes(folders: Path) -> None:
    config = configure("evaluate", ["experiment=evaluate_tiny", f"tasks.pneumonia.path={folders}"])
    assert config is not None
    options = plain(config)
    (subject,) = find_subjects(options, in_chans=1, config_dir=[])
    assert subject.name == "pneumonia"
    assert subject.rule.size == (1, 64, 64)
    assert subject.settings["model"]["name"] == "spad_conv_tiny"
    assert subject.settings["data"]["size"] == [1, 32, 32]
    assert set(options["tasks"]) == {"pneumonia", "adrenal", "hippocampus"}
    assert len(options["shares"]) == 4


def test_settings_of_trainings_take_any_key() -> None:
    config = configure("evaluate", ["finetune.trainer.max_steps=3", "tasks={a: {path: x}}"])
    assert config is not None
    assert config.finetune.trainer.max_steps == 3
    assert config.tasks.a.path == "x"
