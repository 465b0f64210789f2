"""`herd licence` alone asks, as a person sees it in a terminal; answers that contradict; a model that is named either way."""

from __future__ import annotations

import os
import select
import subprocess
import time

import pytest

from cli.running import command, environment, invoke

CONVERSATION = (
    ("Which model?:", "llama-4-scoutt"),
    ("did you mean llama-4-scout", None),
    ("Which model?:", "llama-4-scout"),
    ("[internal]:", "bananas"),
    ("use is 'bananas'. It must be one of research", None),
    ("[internal]:", "product"),
    ("[company]:", ""),
    ("[other]:", "eu"),
    ("yes, no [no]:", "no"),
    ("in 2025-03 [unknown]:", "10 apples"),
    ("is no unit of it", None),
    ("in 2025-03 [unknown]:", "10M"),
    ("[ordinary]:", ""),
    ("Not granted.", None),
    ("(region = eu", None),
    ("This is not legal advice", None),
)
"""What is shown in turn, and what is typed there."""


@pytest.mark.skipif(os.name != "posix", reason="a pseudo terminal is needed")
def test_questions_are_asked_until_they_are_answered() -> None:
    import pty

    parent, child = pty.openpty()
    running = subprocess.Popen(command("licence"), stdin=child, stdout=child, stderr=child, env=environment(TERM="dumb"))
    os.close(child)
    try:
        for wanted, typed in CONVERSATION:
            read_until(parent, wanted)
            if typed is not None:
                os.write(parent, f"{typed}\n".encode())
        assert running.wait(timeout=60) == 0
    finally:
        running.kill()
        running.wait()
        os.close(parent)


def read_until(descriptor: int, wanted: str) -> None:
    found, deadline = b"", time.monotonic() + 60
    while wanted.encode() not in found:
        assert time.monotonic() < deadline, found
        if select.select([descriptor], [], [], 1)[0]:
            found += os.read(descriptor, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("llama-3.1-8b", "--use", "derivative-model", "--derivative", "no"), "contradict each other"),
        (("llama-4-scout", "--use", "product", "--vision-removed", "yes", "--modality", "image"), "the image part is removed"),
    ],
)
def test_answers_that_contradict_are_pointed_out(words: tuple[str, ...], said: str) -> None:
    assert said in invoke("licence", *words).output


def test_a_run_is_planned_for_a_model_that_is_named_either_way() -> None:
    rest = ("--tokens", "10M", "--json")
    assert invoke("plan", "train", "llama-3.2-1b", *rest).output == invoke("plan", "train", "--model", "llama-3.2-1b", *rest).output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--users-per-month", "ten"), "--users-per-month is 'ten'"),
        (("--region", "mars"), "--region is 'mars'"),
        (("--affiliate-joined-after-release", "maybe"), "--affiliate-joined-after-release is 'maybe'"),
    ],
)
def test_an_answer_that_cannot_be_names_its_option(words: tuple[str, ...], said: str) -> None:
    done = invoke("licence", "llama-3.1-8b", *words)
    assert done.exit_code == 2 and said in done.stderr, done.output


def test_what_was_not_said_is_told_with_the_use() -> None:
    done = invoke("licence", "llama-3.1-8b", "--region", "other")
    assert "Not said, and taken to be: use internal, users per month 1,000,000" in done.stdout
