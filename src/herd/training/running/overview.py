"""What a folder of runs holds, read without torch and without touching anything."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from herd.checkpoints.trained import ADAPTER, MODEL, MODEL_FILE
from herd.errors import FileProblem, UsageError
from herd.files.json import read_json
from herd.records import dataclass
from herd.training.running.runs import CONFIG, END, FACTS, HELD_OUT, METRICS, State, is_run, state_of

TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Overview:
    """A run at a glance. `step` steps are done of `steps`; `figures` are the last that were logged, by name; `why` it failed, if it did.
    `result`: the folder or file in it that holds what was learned."""

    folder: Path
    recipe: str
    state: State
    step: int
    steps: int
    figures: Mapping[str, float]
    checkpoints: tuple[int, ...]
    why: str
    result: tuple[str, ...]


def overview(folder: Path) -> Overview:
    """`UsageError` if there is no run in this folder."""
    if not is_run(folder):
        raise UsageError(f"{folder} holds no run: {CONFIG} and {FACTS} are not both in it. herd tune list shows those of a folder.")
    facts = read_json(folder / FACTS)
    ended: dict[str, Any] = {}
    with suppress(FileProblem):
        ended = read_json(folder / END)
    figures = _last_figures(folder / METRICS)
    return Overview(
        folder=folder,
        recipe=str(facts.get("recipe", "")),
        state=state_of(folder),
        step=int(figures.pop("step", 0)),
        steps=_steps(folder / CONFIG),
        figures=figures,
        checkpoints=tuple(sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*[0-9]"))),
        why=str(ended.get("why", "")),
        result=tuple(name for name in (ADAPTER, MODEL, MODEL_FILE) if (folder / name).exists()),
    )


def overviews(folder: Path) -> list[Overview]:
    """All runs in a folder, the one that was last worked on at the end."""
    try:
        found = [path for path in folder.iterdir() if is_run(path)]
    except OSError:
        return []
    return [overview(path) for path in sorted(found, key=_changed)]


def _changed(folder: Path) -> tuple[float, str]:
    log = folder / METRICS
    return (log if log.exists() else folder / CONFIG).stat().st_mtime, folder.name


def _last_figures(path: Path) -> dict[str, float]:
    """The newest value of each figure, from the end of the log; `step` among them."""
    found: dict[str, float] = {}
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        for line in file.read().splitlines(keepends=True):
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and line.endswith(b"\n"):
                    found |= {name: each for name, each in value.items() if isinstance(each, int | float)}
    return dict(sorted(found.items(), key=lambda item: item[0].startswith(HELD_OUT)))


def _steps(path: Path) -> int:
    """How many steps the settings ask for: those of the schedule, wherever it stands; 0 if that is not told."""
    with suppress(OSError, ValueError):
        tables = [tomllib.loads(path.read_text(encoding="utf-8"))]
        while tables:
            table = tables.pop(0)
            if isinstance(schedule := table.get("schedule"), dict) and isinstance(schedule.get("steps"), int):
                return int(schedule["steps"])
            tables += [value for value in table.values() if isinstance(value, dict)]
    return 0
