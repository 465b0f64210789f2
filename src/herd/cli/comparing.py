"""`herd models --compare A B`: two or more releases side by side, from the family's data alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from herd.cli.output import is_terminal, print_json
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.catalogue import Release
    from herd.family.scores import Comparison

_WIDTH = 200
"""Columns of the table where nobody looks at it on a terminal."""


def compare(names: Sequence[str], *, as_json: bool) -> None:
    """Prints the releases side by side. `UsageError` for fewer than two, one that is named twice, and unknown names."""
    from herd.family.catalogue import find
    from herd.family.scores import in_common

    found = [find(name) for name in names]
    if len(found) < 2:
        raise UsageError("--compare takes two or more models: herd models --compare llama-3.1-8b llama-3.2-3b")
    twice = next((release.name for place, release in enumerate(found) if release in found[:place]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; --compare takes different models.")
    scores = in_common([release.name for release in found])
    if as_json:
        print_json(_as_data(found, scores))
    else:
        _print_tables(found, scores)


def facts(release: Release) -> dict[str, Any]:
    """What two releases are compared by, as data. What is not known is None."""
    from herd.family.catalogue import known

    config = release.config() if release.shape is not None else None
    base = known(release.base) if release.base is not None else None
    return {
        "title": release.title,
        "kind": release.kind,
        "parameters": release.parameters,
        "active_parameters": release.active_parameters or release.parameters,
        "context_length": release.context_length,
        "takes": list(release.inputs),
        "gives": list(release.outputs),
        "languages": list(release.languages),
        "licence": release.licence,
        "released": release.released.isoformat() if release.is_released else None,
        "knowledge_cutoff": release.knowledge_cutoff,
        "pretraining_tokens": release.pretraining_tokens,
        "gpu_hours": release.gpu_hours or (base.gpu_hours if base is not None else None),
        "bytes_at_16_bits": _weights(config, 16),
        "bytes_at_8_bits": _weights(config, 8),
        "bytes_at_4_bits": _weights(config, 4),
        "cache_bytes_per_token": _cache(config),
        "announced": dict(release.announced),
    }


def _weights(config: Any, bits: int) -> int | None:
    from herd.family.weighing import weights_at

    return None if config is None else weights_at(config, bits)


def _cache(config: Any) -> int | None:
    from herd.family.weighing import cache_per_token

    return None if config is None else cache_per_token(config)


def _as_data(found: Sequence[Release], scores: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "models": {release.name: facts(release) for release in found},
        "scores": [
            {
                "benchmark": row.title,
                "one_source": row.is_one_source,
                "values": {name: {"value": score.value, "source": score.source} for name, score in row.scores.items()},
            }
            for row in scores
        ],
    }


# A title, the key of the fact, and the value as people read it.
def _size(num_bytes: float) -> str:
    from herd.planner.units import size

    return size(num_bytes)


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("family", "title", str),
    ("kind", "kind", str),
    ("parameters", "parameters", "{:,}".format),
    ("of these for one token", "active_parameters", "{:,}".format),
    ("context", "context_length", "{:,} tokens".format),
    ("takes", "takes", ", ".join),
    ("gives", "gives", ", ".join),
    ("languages", "languages", ", ".join),
    ("licence", "licence", str),
    ("released", "released", str),
    ("knowledge until", "knowledge_cutoff", str),
    ("trained on", "pretraining_tokens", lambda value: f"{value / 1e12:g} T tokens"),
    ("GPU hours of pretraining", "gpu_hours", "{:,}".format),
    ("weights at 16 bits", "bytes_at_16_bits", _size),
    ("weights at 8 bits", "bytes_at_8_bits", _size),
    ("weights at 4 bits", "bytes_at_4_bits", _size),
    ("cache per token, 16 bits", "cache_bytes_per_token", lambda value: _size(value) if value else "none"),
)


def _print_tables(found: Sequence[Release], scores: Sequence[Comparison]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console() if is_terminal(sys.stdout) else Console(width=_WIDTH)
    names = [release.name for release in found]
    columns = [facts(release) for release in found]
    table = _table(Table, "", names)
    for title, key, shown in _ROWS:
        table.add_row(title, *(_shown(column, key, shown) for column in columns))
    console.print(table)
    if not scores:
        console.print("No benchmark was published for more than one of them in the same way; `herd show NAME` lists each one's scores.")
        return
    table = _table(Table, "published scores", names)
    table.add_column("source", overflow="fold")
    for row in scores:
        sources = dict.fromkeys(score.source for score in row.scores.values())
        values = [f"{row.scores[name].value:g}" if name in row.scores else "" for name in names]
        table.add_row(row.title, *values, " / ".join(sources))
    console.print(table)
    if not all(row.is_one_source for row in scores):
        console.print("Where a row has two sources, they may have measured differently.")


def _table(kind: Any, title: str, names: Sequence[str]) -> Any:
    table = kind(show_edge=False, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _shown(column: dict[str, Any], key: str, shown: Callable[[Any], str]) -> str:
    announced = {"parameters": "parameters", "active_parameters": "active parameters"}
    if column[key] in (None, []):
        told = column["announced"].get(announced.get(key, ""))
        return f"{told} (announced)" if told else "not stated"
    return shown(column[key])
