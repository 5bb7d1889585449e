"""The report of an evaluation as one self-contained HTML page: style, charts and pictures are inside it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.evaluation import charts, report
from pipeline.evaluation.closeups import HUGE, LARGE
from pipeline.evaluation.fidelity import EFFICIENTNET, INCEPTION, SEED, SIDE, TITLES, VGG, Comparison
from pipeline.evaluation.measurement import Weighed
from pipeline.evaluation.patches import ENLARGED, enlarge
from pipeline.evaluation.pictures import Photographs
from pipeline.evaluation.style import STYLE
from pipeline.rendering.sheets import contact_sheet

SHEET, SHEET_COLUMNS = 48, 8
PAIRS, EXTREMES, LARGE_SHOWN = 12, 12, 4
JPEG_QUALITY = 90
# What the overview shows: a heading, the path to a figure with its floor, decimals.
OVERVIEW = (
    ("Fréchet, EfficientNet", (EFFICIENTNET, "frechet"), 2),
    ("Fréchet, VGG16", (VGG, "frechet"), 2),
    ("FID", (INCEPTION, "frechet"), 2),
    ("KID x 1000", (EFFICIENTNET, "kid"), 2),
    ("precision", (EFFICIENTNET, "precision"), 3),
    ("recall", (EFFICIENTNET, "recall"), 3),
    ("coverage", (EFFICIENTNET, "coverage"), 3),
    ("P(cat)", (EFFICIENTNET, "cat"), 3),
)


def render_page(
    figures: Mapping[str, Any], weighed: Sequence[Weighed], photographs: Photographs, notes: Sequence[str]
) -> str:
    """The page for the report `figures` (see `report.to_json`) of what was weighed; a pure function."""
    known = figures["photographs"]
    sections = "".join(
        _set_section(one, of_set, photographs, number)
        for number, (one, of_set) in enumerate(zip(weighed, figures["sets"], strict=True))
    )
    protocol = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in report.PROTOCOL.items())
    told = "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splatcats: evaluation</title><style>{STYLE}</style></head><body>
<header><h1>Generated cats beside photographs</h1>
<p>{len(weighed)} {"set" if len(weighed) == 1 else "sets"} of pictures, weighed against {known["training"]:,}
photographs trained on and {known["heldout"]:,} held out. Every figure stands beside its floor: what photographs reach
against other photographs. The same numbers are in report.json.</p>{told}</header>
<section><h2>Overview</h2>{_overview(figures["sets"])}{_curves(figures["sets"])}</section>
{sections}
<section><h2>Protocol</h2><dl>{protocol}</dl><p class=note>splatcats {escape(figures["splatcats"])};
photographs: {escape(", ".join(known["urls"]))}</p></section>
</body></html>
"""


def _overview(sets: Sequence[Mapping[str, Any]]) -> str:
    shown = [column for column in OVERVIEW if all(_find(of_set, column[1]) for of_set in sets)]
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in shown)
    body = ""
    for number, of_set in enumerate(sets):
        cells = ""
        for _, path, decimals in shown:
            pair = _find(of_set, path)
            assert pair is not None
            times = 1000 if path[1] == "kid" else 1
            ratio = ""
            if path[1] == "frechet":
                ratio = f" · {pair['generated'] / pair['floor']:.1f}x" if pair["floor"] else ""
            cells += (
                f"<td>{times * pair['generated']:.{decimals}f}"
                f"<small>floor {times * pair['floor']:.{decimals}f}{ratio}</small></td>"
            )
        memorised = next(iter(of_set["networks"].values()))["memorised"]
        cells += f"<td>{memorised['share']:.2%}<small>expected {memorised['expected']:.1%}</small></td>"
        border = of_set["borders"][str(HUGE)]
        text = f"{border['generated']['mean']:.3f}" if border["generated"] else "-"
        photographs = f"{border['photographs']['mean']:.3f}" if border["photographs"] else "-"
        cells += f"<td>{text}<small>photographs {photographs}</small></td>"
        body += f'<tr><th><a href="#set-{number}">{escape(of_set["label"])}</a></th>{cells}</tr>'
    extra = f"<th>memorised</th><th>borders, {HUGE} px</th>"
    return f"<div class=wide><table class=overview><tr><th>set</th>{head}{extra}</tr>{body}</table></div>"


def _curves(sets: Sequence[Mapping[str, Any]]) -> str:
    """Quality against network calls, where there are two sets of splats or more."""
    planned = [of_set for of_set in sets if of_set["plan"]]
    if len(planned) < 2:
        return ""
    several = len({of_set["plan"]["model"] for of_set in planned}) > 1
    figures = ""
    for network in planned[0]["networks"]:
        series: dict[str, list[tuple[float, float]]] = {}
        for of_set in planned:
            plan, pair = of_set["plan"], of_set["networks"][network]["frechet"]
            name = f"{plan['solver']}, {plan['schedule']}" + (f", model {plan['model'][:8]}" if several else "")
            series.setdefault(name, []).append((plan["steps"], pair["generated"]))
        floor = max(of_set["networks"][network]["frechet"]["floor"] for of_set in planned)
        label = f"network calls; Fréchet distance in {TITLES.get(network, network)}"
        figures += f"<figure>{charts.curves(series, floor=floor, label=label)}</figure>"
    return f"<h3>Quality against network calls</h3><div class=columns>{figures}</div>"


def _set_section(one: Weighed, figures: Mapping[str, Any], photographs: Photographs, number: int) -> str:
    source = one.source
    first = next(iter(one.comparisons.values()))
    plan = f"<details><summary>plan</summary><pre>{escape(json.dumps(figures['plan'], indent=1))}</pre></details>"
    everything = np.concatenate([photographs.training, photographs.heldout])
    order = np.random.default_rng(SEED).permutation(len(everything))[:SHEET]
    return f"""<section id="set-{number}"><h2>{escape(source.label)}</h2>
<p class=note>{escape(source.url)}: {figures["count"]:,} of {figures["pictures"]:,} pictures against as many
photographs</p>{plan if figures["plan"] else ""}
<div class=columns>
{_picture("Generated, not chosen", _sheet(one.pictures[first.compared[:SHEET].numpy()]))}
{_picture("Photographs, not chosen", _sheet(everything[order]))}
</div>
{_table(figures)}
{_large(one)}
{_patches(figures)}
{_memorised(one, photographs)}
<h3>Highest and lowest precision</h3>
<p>Deepest inside the photographs' balls ({escape(_title(one))}), and farthest outside: what to mend next.</p>
<div class=columns>{_extremes(one, first)}</div></section>"""


def _table(figures: Mapping[str, Any]) -> str:
    body = ""
    for name, generated, floor in report.rows(figures):
        if generated:
            body += f"<tr><td>{escape(name)}</td><td>{escape(generated)}</td><td>{escape(floor)}</td></tr>"
        else:
            head = f"<tr><th>{escape(name)}</th><th>generated</th><th>photographs</th></tr>"
            body += f"{'</table>' if body else ''}<table>{head}"
    return f"<h3>All figures</h3><div class=tables>{body}</table></div>"


def _large(one: Weighed) -> str:
    if one.closeups is None:
        return ""
    drawn = one.closeups.large[:LARGE_SHOWN]
    enlarged = enlarge(one.pictures[: len(drawn)], LARGE, ENLARGED["lanczos"])
    return f"""<h3>Drawn at {LARGE} px, and the same at {SIDE} px enlarged by Lanczos</h3>
{_picture("", _sheet(np.concatenate([drawn, enlarged]), len(drawn)), "full")}"""


def _patches(figures: Mapping[str, Any]) -> str:
    if figures["patches"] is None:
        return ""
    charts_of = ""
    for network, of_network in figures["patches"]["networks"].items():
        values = {
            "splats drawn": of_network["drawn"],
            "photographs (floor)": of_network["floor"],
            "Lanczos": of_network["lanczos"],
            "bicubic": of_network["bicubic"],
        }
        charts_of += f"<figure><h4>{escape(TITLES.get(network, network))}</h4>{charts.bars(values)}</figure>"
    patches = figures["patches"]
    return f"""<h3>Patches at {LARGE} px against photographs of {LARGE} px</h3>
<p>Fréchet distance of {patches["patches"]:,} windows of {SIDE} px from {patches["pictures"]:,} pictures; less is
better.</p>
<div class=columns>{charts_of}</div>"""


def _memorised(one: Weighed, photographs: Photographs) -> str:
    figures = ""
    for network, comparison in one.comparisons.items():
        sets = {
            "generated": comparison.copy_distance.numpy(),
            "held-out photographs": comparison.heldout_distance.numpy(),
        }
        threshold = comparison.figures["memorised"]["threshold"]
        title = f"distance to the nearest photograph trained on, {TITLES.get(network, network)}"
        chart = charts.histogram(sets, mark=threshold, mark_label="1 % of held-out", label=title)
        figures += f"<figure>{chart}</figure>"
    pairs = "".join(_pairs(one, photographs))
    return f"""<h3>Is it copied?</h3><div class=columns>{figures}</div>
<p>The closest pairs of all ({escape(_title(one))}): generated on the left, on the right the photograph trained on;
the distance in units of the threshold.</p>
<div class=pairs>{pairs}</div>"""


def _pairs(one: Weighed, photographs: Photographs) -> Iterator[str]:
    comparison = next(iter(one.comparisons.values()))
    threshold = comparison.figures["memorised"]["threshold"]
    for row in comparison.copy_distance.argsort(stable=True)[:PAIRS].tolist():
        picture = one.pictures[row]
        if comparison.copy_mirrored[row]:
            picture = picture[:, ::-1]
        pair = np.stack([picture, photographs.training[int(comparison.copy_row[row])]])
        mirrored = ", mirrored" if comparison.copy_mirrored[row] else ""
        distance = f"{comparison.copy_distance[row] / threshold:.2f}" if threshold else "-"
        yield _picture(f"no. {row}{mirrored}: {distance}", _sheet(pair, 2))


def _extremes(one: Weighed, comparison: Comparison) -> str:
    order = comparison.realism.argsort(stable=True)
    rows = {"lowest": order[:EXTREMES], "highest": order.flip(0)[:EXTREMES]}
    return "".join(
        _picture(name, _sheet(one.pictures[comparison.compared[rows[name]].numpy()], 6))
        for name in ("highest", "lowest")
    )


def _sheet(pictures: np.ndarray, columns: int = SHEET_COLUMNS) -> str:
    """Pictures [n, Y, X, 3] on a grid, as a data URL."""
    stream = io.BytesIO()
    contact_sheet(list(pictures), columns).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _picture(caption: str, url: str, kind: str = "") -> str:
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><img src="{url}" alt="{escape(caption) or "pictures"}">{told}</figure>'


def _title(one: Weighed) -> str:
    name = next(iter(one.comparisons))
    return TITLES.get(name, name)


def _find(of_set: Mapping[str, Any], path: tuple[str, str]) -> Mapping[str, float] | None:
    return of_set["networks"].get(path[0], {}).get(path[1])
