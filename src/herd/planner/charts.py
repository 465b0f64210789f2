"""Charts as inline SVG: bars of parts, bars side by side, and lines that cross. No scripts, no fonts from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from herd.records import dataclass

COLOURS = (
    "#2f6f9f",
    "#c8553d",
    "#588157",
    "#e9a23b",
    "#7b5ea7",
    "#3a9d9d",
    "#9c6644",
    "#8d99ae",
    "#b56576",
    "#495057",
    "#d4a5a5",
    "#1d3557",
)
_WIDTH, _BAR, _LABEL = 860, 22, 250


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `low` to `high` are drawn as a range behind the value, where they differ from it."""

    label: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


def parts_chart(title: str, parts: Mapping[str, float], shown: Mapping[str, str], limit: tuple[str, float] | None = None) -> str:
    """One bar made of parts, with a legend; `limit` draws a line at a value with its name."""
    total = max(sum(parts.values()), limit[1] if limit else 0.0) or 1.0
    scale, x, pieces = (_WIDTH - 20) / total, 10.0, []
    for number, (name, value) in enumerate(parts.items()):
        width = value * scale
        told = f"<title>{_t(name)}: {_t(shown[name])}</title>"
        pieces.append(f'<rect x="{x:.1f}" y="10" width="{width:.2f}" height="40" fill="{_colour(number)}">{told}</rect>')
        x += width
    if limit is not None:
        at = 10 + limit[1] * scale
        pieces.append(f'<line x1="{at:.1f}" y1="4" x2="{at:.1f}" y2="56" stroke="#000" stroke-dasharray="4 3"/>')
        pieces.append(f'<text x="{min(at, _WIDTH - 4):.1f}" y="70" text-anchor="end">{_t(limit[0])}</text>')
    for number, name in enumerate(parts):
        row, column = divmod(number, 3)
        left, top = 10 + column * 285, 84 + row * 20
        pieces.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{_colour(number)}"/>')
        pieces.append(f'<text x="{left + 18}" y="{top + 11}">{_t(name)} {_t(shown[name])}</text>')
    return _svg(title, 90 + 20 * math.ceil(len(parts) / 3), pieces)


def bars_chart(title: str, bars: Sequence[Bar]) -> str:
    """Bars below each other, with their values."""
    most = max((max(bar.value, bar.high or 0.0) for bar in bars), default=0.0) or 1.0
    scale, pieces = (_WIDTH - _LABEL - 150) / most, []
    for number, bar in enumerate(bars):
        top = 8 + number * (_BAR + 8)
        pieces.append(f'<text x="{_LABEL - 8}" y="{top + 16}" text-anchor="end">{_t(bar.label)}</text>')
        if bar.low is not None and bar.high is not None and bar.high > bar.low:
            left, width = _LABEL + bar.low * scale, (bar.high - bar.low) * scale
            pieces.append(
                f'<rect x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="{_BAR - 8}" fill="{_colour(0)}" opacity="0.35"/>'
            )
        pieces.append(
            f'<rect x="{_LABEL}" y="{top}" width="{max(1.0, bar.value * scale):.1f}" height="{_BAR}" fill="{_colour(0)}" opacity="0.85"/>'
        )
        end = _LABEL + max(bar.value, bar.high or 0.0) * scale + 6
        pieces.append(f'<text x="{end:.1f}" y="{top + 16}">{_t(bar.shown)}</text>')
    return _svg(title, 16 + len(bars) * (_BAR + 8), pieces)


def lines_chart(title: str, axis: str, most: float, lines: Sequence[tuple[str, float, float]], shown: Sequence[str]) -> str:
    """Straight lines over 0 to `most`: (name, value at 0, value at `most`). `shown`: the ends of both axes as text (x, y)."""
    top = max((max(start, end) for _, start, end in lines), default=0.0) or 1.0
    left, bottom, width, height = 70, 250, _WIDTH - 260, 225
    pieces = [
        f'<path d="M{left} {bottom - height} V{bottom} H{left + width}" fill="none" stroke="#000"/>',
        f'<text x="{left + width}" y="{bottom + 18}" text-anchor="end">{_t(shown[0])} {_t(axis)}</text>',
        f'<text x="{left - 6}" y="{bottom - height + 10}" text-anchor="end">{_t(shown[1])}</text>',
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>',
    ]
    ends: list[float] = []
    for number, (name, start, end) in sorted(enumerate(lines), key=lambda each: -each[1][2]):
        y1, y2 = (bottom - value / top * height for value in (start, end))
        label = max([y2, *(taken + 15 for taken in ends[-1:])])
        ends.append(label)
        pieces.append(f'<line x1="{left}" y1="{y1:.1f}" x2="{left + width}" y2="{y2:.1f}" stroke="{_colour(number)}" stroke-width="2"/>')
        pieces.append(f'<text x="{left + width + 6}" y="{label + 4:.1f}" fill="{_colour(number)}">{_t(name)}</text>')
    return _svg(title, int(max([bottom + 28, *(end + 12 for end in ends)])), pieces)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _t(text: str) -> str:
    return escape(text, quote=True)


def _svg(title: str, height: int, pieces: Sequence[str]) -> str:
    inside = "\n".join(pieces)
    opening = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_t(title)}">'
    return f"<figure><figcaption>{_t(title)}</figcaption>\n{opening}\n{inside}\n</svg></figure>"
