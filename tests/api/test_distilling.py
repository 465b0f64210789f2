"""A teacher's words in a folder: learned by the run that they are of, and refused by every other, by what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from cli.chat_model import write
from herd.api.tuning_distill import tune_distill
from herd.api.tuning_run import Tuned
from herd.errors import FileProblem, UsageError
from herd.training.settings.distill import DistillSettings
from herd.training.settings.reading import read_settings
from herd.training.signals.teacher_file import LIST
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

FEW = ["epochs=0", "loop.schedule.steps=1", "batch=2", "held_out=1", "k=4", "max_tokens=32", "student.dtype=float32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, two files of data, and what the teacher said of the first."""
    folder = tmp_path_factory.mktemp("distilling")
    write(folder / "student")
    write(folder / "teacher")
    for name, letters in (("first", "abcdef"), ("second", "uvwxyz")):
        records = [{"prompt": one, "completion": one + one} for one in letters]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    assert distilled(folder, "begun").account.num_read == 6
    return folder


def distilled(place: Path, run: str, *changes: str, **named: Any) -> Tuned:
    """A run over the words of all; `data`, `teacher` as the first had them if nothing else is said."""
    given = {"model": place / "student", "teacher": place / "teacher", "data": place / "first.jsonl", "words": place / "words", **named}
    texts = {name: (str(value),) if name == "data" else str(value) for name, value in given.items() if value is not None}
    return tune_distill(read_settings(DistillSettings, None, [*FEW, *changes], texts), place / run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("k=9", "k: 4 there, 9 asked"),
        ("temperature=2", r"temperature: 1\.0 there, 2\.0 asked"),
        ("learn=all", "learn: answers there, all asked"),
        ("max_tokens=16", "max_tokens: 32 there, 16 asked"),
    ],
)
def test_words_that_were_asked_for_otherwise_are_refused(place: Path, change: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"words holds what a teacher said in another way or of other data:\n  {said}\n"):
        distilled(place, "refused", change)
    assert not (place / "refused").exists()


def test_words_of_other_data_or_of_another_teacher_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data: [0-9a-f]{40} there, [0-9a-f]{40} asked"):
        distilled(place, "refused", data=place / "second.jsonl")
    other = Path(shutil.copytree(place / "teacher", tmp_path / "other"))
    assert distilled(place, "copied", teacher=other).end.is_complete
    cfg = tiny_llama(vocab_size=259, num_layers=1)
    write_huggingface(tmp_path / "new", cfg, random_leaves(cfg, seed=9))
    shutil.copy(tmp_path / "new" / "model.safetensors", other / "model.safetensors")
    with pytest.raises(UsageError, match=r"teacher: [0-9a-f]{40} there"):
        distilled(place, "refused", teacher=other)


def test_words_are_used_again_by_the_run_that_they_are_of(place: Path) -> None:
    before = (place / "words" / LIST).read_bytes()
    account = distilled(place, "again").account
    assert (account.shape, account.num_read, account.num_kept) == ("a teacher's words", 6, 6)
    assert (place / "words" / LIST).read_bytes() == before


def test_words_alone_are_learned_as_they_are(place: Path) -> None:
    alone = ["max_tokens=1024"]
    assert distilled(place, "alone", *alone, teacher=None, data=None).account.num_read == 6
    with pytest.raises(UsageError, match="k: 4 there, 32 asked"):
        distilled(place, "refused", *alone, "k=32", teacher=None, data=None)
    with pytest.raises(FileProblem, match="holds no teacher's words"):
        distilled(place, "refused", *alone, teacher=None, data=None, words=place / "nowhere")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": ("d",)}, "teacher is ''; expected a model where there is data"),
        ({"words": "w", "teacher": "t"}, "teacher is 't'"),
        ({"words": "w", "learn": "all"}, "learn is 'all'; expected nothing with words alone"),
        ({}, r"data is \(\)"),
        ({"words": "w", "way": "on-policy"}, r"data is \(\)"),
        ({"data": ("d",), "teacher": "t", "answers": 2}, "answers is 2; expected 1 with the way stored"),
    ],
)
def test_settings_without_a_teacher_are_words_alone(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DistillSettings(model="m", **given)
