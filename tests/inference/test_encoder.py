"""The encoder: files of any dimension and spacing go in, features come out."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from spadnet.data.inputs import Item
from spadnet.data.io import ImageError, read_image
from spadnet.data.preprocess import prepare
from spadnet.inference.encoder import Encoder, image_from_array, load_encoder, windows
from spadnet.inference.trained_range import TrainedRange
from spadnet.models.mim import MaskedImageModel
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing, required_multiple
from spadnet.weights.contract import contract_of
from spadnet.weights.hub import save_pretrained

WIDTH = 16


def tiny_vit(**changes: Any) -> SpadViT:
    arguments = {"in_chans": 1, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    vit = SpadViT(**{**arguments, "pos_grid": (2, 2, 2), **changes})
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.1)
    return vit


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(tiny_vit())


def voxels(*size: int, low: int = 100) -> np.ndarray:
    """Random 12-bit voxels, [*size], whose foreground reaches all borders."""
    array = np.random.default_rng(0).integers(low, 4000, size).astype(np.int16)
    array[..., size[-1] // 2] = low  # some background, to tell foreground from
    return array


def write_nifti(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> Path:
    """Write an array in NIfTI's order x, y, z with spacing x, y, z."""
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("spacing", "degree"),
    [((1, 1, 1), 0), ((1, 1, 2.5), 1), ((0.8, 0.8, 5), 2), ((0.5, 0.5, 10), 4)],
)
def test_file_is_read_and_encoded_at_the_degree_of_its_spacing(
    spacing: tuple[float, ...], degree: int, encoder: Encoder, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", voxels(40, 33, 9), spacing)
    embedding = encoder(path)
    assert embedding.degree == degree
    np.testing.assert_allclose(sorted(embedding.spacing), sorted(spacing), rtol=1e-6)
    assert embedding.patch == required_multiple(degree)
    prepared = encoder.prepare(read_image(path)).array.shape[1:]
    grid = tuple(math.ceil(n / step) for n, step in zip(prepared, embedding.patch, strict=True))
    assert embedding.grid == grid
    assert embedding.tokens.shape == (*grid, WIDTH)
    assert embedding.cls.shape == (WIDTH,)
    assert embedding.cls.dtype == embedding.tokens.dtype == torch.float32
    assert embedding.tokens.isfinite().all()


def test_result_is_that_of_the_model_on_the_prepared_image(encoder: Encoder) -> None:
    spacing = Spacing(4.0, 1.0, 1.0)
    array = voxels(8, 32, 48)
    embedding = encoder(array, spacing=spacing)
    prepared = encoder.prepare(image_from_array(array, spacing=spacing)).array
    assert prepared.shape == (1, 8, 32, 48)  # nothing to crop, nothing to pad
    assert (prepared.min(), prepared.max()) == (0, 1)
    with torch.no_grad():
        features = encoder.model.forward_features(torch.from_numpy(prepared)[None], 2)
    torch.testing.assert_close(embedding.cls, features[0, 0])
    torch.testing.assert_close(embedding.tokens.flatten(0, 2), features[0, 1:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_orientation_in_the_file_does_not_matter(
    axis: int, encoder: Encoder, tmp_path: Path
) -> None:
    """The slices of one volume may lie along any axis of the array."""
    array = voxels(32, 33, 6)
    reference = encoder(write_nifti(tmp_path / "a.nii", array, (1, 1, 5)))
    order = list(np.roll([0, 1, 2], axis))
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[:, :3] = affine[:, order]
    nibabel.save(nibabel.Nifti1Image(array.transpose(order), affine), tmp_path / "b.nii")
    turned = encoder(tmp_path / "b.nii")
    assert turned.spacing == pytest.approx(reference.spacing)
    torch.testing.assert_close(turned.tokens, reference.tokens)
    assert turned.origin == pytest.approx(reference.origin)


def test_scaling_and_offset_of_the_scanner_do_not_matter(encoder: Encoder) -> None:
    array = voxels(6, 32, 32)
    spacing = Spacing(4.0, 1.0, 1.0)
    first = encoder(array, spacing=spacing)
    second = encoder(array.astype(np.float32) * 0.25 - 1024, spacing=spacing)
    torch.testing.assert_close(first.cls, second.cls, atol=1e-4, rtol=1e-4)


def test_picture_is_one_thick_slice(encoder: Encoder) -> None:
    picture = np.random.default_rng(0).integers(1, 256, (40, 50), dtype=np.uint8)
    embedding = encoder(picture)
    assert embedding.degree == 5
    assert embedding.spacing.is_planar
    assert embedding.tokens.shape == (1, 3, 4, WIDTH)
    tensor = encoder(torch.from_numpy(picture))
    torch.testing.assert_close(tensor.cls, embedding.cls, rtol=0, atol=0)


def test_colour_becomes_grey_by_luminance(encoder: Encoder) -> None:
    colour = np.random.default_rng(0).integers(1, 256, (32, 32, 3)).astype(np.uint8)
    image = encoder.prepare(image_from_array(colour, spacing=Spacing.planar()))
    expected = colour / 255 @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image.array[0, 0], expected, atol=1e-6)
    assert encoder(colour, spacing=Spacing.planar()).tokens.shape == (1, 2, 2, WIDTH)


def test_grey_is_repeated_for_a_colour_model() -> None:
    encoder = Encoder(tiny_vit(in_chans=3))
    image = encoder.prepare(image_from_array(voxels(4, 32, 32), spacing=(4, 1, 1)))
    assert image.array.shape[0] == 3
    assert (image.array[0] == image.array[2]).all()


def test_two_channels_are_refused_in_one_line(encoder: Encoder) -> None:
    with pytest.raises(ImageError, match="array: the image has 2 channels and the model takes 1"):
        encoder(np.random.rand(2, 4, 32, 32), spacing=(4, 1, 1))


@pytest.mark.parametrize(
    ("array", "spacing", "message"),
    [
        (np.zeros((4, 32, 32)), None, r"3 axes need spacing=\(z, y, x\)"),
        (np.zeros((4, 32, 32)), (1, 1), "must have three values"),
        (np.zeros((4, 32, 32)), (4, 1, 1), "all voxels are 0"),
        (np.full((32, 32), np.nan), None, "finite"),
        (np.full((32, 32), "a"), None, "finite"),
        (np.zeros(32), (1, 1, 1), "shape"),
        (np.zeros((0, 32)), None, "shape"),
        (np.zeros((4, 32, 32)), Spacing.planar(), "4 slices, but the spacing is that of a 2D"),
        (np.zeros((4, 32, 32)), (0, 1, 1), "must be positive"),
    ],
)
def test_unusable_array_says_why(
    array: np.ndarray, spacing: Any, message: str, encoder: Encoder
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        encoder(array, spacing=spacing)
    assert "\n" not in str(caught.value)


def test_missing_file_says_so(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.nii"):
        encoder(tmp_path / "absent.nii")
    with pytest.raises(ValueError, match="has its own spacing"):
        encoder(image_from_array(voxels(32, 32)), spacing=(1, 1, 1))


def test_large_image_goes_window_by_window() -> None:
    vit = tiny_vit()
    array, spacing = voxels(4, 40, 64), Spacing(8.0, 1.0, 1.0)
    whole, cut = Encoder(vit)(array, spacing=spacing), Encoder(vit, max_tokens=4)
    pieces = cut(array, spacing=spacing)
    assert pieces.tokens.shape == whole.tokens.shape == (2, 3, 4, WIDTH)
    corner = Encoder(vit)  # the first window alone
    first = windows((2, 3, 4), 4)[0]
    z, y, x = (w.stop * step for w, step in zip(first, pieces.patch, strict=True))
    image = corner.prepare(image_from_array(array, spacing=spacing))
    with torch.no_grad():
        part = torch.from_numpy(image.array[:, :z, :y, :x])[None]
        expected = vit.forward_features(part, 3)[0, 1:]
    torch.testing.assert_close(pieces.tokens[first].flatten(0, 2), expected)
    with pytest.raises(ValueError, match="max_tokens must be positive, got 0"):
        Encoder(vit, max_tokens=0)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 7, 9), (5, 10, 10), (13, 2, 3)])
@pytest.mark.parametrize("max_tokens", [1, 6, 50, 1000])
def test_windows_cover_the_grid_once(grid: tuple[int, int, int], max_tokens: int) -> None:
    seen = np.zeros(grid, int)
    for window in windows(grid, max_tokens):
        assert 0 < seen[window].size <= max_tokens
        seen[window] += 1
    assert (seen == 1).all()
    if math.prod(grid) <= max_tokens:
        assert len(windows(grid, max_tokens)) == 1


def test_class_token_of_windows_is_their_mean() -> None:
    vit = tiny_vit()
    array = voxels(32, 64)  # two by four tokens, cut in two halves
    cut = Encoder(vit, max_tokens=4)(array)
    image = Encoder(vit).prepare(image_from_array(array)).array
    with torch.no_grad():
        halves = [
            vit(torch.from_numpy(np.ascontiguousarray(part))[None], 5)[0]
            for part in np.split(image, 2, axis=-1)
        ]
    torch.testing.assert_close(cut.cls, (halves[0] + halves[1]) / 2)


def test_mean_token_models_pool_so() -> None:
    encoder = Encoder(tiny_vit(global_pool="avg"))
    embedding = encoder(voxels(32, 32))
    torch.testing.assert_close(embedding.cls, embedding.tokens.flatten(0, 2).mean(0))


def test_statistics_are_those_of_all_windows_tokens() -> None:
    vit = tiny_vit(global_pool="avgstd")
    embedding = Encoder(vit, max_tokens=4)(voxels(32, 64))
    tokens = embedding.tokens.flatten(0, 2)
    assert len(tokens) == 8  # two windows
    torch.testing.assert_close(embedding.cls[:WIDTH], tokens.mean(0))
    spread = (tokens.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(embedding.cls[WIDTH:], spread)
    assert len(embedding.cls) == vit.head_hidden_size == 2 * WIDTH


@pytest.mark.parametrize("pool", ["token", "avg", "avgstd"])
def test_windows_of_a_half_precision_model_are_pooled_in_full(pool: Any) -> None:
    vit = tiny_vit(global_pool=pool, num_registers=1).to(torch.bfloat16)
    embedding = Encoder(vit, max_tokens=4)(voxels(32, 64))
    if pool != "token":
        mean = embedding.tokens.flatten(0, 2).mean(0)
        torch.testing.assert_close(embedding.cls[:WIDTH], mean, atol=1e-6, rtol=1e-6)
    assert embedding.cls.dtype == torch.float32
    assert embedding.cls.shape == (vit.head_hidden_size,)


def test_norm_after_the_pool_is_of_all_windows_tokens() -> None:
    vit = tiny_vit(global_pool="avg", norm_after_pool=True)
    embedding = Encoder(vit, max_tokens=4)(voxels(32, 64))
    mean = embedding.tokens.flatten(0, 2).mean(0)
    with torch.no_grad():
        torch.testing.assert_close(embedding.cls, vit.norm(mean))


def test_encoder_loads_from_both_kinds_of_folder(tmp_path: Path) -> None:
    model = MaskedImageModel(tiny_vit(), codebook_size=8)
    rule = {"percentiles": [5.0, 95.0], "crop_to_foreground": False, "max_in_plane": 24}
    folder = save_pretrained(model, tmp_path / "mim", intensity=rule)
    encoder = load_encoder(folder)
    alone = load_encoder(save_pretrained(model.vit, tmp_path / "vit", intensity=rule))
    image = voxels(40, 32)
    first, second = encoder(image), alone(image)
    torch.testing.assert_close(first.tokens, second.tokens, rtol=0, atol=0)
    assert first.tokens.shape == (1, 2, 2, WIDTH)  # bounded to 30 x 24 pixels, not cropped
    assert encoder.contract.intensity["percentiles"] == [5.0, 95.0]
    assert not torch.equal(first.cls, Encoder(model.vit)(image).cls)


def test_adapted_encoder_takes_the_new_channels(tmp_path: Path) -> None:
    folder = save_pretrained(tiny_vit(in_chans=3), tmp_path / "vit")
    grey, colour = load_encoder(folder, in_chans=1), load_encoder(folder)
    image = voxels(32, 32)
    torch.testing.assert_close(grey(image).cls, colour(image).cls, atol=1e-4, rtol=1e-4)


def test_contract_numbers_are_those_of_the_preprocessing() -> None:
    """Saved rules and preprocessing say the same unless a checkpoint chose otherwise."""
    defaults = {k: p.default for k, p in inspect.signature(prepare).parameters.items()}
    rule = contract_of(tiny_vit()).intensity
    assert list(defaults["percentiles"]) == rule["percentiles"]
    assert defaults["max_in_plane"] == rule["max_in_plane"]
    assert defaults["crop"] == rule["crop_to_foreground"]


@pytest.mark.parametrize(("repeats", "degree"), [(1, 3), (2, 2), (4, 1), (8, 0)])
def test_repeated_slices_give_the_same_features(
    repeats: int, degree: int, encoder: Encoder
) -> None:
    array = voxels(2, 32, 32)
    thick = encoder(array, spacing=(8, 1, 1))
    thin = encoder(np.repeat(array, repeats, axis=0), spacing=(8 / repeats, 1, 1))
    assert thin.degree == degree
    # Percentiles of repeated voxels differ in the fourth digit.
    torch.testing.assert_close(thin.tokens, thick.tokens, atol=2e-3, rtol=0)


def mixed_images() -> list[Any]:
    """Images of four degrees, with several sizes of one degree."""
    sizes = [(8, 32, 48), (32, 40), (8, 32, 48), (3, 32, 32), (32, 32, 32), (8, 30, 47), (32, 32)]
    degrees = [2, 5, 2, 3, 0, 2, 5]
    images = []
    for seed, (size, degree) in enumerate(zip(sizes, degrees, strict=True)):
        array = np.random.default_rng(seed).integers(1, 4000, size).astype(np.int16)
        spacing = Spacing.planar() if degree == 5 else Spacing(2.0**degree, 1.0, 1.0)
        images.append(image_from_array(array, spacing=spacing))
    return images


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("max_tokens", [4096, 14, 5])
def test_mixed_degrees_come_back_in_order(batch_size: int, max_tokens: int) -> None:
    encoder, images = Encoder(tiny_vit(), max_tokens=max_tokens), mixed_images()
    many = list(encoder.encode_many(iter(images), batch_size=batch_size))
    assert [one.degree for one in many] == [2, 5, 2, 3, 0, 2, 5]
    for image, one in zip(images, many, strict=True):
        alone = encoder(image)
        assert one[2:] == alone[2:]
        torch.testing.assert_close(one.cls, alone.cls, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.tokens, alone.tokens, atol=1e-5, rtol=1e-4)


def test_images_of_one_size_pass_the_model_together(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, sizes = tiny_vit(), []
    forward = vit.forward_features

    def count(x: torch.Tensor, degree: int | None = None) -> torch.Tensor:
        sizes.append(x.shape[0])
        return forward(x, degree)

    monkeypatch.setattr(vit, "forward_features", count)
    list(Encoder(vit).encode_many(mixed_images(), batch_size=2))
    assert sorted(sizes) == [1, 1, 1, 1, 1, 2]  # 30 x 47 pixels are padded to 32 x 48


def test_reading_stays_a_bounded_way_ahead() -> None:
    read = []

    def images() -> Any:
        for number in range(100):
            read.append(number)
            yield voxels(32, 32)

    results = Encoder(tiny_vit()).encode_many(images(), batch_size=2)
    next(results)
    assert len(read) == 16


def test_unusable_image_is_named_in_its_place(encoder: Encoder, tmp_path: Path) -> None:
    images = [voxels(32, 32), tmp_path / "absent.nii", voxels(32, 32)]
    first, error, last = encoder.encode_each(images)
    assert isinstance(error, ImageError)
    assert "absent.nii" in str(error)
    torch.testing.assert_close(first.cls, last.cls)  # type: ignore[union-attr]
    results = encoder.encode_many(images)
    next(results)
    with pytest.raises(ImageError, match="absent"):
        next(results)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        next(encoder.encode_each([], batch_size=0))


def test_item_of_a_table_brings_its_spacing(encoder: Encoder, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "image.nii.gz", voxels(32, 33, 9), (1, 1, 1))
    item = Item(path, "image", "mine", spacing=(5.0, 1.0, 1.0))
    assert encoder(item).degree == 2
    assert encoder(item).cls.equal(encoder(path, spacing=(5, 1, 1)).cls)


@pytest.mark.parametrize(
    ("facts", "spacing", "reason"),
    [
        ({"degrees": [0, 1], "in_plane_mm": [0.5, 2.0]}, (5, 1, 1), r"degree 2 .* \(degrees 0, 1"),
        ({"in_plane_mm": [0.5, 2.0]}, (5, 2.5, 2.5), "2.5 mm is outside the trained 0.5 to 2 mm"),
        ({"in_plane_mm": [0.5, 2.0]}, (5, 0.5, 0.4), "0.4 mm is outside"),
        ({"in_plane_mm": [0.5, 2.0], "degrees": [2]}, (4, 1, 1), None),
        ({"in_plane_mm": [0.5, 0.8]}, Spacing.planar(), None),
        ({"in_plane_mm": "unknown", "degrees": []}, (4, 1, 1), None),
        ({}, (4, 1, 1), None),
    ],
)
def test_spacing_outside_the_trained_range_warns_once(
    facts: Any, spacing: Any, reason: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(save_pretrained(tiny_vit(), tmp_path / "vit", training=facts))
    size = (1, 32, 32) if spacing == Spacing.planar() else (8, 32, 32)
    for _ in range(3):
        encoder(voxels(*size), spacing=spacing)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (reason is not None)
    if reason is not None:
        assert re.search(reason, warned[0])


def test_degree_that_the_model_is_told_may_differ_from_that_of_the_spacing() -> None:
    trained = TrainedRange(degrees=(0,))
    assert trained.missed_by(Spacing(5, 1, 1), degree=0) is None
    assert "degree 2" in (trained.missed_by(Spacing(1, 1, 1), degree=2) or "")


def test_range_of_a_training_is_that_of_its_volumes() -> None:
    spacings = [Spacing(5, 0.7, 0.8), Spacing.planar(), Spacing(1, 1.2, 1.2)]
    found = TrainedRange.over(spacings, [0, 2, 5])
    assert found == TrainedRange((0.7, 1.2), (0, 2, 5)) == TrainedRange.of(found.facts())
    assert TrainedRange.over([Spacing.planar()], [5]).in_plane is None


def test_model_without_a_pooled_token_gives_that_of_the_class() -> None:
    vit = tiny_vit()
    expected = Encoder(vit)(voxels(32, 32)).cls
    vit.reset_classifier(0, "")
    torch.testing.assert_close(Encoder(vit)(voxels(32, 32)).cls, expected)
