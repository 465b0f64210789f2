"""One picture of several lines, as SVG without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 720, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 36, 16, 44
COLOURS = ("#2f6f9f", "#c8553d", "#4f8f5b", "#8a5fa8", "#b8860b", "#555555")
Lines = Mapping[str, Sequence[Sequence[float]]]


def chart(path: Path, title: str, across: str, up: str, lines: Lines) -> Path:
    """Lines of (x, y) points with their names, axes with five marks each."""
    xs = [point[0] for line in lines.values() for point in line]
    ys = [point[1] for line in lines.values() for point in line]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    spans = [(most - least) or 1.0 for least, most in zip(low, high, strict=True)]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - low[0]) / spans[0] * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low[1]) / spans[1] * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">']
    parts += [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', _text(LEFT, 20, title, "start", 14)]
    for mark in range(5):
        x, y = (least + span * mark / 4 for least, span in zip(low, spans, strict=True))
        parts += [_text(at(x, low[1])[0], HEIGHT - BOTTOM + 16, f"{x:.4g}" if high[0] < 1e5 else f"{x / 1e6:.2f}M", "middle")]
        parts += [_text(LEFT - 6, at(low[0], y)[1] + 4, f"{y:.3g}", "end")]
        parts += [f'<path d="M{LEFT} {at(0, y)[1]:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>']
    parts += [_text((WIDTH + LEFT) / 2, HEIGHT - 8, across, "middle"), _text(WIDTH - RIGHT, 20, up, "end")]
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y, *_ in line)
        parts += [f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>']
        parts += [_text(WIDTH - RIGHT - 8, TOP + 14 + 16 * index, name, "end", 12, colour)]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    return path


def smoothed(line: Sequence[Sequence[float]], over: int) -> list[tuple[float, float]]:
    """Means of `over` points up to each, fewer at the beginning."""
    found = []
    for index in range(len(line)):
        part = line[max(0, index + 1 - over) : index + 1]
        found.append((line[index][0], sum(point[1] for point in part) / len(part)))
    return found


def _text(x: float, y: float, said: str, anchor: str, size: int = 12, colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(said)}</text>'
