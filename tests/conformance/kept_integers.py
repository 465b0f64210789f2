"""What a backend kept as integers, and an oracle that reads the same ones.

A number between two codes may be rounded to either of them, and one such step is worth more than all other errors together. Which way
it goes is up to the last bit of a sum: to a backend's instruction set, and to that of numpy's products too. So the float64 oracle does
not round. It is given what the other kept, and every code is compared with the number that the oracle would have rounded. Against such
an oracle errors are those of arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from conformance.running import NUM_PAGES, logits_of, make_backend
from herd.backends.base import Backend, BackendOptions, Plan, Span, pictures_seen
from herd.backends.cpu.cached import read_page
from herd.backends.reference import ReferenceBackend, integer_cache, memory, pages
from herd.backends.reference.integer_cache import GROUP, IntegerRows, hadamard, rounded
from herd.models.architecture import Config, architecture_of, seeing
from herd.models.weights import Matrix
from herd.quant.reading import IQ4_VALUES

Floats = NDArray[Any]
_SCALE_ERROR = 127 / 2048  # of the nearest half, in codes
_LEVELS = {True: IQ4_VALUES.astype(np.float64), False: np.arange(-127.0, 128.0)}


@dataclass(frozen=True)
class Kept:
    """A prompt's logits, and what was kept for it: of each crossing layer the pictures' keys and values, then keys and values of each
    layer that keeps any. `numbers` is what it was rounded from, where that is known."""

    logits: Floats
    rows: Sequence[IntegerRows]
    numbers: Sequence[Floats] = ()


def of_reference(
    cfg: Config, leaves: Mapping[str, Matrix], span: Span, form: str, dtype: str, given: Sequence[IntegerRows] | None = None
) -> Kept:
    """The reference's, or with `given`: what it would have kept, and the logits of what it was given instead."""
    rows, numbers = list[IntegerRows](), list[Floats]()

    def keep(x: Floats, form: str) -> IntegerRows:
        rows.append(rounded(x, form) if given is None else given[len(rows)])
        numbers.append(x)
        return rows[-1]

    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(activations="float32", dtype=dtype, kv_cache=form))
    backend.allocate(NUM_PAGES)
    with patch.object(pages, "rounded", keep), patch.object(memory, "rounded", keep):
        logits = backend.logits(Plan((span,)))
    assert given is None or len(rows) == len(given)
    return Kept(logits, rows, numbers)


def of_cpu(cfg: Config, leaves: Mapping[str, Matrix], span: Span, form: str) -> Kept:
    """The cpu backend's: read from its pages; of pictures, which it does not show, rounded here from what it rounded."""
    backend = make_backend("cpu", cfg, leaves, activations="float32", threads=2, kv_cache=form)
    model, encoded = seeing(cfg), dict[bytes, Sequence[Floats]]()
    if model is None or not model.num_crossing(cfg):
        return Kept(logits_of(backend, span), _in_pages(backend, cfg, span, form))
    encode = model.encode

    def noting(w: Any, cfg: Any, step: Any) -> Sequence[Any]:
        made = list(encode(w, cfg, step))
        encoded[np.asarray(step.pixels, np.float32).tobytes()] = [np.array(each, np.float32) for each in made]
        return made

    with patch.object(model, "encode", noting):
        logits = logits_of(backend, span)
    seen = [
        rounded(encoded[picture.pixels.astype(np.float32).tobytes()][2 * layer + which], form)
        for layer in range(model.num_crossing(cfg))
        for _, _, pictures in pictures_seen(span.pictures, span.start + len(span.tokens))
        for which in (0, 1)
        for picture in pictures
    ]
    return Kept(logits, [*seen, *_in_pages(backend, cfg, span, form)])


def _in_pages(backend: Backend, cfg: Config, span: Span, form: str) -> list[IntegerRows]:
    """Keys and values of every layer. What was kept is read as floats: to round those again gives the same integers."""
    shapes, length = architecture_of(cfg).caches(cfg), span.start + len(span.tokens)
    contents = [np.frombuffer(backend.read_page(page), np.uint8).reshape(len(shapes), -1) for page in span.pages]
    rows = []
    for layer, shape in enumerate(shapes):
        parts = [read_page(page[layer], form, shape.num_kv_heads, shape.head_width) for page in contents]
        rows += [rounded(np.concatenate(part)[:length], form) for part in zip(*parts, strict=True)]
    return rows


def farthest(one: Kept, other: Kept) -> float:
    """How far apart the numbers of two are at most, in codes of what was kept: 127 are the largest number of a group."""
    pairs = zip(one.numbers, other.numbers, one.rows, strict=True)
    return max(float(np.abs(_in_codes(x, rows) - _in_codes(y, rows)).max()) for x, y, rows in pairs)


def beyond(kept: Kept) -> float:
    """By how much a code is farther from its number than the nearest one, or a scale from that of its group's largest number, at most:
    in codes."""
    return max(_beyond(_in_codes(x, rows), rows) for x, rows in zip(kept.numbers, kept.rows, strict=True))


def _beyond(x: Floats, rows: IntegerRows) -> float:
    levels, codes = _LEVELS[rows.is_rotated], rows.codes.reshape(x.shape).astype(np.float64)
    nearest = np.abs(x[..., None] - levels).min(axis=-1)
    largest = np.abs(x).max(axis=-1)
    top = -x.min(axis=-1) if rows.is_rotated else largest  # int4: the largest number has the code -127
    wrong_scale = np.where(largest == 0, 0, np.abs(top - 127) - _SCALE_ERROR)
    return float(max((np.abs(x - codes) - nearest).max(), (largest - top).max(), wrong_scale.max()))


def _in_codes(x: Floats, rows: IntegerRows) -> NDArray[np.float64]:
    """Numbers by groups [S, K, groups, 32], relative to the scales that were kept. A group without a scale has none but zeros."""
    x = x.astype(np.float64)
    x = hadamard(x) if rows.is_rotated else x
    x = np.pad(x, [(0, 0), (0, 0), (0, integer_cache.num_groups(rows.head_width) * GROUP - rows.head_width)])
    scales = rows.scales.astype(np.float64)[..., None]
    groups = x.reshape(*rows.scales.shape, GROUP)
    assert not groups[np.broadcast_to(scales == 0, groups.shape)].any()
    return np.asarray(groups / np.where(scales == 0, 1, scales))
