"""A model opened up: values on the way from tokens to logits, read by name, replaced or silenced.

    trace = model.trace(ids, taps=["layers.*.out"])          trace["layers.3.out"] -> [T, D]
    trace = model.patch(ids, {"layers.3.attention.heads": lambda x_TNH, positions: ...})

Works on every backend and storage format. A value is float32, its first axis the tokens; a softmax ("....weights") is
[N, T, T], rows queries. What is replaced changes everything after it, also for later tokens through their keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import Placed, Watch
from herd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from herd.engine.engine import Engine

Values = NDArray[np.float32]
Change = Values | float | Callable[[Values, NDArray[np.int64]], Values]
"""What a value is replaced by: a number for all of it, an array [T, ...], or a function of (rows, their positions) that is asked
for a few tokens at a time."""


@final
@dataclass(frozen=True, slots=True)
class Trace:
    """One forward of a text: `logits_TV` and the values that were asked for, by name."""

    token_ids: list[int]
    logits_TV: Values
    values: Mapping[str, Values]

    def __getitem__(self, name: str) -> Values:
        return self.values[name]


def run(
    engine: Engine, tokens: Sequence[int], taps: Iterable[str], changes: Mapping[str, Change], pictures: tuple[Placed, ...] = ()
) -> Trace:
    """The forward of `tokens`, with the values that match `taps` read and those that match `changes` replaced. A `*` in a pattern
    stands for anything between two dots: `layers.*.out`. `UsageError` for a name that no value has and for a replacement of
    the wrong shape."""
    known = engine.value_names
    if not isinstance(changes, Mapping):
        raise UsageError(f"changes is {type(changes).__name__}; expected names of values with what replaces each.")
    if not isinstance(taps, Iterable):
        raise UsageError(f"taps is {type(taps).__name__}; expected a list of names of values.")
    taps = (taps,) if isinstance(taps, str) else taps
    read = frozenset(name for pattern in taps for name in _matching(pattern, known))
    patch: dict[str, Change] = {}
    for pattern, change in changes.items():
        for name in _matching(pattern, known):
            if name in patch:
                raise UsageError(f"Two changes match {name}, the second is {pattern!r:.80}; say once what it shall be replaced by.")
            patch[name] = change

    def watch(positions: range) -> Watch:
        return Watch(read, {name: partial(_finite, name, change, len(tokens), np.asarray(positions)) for name, change in patch.items()})

    logits: list[Values] = []
    pieces: dict[str, list[Values]] = {name: [] for name in read}
    for _, result in engine.examine(tokens, watch, pictures=pictures):
        assert result.logits_RV is not None
        logits.append(result.logits_RV)
        for name in read:
            value = result.values[name]
            pieces[name].append(value[0] if isinstance(value, list) else value)
    values = {name: (_squares if _is_softmax(name) else np.concatenate)(pieces[name]) for name in known if name in read}
    return Trace(list(tokens), np.concatenate(logits), values)


def _matching(pattern: str, known: Sequence[str]) -> list[str]:
    if not isinstance(pattern, str):
        raise UsageError(f"A name of a value is {pattern!r:.40}; expected a text such as 'layers.*.out'.")
    parts = pattern.split(".")
    found = [name for name in known if len(each := name.split(".")) == len(parts) and all(map(fnmatchcase, each, parts))]
    if not found:
        raise UsageError(f"No value of this model is called {pattern!r:.80}{did_you_mean(pattern, known)} model.value_names lists them.")
    return found


def _finite(name: str, change: Change, length: int, positions: NDArray[np.int64], value: Values) -> Values:
    """As `_changed`; refuses what would be taken for damaged weights later."""
    made = _changed(name, change, length, positions, value)
    if not np.isfinite(made).all():
        raise UsageError(f"The replacement of {name} holds a value that is not a finite number, from position {int(positions[0])} on.")
    return made


def _changed(name: str, change: Change, length: int, positions: NDArray[np.int64], value: Values) -> Values:
    """The replacement of `value`, the rows of `positions`."""
    if callable(change):
        return change(value, positions)
    try:
        array = np.asarray(change, np.float32)
    except (TypeError, ValueError):
        raise UsageError(f"The replacement of {name} is {change!r:.60}; expected a number, an array or a function.") from None
    if array.ndim == 0:
        return np.full_like(value, array)
    wanted = (value.shape[0], length, length) if _is_softmax(name) else (length, *value.shape[1:])
    if array.shape != wanted:
        raise UsageError(f"The replacement of {name} has shape {list(array.shape)}; the value has {list(wanted)}.")
    return array[:, positions, : value.shape[2]] if _is_softmax(name) else array[positions]


def _is_softmax(name: str) -> bool:
    return name.endswith(".weights")


def _squares(pieces: Sequence[Values]) -> Values:
    """Rows of a softmax [N, t, positions so far] -> [N, T, T], with zeros for what comes later."""
    length = pieces[-1].shape[2]
    return np.concatenate([np.pad(piece, ((0, 0), (0, 0), (0, length - piece.shape[2]))) for piece in pieces], axis=1)


def lens(engine: Engine, name: str, tokens: Sequence[int], layers: Iterable[int] | None, num_layers: int) -> dict[int, Values]:
    """What the last norm and the head make of the residual stream after each of `layers` (None: all): the text is run once to read
    the streams, and once for each layer with its stream in place of the last one. `UsageError` for a layer that the model `name`
    does not have."""
    chosen = list(range(num_layers)) if layers is None else list(layers)
    for layer in chosen:
        if type(layer) is not int or not 0 <= layer < num_layers:
            raise UsageError(f"There is no layer {layer!r:.40}; {name} has layers 0 to {num_layers - 1}.")
    last = f"layers.{num_layers - 1}.out"
    streams = run(engine, tokens, [f"layers.{layer}.out" for layer in chosen], {})
    return {layer: run(engine, tokens, (), {last: streams[f"layers.{layer}.out"]}).logits_TV for layer in chosen}


def embed(engine: Engine, texts: Sequence[Sequence[int]]) -> Values:
    """Mean over tokens of the hidden states after the last norm, divided by its length -> [texts, D]."""
    means = [run(engine, tokens, ["final"], {})["final"].mean(axis=0) for tokens in texts]
    if not means:
        raise UsageError("There are no texts to embed; give at least one.")
    return np.stack([mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means])
