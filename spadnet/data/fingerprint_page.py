"""The fingerprint of a store as one HTML page: plots and a contact sheet, no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch.nn.functional as F

from spadnet.data.catalogue import Record
from spadnet.data.fingerprint import Distribution, Fingerprint, as_text, in_bytes, number
from spadnet.data.store import open_volume

_SIDE = 128  # pixels of the longer side of a thumbnail
_WIDTH, _HEIGHT = 300, 110  # of a histogram


class Thumbnail(NamedTuple):
    """One picture of the contact sheet.

    Attributes:
        record: What it shows.
        picture: uint8, [H, W] or [H, W, 3], square pixels.
    """

    record: Record
    picture: np.ndarray


def thumbnails(folder: Path, records: Sequence[Record], *, count: int = 24) -> list[Thumbnail]:
    """Middle slices of images that lie evenly spread in the catalogue.

    Args:
        folder: The store.
        records: Its catalogue.
        count: Number of pictures at most.
    """
    count = min(count, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [Thumbnail(record, _picture(folder, record)) for record in chosen]


def render(found: Fingerprint, pictures: Sequence[Thumbnail], *, title: str) -> str:
    """Render the page.

    Args:
        found: What the store holds.
        pictures: Contact sheet.
        title: Name of the store.
    """
    plots = [
        _bars("images per data set", found.datasets),
        _bars("images per modality", found.modalities),
        _bars("images per degree (5 is 2D)", found.degrees),
        _bars("images per number of channels", found.channels),
        *(_histogram(spread) for spread in found.distributions),
    ]
    lead = (
        f"{found.num_images} images, {in_bytes(found.num_bytes)} on disk; "
        f"{found.num_quarantined} files in quarantine."
    )
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{lead}</p>",
        f"<h2>Images</h2><div class=sheet>{''.join(map(_figure, pictures))}</div>",
        f"<h2>Numbers</h2><div class=plots>{''.join(plots)}</div>",
        _quarantine(found.reasons),
        f"<h2>As text</h2><pre>{escape(as_text(found))}</pre>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{chr(10).join(filter(None, sections))}\n</body>\n</html>\n"
    )


def _picture(folder: Path, record: Record) -> np.ndarray:
    channels, depth, height, width = record.shape
    volume = open_volume(folder / record.file, in_chans=3 if channels == 3 else channels)
    middle = depth // 2
    plane = volume.read(((middle, middle + 1), (0, height), (0, width)))[:, 0]
    plane = plane if channels == 3 else plane[:1]
    pixel = min(record.spacing[1:])
    tall, wide = height * record.spacing[1] / pixel, width * record.spacing[2] / pixel
    factor = _SIDE / max(tall, wide)
    size = (max(round(tall * factor), 1), max(round(wide * factor), 1))
    small = F.interpolate(plane[None], size, mode="bilinear", antialias=True)[0]
    picture = np.rint(small.clamp(0, 1).numpy() * 255).astype(np.uint8)
    return np.moveaxis(picture, 0, -1) if channels == 3 else picture[0]


def _figure(thumbnail: Thumbnail) -> str:
    record, picture = thumbnail
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(picture)).save(file, format="PNG", optimize=True)
    code = base64.b64encode(file.getvalue()).decode("ascii")
    words = f"{record.modality or ''} {'x'.join(map(str, record.shape[1:]))} d{record.degree}"
    return (
        f'<figure><img alt="{escape(record.key)}" width={picture.shape[1]} '
        f'height={picture.shape[0]} src="data:image/png;base64,{code}">'
        f"<figcaption>{escape(record.key)}<br>{escape(words.strip())}</figcaption></figure>"
    )


def _bars(title: str, counts: Mapping[str, int]) -> str:
    """Horizontal bars, one per name."""
    most = max(counts.values(), default=1)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><svg width=160 height=12 role=img>"
        f'<rect width="{max(160 * count / most, 1):.1f}" height=12 /></svg></td>'
        f"<td>{count}</td></tr>"
        for name, count in counts.items()
    )
    return f"<div><h3>{escape(title)}</h3><table>{rows}</table></div>"


def _quarantine(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    rows = "".join(
        f"<tr><td>{count}</td><td>{escape(reason)}</td></tr>" for reason, count in reasons.items()
    )
    return f"<h2>Quarantine</h2><table>{rows}</table>"


def _histogram(spread: Distribution) -> str:
    """Columns over a logarithmic axis."""
    most, wide = max(spread.counts), _WIDTH / len(spread.counts)
    columns = "".join(
        f'<rect x="{i * wide + 1:.1f}" width="{wide - 2:.1f}" y="{_HEIGHT * (1 - n / most):.1f}" '
        f'height="{_HEIGHT * n / most:.1f}"><title>{number(spread.edges[i])} to '
        f"{number(spread.edges[i + 1])}: {n}</title></rect>"
        for i, n in enumerate(spread.counts)
    )
    return (
        f"<div><h3>{escape(spread.name)} <small>up to {most} images</small></h3>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role=img>{columns}</svg>'
        f"<p class=axis><span>{number(spread.low)}</span>"
        f"<span>median {number(spread.median)}</span>"
        f"<span>{number(spread.high)}</span></p></div>"
    )


_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0 0 .4rem; }
rect { fill: #2b8aa6; }
table { border-spacing: .4rem 0; font-size: .85rem; }
th { text-align: left; font-weight: 400; overflow-wrap: anywhere; max-width: 24rem; }
h3 small { font-weight: 400; opacity: .7; }
.sheet, .plots { display: grid; gap: 1rem; }
.sheet { grid-template-columns: repeat(auto-fill, 128px); }
.plots { grid-template-columns: repeat(auto-fill, 300px); gap: 2rem; align-items: start; }
figure { margin: 0; width: 128px; display: grid; grid-template-rows: 128px auto; }
figure img { background: #000; align-self: end; justify-self: center; }
figcaption { font-size: .7rem; line-height: 1.3; margin-top: .3rem; overflow-wrap: anywhere; }
.axis { display: flex; justify-content: space-between; width: 300px; margin: 0; font-size: .8rem; }
pre { overflow-x: auto; }
"""
