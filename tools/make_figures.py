"""Draw the figures of docs/figures with the models of a demo.

spadnet demo out=runs/demo
python tools/make_figures.py runs/demo

The same models give the same files. overview.png: images of several spacings, masked, predicted and
as features. three_spacings.png: one volume and one set of weights at three spacings. No training
has seen the images.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from spadnet.data.atomic import write_atomic
from spadnet.data.preprocess import prepare
from spadnet.data.samples import list_samples, load_samples
from spadnet.data.volume import to_volume
from spadnet.evaluate.consistency import average_slices
from spadnet.evaluate.held_out import HeldOut, fit_to_multiple
from spadnet.evaluate.panels import panels
from spadnet.inference.maps import attend, principal_components
from spadnet.layers.spad_conv import SpadConv3d, fold_depth
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing, required_multiple
from spadnet.weights.hub import load_pretrained, load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
OVERVIEW = ("mr_body_3mm", "ct_head_2.5mm", "mr_brain_6.5mm_b", "ultrasound_rgb")
THREE_SPACINGS = "ct_aorta_1.5mm"

_MASK_RATIO = 0.55
_WINDOW = (4, 4, 4)  # tokens of a crop in the demo's second stage
_DPI = 110
_COLOURS = 255  # of a file's palette


class Models(NamedTuple):
    """What a demo has trained.

    Attributes:
        tokenizer: Of the first stage.
        mim: Of the second stage.
    """

    tokenizer: Tokenizer
    mim: MaskedImageModel


def main(argv: Sequence[str] | None = None) -> int:
    """Write both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="folder of spadnet demo")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the figures")
    arguments = parser.parse_args(argv)
    try:
        models = load_models(arguments.demo)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("overview.png", overview(models, held_out(OVERVIEW))),
        ("three_spacings.png", three_spacings(models, *held_out([THREE_SPACINGS]))),
    ):
        write_atomic(arguments.out / name, as_png(figure))
        print(arguments.out / name)
    return 0


def load_models(demo: Path) -> Models:
    """Load what a demo has trained."""
    mim = load_pretrained(demo / "mim" / "mim")
    if not isinstance(mim, MaskedImageModel):
        raise ValueError(f"{demo / 'mim' / 'mim'}: not a masked image model")
    return Models(load_tokenizer(demo / "tokenizer" / "tokenizer"), mim)


def held_out(names: Sequence[str]) -> list[HeldOut]:
    """Images of the package that no training sees, as the models take them."""
    images = dict(
        zip((s.name for s in list_samples("heldout")), load_samples("heldout"), strict=True)
    )
    made = []
    for name in names:
        volume = to_volume(prepare(images[name]), in_chans=1, dtype=torch.float32)
        degree = volume.spacing.degree()
        image = fit_to_multiple(volume.image, degree)[None]
        made.append(HeldOut(name, image, volume.spacing, degree, images[name].modality or ""))
    return made


# --- images of several spacings ---


def overview(models: Models, images: Sequence[HeldOut]) -> Figure:
    """One row per image: as it is, masked, predicted behind the mask, and its features."""
    made = panels(
        models.mim, models.tokenizer, images, window=_WINDOW, mask_ratio=_MASK_RATIO, seed=0
    )
    first = {panel.name: panel for panel in reversed(made)}  # the axial slice of each
    columns = ("image", "what the ViT sees", "its prediction, decoded", "its features")
    heights = [held.image.shape[-2] / held.image.shape[-1] for held in images]
    figure = Figure(figsize=(8.4, 2.0 * sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(
        len(images), len(columns), squeeze=False, height_ratios=[max(h, 0.35) for h in heights]
    )
    for row, held in zip(axes, images, strict=True):
        panel = first[held.name]
        colours = _colours([features(models.mim.vit, held.image, held.degree)])[0]
        slice_ = colours[len(colours) // 2 if len(colours) > 1 else 0]
        pictures = (panel.original, panel.masked, panel.prediction, slice_)
        for place, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            height, width = panel.original.shape[:2]
            _show(axis, picture, extent=(0, width, height, 0))
            if held is images[0]:
                axis.set_title(columns[place], fontsize=10)
        row[0].set_ylabel(f"{held.modality}\n{_spacing(held.spacing)}\ndegree {held.degree}")
        row[0].yaxis.label.set(rotation=0, ha="right", va="center", fontsize=9)
    return figure


# --- one volume at three spacings ---


def three_spacings(models: Models, thin: HeldOut) -> Figure:
    """One column per spacing: a coronal cut under the grid of tokens, a kernel, the features."""
    degrees = (0, 1, 2)
    spacings = [Spacing(thin.spacing.z * 2**d, thin.spacing.y, thin.spacing.x) for d in degrees]
    volumes = [average_slices(thin.image, 2**degree) for degree in degrees]
    vit = models.mim.vit
    seen = [features(vit, volume, d) for volume, d in zip(volumes, degrees, strict=True)]
    colours = _colours(seen)
    figure = Figure(figsize=(8.4, 8.2), layout="constrained")
    rows = figure.subplots(3, len(degrees), height_ratios=(1.0, 0.75, 1.0))
    kernel = _strongest(next(m for m in models.tokenizer.modules() if isinstance(m, SpadConv3d)))
    for degree, spacing, volume, coloured, column in zip(
        degrees, spacings, volumes, colours, rows.T, strict=True
    ):
        depth, height, width = volume.shape[2:]
        mm = (0.0, width * spacing.x, 0.0, depth * spacing.z)
        cut = volume[0, 0, :, height // 2].numpy()
        column[0].set_title(f"{_spacing(spacing)}, degree {degree}", fontsize=10)
        _show(column[0], cut[::-1], extent=mm)
        step_z, _, step_x = required_multiple(degree, stride=vit.patch_embed.patch_size)
        for z in range(step_z, depth, step_z):
            column[0].axhline(z * spacing.z, color="white", linewidth=0.6)
        for x in range(step_x, width, step_x):
            column[0].axvline(x * spacing.x, color="white", linewidth=0.6)
        folded = fold_depth(kernel, stride=kernel.shape[-1], degree=degree)
        taps = folded[:, folded.shape[1] // 2].numpy()
        bound = float(np.abs(taps).max())
        size = (0.0, taps.shape[1] * spacing.x, 0.0, len(taps) * spacing.z)
        column[1].imshow(taps[::-1], cmap="RdBu_r", vmin=-bound, vmax=bound, extent=size)
        column[1].set(xticks=[], yticks=[])
        shape = " x ".join(map(str, folded.shape))
        column[1].set_xlabel(f"{shape} taps", fontsize=9)
        _show(column[2], coloured[::-1, coloured.shape[1] // 2], extent=mm)
    names = ("coronal cut,\ntokens", "one kernel of\nthe tokenizer", "features of\nthe ViT")
    for row, name in zip(rows, names, strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


@torch.no_grad()
def features(vit: SpadViT, image: Tensor, degree: int) -> Tensor:
    """Patch tokens [d, h, w, C] of an image [1, C_in, D, H, W]."""
    tokens, _ = attend(vit, image, degree)
    steps = required_multiple(degree, stride=vit.patch_embed.patch_size)
    grid = [n // step for n, step in zip(image.shape[2:], steps, strict=True)]
    return tokens[0].unflatten(0, grid)


def _colours(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Three principal components that all maps [d, h, w, C] share, as colours [d, h, w, 3]."""
    rows = torch.cat([tokens.flatten(0, 2) for tokens in maps])
    colours = principal_components(rows).split([tokens[..., 0].numel() for tokens in maps])
    return [c.view(*m.shape[:3], 3).numpy() for c, m in zip(colours, maps, strict=True)]


def _strongest(conv: SpadConv3d) -> Tensor:
    """The kernel [k, k, k] of the output channel with the largest weights."""
    kernels = conv.weight.detach().mean(1)
    return kernels[int(kernels.flatten(1).norm(dim=1).argmax())]


def _spacing(spacing: Spacing) -> str:
    if spacing.is_planar:
        return "2D"
    sides = f"{spacing.y:.2g}" if spacing.y == spacing.x else f"{spacing.y:.2g} x {spacing.x:.2g}"
    return f"{spacing.z:.2g} mm slices,\n{sides} mm pixels"


def _show(axis: Axes, picture: np.ndarray, *, extent: tuple[float, float, float, float]) -> None:
    top = 255 if picture.dtype == np.uint8 else 1
    axis.imshow(picture, cmap="gray", vmin=0, vmax=top, extent=extent, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def as_png(figure: Figure) -> bytes:
    """The figure as a small PNG without date or version."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    picture = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    stream = io.BytesIO()
    picture.quantize(_COLOURS, dither=PIL.Image.Dither.NONE).save(
        stream, format="png", optimize=True
    )
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
