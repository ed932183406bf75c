"""One self-contained HTML page: text, tables, pictures and charts; no script, no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from spadnet.evaluate.charts import Curve, draw_code_use, draw_curve
from spadnet.evaluate.panels import Panel, describe


class FigureRow(NamedTuple):
    """One row of the table of figures; all text.

    Attributes:
        label: What is measured.
        value: The figure.
        beside: What it stands beside.
        target: What is wanted.
        reached: ``yes``, ``no``, or empty where there is no target.
    """

    label: str
    value: str
    beside: str
    target: str
    reached: str


class Page(NamedTuple):
    """What the page says; see ``report.write_demo_report``."""

    headline: str
    trained: str
    missed: Sequence[str]
    rows: Sequence[FigureRow]
    by_degree: Mapping[str, Mapping[str, float]]
    images: Sequence[Mapping[str, Any]]
    panels: Sequence[Panel]
    curves: Sequence[Curve]
    histogram: Sequence[float] | np.ndarray
    facts: Mapping[str, str]
    commands: Sequence[tuple[str, str]]


def render_page(page: Page) -> str:
    """Render the page as HTML."""
    verdict = "missed" if page.missed else "reached"
    sections = [
        f"<h1>{escape(page.headline)}</h1>",
        f"<p class=lead>{escape(page.trained)}</p>" if page.trained else "",
        f'<div class="verdict {verdict}">{_verdict(page.missed)}</div>',
        _figures(page.rows),
        _pictures(page.panels),
        _charts(page.curves, page.histogram),
        _details(page.by_degree, page.images),
        _commands(page.commands),
        _facts(page.facts),
    ]
    return document(f"spadnet demo: {page.headline}", sections)


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page out of parts that are HTML already; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(filter(None, sections))}\n</main>\n</body>\n</html>\n"
    )


def chart_grid(charts: Sequence[tuple[str, str]]) -> str:
    """Charts by title, each an ``<svg>`` element, side by side where there is room."""
    drawn = "".join(
        f"<figure class=chart><figcaption>{escape(title)}</figcaption>{svg}</figure>"
        for title, svg in charts
    )
    return f"<div class=charts>{drawn}</div>"


def _verdict(missed: Sequence[str]) -> str:
    if not missed:
        return "<p>All figures reach their targets.</p>"
    count = "1 figure is" if len(missed) == 1 else f"{len(missed)} figures are"
    items = "".join(f"<li>{escape(text)}</li>" for text in missed)
    return f"<p><strong>{count} not reached.</strong></p><ul>{items}</ul>"


def _figures(rows: Sequence[FigureRow]) -> str:
    body = "".join(
        f"<tr><th scope=row>{escape(row.label)}</th><td class=value>{escape(row.value)}</td>"
        f"<td>{escape(row.beside)}</td><td>{escape(row.target)}</td>"
        f'<td class="{row.reached or "none"}">{row.reached or "no target"}</td></tr>'
        for row in rows
    )
    return f"""<section>
<h2>Figures on images that no training step has seen</h2>
<div class=scroll><table class=figures>
<thead><tr><th scope=col>figure</th><th scope=col>value</th><th scope=col>beside</th>
<th scope=col>wanted</th><th scope=col>reached</th></tr></thead>
<tbody>{body}</tbody></table></div>
<p class=note>Block means paint every token's block (16 &times; 16 pixels, as deep in millimetres)
with its own mean. Codes in use and the perplexity of their use are shares of the codebook; mutual
information is the entropy of the mean distribution over codes less the mean entropy. The two
constants are measured at the same masked positions as the model and take their mean over the
held-out targets themselves, which no predictor could know: the comparison favours them.</p>
</section>"""


def _pictures(panels: Sequence[Panel]) -> str:
    if not panels:
        return ""
    figures = []
    for _, same in groupby(panels, key=lambda panel: panel.name):
        of_image = list(same)
        figures.append(
            f"<figure>{''.join(_panel(panel) for panel in of_image)}"
            f"<figcaption>{escape(caption(of_image))}</figcaption></figure>"
        )
    return f"""<section>
<h2>What the networks make of them</h2>
<p class=note>Grey blocks hide tokens from the ViT. The last picture decodes the codes it predicts
there; around them the tokenizer's own codes stay.</p>
{"".join(figures)}
</section>"""


def _panel(panel: Panel) -> str:
    pictures = (
        ("original", panel.original),
        ("reconstruction", panel.reconstruction),
        ("masked view", panel.masked),
        ("prediction behind the mask", panel.prediction),
    )
    return (
        "<div class=row>"
        + "".join(
            f'<div><img alt="{escape(f"{panel.name}, {panel.plane}: {what}")}"'
            f' width="{array.shape[1]}" height="{array.shape[0]}"'
            f' src="data:image/png;base64,{png(array)}"><span>{what}</span></div>'
            for what, array in pictures
        )
        + "</div>"
    )


def caption(panels: Sequence[Panel]) -> str:
    """Name, modality, spacing in mm, degree and planes of the pictures of one image."""
    first = panels[0]
    planes = " and ".join(panel.plane for panel in panels)
    return describe(first.name, first.modality, first.spacing, first.degree, planes=planes)


def png(array: np.ndarray) -> str:
    """Encode a picture, uint8 [H, W] or [H, W, 3], as PNG in base64."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _charts(curves: Sequence[Curve], histogram: Sequence[float] | np.ndarray) -> str:
    charts = [(curve.title, draw_curve(curve)) for curve in curves]
    charts.append(("Use of the codes on held-out images", draw_code_use(histogram)))
    return f"""<section>
<h2>Training</h2>
{chart_grid(charts)}
<p class=note>Thin lines: every value logged; thick lines: their running mean.</p>
</section>"""


def _details(
    by_degree: Mapping[str, Mapping[str, float]], images: Sequence[Mapping[str, Any]]
) -> str:
    degrees = "".join(
        f"<tr><th scope=row>{escape(degree)}</th>"
        + "".join(f"<td>{_plain(row[name], scale, digits)}</td>" for name, scale, digits in _SHORT)
        + "</tr>"
        for degree, row in by_degree.items()
    )
    rows = "".join(
        f"<tr><th scope=row>{escape(str(row['name']))}</th><td>{row['degree']}</td>"
        f"<td class=size>{' &times; '.join(str(size) for size in row['size'])}</td>"
        f"<td>{_plain(row['psnr_db'], 1, 2)}</td><td>{_plain(row['psnr_blocks_db'], 1, 2)}</td>"
        f"<td>{_plain(row['ssim'], 1, 3)}</td><td>{_plain(row['ssim_blocks'], 1, 3)}</td>"
        f"<td>{_plain(row['mim_loss_nats'], 1, 3)}</td><td>{_plain(row['mim_constant_nats'], 1, 3)}"
        f"</td><td>{_plain(row['mim_own_nats'], 1, 3)}</td></tr>"
        for row in images
    )
    return f"""<section>
<h2>By degree and by image</h2>
<p class=note>The degree of anisotropy is how many halvings in-plane come before depth is halved:
0 for equal spacings, 5 for a 2D image. Few tokens at a degree can use few codes. The best
constant of a degree is its own, so with one image it is that image's own mean.</p>
<div class=scroll><table>
<thead><tr><th scope=col>degree</th><th scope=col>PSNR gain (dB)</th><th scope=col>worst (dB)</th>
<th scope=col>SSIM</th><th scope=col>codes in use (%)</th><th scope=col>perplexity (%)</th>
<th scope=col>mutual information (nats)</th><th scope=col>below best constant (%)</th>
<th scope=col>below own mean (%)</th></tr></thead><tbody>{degrees}</tbody></table></div>
<div class=scroll><table>
<thead><tr><th scope=col>image</th><th scope=col>degree</th><th scope=col>voxels (z, y, x)</th>
<th scope=col>PSNR (dB)</th><th scope=col>block means (dB)</th><th scope=col>SSIM</th>
<th scope=col>block means</th><th scope=col>masked loss (nats)</th>
<th scope=col>pooled constant (nats)</th><th scope=col>own mean (nats)</th></tr></thead>
<tbody>{rows}</tbody></table></div>
</section>"""


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<dt>{escape(what)}</dt><dd><code>{escape(c)}</code></dd>" for what, c in commands
    )
    return f"<section>\n<h2>How to go on</h2>\n<dl>{items}</dl>\n</section>" if items else ""


def _facts(facts: Mapping[str, str]) -> str:
    items = "; ".join(f"{escape(name)}: {escape(str(value))}" for name, value in facts.items())
    return f"""<footer><p>{items}</p>
<p>Trained for minutes on a few images: a demonstration of the method, of no use for diagnosis.</p>
</footer>"""


def _plain(value: float, scale: float, digits: int) -> str:
    return f"{scale * value:.{digits}f}"


_SHORT = (
    ("psnr_gain_db", 1, 2),
    ("psnr_gain_db_min", 1, 2),
    ("ssim", 1, 3),
    ("codes_used_share", 100, 1),
    ("perplexity_share", 100, 1),
    ("mutual_information_nats", 1, 2),
    ("mim_gain_share", 100, 1),
    ("mim_gain_own_share", 100, 1),
)

_STYLE = """
:root { --ink: #1c2126; --soft: #5a646d; --paper: #fcfcfa; --line: #d9dcd8; --tint: #f1f3ef;
  --good: #17694f; --bad: #a63d1b; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e6e8; --soft: #9aa4ad; --paper: #15181b; --line: #343a40; --tint: #1e2327;
    --good: #6fcfae; --bad: #f0987a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { font-size: clamp(1.6rem, 1.1rem + 2.2vw, 2.4rem); line-height: 1.2; margin: 0 0 .6rem;
  font-weight: 650; letter-spacing: -.015em; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; font-weight: 620; }
.lead { font-size: 1.08rem; max-width: 46rem; margin: 0 0 1rem; }
.verdict { border-left: .25rem solid; padding: .55rem .9rem; margin: 1.2rem 0; max-width: 46rem;
  background: var(--tint); }
.verdict.reached { border-color: var(--good); }
.verdict.missed { border-color: var(--bad); }
.verdict p, .verdict ul { margin: 0; }
.verdict ul { padding-left: 1.2rem; font-size: .92rem; }
.note, footer { color: var(--soft); font-size: .88rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: .6rem 0 1.1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
td.value { font-weight: 650; }
.figures td:not(:nth-child(3)), td.size { white-space: nowrap; }
td.yes { color: var(--good); font-weight: 650; }
td.no { color: var(--bad); font-weight: 700; text-transform: uppercase; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; font-weight: 600; }
.charts.single { max-width: 34rem; }
.scores td { white-space: nowrap; }
.scores small { font-size: .8rem; color: var(--soft); }
.scores small.yes { color: var(--good); }
.scores small.no { color: var(--bad); }
figure { margin: 0 0 1.9rem; break-inside: avoid; }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; margin-bottom: .5rem;
  align-items: start; }
.row img { display: block; width: 100%; height: auto; border-radius: 3px; background: #000; }
.row span { display: block; font-size: .8rem; color: var(--soft); padding-top: .2rem; }
figcaption { font-size: .92rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1.2rem 2rem; }
.chart { margin: 0; }
.chart figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
dt { margin-top: .7rem; }
dd { margin: .2rem 0 0; }
code { display: inline-block; max-width: 100%; overflow-x: auto; background: var(--tint);
  padding: .3rem .6rem; border-radius: 4px;
  font: .88rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { overflow-x: auto; background: var(--tint); padding: .7rem .9rem; border-radius: 4px;
  font: .82rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--soft); }
.number { text-align: right; white-space: nowrap; }
.sheets { display: flex; flex-wrap: wrap; gap: 1.4rem 2rem; align-items: flex-start; }
.sheet { margin: 0; max-width: 100%; }
.sheet img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
footer { border-top: 1px solid var(--line); margin-top: 2.6rem; padding-top: .6rem; }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; }
  .row { grid-template-columns: repeat(2, 1fr); }
  .figures thead { display: none; }
  .figures tr { display: grid; grid-template-columns: 1fr auto; gap: 0 .8rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .figures th, .figures td { border: 0; padding: 0; }
  .figures td:nth-child(2) { text-align: right; }
  .figures td:nth-child(3), .figures td:nth-child(4) { grid-column: 1; color: var(--soft);
    font-size: .85rem; }
  .figures td:nth-child(4):not(:empty)::before { content: "wanted: "; }
  .figures td:nth-child(5) { grid-column: 2; grid-row: 2 / 4; text-align: right; }
  .figures td.yes::before, .figures td.no::before { content: "reached: "; font-weight: 400;
    text-transform: none; } }
@media print {
  @page { margin: 14mm; }
  html { font-size: 70%; } body { background: #fff; } main { max-width: none; padding: 0; }
  .row { grid-template-columns: repeat(4, 1fr); } .charts { grid-template-columns: 1fr 1fr; }
  h2, h2 + .note { break-after: avoid; } table { break-inside: avoid; }
  .scroll { overflow: visible; } }
"""
