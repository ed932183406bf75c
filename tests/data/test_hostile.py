"""Hostile inputs: each is read right or refused in one line that names file and cause.

All of them are read by one child process with little memory and an alarm, so that a crash, a hang
or an allocation without bound fails the case that made it.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hostile_files import (
    COLOUR,
    NRRD,
    SYNTAX,
    UPRIGHT,
    VOLUME,
    Content,
    dicom,
    edited,
    folder_of,
    later,
    mgh,
    mha,
    nested_dicom,
    nifti,
    npy,
    npy_header,
    npz_bomb,
    nrrd,
    picture,
    png_bomb,
    png_text_bomb,
    saved,
    spaced,
    tiff_loop,
    tiff_pages,
    unix_socket,
    with_data_only,
    with_header_only,
)

from spadnet.data.folder import find_images
from spadnet.data.io import ImageError, read_image

CHILD = """
import json, logging, resource, signal, sys
from spadnet.data.io import ImageError, read_frames
logging.disable()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    name, path, spacing = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, 20)  # of the processor's time
    signal.alarm(300)
    try:
        frames = read_frames(path, spacing=spacing)
        shapes = ["x".join(map(str, frame.array.shape)) for frame in frames]
        outcome = ["read", " ".join(shapes)]
    except ImageError as error:
        outcome = ["refused", str(error)]
    except BaseException as error:
        outcome = ["crashed", f"{type(error).__name__}: {error}"]
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps([name, *outcome]), flush=True)
"""


class Case(NamedTuple):
    """A hostile input: its file name, what is in it, and what must come of it.

    ``expected`` is a pattern of the reason, or "= SHAPES" where it must be read.
    """

    name: str
    content: Content
    expected: str
    spacing: tuple[float, float, float] | None = None


WORDS = (b"0.0\\0.0\\0.0", b"one\\two\\333")
SLICES = [dicom(0), dicom(2)]
OTHER_SERIES = [dicom(height, SeriesInstanceUID="1.4") for height in (0, 2)]
LOCALIZER = dicom(4, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
PACKED = gzip.compress(nifti())
NAN = np.where(np.arange(336).reshape(6, 7, 8) < 3, np.nan, 1).astype(np.float32)
NO_AFFINE = [(280 + 4 * index, "<f", 0) for index in range(12)]
GIANT = [(42, "<h", 30000), (44, "<h", 30000), (46, "<h", 30000)]
PARALLEL = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SHEARED = np.array([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
ZEROS = gzip.compress(bytes(1 << 23), 1)
DAMAGED = "truncated|damaged|not an image"
TOO_LARGE = "truncated|GiB|too many|too large|memory"
SIZE = "1x8x7x6"

CASES = [
    # NIfTI and FreeSurfer
    Case("whole.nii.gz", PACKED, f"= {SIZE}"),
    Case("cut.nii.gz", PACKED[: len(PACKED) * 3 // 4], "truncated"),
    Case("cut_trailer.nii.gz", PACKED[:-4], "truncated"),
    Case("flipped.nii.gz", edited(PACKED, (len(PACKED) // 2, "B", 0)), "truncated or damaged"),
    Case("garbage_after.nii.gz", PACKED + b"garbage" * 9, "damaged"),
    Case("twice_packed.nii.gz", gzip.compress(PACKED), "not an image"),
    Case("packed_within.nii", PACKED, "not an image"),
    Case("not_packed.nii.gz", nifti(), "not an image|damaged"),
    Case("empty.nii", b"", "empty"),
    Case("empty.nii.gz", b"", "empty"),
    Case("page.nii.gz", b"<html><body>404 not found</body></html>" * 20, "not an image"),
    Case("wrong_magic.nii", edited(nifti(), (344, "<I", 0x41414141)), "not an image"),
    Case("cut.nii", nifti()[:600], "truncated"),
    Case("cut_header.nii", nifti()[:100], "not an image"),
    Case("wider_than_data.nii", edited(nifti(), (42, "<h", 60)), "truncated"),
    Case("giant.nii", edited(nifti(), *GIANT), "truncated"),
    Case("giant.nii.gz", gzip.compress(edited(nifti(), *GIANT)), "truncated"),
    Case("zero_axis.nii", edited(nifti(), (44, "<h", 0)), "without voxels"),
    Case("negative_axis.nii", edited(nifti(), (44, "<h", -7)), "without voxels|not an image"),
    Case("nine_axes.nii", edited(nifti(), (40, "<h", 9)), "not an image|axes"),
    Case("unknown_type.nii", edited(nifti(), (70, "<h", 999)), "not an image"),
    Case("negative_offset.nii", edited(nifti(), (108, "<f", -64)), "not an image|offset"),
    Case("offset_beyond.nii", edited(nifti(), (108, "<f", 1e9)), "truncated|not an image"),
    Case("offset_nan.nii", edited(nifti(), (108, "<f", np.nan)), "not an image"),
    Case("slope_inf.nii", edited(nifti(), (112, "<f", np.inf)), f"= {SIZE}"),
    Case("slope_nan.nii", edited(nifti(), (112, "<f", np.nan)), f"= {SIZE}"),
    Case("all_nan.nii", nifti(np.full_like(NAN, np.nan)), "all voxels are NaN"),
    Case("some_nan.nii", nifti(NAN), "3 of 336 voxels"),
    Case("all_inf.nii", nifti(np.full_like(NAN, np.inf)), "all voxels are NaN or infinite"),
    Case("constant.nii", nifti(np.full_like(VOLUME, 7)), f"= {SIZE}"),
    Case("largest_floats.nii", nifti(np.where(NAN == 1, 3e38, -3e38).astype("f4")), "= 1x8x7x6"),
    Case("negative_spacing.nii", spaced(-2), "spacing -2"),
    Case("zero_spacing.nii", spaced(0), "spacing 0"),
    Case("nan_spacing.nii", spaced(np.nan), "spacing nan"),
    Case("1e9_spacing.nii", spaced(1e9), r"spacing .*1e\+09"),
    Case("1e-20_spacing.nii", spaced(1e-20), "spacing .*1e-20"),
    Case("affine_nan.nii", edited(nifti(), (280, "<f", np.nan)), "affine"),
    Case("affine_zero.nii", edited(nifti(), *NO_AFFINE), "spacing"),
    Case("parallel_axes.nii", nifti(affine=PARALLEL), "degenerate"),
    Case("sheared.nii", nifti(affine=SHEARED), f"= {SIZE}"),
    Case("vectors_5d.nii", nifti(np.stack([VOLUME] * 2, -1)[..., None, :]), "= 2x8x7x6"),
    Case("frames_4d.nii", nifti(np.stack([VOLUME] * 2, -1)), f"= {SIZE} {SIZE}"),
    Case("axes_6d.nii", nifti(np.ones((3, 3, 3, 2, 2, 2), np.int16)), "6 axes"),
    Case("complex.nii", nifti(VOLUME.astype(np.complex64)), "complex64"),
    Case("colour.nii", nifti(VOLUME.astype([(c, "u1") for c in "RGB"])), "= 3x8x7x6"),
    Case("line.nii", nifti(np.ones((8, 1, 1), np.int16)), "two single-voxel axes"),
    Case("no_voxels.hdr", with_header_only, "no_voxels.img': no such file"),
    Case("no_header.img", with_data_only, "no such file|not an image"),
    Case("cut.mgz", gzip.compress(mgh())[:-90], "truncated"),
    Case("cut.mgh", mgh()[:700], "truncated"),
    Case("wrong_version.mgh", edited(mgh(), (0, ">i", 77)), "not an image"),
    Case("giant.mgh", edited(mgh(), *((4 + 4 * i, ">i", 90000) for i in range(3))), "not an image"),
    Case("negative_axis.mgh", edited(mgh(), (4, ">i", -5)), "without voxels|not an image"),
    # pictures
    Case("bomb.png", png_bomb(40000), "too many pixels"),
    Case("giant_header.png", edited(picture(COLOUR, "PNG"), (16, ">I", 1 << 30)), DAMAGED),
    Case("text_bomb.png", png_text_bomb(), "= 1x1x4x4"),
    Case("cut.png", picture(COLOUR, "PNG")[:-900], DAMAGED),
    Case("empty.png", b"", "empty"),
    Case("text.png", b"not a picture " * 50, "not an image"),
    Case("rgba.png", picture(COLOUR, "PNG"), "= 3x1x64x48"),
    Case("palette.png", picture(COLOUR[..., :3], "PNG", "P"), "= 3x1x64x48"),
    Case("one_bit.png", picture(COLOUR[..., 0], "PNG", "1"), "= 1x1x64x48"),
    Case("16_bit.png", picture(COLOUR[..., 0].astype(np.uint16) * 9, "PNG"), "= 1x1x64x48"),
    Case("one_pixel.png", picture(COLOUR[:1, :1, :3], "PNG"), "single-voxel"),
    Case("black.png", picture(COLOUR[..., :3] * 0, "PNG"), "= 3x1x64x48"),
    Case("png_within.jpg", picture(COLOUR[..., :3], "PNG"), "= 3x1x64x48"),
    Case("cut.jpg", picture(COLOUR[..., :3], "JPEG")[:-400], "truncated"),
    Case("cmyk.jpg", picture(COLOUR[..., :3], "JPEG", "CMYK"), "= 3x1x64x48"),
    Case("pages.tif", tiff_pages(), "3 pages"),
    Case("pages_spaced.tif", tiff_pages(), "= 1x3x64x48", (3, 1, 1)),
    Case("page_loop.tif", tiff_loop(), "in a circle"),
    Case("cut.tif", tiff_pages()[:500], DAMAGED),
    Case("nan.tif", picture(np.full((9, 9), np.nan, np.float32), "TIFF"), "NaN"),
    Case("animation.gif", picture(COLOUR[..., 0], "GIF"), "not an image"),
    Case("giant.bmp", edited(picture(COLOUR, "BMP"), (18, "<i", 1 << 29)), TOO_LARGE),
    # NRRD and MetaImage
    Case("whole.nrrd", nrrd(NRRD + UPRIGHT + "encoding: raw"), "= 1x6x7x8"),
    Case("cut.nrrd", nrrd(NRRD + UPRIGHT + "encoding: raw", bytes(99)), "truncated"),
    Case("no_data.nhdr", nrrd(NRRD + "encoding: raw\ndata file: no.raw", b""), "no such file"),
    Case("bad_encoding.nrrd", nrrd(NRRD + UPRIGHT + "encoding: magic"), "encoding"),
    Case("negative_size.nrrd", nrrd("sizes: -8 7 6\nencoding: raw"), "size"),
    Case("giant.nrrd", nrrd("sizes: 90000 90000 90000\nencoding: raw"), TOO_LARGE),
    Case("bomb.nrrd", nrrd("sizes: 2000 2000 1900\nencoding: gzip", ZEROS), "announces"),
    Case(
        "sheared.nrrd",
        nrrd(NRRD + "space directions: (1,0,0) (0,1,0) (0,0.5,1)\nencoding: raw"),
        "= 1x6x7x8",
    ),
    Case(
        "parallel.nrrd",
        nrrd(NRRD + "space directions: (1,0,0) (1,0,0) (0,0,1)\nencoding: raw"),
        "degenerate",
    ),
    Case("nan.nrrd", nrrd(NRRD + UPRIGHT.replace("(1,", "(nan,") + "encoding: raw"), "direction"),
    Case("whole.mha", mha(), "= 1x6x7x8"),
    Case("cut.mha", mha(bytes(99)), "truncated"),
    Case("no_data.mhd", mha(b"", ElementDataFile="nothing.raw"), "no such file"),
    Case("itself.mhd", mha(b"", ElementDataFile="itself.mhd"), "truncated or damaged"),
    Case("no_slices.mhd", mha(b"", ElementDataFile="LIST\nnothing.raw"), "truncated or damaged"),
    Case("negative_size.mha", mha(DimSize="-8 7 6"), "GiB"),
    Case("giant.mha", mha(DimSize="90000 90000 90000"), TOO_LARGE),
    Case("bomb.mha", mha(ZEROS, DimSize="2000 2000 1900", CompressedData="True"), "announces"),
    Case("zero_spacing.mha", mha(ElementSpacing="0 1 1"), "spacing"),
    Case("bad_type.mha", mha(ElementType="MET_NONSENSE"), "Type"),
    # DICOM
    Case("whole.dcm", dicom(), "= 1x1x7x8"),
    Case("no_pixels.dcm", dicom(PixelData=None), "pixel data"),
    Case("other_syntax.dcm", dicom().replace(SYNTAX + b".1\0", SYNTAX + b".5\0"), "= 1x1x7x8"),
    Case("unknown_syntax.dcm", dicom().replace(SYNTAX + b".1\0", SYNTAX + b".9\0"), "not supp"),
    Case("table.dcm", b"name,age\nsomebody,40\n" * 30, "DICOM"),
    Case("cut.dcm", dicom()[:-60], "less than expected"),
    Case("cut_header.dcm", dicom()[:300], "without an image"),
    Case("giant.dcm", dicom(Rows=65535, Columns=65535), "less than expected"),
    Case("many_frames.dcm", dicom(NumberOfFrames=2_000_000_000), "less than expected"),
    Case("no_rows.dcm", dicom(Rows=0), "without an image"),
    Case("words_for_numbers.dcm", dicom().replace(*WORDS), "damaged DICOM header"),
    Case("deep.dcm", nested_dicom(2000), "damaged DICOM header"),
    Case("series", folder_of(dicom(0), dicom(2), dicom(4)), "= 1x3x7x8"),
    Case("two_series", folder_of(*SLICES, *OTHER_SERIES), "= 1x2x7x8 1x2x7x8"),
    Case("duplicate_slice", folder_of(dicom(0), dicom(2), dicom(2), dicom(4)), "duplicates"),
    Case("missing_slice", folder_of(dicom(0), dicom(2), dicom(6), dicom(8)), "missing"),
    Case("localizer_within", folder_of(*SLICES, LOCALIZER), "orientation"),
    Case("sizes_differ", folder_of(dicom(0), dicom(2, VOLUME[0, :5])), "different sizes"),
    Case("no_places", folder_of(dicom(0, ImagePositionPatient=None), dicom(2)), "position"),
    Case("one_slice_cut", folder_of(dicom(0), dicom(2)[:-60], dicom(4)), "truncated"),
    # NumPy
    Case("objects.npy", saved([{"a": 1}, None]), "not a usable", (1, 1, 1)),
    Case("giant.npy", npy("(99999, 99999, 999)"), "not a usable", (1, 1, 1)),
    Case("negative.npy", npy("(-1, 9, 9)"), "not a usable|without voxels", (1, 1, 1)),
    Case("code.npy", npy_header("__import__('os').abort()"), "not a usable", (1, 1, 1)),
    Case("text.npy", saved(np.full((3, 4, 5), "text")), "not intensities", (1, 1, 1)),
    Case("records.npy", saved(np.zeros((3, 4, 5), [("a", "f4")])), "not intensities", (1, 1, 1)),
    Case("number.npy", saved(3.0), "0 axes", (1, 1, 1)),
    Case("no_spacing.npy", saved(VOLUME), "no spacing"),
    Case("bad_spacing.npy", saved(VOLUME), "spacing", (1, -1, 1)),
    Case("objects.npz", saved([None], packed=True), "not a usable", (1, 1, 1)),
    Case("bomb.npz", later(npz_bomb, 5 << 27), "not a usable|GiB|memory|large", (1, 1, 1)),
    Case("cut.npz", saved(VOLUME, packed=True)[:-90], "not a usable", (1, 1, 1)),
    # places
    Case("folder.nii.gz", Path.mkdir, "no DICOM"),
    Case("loop.nii", lambda path: path.symlink_to(path.name), "symbolic links"),
    Case("broken_link.nii", lambda path: path.symlink_to("nothing"), "no such file"),
    Case("pipe.nii", os.mkfifo, "not a regular file"),
    Case("socket.nii", unix_socket, "not a regular file"),
    Case("absent.nii", lambda path: None, "no such file"),
    Case("below_file.nii/x.nii", lambda path: path.parent.write_bytes(b"a"), "not a directory"),
    Case("Sch\u00e4del \u982d 1.nii.gz", PACKED, f"= {SIZE}"),
    Case("two\nlines.nii", b"", "empty"),
    Case("\udce9t\udce9.nii", b"", "empty"),
    Case("n" * 300 + ".nii", lambda path: None, "too long"),
]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str]]:
    """What became of each case: read, refused or crashed; the details; and the path."""
    folder = tmp_path_factory.mktemp("hostile")
    lines, paths = [], {}
    for index, case in enumerate(CASES):
        path = folder / str(index) / case.name
        (folder / str(index)).mkdir()
        if isinstance(case.content, bytes):
            path.write_bytes(case.content)
        else:
            case.content(path)
        paths[case.name] = str(path)
        lines.append(json.dumps([case.name, str(path), case.spacing]) + "\n")
    few = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(lines),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **few, "MALLOC_ARENA_MAX": "2"},
    )
    found = {name: (kind, text) for name, kind, text in map(json.loads, done.stdout.splitlines())}
    death = ("crashed", f"the process ended with {done.returncode}: {done.stderr[-500:]}")
    return {name: (*found.get(name, death), path) for name, path in paths.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name[:40]))
def test_is_read_right_or_refused_with_a_reason(
    case: Case, outcomes: dict[str, tuple[str, str, str]]
) -> None:
    kind, text, path = outcomes[case.name]
    if case.expected.startswith("= "):
        assert (kind, text) == ("read", case.expected[2:])
        return
    shown = path.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
    assert (kind, text[: len(shown) + 2]) == ("refused", f"{shown}: "), text
    reason = text[len(shown) + 2 :]
    assert "\n" not in reason
    assert len(reason) < 250
    assert re.search(case.expected, reason), reason


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 120


def test_pixels_under_another_syntax_are_right_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom().replace(SYNTAX + b".1\0", SYNTAX + b".5\0"))
    assert (read_image(tmp_path / "a.dcm").array[0, 0] == VOLUME[0]).all()


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: the superuser, who runs many a test, may read everything."""
    path = tmp_path / "a.nii"
    path.write_bytes(nifti())

    def refuse(file: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"a\.nii: permission denied$"):
        read_image(path)


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match=r"permission denied$"):
        read_image(tmp_path)


def test_folders_that_hold_themselves_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "image.nii").write_bytes(nifti())
    assert find_images(tmp_path) == [tmp_path / "a" / "image.nii"]
