"""The page of one training run: what was run, how it went, and what it makes of held-out images."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from spadnet.evaluate.charts import COLOURS, Curve, draw_code_use, draw_curve
from spadnet.evaluate.page import chart_grid, document

Rows = Sequence[Mapping[str, float]]
"""What was logged, by name, with its ``step``."""

_COLUMNS = 6  # of the table of validations
_PLACES = 4  # significant digits


class RunReport(NamedTuple):
    """What the page tells.

    Attributes:
        name: Name of the run.
        lead: One or two sentences on how far it is.
        facts: Tables of facts by heading: of the run, of versions, of the data.
        rows: What was logged.
        results: Scores on the test split by name, of a fine-tuning.
        panels: Names of pictures and their PNG files' bytes.
        panels_step: Step of the pictures.
        code_use: Number of held-out tokens per code; empty where codes are not counted.
        settings: The composed configuration, YAML.
        commands: Command lines, the newest last.
    """

    name: str
    lead: str
    facts: Mapping[str, Mapping[str, str]]
    rows: Rows
    results: Mapping[str, float]
    panels: Sequence[tuple[str, bytes]]
    panels_step: int
    code_use: Sequence[int]
    settings: str
    commands: Sequence[str]


class Chart(NamedTuple):
    """Which columns are drawn together.

    Attributes:
        title: What is shown.
        y_label: What is on the y axis, with its unit.
        names: Columns that are wanted, of which some may not be there.
        prefix: Or all columns that start so; the rest of the name is the series'.
    """

    title: str
    y_label: str
    names: tuple[str, ...] = ()
    prefix: str = ""


_TRAINING = (
    Chart("Loss", "weighted sum", ("train/loss",)),
    Chart("Reconstruction by degree", "reconstruction loss", prefix="train/reconstruction_degree"),
    Chart("Loss by degree", "loss", prefix="train/loss_degree"),
    Chart("Loss by data set", "loss", prefix="loss_per_dataset/"),
    Chart("Loss by modality", "loss", prefix="loss_per_modality/"),
    Chart("Terms: codes", "nats", ("train/prior", "train/entropy")),
    Chart("Terms: perception", "before weighting", ("train/perceptual", "train/adversarial")),
    Chart("Discriminator", "hinge loss, gate", ("train/discriminator", "train/gate_open")),
    Chart("Perplexity of the codes' use", "codes", ("train/perplexity", "val/perplexity")),
    Chart("Codes in use", "share of all codes", ("train/codes_used", "val/codes_used")),
    Chart(
        "Gradient norms",
        "norm before clipping",
        ("train/gradient_norm", "train/discriminator_gradient_norm"),
    ),
    Chart("Learning rates", "rate", ("train/lr", "train/discriminator_lr")),
)
_SPEED = (
    Chart("Images per second", "images/s", ("speed/images_per_second",)),
    Chart("Tokens per second", "tokens/s", ("speed/tokens_per_second",)),
    Chart("Model FLOPs per second", "FLOP/s", ("speed/model_flops_per_second",)),
    Chart("Of what matrix products reach here", "share", ("speed/share_of_matmul_peak",)),
    Chart("Time spent on waiting for data", "share", ("speed/data_wait_share",)),
    Chart("Memory", "MB at most", ("memory/process_peak_mb", "memory/device_peak_mb")),
)
_VALIDATION = (
    Chart("PSNR", "dB", ("val/psnr",)),
    Chart("PSNR by degree", "dB", prefix="val/psnr_degree"),
    Chart("SSIM", "SSIM", ("val/ssim",)),
    Chart("LPIPS", "distance", ("val/lpips",)),
    Chart("Loss behind masks", "nats", ("val/loss", "val/constant", "val/own_mean")),
    Chart("Loss behind masks by degree", "nats", prefix="val/loss_degree"),
    Chart("Voxels behind masks", "squared error", ("val/pixels_loss", "val/pixels_constant")),
    Chart("Voxels behind masks by degree", "squared error", prefix="val/pixels_loss_degree"),
    Chart("Structures mixed up", "nats", ("val/disentangle_loss", "val/disentangle_constant")),
    Chart("Structures mixed up by degree", "nats", prefix="val/disentangle_loss_degree"),
    Chart("k-NN accuracy", "share", ("val/knn_accuracy",)),
    Chart("Scores", "score", ("val/auc", "val/accuracy", "val/dice", "val/kappa", "val/r2")),
)


def render_run(report: RunReport) -> str:
    """Render the page as HTML: no script, no other file."""
    sections = [
        f"<h1>{escape(report.name)}</h1>",
        f"<p class=lead>{escape(report.lead)}</p>",
        _results(report.results),
        _validations(report.rows),
        _panels(report.panels, report.panels_step),
        _charts("On held-out images", _VALIDATION, report),
        _charts("Training", _TRAINING, report),
        _latest(report.rows),
        _charts("Speed and memory", _SPEED, report),
        _facts(report.facts),
        _settings(report),
    ]
    return document(f"spadnet run: {report.name}", sections)


def _results(results: Mapping[str, float]) -> str:
    if not results:
        return ""
    body = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td class=number>{_number(value)}</td></tr>"
        for name, value in results.items()
    )
    return f"<section>\n<h2>Test split</h2>\n{_table('score', ['value'], body)}\n</section>"


def _validations(rows: Rows) -> str:
    found = [row for row in rows if any(name.startswith("val/") for name in row)]
    if not found:
        return ""
    names = list(dict.fromkeys(name for row in found for name in row if name.startswith("val/")))
    count = min(len(found), _COLUMNS)
    places = [round(i * (len(found) - 1) / max(count - 1, 1)) for i in range(count)]
    shown = [found[place] for place in places]
    body = "".join(
        f"<tr><th scope=row>{escape(name.removeprefix('val/'))}</th>"
        + "".join(f"<td class=number>{_number(row.get(name))}</td>" for row in shown)
        + "</tr>"
        for name in names
    )
    heads = [f"step {row['step']:.0f}" for row in shown]
    note = "" if count == len(found) else f" {count} of {len(found)} validations."
    return f"""<section>
<h2>Validation</h2>
<p class=note>On a fixed set of images that no training step sees.{note}</p>
{_table("score", heads, body)}
</section>"""


def _panels(panels: Sequence[tuple[str, bytes]], step: int) -> str:
    figures = "".join(
        f'<figure class=sheet><img alt="{escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode("ascii")}"></figure>'
        for name, data in panels
    )
    if not panels:
        return ""
    heading = f"<h2>Pictures after step {step}</h2>"
    return f"<section>\n{heading}\n<div class=sheets>{figures}</div>\n</section>"


def _charts(title: str, charts: Sequence[Chart], report: RunReport) -> str:
    drawn = []
    for chart in charts:
        curve = _curve(chart, report.rows)
        if curve is not None:
            drawn.append((chart.title, draw_curve(curve)))
    if report.code_use and charts is _VALIDATION:
        drawn.append(("Use of the codes", draw_code_use(report.code_use)))
    return f"<section>\n<h2>{escape(title)}</h2>\n{chart_grid(drawn)}\n</section>" if drawn else ""


def _curve(chart: Chart, rows: Rows) -> Curve | None:
    """The columns of a chart that are there; of many, those logged most often."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name in chart.names or (chart.prefix and name.startswith(chart.prefix)):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    often = sorted(columns, key=lambda name: -len(columns[name][0]))[: len(COLOURS)]
    series = {
        name.removeprefix(chart.prefix) if chart.prefix else name.partition("/")[2]: columns[name]
        for name in columns
        if name in often and any(columns[name][1])  # a term that is always 0 is not in use
    }
    if chart.prefix.endswith("degree"):
        series = {f"degree {name}": series[name] for name in sorted(series)}
    return Curve(chart.title, chart.y_label, series) if series else None


def _latest(rows: Rows) -> str:
    """Newest loss of each data set and modality: there may be more than a chart can show."""
    newest: dict[str, tuple[float, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("loss_per_"):
                newest[name] = (value, row["step"])
    body = "".join(
        f"<tr><th scope=row>{escape(name.removeprefix('loss_per_').replace('/', ' '))}</th>"
        f"<td class=number>{_number(value)}</td><td class=number>{step:.0f}</td></tr>"
        for name, (value, step) in sorted(newest.items())
    )
    if not body:
        return ""
    table = _table("source", ["newest loss", "at step"], body)
    return f"<details><summary>All data sets and modalities</summary>\n{table}</details>"


def _facts(facts: Mapping[str, Mapping[str, str]]) -> str:
    parts = []
    for heading, content in facts.items():
        body = "".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in content.items()
        )
        if body:
            table = f"<div class=scroll><table><tbody>{body}</tbody></table></div>"
            parts.append(f"<section>\n<h2>{escape(heading)}</h2>\n{table}\n</section>")
    return "\n".join(parts)


def _settings(report: RunReport) -> str:
    commands = "\n".join(report.commands)
    return f"""<section>
<h2>Settings</h2>
<pre>{escape(commands)}</pre>
<details><summary>Composed configuration</summary>
<pre>{escape(report.settings)}</pre></details>
</section>"""


def _table(corner: str, heads: Sequence[str], body: str) -> str:
    columns = "".join(f"<th scope=col class=number>{escape(head)}</th>" for head in heads)
    return (
        f"<div class=scroll><table><thead><tr><th scope=col>{escape(corner)}</th>{columns}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.{_PLACES}g}"
