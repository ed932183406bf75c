"""The page of ``spadnet evaluate``: one table and one chart per task and protocol."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from spadnet.evaluate.charts import Curve, draw_curve
from spadnet.evaluate.duplicates import Duplicate
from spadnet.evaluate.referee import Cell, Table
from spadnet.evaluate.study_page import study_page

TITLES = {
    "knn": "k nearest neighbours on frozen features",
    "probe": "Linear probe on frozen features",
    "finetune": "Fine-tuning",
}
METRICS = {"auc": "AUC", "kappa": "quadratic kappa", "r2": "R2", "dice": "mean Dice"}
_ALPHA = 0.05
_SHOWN = 12  # pairs of images that are alike


class TaskReport(NamedTuple):
    """What the page says of a task.

    Attributes:
        name: Of the task.
        facts: One line: kind, cases of each split, classes.
        tables: One per protocol.
        duplicates: Images that are alike across splits.
    """

    name: str
    facts: str
    tables: Sequence[Table]
    duplicates: Sequence[Duplicate]


def render_referee(
    tasks: Sequence[TaskReport],
    *,
    headline: str,
    lead: str,
    models: Mapping[str, str],
    facts: Mapping[str, str],
) -> str:
    """Render the page as HTML.

    Args:
        tasks: In order.
        headline: Of the page.
        lead: What was measured, in a sentence or two.
        models: What each model of the tables is.
        facts: Seeds, versions, the command.
    """
    sections = [_models(models), *(_task(task) for task in tasks)]
    return study_page(headline, lead, sections, facts)


def _models(models: Mapping[str, str]) -> str:
    items = "".join(f"<dt><b>{escape(k)}</b></dt><dd>{escape(v)}</dd>" for k, v in models.items())
    return f"<section><h2>What stands in the tables</h2><dl>{items}</dl></section>"


def _task(task: TaskReport) -> str:
    parts = [f"<h2>{escape(task.name)}</h2><p class=note>{escape(task.facts)}</p>"]
    parts.append(_duplicates(task.duplicates))
    for table in task.tables:
        title = f"{TITLES.get(table.protocol, table.protocol)}: test {METRICS[table.metric]}"
        parts.append(f"<h3>{escape(title)}</h3>{table_html(table)}{_chart(table)}")
    return f"<section>{''.join(parts)}</section>"


def _duplicates(pairs: Sequence[Duplicate]) -> str:
    if not pairs:
        return "<p class=note>No image of one split looks like one of another.</p>"
    exact = sum(pair.exact for pair in pairs)
    rows = "".join(
        f"<tr><td>{escape(p.first)} ({p.splits[0]})</td><td>{escape(p.second)} ({p.splits[1]})</td>"
        f"<td>{p.correlation:.4f}</td><td>{'all voxels' if p.exact else 'nearly'}</td></tr>"
        for p in pairs[:_SHOWN]
    )
    more = f"<p class=note>and {len(pairs) - _SHOWN} more</p>" if len(pairs) > _SHOWN else ""
    return f"""<div class="verdict missed"><p><strong>{len(pairs)} images look like one of another
split, {exact} of them in every voxel:</strong> scores may flatter.</p></div>
<details><summary>which</summary><div class=scroll><table><thead><tr><th>image</th><th>image</th>
<th>correlation of thumbnails</th><th>alike</th></tr></thead>
<tbody>{rows}</tbody></table></div>{more}
</details>"""


def table_html(table: Table) -> str:
    """A table of models and amounts of labels, with costs in the last columns."""
    last = table.shares[-1]
    counts = {share: next(iter(table.rows.values()))[share].num_train for share in table.shares}
    head = "".join(
        f"<th scope=col>{escape(share)}<br>{counts[share]:.0f} cases</th>" for share in table.shares
    )
    body = []
    for model, row in table.rows.items():
        cells = "".join(_cell(row[share]) for share in table.shares)
        costs = row[last].costs
        body.append(
            f"<tr><th scope=row>{escape(model)}</th>{cells}"
            f"<td class=size>{costs['trainable_parameters']:,.0f}</td>"
            f"<td class=size>{costs['seconds']:.3g}</td>"
            f"<td class=size>{costs['peak_memory_mib']:.0f}</td></tr>"
        )
    return f"""<div class=scroll><table class=scores><thead><tr><th scope=col>model</th>{head}
<th scope=col>trained<br>parameters</th><th scope=col>seconds<br>({escape(last)})</th>
<th scope=col>peak<br>MiB</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>"""


def _cell(cell: Cell) -> str:
    low, high = cell.score.low, cell.score.high
    spread = f" &plusmn;{cell.spread:.3f}" if cell.num_seeds > 1 else ""
    lines = [f"<b>{cell.score.value:.3f}</b>{spread}", f"<small>{low:.3f} to {high:.3f}</small>"]
    if cell.against is not None:
        gap = cell.against
        sure = "yes" if gap.p < _ALPHA and gap.value > 0 else "no" if gap.p < _ALPHA else "none"
        lines.append(f'<small class="{sure}">{gap.value:+.3f}, p {gap.p:.2g}</small>')
    return f"<td>{'<br>'.join(lines)}</td>"


def _chart(table: Table) -> str:
    if len(table.shares) < 2:
        return ""
    series = {}
    for model, row in table.rows.items():
        cells = [row[share] for share in table.shares]
        series[model] = ([c.num_train for c in cells], [c.score.value for c in cells])
    first = next(iter(table.rows.values()))
    ticks = {first[share].num_train: share for share in table.shares}
    name = f"{table.task} {table.protocol}"
    curve = Curve(name, METRICS[table.metric], series, x_label="labels", x_ticks=ticks)
    return f'<div class="charts single"><figure class=chart>{draw_curve(curve)}</figure></div>'
