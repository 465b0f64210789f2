"""Published benchmark scores, each with its source: `scores/*.toml`, read when somebody asks.

scores_of("llama-3.1-8b-instruct") -> (Score("MMLU", "5-shot", 69.4, "Llama 3.1 model card"), ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from herd.errors import FileProblem
from herd.family.catalogue import known
from herd.family.reading import read_tables

_DATA = Path(__file__).with_name("scores")
_KEYS = {"source", "releases", "scores", "is_secondhand"}
_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one release, in percent where its name does not say otherwise. `is_secondhand`: not read in the source itself."""

    benchmark: str
    setting: str
    value: float
    source: str
    is_secondhand: bool = False

    @property
    def title(self) -> str:
        """The benchmark with its setting."""
        return f"{self.benchmark} ({self.setting})" if self.setting else self.benchmark


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark in one setting: the scores of the releases that have it, by name. Of several sources, one that all share is
    taken; where there is none, `is_one_source` is False and the values are not strictly comparable."""

    title: str
    scores: Mapping[str, Score]

    @property
    def is_one_source(self) -> bool:
        return len({score.source for score in self.scores.values()}) == 1


def scores_of(name: str) -> tuple[Score, ...]:
    """All published scores of a release, in the order of the cards."""
    return _all().get(name, ())


def in_common(names: Sequence[str]) -> list[Comparison]:
    """Benchmarks that at least two of the releases have a score in, with the same setting."""
    found: dict[str, dict[str, list[Score]]] = {}
    for name in names:
        for score in scores_of(name):
            found.setdefault(score.title, {}).setdefault(name, []).append(score)
    return [Comparison(title, _from_one_source(by_name)) for title, by_name in found.items() if len(by_name) > 1]


def _from_one_source(by_name: Mapping[str, Sequence[Score]]) -> dict[str, Score]:
    shared = set.intersection(*({score.source for score in scores} for scores in by_name.values()))
    return {name: next((score for score in scores if score.source in shared), scores[0]) for name, scores in by_name.items()}


@cache
def _all() -> Mapping[str, tuple[Score, ...]]:
    found: dict[str, list[Score]] = {}
    for path in sorted(_DATA.glob("*.toml")):
        for name, scores in read_scores(path.read_text(encoding="utf-8"), path.name).items():
            found.setdefault(name, []).extend(scores)
    return {name: tuple(scores) for name, scores in found.items()}


def read_scores(text: str, at: str = "The scores") -> dict[str, list[Score]]:
    """Scores by release from the text of a file. `FileProblem` names a table or row that is not as it must be."""
    found: dict[str, list[Score]] = {}
    for number, table in enumerate(read_tables(text, at).get("tables", [])):
        here = f"{at}, table {number + 1}"
        _check(here, table)
        for key, values in table["scores"].items():
            benchmark, _, setting = (part.strip() for part in key.partition("|"))
            if len(values) != len(table["releases"]):
                raise FileProblem(f"{here}: {key!r} has {len(values)} values for {len(table['releases'])} releases.")
            for name, value in zip(table["releases"], values, strict=True):
                if type(value) is float:
                    score = Score(benchmark, setting, value, table["source"], table.get("is_secondhand", False))
                    found.setdefault(name, []).append(score)
                elif value != _ABSENT:
                    raise FileProblem(f'{here}: {key!r} has the value {value!r}; expected a number with a point, or "{_ABSENT}".')
    return found


def _check(at: str, table: Mapping[str, Any]) -> None:
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise FileProblem(f"{at} has the unknown key {unknown[0]!r}; expected {', '.join(sorted(_KEYS))}.")
    if not isinstance(table.get("source"), str) or not table["source"]:
        raise FileProblem(f"{at} has no source.")
    for name in table.get("releases", ()):
        if known(name) is None:
            raise FileProblem(f"{at} has scores of {name!r}, which is no release.")
    if not table.get("releases") or not table.get("scores"):
        raise FileProblem(f"{at} lacks releases or scores.")
