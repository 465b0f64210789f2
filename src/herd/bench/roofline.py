"""A roofline: how many operations a task does for each byte that it reads, against how many it does a second.

Under the slope memory is waited for, under the flat line the multipliers. Source: Williams, Waterman, Patterson, Roofline, 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from herd.bench.bounds import BANDWIDTH, Bounds
from herd.bench.report import Figure

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 520, 80, 640, 56, 460
COLOURS = {"herd": "#2f6f9f", "llama.cpp": "#c8553d", "openvino": "#588157"}
MARKS = {"herd": "circle", "llama.cpp": "square", "openvino": "diamond"}


def roofline(title: str, figures: Sequence[Figure], bounds: Bounds, limits: Mapping[str, float]) -> str:
    """The picture as SVG, without fonts or scripts from elsewhere."""
    points = list(_points(figures, bounds, limits))
    peak = max(limits[kind] for kind in bounds.kinds)
    first, last = _decades([x for x, _, _, _ in points] + [peak / limits[BANDWIDTH]])
    low, high = _decades([y for _, y, _, _ in points] + [peak])
    axes = _Axes(first, last, low, high)
    pieces = [*axes.grid(), _line(axes, limits[BANDWIDTH], peak)]
    pieces.append(f'<text x="{LEFT}" y="24" font-size="14">{escape(title)}</text>')
    pieces.append(f'<text x="{RIGHT - 6}" y="{axes.y(peak) - 6:.1f}" text-anchor="end">peak, {peak / 1e9:,.0f} GOPS</text>')
    names: dict[str, int] = {}
    for x, y, name, engine in sorted(points, key=lambda point: point[2]):
        number = names.setdefault(name, len(names) + 1)
        pieces.append(_mark(axes.x(x), axes.y(y), engine))
        pieces.append(f'<text x="{axes.x(x) + 8:.1f}" y="{axes.y(y) + 4:.1f}" font-size="10">{number}</text>')
    legend = [f"{number}  {escape(name)}" for name, number in names.items()]
    pieces += [f'<text x="{RIGHT + 8}" y="{TOP + 10 + 18 * row}">{line}</text>' for row, line in enumerate(legend)]
    for row, engine in enumerate(dict.fromkeys(engine for _, _, _, engine in points)):
        place = TOP + 30 + 18 * (len(legend) + row)
        pieces.append(_mark(RIGHT + 14, place - 4, engine) + f'<text x="{RIGHT + 26}" y="{place}">{escape(engine)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="100%" height="100%" fill="#fff"/>{"".join(pieces)}</svg>\n'


def _points(figures: Sequence[Figure], bounds: Bounds, limits: Mapping[str, float]) -> list[tuple[float, float, str, str]]:
    """(operations a byte, operations a second, task, engine) of every figure that something physical bounds."""
    found = []
    for figure in figures:
        bound = None if figure.question is None or figure.unit == "ratio" else bounds.of(figure.question, limits)
        if bound is None or figure.question is None:
            continue
        tokens = figure.question.tokens * figure.question.sequences
        seconds = figure.value if figure.unit == "s" else tokens / figure.value
        found.append((bound.operations / bound.num_bytes, bound.operations / seconds, figure.name, figure.engine))
    return found


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


class _Axes:
    """Both logarithmic, from one power of ten to another."""

    def __init__(self, first: int, last: int, low: int, high: int) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, value: float) -> float:
        return LEFT + (math.log10(value) - self.first) / (self.last - self.first) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (math.log10(value) - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def grid(self) -> list[str]:
        pieces = []
        for power in range(self.first, self.last + 1):
            x = self.x(10.0**power)
            pieces.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{BOTTOM}" stroke="#ddd"/>')
            pieces.append(f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{10.0**power:g}</text>')
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            pieces.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
            pieces.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0 ** (power - 9):g}</text>')
        pieces.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{BOTTOM + 40}" text-anchor="middle">operations for each byte read</text>')
        pieces.append(f'<text x="{LEFT}" y="{TOP - 8}">thousand million operations a second</text>')
        return pieces


def _line(axes: _Axes, bandwidth: float, peak: float) -> str:
    """The roof: as much as memory delivers, then as much as can be multiplied."""
    start = max(10.0**axes.first, 10.0**axes.low / bandwidth)
    corner = peak / bandwidth
    points = [(start, start * bandwidth), (corner, peak), (10.0**axes.last, peak)]
    path = " L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="#333" stroke-width="1.5"/>'


def _mark(x: float, y: float, engine: str) -> str:
    colour = COLOURS.get(engine, "#7b5ea7")
    match MARKS.get(engine):
        case "square":
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
        case "diamond":
            return f'<path d="M{x:.1f} {y - 6:.1f} l6 6 l-6 6 l-6 -6 Z" fill="{colour}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
