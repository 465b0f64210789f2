"""The log of a run as curves: SVG without anything from elsewhere, and dots for a terminal.

A figure and what an evaluation found of the same name share one picture. Values that are no numbers leave a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from herd.errors import FileProblem
from herd.files import atomic_write
from herd.training.running.runs import HELD_OUT, METRICS, TIMINGS, read_log

Points = list[tuple[int, float]]

_PANEL_WIDTH, _PANEL_HEIGHT = 430, 240
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 34, 14, 30
_MOST_POINTS = 1000
_COLOURS = ("#2f6f9f", "#c8553d")
_HIDDEN = frozenset(("step", "tokens"))
# The dots of a Braille character, by row and column (Unicode 2800 to 28FF).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def series_of(folder: Path) -> dict[str, Points]:
    """Every figure that a run has logged, by name, as (step, value); what was measured comes last."""
    found: dict[str, Points] = {}
    for name in (METRICS, TIMINGS):
        for line in read_log(folder / name):
            step = line.get("step")
            for key, value in line.items():
                if key not in _HIDDEN and isinstance(step, int) and isinstance(value, int | float):
                    found.setdefault(key, []).append((step, float(value)))
    return found


def write_svg(folder: Path) -> Path:
    """Draws a run's curves into its folder; the file. `FileProblem` if nothing was logged yet."""
    series = series_of(folder)
    if not series:
        raise FileProblem(f"{folder}: has no log yet, so there are no curves.")
    path = folder / "curves.svg"
    with atomic_write(path) as file:
        file.write(svg(folder.name, series).encode())
    return path


def draw(folder: Path) -> Path | None:
    """The same; None for a run that was stopped before anything was logged."""
    return write_svg(folder) if series_of(folder) else None


def panels(series: Mapping[str, Points]) -> list[tuple[str, Points, Points]]:
    """(name, of the steps, of the evaluations), the loss first."""
    names = dict.fromkeys(name.removeprefix(HELD_OUT) for name in series)
    ordered = sorted(names, key=lambda name: name != "loss")
    return [(name, series.get(name, []), series.get(HELD_OUT + name, [])) for name in ordered]


def svg(title: str, series: Mapping[str, Points]) -> str:
    """All panels as one picture, two beside each other."""
    shown = panels(series)
    rows = -(-len(shown) // 2)
    width, height = 2 * _PANEL_WIDTH, 30 + rows * _PANEL_HEIGHT
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, steps, held_out) in enumerate(shown):
        row, column = divmod(number, 2)
        pieces.append(f'<g transform="translate({column * _PANEL_WIDTH} {30 + row * _PANEL_HEIGHT})">')
        pieces += [*_panel(name, steps, held_out), "</g>"]
    return "\n".join([*pieces, "</svg>"]) + "\n"


def in_dots(name: str, steps: Points, held_out: Points, width: int = 72, height: int = 10) -> str:
    """One panel for a terminal: the steps smoothed, as dots, evaluations as `o`. `width` and `height` are in characters."""
    steps = smoothed(steps)
    every = [*steps, *held_out]
    if not every:
        return f"{name}: nothing yet"
    low, high = _range(value for _, value in every)
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    cells = [[0] * width for _ in range(height)]
    marks: dict[tuple[int, int], str] = {}

    def place(step: int, value: float, across: int, down: int) -> tuple[int, int]:
        x = 0 if last == first else round((step - first) / (last - first) * (across - 1))
        return x, round((high - value) / (high - low) * (down - 1))

    for x, y in _joined([place(step, value, 2 * width, 4 * height) for step, value in steps]):
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    for step, value in held_out:
        x, y = place(step, value, width, height)
        marks[y, x] = "o"
    labels = {0: _short(high), height - 1: _short(low)}
    lines = [name + ("   o held out" if held_out and steps else "")]
    for y, row in enumerate(cells):
        drawn = "".join(marks.get((y, x), chr(0x2800 + bits) if bits else " ") for x, bits in enumerate(row))
        lines.append(f"{labels.get(y, ''):>9} |{drawn.rstrip()}")
    lines.append(f"{'':>9} +{'-' * width}")
    lines.append(f"{'':>11}{first:<{width // 2}}{f'step {last}':>{width - width // 2}}")
    return "\n".join(lines)


def smoothed(points: Points, share: float = 0.02) -> Points:
    """Each value averaged with those before it, the further back the less; `share` of the run counts most."""
    keep = 1 - 1 / max(1.0, share * len(points))
    mean, weight, found = 0.0, 0.0, []
    for step, value in points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append((step, mean / weight))
    return found


def _joined(dots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The dots, and those between them."""
    yield from dots[:1]
    for (x, y), (next_x, next_y) in pairwise(dots):
        count = max(abs(next_x - x), abs(next_y - y), 1)
        yield from ((x + round((next_x - x) * i / count), y + round((next_y - y) * i / count)) for i in range(1, count + 1))


def _panel(name: str, steps: Points, held_out: Points) -> list[str]:
    every = [*steps, *held_out]
    low, high = _range(value for _, value in every)
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    inner_width, inner_height = _PANEL_WIDTH - _LEFT - _RIGHT, _PANEL_HEIGHT - _TOP - _BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - first) / max(1, last - first) * inner_width
        return x, _TOP + (high - value) / (high - low) * inner_height

    pieces = [f'<text x="{_LEFT}" y="{_TOP - 10}" font-weight="bold">{escape(name)}</text>']
    for value in _ticks(low, high):
        _, y = place(first, value)
        pieces.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_PANEL_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        pieces.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = place(step, low)
        pieces.append(f'<text x="{x:.1f}" y="{_PANEL_HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">{step}</text>')
    if len(steps) > 50:
        pieces.append(_line([place(*point) for point in _thinned(steps)], _COLOURS[0], 'opacity="0.3"'))
    pieces.append(_line([place(*point) for point in _thinned(smoothed(steps) if len(steps) > 50 else steps)], _COLOURS[0], ""))
    pieces.append(_line([place(*point) for point in held_out], _COLOURS[1], ""))
    for point in _thinned(held_out):
        x, y = place(*point)
        pieces.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_COLOURS[1]}"><title>{point[0]}: {_short(point[1])}</title></circle>'
        )
    if steps and held_out:
        told = f'<tspan fill="{_COLOURS[0]}">training</tspan> <tspan fill="{_COLOURS[1]}">held out</tspan>'
        pieces.append(f'<text x="{_PANEL_WIDTH - _RIGHT}" y="{_TOP - 10}" text-anchor="end">{told}</text>')
    return pieces


def _line(places: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" {more}/>'


def _thinned(points: Points) -> Points:
    """At most so many as a panel can show; the last one always."""
    every = -(-len(points) // _MOST_POINTS) or 1
    return points[::-1][::every][::-1]


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest of the numbers, never the same. Infinite ones do not count."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two, four or so."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.9999)
    begin = math.ceil(low / step - 1e-9)
    return [number * step for number in range(begin, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """Four digits or so; thousands and millions with their letter."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}"
