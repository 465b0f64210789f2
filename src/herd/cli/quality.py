"""What a quantised model costs: size, speed, perplexity, divergence from the original, as rows and as a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.api import Model

WINDOW = 512
DECODED_TOKENS = 32
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 400, 80, 340


@dataclass(frozen=True, slots=True)
class Quality:
    """One model. `bits` per weight; `tokens_per_s` of decoding one sequence; `kl` (nats a token, mean and its standard error) and
    `agreement` (share of tokens with the same likeliest one) against the source, None for the source itself."""

    name: str
    num_bytes: int
    bits: float
    tokens_per_s: float
    perplexity: float
    kl: float | None = None
    kl_error: float | None = None
    agreement: float | None = None


def measure(source: str, others: Sequence[str], text: str, max_tokens: int) -> list[Quality]:
    """The source, then each of the others against it, as users run them: quantised weights with int8 activations."""
    from herd.api import load
    from herd.cli.output import counting
    from herd.evals.divergence import measure_divergence
    from herd.evals.rows import Windowing

    rows: list[Quality] = []
    with load(source) as right:
        window = min(WINDOW, right.provider.facts.context_length)
        for name in others:
            with load(name) as model, counting(f"comparing {Path(name).name}") as told:
                found = measure_divergence(right.provider, model.provider, text, Windowing(size=window, max_tokens=max_tokens), told=told)
                if not rows:
                    rows.append(Quality(_short(source), *_size(right), _speed(right), math.exp(found.nll_p)))
                cost = (math.exp(found.nll_q), found.kl_mean, found.kl_error, found.agreement)
                rows.append(Quality(_short(name), *_size(model), _speed(model), *cost))
    return rows


def _short(name: str) -> str:
    return Path(name).name or name


def _size(model: Model) -> tuple[int, float]:
    """Bytes of the weights, and bits for each of them."""
    checkpoint = model.checkpoint
    return checkpoint.num_bytes, 8 * checkpoint.num_bytes / sum(spec.count for spec in checkpoint.specs)


def _speed(model: Model) -> float:
    """Tokens a second of one sequence, after a first answer that warms up."""
    ids = model.tokenizer.encode("The", bos=None)
    fastest = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        output = model.generate(ids, max_tokens=DECODED_TOKENS, temperature=0.0)
        fastest = max(fastest, len(output.token_ids) / (time.perf_counter() - begin))
    return fastest


def plot(rows: Sequence[Quality], path: Path) -> None:
    """Divergence (logarithmic) over size, one point for each model but the source."""
    from herd.files import atomic_write

    points = [row for row in rows if row.kl is not None]
    with atomic_write(path) as file:
        file.write(_picture(points).encode())


def _picture(points: Sequence[Quality]) -> str:
    sizes = [row.bits for row in points]
    heights = [math.log10(max(row.kl or 0.0, 1e-9)) for row in points]
    low, high = math.floor(min(heights)), math.floor(max(heights)) + 1
    first, last = min(sizes) - 0.25, max(sizes) + 0.25
    pieces = [f'<path d="M{LEFT} 30 V{BOTTOM} H{WIDTH - 30}" fill="none" stroke="#000"/>']
    for power in range(low, high + 1):
        y = BOTTOM - (power - low) / (high - low) * (BOTTOM - 40)
        pieces.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 30}" y2="{y:.1f}" stroke="#ddd"/>')
        pieces.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for row, size, height in zip(points, sizes, heights, strict=True):
        x = LEFT + 20 + (size - first) / (last - first) * (WIDTH - LEFT - 200)
        y = BOTTOM - (height - low) / (high - low) * (BOTTOM - 40)
        pieces.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#2f6f9f"/>')
        pieces.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(row.name)}, {size:.2f} bits</text>')
    for bits, x in ((first, LEFT + 20), (last, WIDTH - 180)):
        pieces.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{bits:.2f}</text>')
    pieces.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{BOTTOM + 40}" text-anchor="middle">bits per weight</text>')
    pieces.append(f'<text x="{LEFT - 60}" y="20">KL to the source, nats a token</text>')
    body = "".join(pieces)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
