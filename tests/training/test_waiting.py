"""Processes wait for the first as long as it lives, hear when it fails or dies, and do not hang when one has nothing to say."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch.distributed as dist

from herd.errors import UsageError
from herd.training.running.waiting import ALIVE, Beats, First
from training.programs import run_program

QUICK = Beats(every_s=0.01, silence_s=0.2)
PROGRAM = """
import json, os, time
from herd.errors import UsageError
from herd.training.company import by_the_first
from herd.training.running.parallel import company
from herd.training.running.waiting import Beats

said = []
with company(beats=Beats(every_s=0.05, silence_s=0.5)) as (together, _):
    began = time.monotonic()
    said.append(by_the_first(together, lambda: time.sleep(1.2) or "slept", "sleeping"))
    said.append(time.monotonic() - began > 1.0)

    def fails():
        raise ValueError("by design")

    try:
        by_the_first(together, fails, "a thing")
    except (ValueError, UsageError) as problem:
        said.append(str(problem))
    try:
        together.exchanged({1, 2} if together.index else "fine")
    except (TypeError, UsageError) as problem:
        said.append(str(problem))
    said.append(together.exchanged([together.index, "and after"]))
print("SAID", json.dumps(said))
"""


def store() -> dist.Store:
    found: dist.Store = dist.HashStore()
    found.set_timeout(timedelta(seconds=5))
    return found


def test_two_processes_wait_beyond_any_limit_and_hear_of_failures() -> None:
    (first, said), (other, heard) = run_program(PROGRAM)
    assert (first, other) == (0, 0), said + heard
    ours, theirs = (json.loads(text.partition("SAID")[2]) for text in (said, heard))
    assert ours[:3] == ["slept", True, "by design"]
    assert theirs[:3] == [None, True, "a thing: the first process could not do it; see what it says."]
    assert "Process 1 of 2 has something for the others" in ours[3]
    assert "set is not JSON serializable" in theirs[3]
    assert ours[4] == theirs[4] == [[0, "and after"], [1, "and after"]]


def test_works_are_told_one_after_another() -> None:
    kept = store()
    first, other = First(kept, True, QUICK), First(kept, False, QUICK)
    first.is_done(True)
    first.is_done(False)
    assert (other.wait(), other.wait()) == (True, False)
    first.close()


def test_a_first_process_that_gives_no_sign_of_life_is_given_up() -> None:
    kept = store()
    kept.set(ALIVE, "0")
    with pytest.raises(UsageError, match="no sign of life"):
        First(kept, False, QUICK).wait()


def test_a_store_that_is_gone_ends_the_waiting() -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("connection reset")

    with pytest.raises(UsageError, match="is gone"):
        First(Gone(), False, QUICK).wait()
