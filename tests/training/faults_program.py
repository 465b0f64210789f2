"""What `test_faults.py` runs as a process of its own, because it forks: `python faults_program.py FOLDER KIND=NUMBER ...`.

KIND is "kill", "power" or "full", with NUMBER each so many file operations, or "moments", with NUMBER kills. Prints a JSON line for each:
{"kind", "cases": how many, "operations": file operations of a whole run, "wrong": [what did not end as it should]}.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from training.faults import OUTCOMES, in_child, killed_after, moments, result, run, with_disk


def at_operations(folder: Path, happens: str, every: int) -> dict[str, object]:
    """Something goes wrong at each `every`th file operation of a run; then the run goes on."""
    expected, _ = undisturbed(folder)
    _, operations = with_disk(folder / "counted", -1, happens)
    wrong = []
    cases = range(1 + operations % every, operations + 1, every)
    for number in cases:
        case = folder / f"case-{number}"
        code, _ = with_disk(case, number, happens)
        if code not in (0, OUTCOMES[happens]):
            wrong.append(f"operation {number}: ended with {code}")
        ended = in_child(lambda case=case: run(case)) if code else 0  # type: ignore[misc]
        wrong += differences(case, f"operation {number}", code, ended, expected)
        shutil.rmtree(case, ignore_errors=True)
    return {"cases": len(cases), "operations": operations, "wrong": wrong}


def at_moments(folder: Path, count: int) -> dict[str, object]:
    """Killed at random moments, each run as often as it takes to come to its end; at least `count` kills in all."""
    expected, seconds = undisturbed(folder)
    wrong: list[str] = []
    kills = cases = 0
    for cases, limit in enumerate(moments(11, 10 * count, 1.2 * seconds)):
        if kills >= count:
            break
        case = folder / f"case-{cases}"
        while killed_after(limit, lambda case=case: run(case)) < 0:  # type: ignore[misc]
            kills += 1
            limit += 0.1 * seconds
        wrong += differences(case, f"case {cases}", 0, 0, expected)
        shutil.rmtree(case)
    return {"cases": kills, "operations": cases, "wrong": wrong}


def undisturbed(folder: Path) -> tuple[dict[str, str], float]:
    """What the run comes to, and its seconds."""
    began = time.monotonic()
    assert in_child(lambda: run(folder / "whole")) == 0, "the undisturbed run ends"
    return result(folder / "whole"), time.monotonic() - began


def differences(case: Path, name: str, code: int, ended: int, expected: dict[str, str]) -> list[str]:
    if ended:
        return [f"{name} (ended with {code}): going on ended with {ended}"]
    try:
        found = result(case)
    except AssertionError as problem:
        return [f"{name} (ended with {code}): {problem}"]
    return [f"{name} (ended with {code}): {each} differs" for each in expected if found.get(each) != expected[each]]


def main() -> None:
    for argument in sys.argv[2:]:
        kind, _, number = argument.partition("=")
        folder = Path(sys.argv[1]) / kind
        folder.mkdir()
        found = at_moments(folder, int(number)) if kind == "moments" else at_operations(folder, kind, int(number))
        print(json.dumps({"kind": kind, **found}))


if __name__ == "__main__":
    main()
