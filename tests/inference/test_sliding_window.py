"""Windows are blended as a whole, in the memory of one window's depth."""

import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from spadnet.inference import sliding_window
from spadnet.inference.sliding_window import segment, slabs, stitch, with_flips

SIZES = [(20, 33, 17), (1, 40, 40), (7, 8, 9), (64, 16, 16), (5, 5, 50)]


def keep(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.9])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_voxelwise_network_gives_what_it_gives_on_the_whole(
    size: tuple[int, int, int], overlap: float, blend: Any
) -> None:
    image = torch.rand(2, *size)
    result = stitch(
        image, keep, window=(8, 16, 16), multiple=(2, 4, 4), overlap=overlap, blend=blend
    )
    torch.testing.assert_close(result, image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("multiple", [1, 3, 4])
def test_windows_cover_every_voxel_start_at_multiples_and_overlap(multiple: int) -> None:
    for length in range(multiple, 60, multiple):
        for window in range(multiple, min(length, 24) + 1, multiple):
            for overlap in (0.0, 0.3, 0.5, 0.75):
                starts = sliding_window._starts(length, window, multiple, overlap)
                assert starts[0] == 0
                assert starts[-1] + window == length
                assert all(start % multiple == 0 for start in starts)
                gaps = [b - a for a, b in pairwise(starts)]
                assert all(0 < gap <= window for gap in gaps)
                if multiple == 1:
                    assert all(gap <= max(window * (1 - overlap), 1) + 1 for gap in gaps)


def network() -> nn.Module:
    """Sees its window's border, so that blending matters."""
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1))


@pytest.mark.parametrize(("blend", "sigma"), [("constant", 0.125), ("gaussian", 0.4)])
def test_equals_monai_where_its_windows_are_the_same(
    blend: Any, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "_SIGMA", sigma)  # wide enough for no floor to matter
    image, net = torch.rand(1, 32, 24, 16), network()
    ours = stitch(image, net, window=(16, 16, 16), overlap=0.5, blend=blend, batch_size=2)
    with torch.no_grad():
        theirs = sliding_window_inference(
            image[None], (16, 16, 16), 2, net, overlap=0.5, mode=blend, sigma_scale=sigma
        )
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=1e-4)


def test_middle_of_a_window_counts_more() -> None:
    def border(x: Tensor) -> Tensor:
        marked = torch.zeros_like(x)
        marked[..., 0] = marked[..., -1] = 1
        return marked

    image = torch.zeros(1, 4, 8, 40)
    options: dict[str, Any] = {"window": (4, 8, 16), "overlap": 0.5}
    wrong = [stitch(image, border, blend=b, **options).sum() for b in ("gaussian", "constant")]
    assert wrong[0] < 0.6 * wrong[1]


def test_slabs_follow_each_other_and_are_no_deeper_than_a_window() -> None:
    image = torch.rand(1, 50, 16, 16)
    seen, largest = 0, 0
    for slab in slabs(image, keep, window=(8, 8, 8), overlap=0.5):
        assert slab.start == seen
        seen += slab.values.shape[1]
        largest = max(largest, slab.values.untyped_storage().nbytes())
    assert seen == 50
    assert largest <= 4 * 8 * 16 * 16


def test_mask_holds_the_most_probable_class() -> None:
    torch.manual_seed(1)
    image, net = torch.rand(1, 13, 20, 24), network()
    options: dict[str, Any] = {"window": (8, 16, 16), "overlap": 0.5}
    labels = segment(image, net, **options)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, stitch(image, net, **options).argmax(0).to(torch.uint8))
    assert len(labels.unique()) > 1
    mask = segment(image, keep, **options)
    assert torch.equal(mask.bool(), image[0] > 0.5)


def test_flips_make_the_network_blind_to_them() -> None:
    net, x = network(), torch.rand(2, 1, 4, 6, 8)
    with torch.no_grad():
        for axes in ((0, 1, 2), (1, 2), (2,), ()):
            averaged = with_flips(net, axes)
            for axis in axes:
                flipped = averaged(x.flip(2 + axis)).flip(2 + axis)
                torch.testing.assert_close(flipped, averaged(x))
        torch.testing.assert_close(with_flips(net, ())(x), net(x))
        assert not torch.allclose(with_flips(net)(x), net(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 1.0}, "overlap must lie"),
        ({"batch_size": 0}, "positive"),
        ({"window": (0, 8, 8)}, "positive"),
        ({"blend": "gauss"}, "'gaussian' or 'constant', got 'gauss'"),
    ],
)
def test_refuses_what_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"window": (8, 8, 8), **changes}
    with pytest.raises(ValueError, match=message):
        stitch(torch.rand(1, 8, 8, 8), keep, **options)
    with pytest.raises(ValueError, match="axes must be"):
        with_flips(keep, (3,))


def test_refuses_outputs_of_another_size() -> None:
    with pytest.raises(ValueError, match="gave outputs of"):
        stitch(torch.rand(1, 8, 8, 8), lambda x: x[..., ::2], window=(8, 8, 8))
    many = torch.zeros(1, 257, 8, 8, 8)
    with pytest.raises(ValueError, match="257 classes"):
        segment(torch.rand(1, 8, 8, 8), lambda x: many, window=(8, 8, 8))


PROGRAM = """
import resource, sys
import torch
from spadnet.inference.sliding_window import segment
depth, side, window = map(int, sys.argv[1:])
torch.set_num_threads(1)
image = torch.rand(1, depth, side, side)
ramp = torch.linspace(-1, 1, 14).view(1, 14, 1, 1, 1)
labels = segment(image, lambda x: x * ramp, window=(window,) * 3, overlap=0.25)
assert labels.shape == image.shape[1:]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_megabytes(*arguments: int) -> float:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_fourteen_classes_of_a_large_ct_stay_below_six_gigabytes() -> None:
    assert peak_megabytes(600, 512, 128) < 6 * 1024
