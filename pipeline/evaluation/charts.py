"""Charts as inline SVG, drawn by hand: histograms, curves and bars that a page's style sheet colours.

Elements carry the classes `axis`, `mark` and `series-0`, `series-1`, ...; all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 18, 40
BINS = 48
# The style sheet has so many colours; points are named where there are few of them.
COLOURS, NAMED = 6, 2


def histogram(sets: Mapping[str, np.ndarray], *, mark: float, mark_label: str, label: str) -> str:
    """Overlaid shares of values, each set [n] of its own size, with a vertical line at `mark`."""
    everything = np.concatenate(list(sets.values()))
    edges = np.linspace(min(mark, float(everything.min())), float(everything.max()) + 1e-9, BINS + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in sets.items()}
    top = max(float(share.max()) for share in shares.values())
    x, y = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), _scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = []
    for number, share in enumerate(shares.values()):
        points = [f"{x(edges[0]):.1f},{y(0):.1f}"]
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            points += [f"{x(left):.1f},{y(value):.1f}", f"{x(right):.1f},{y(value):.1f}"]
        points.append(f"{x(edges[-1]):.1f},{y(0):.1f}")
        parts.append(f'<polygon class="area series-{number}" points="{" ".join(points)}"/>')
    parts.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(_text(x(mark) + 5, TOP + 9, mark_label, "start"))
    ticks = [(x(value), f"{value:.2g}") for value in np.linspace(edges[0], edges[-1], 6)]
    return _figure([*_axes(ticks, [(y(top), f"{top:.0%}"), (y(0), "0")], label), *parts], list(sets))


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, floor: float, label: str) -> str:
    """Points (x, y) joined in the order of x, both axes logarithmic, with a horizontal line at `floor`.

    Points at 0, which such axes do not have, are left out.
    """
    series = {name: [point for point in points if point[1] > 0.0] for name, points in series.items()}
    xs = [px for points in series.values() for px, _ in points] or [1.0]
    ys = [py for points in series.values() for _, py in points] + [floor]
    x = _scale(math.log(min(xs) / 1.15), math.log(max(xs) * 1.15), LEFT, WIDTH - RIGHT)
    y = _scale(math.log(min(ys) / 1.2), math.log(max(ys) * 1.2), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(math.log(floor)):.1f}" '
        f'y2="{y(math.log(floor)):.1f}"/>',
        _text(WIDTH - RIGHT, y(math.log(floor)) - 5, f"photographs {floor:.2f}", "end"),
    ]
    for number, points in enumerate(series.values()):
        places = [(x(math.log(px)), y(math.log(py)), py) for px, py in sorted(points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)
        parts.append(f'<polyline class="line series-{number % COLOURS}" points="{path}"/>')
        for px, py, value in places:
            dot = f'class="dot series-{number % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"'
            parts.append(f"<circle {dot}><title>{value:.2f}</title></circle>")
            if len(series) <= NAMED:
                parts.append(_text(px, py - 8, f"{value:.3g}", "middle"))
    x_ticks = [(x(math.log(value)), f"{value:g}") for value in sorted(set(xs))]
    decades = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    y_ticks = [(y(math.log(v)), f"{v:g}") for v in ticks if min(ys) / 1.2 <= v <= max(ys) * 1.2]
    return _figure([*_axes(x_ticks, y_ticks, label), *parts], list(series))


def bars(values: Mapping[str, float]) -> str:
    """Horizontal bars from 0, each with its name and its value."""
    row, start = 30, 150
    x = _scale(0, max(values.values()), start, WIDTH - 60)
    parts = []
    for number, (name, value) in enumerate(values.items()):
        top = 6 + number * row
        parts.append(_text(start - 8, top + 15, name, "end"))
        parts.append(
            f'<rect class="bar series-{number}" x="{start}" y="{top}" width="{max(1.0, x(value) - start):.1f}" '
            f'height="{row - 9}" rx="2"/>'
        )
        parts.append(_text(x(value) + 6, top + 15, f"{value:.3g}", "start"))
    return _svg(parts, 6 + row * len(values))


def _scale(low: float, high: float, start: float, stop: float):  # type: ignore[no-untyped-def]
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _axes(x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]], label: str) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    parts += [_text(place, base + 15, text, "middle") for place, text in x_ticks]
    parts += [_text(LEFT - 6, place + 4, text, "end") for place, text in y_ticks]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, label, "middle")]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: list[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _figure(parts: list[str], names: list[str]) -> str:
    keys = "".join(f'<span><i class="series-{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'{_svg(parts, HEIGHT)}<div class="key">{keys}</div>'
