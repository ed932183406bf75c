"""Features of images: grids, what is kept, the models outside, and what is alike across splits."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image as Picture
from safetensors.torch import save_file

from spadnet.data.task_forms import read_task
from spadnet.data.task_images import Preparation
from spadnet.data.tasks import TaskData
from spadnet.evaluate.duplicates import find_duplicates, thumbnail_extractor
from spadnet.evaluate.extractors import control_extractor, model_extractor
from spadnet.evaluate.features import (
    Extractor,
    Views,
    compute_features,
    data_digest,
    read_features,
    write_features,
)
from spadnet.evaluate.patch_labels import PatchLabels, class_shares, dice_per_case
from spadnet.evaluate.planes import (
    find_generalist,
    generalist_extractor,
    hand_made_extractor,
    load_generalist,
    oriented_gradients,
    planes,
)
from spadnet.models.registry import create_model
from spadnet.models.vit import SpadViT

RULE = Preparation(size=(1, 32, 32))


@pytest.fixture
def pictures(tmp_path: Path) -> TaskData:
    """Four pictures of each class and split, one of them twice and one nearly twice."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (6, 6), dtype=np.uint8)
                Picture.fromarray(pixels).resize((30, 34)).save(folder / f"{i}.png")
    twin = np.array(Picture.open(tmp_path / "train" / "a" / "0.png"))
    Picture.fromarray(twin).save(tmp_path / "test" / "b" / "twin.png")
    twin[::7] = np.clip(twin[::7].astype(int) + 3, 0, 255).astype(np.uint8)
    Picture.fromarray(twin).save(tmp_path / "val" / "b" / "near.png")
    return read_task(tmp_path)


def test_images_in_two_splits_are_found(pictures: TaskData) -> None:
    thumbnails = compute_features({"t": thumbnail_extractor()}, pictures, rule=RULE)["t"]
    found = find_duplicates(pictures, thumbnails, rule=RULE)
    pairs = {(p.first.rpartition("/")[2], p.second.rpartition("/")[2], p.exact) for p in found}
    assert pairs == {("0", "twin", True), ("0", "near", False), ("near", "twin", False)}


def test_order_is_kept_and_files_guard_themselves(
    pictures: TaskData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mean = Extractor("mean", lambda v: v.image.mean((1, 2, 3, 4))[:, None], lambda v: v.image)
    found = compute_features({"m": mean}, pictures, rule=RULE, batch_size=3)["m"]
    again = compute_features({"m": mean}, pictures, rule=RULE, batch_size=100)["m"]
    assert torch.allclose(found.values["train"], again.values["train"])
    assert found.values["test"].shape == (9, 1)
    file = tmp_path / "kept.safetensors"
    assert read_features(file) is None
    write_features(file, found)
    kept = read_features(file)
    assert kept is not None
    assert torch.equal(kept.values["val"], found.values["val"])
    content = bytearray(file.read_bytes())
    for place in (-1, len(content) // 2):
        changed = content.copy()
        changed[place] ^= 1
        file.write_bytes(changed)
        assert read_features(file) is None
        assert "computed again" in caplog.text
    file.write_bytes(content[:40])
    assert read_features(file) is None


def test_digest_follows_data_and_rule(pictures: TaskData) -> None:
    before = data_digest(pictures, RULE)
    assert data_digest(pictures, RULE) == before
    assert data_digest(pictures, RULE._replace(size=(1, 48, 48))) != before
    assert data_digest(pictures, RULE, "noise") != before
    file = pictures.cases[0].images[0]
    file.write_bytes(file.read_bytes() + b" ")
    assert data_digest(pictures, RULE) != before


def test_features_of_a_vit_are_those_of_its_own_calls() -> None:
    model = create_model("spad_vit_tiny", depth=1).eval()
    assert isinstance(model, SpadViT)
    extractor = model_extractor(model, "x")
    image = torch.rand(2, 1, 20, 32, 40)
    with torch.no_grad():
        pooled = extractor.pooled(Views(image, 0, (2, 2, 3), []))
        tokens = extractor.tokens(Views(image, 0, (2, 2, 3), []))
        padded = torch.nn.functional.pad(image, (0, 8, 0, 0, 0, 12), mode="replicate")
        features = model.forward_features(padded, 0)
    assert torch.allclose(pooled, model.forward_head(features, pre_logits=True), atol=1e-5)
    assert tokens.shape == (2, 2, 2, 3, model.embed_dim)
    assert torch.allclose(tokens.flatten(1, 3), features[:, model.num_prefix_tokens :], atol=1e-5)


@pytest.mark.parametrize(("size", "degree"), [((1, 30, 40), 5), ((20, 30, 40), 0)])
def test_models_outside_give_features_on_the_same_grid(
    size: tuple[int, int, int], degree: int, tmp_path: Path
) -> None:
    network = timm.create_model("test_efficientnet", pretrained=False)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    generalist = load_generalist("test_efficientnet", tmp_path / "weights.safetensors")
    grid = (2, 2, 3) if size[0] > 1 else (1, 2, 3)
    views = Views(torch.rand(2, 1, *size), degree, grid, [])
    for extractor in (generalist_extractor(generalist, size=64), hand_made_extractor()):
        with torch.no_grad():
            assert extractor.pooled(views).shape[0] == 2
            assert extractor.tokens(views).shape[:4] == (2, *grid)
    assert planes(views.image).shape[1] == (6 if size[0] > 1 else 1)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    with pytest.raises(ValueError, match="no such file"):
        load_generalist("test_efficientnet", file)
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="not the weights of test_efficientnet: keys and shapes"):
        load_generalist("test_efficientnet", file)
    with pytest.raises(ValueError, match="timm has no model 'nothing'"):
        load_generalist("nothing", file)
    with pytest.raises(ValueError, match="give TIMM_NAME:FILE"):
        find_generalist("resnet18")


def test_gradients_have_directions() -> None:
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(1, 1, 32, 32)
    across, down = oriented_gradients(ramp), oriented_gradients(ramp.transpose(2, 3))
    assert across.shape == (1, 128)
    assert float((across * down).sum()) == pytest.approx(0, abs=1e-5)
    assert float((across**2).sum()) == pytest.approx(1, abs=1e-5)
    assert oriented_gradients(torch.ones(1, 1, 32, 32)).abs().max() == 0


def test_control_sees_no_more_than_statistics(pictures: TaskData) -> None:
    control = control_extractor()
    found = compute_features({"c": control}, pictures, rule=RULE)["c"].values["train"]
    assert found.isfinite().all()
    for case in pictures.of("train"):  # shuffled pixels have the same shape and intensities
        pixels = np.array(Picture.open(case.images[0]))
        flat = np.random.default_rng(0).permutation(pixels.reshape(-1))
        Picture.fromarray(flat.reshape(pixels.shape)).save(case.images[0])
    again = compute_features({"c": control}, pictures, rule=RULE)["c"].values["train"]
    assert torch.allclose(found, again, atol=1e-3)


def test_cells_that_know_the_truth_reach_full_dice() -> None:
    label = torch.zeros(8, 12, 10, dtype=torch.uint8)
    label[2:6, 4:8, 2:8] = 1
    labels = PatchLabels([label], [(8, 12, 10)], [(1.0, 1.0, 1.0)])
    shares = class_shares(labels, 2)
    assert torch.equal(shares.argmax(1), label.flatten().long())
    assert dice_per_case(shares, labels).tolist() == [[1.0]]
    coarse = PatchLabels([label], [(4, 6, 5)], [(2.0, 2.0, 2.0)])
    shares = class_shares(coarse, 2)
    assert torch.allclose(shares.sum(1), torch.ones(4 * 6 * 5))
    assert float(shares[:, 1].sum()) * 8 == pytest.approx(float(label.sum()))
    assert float(dice_per_case(shares, coarse)) > 0.8
    beyond = PatchLabels([label], [(3, 4, 4)], [(3.0, 3.0, 3.0)])  # the last cells are cut
    assert torch.allclose(class_shares(beyond, 2).sum(1), torch.ones(48))
