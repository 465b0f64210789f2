"""Verdicts, infilling and the words of a chat request, with a backend that says what it is told to."""

from __future__ import annotations

import datetime
import math
import types
from collections.abc import Sequence
from typing import Any

import pytest

from fakes import FakeBackend
from herd.api import asking
from herd.api.output import collect
from herd.backends.base import Plan, StepResult
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.providers.base import ModelFacts
from herd.providers.local import LocalProvider
from herd.sampling.chain import Choice
from herd.sampling.params import SamplingParams
from herd.text.formats import ChatFormat
from herd.text.formats.chatml import ChatML
from herd.text.formats.guard import Category, Guard, Verdict
from herd.text.formats.infilling import Infilling
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text import vocabularies
from text.vocabularies import GOLDEN

BYTES = vocabularies.tokenizer("llama-bpe")
GREEDY = SamplingParams(temperature=0.0)
QUESTION = [{"role": "user", "content": "How?"}]


class Scripted(FakeBackend):
    """Says given tokens after any prompt, each with the log-probability -0.5 and one alternative."""

    def __init__(self, vocab_size: int, says: Sequence[int], other: int) -> None:
        super().__init__(vocab_size)
        self.says, self.other, self.said = list(says), other, 0

    def step(self, plan: Plan) -> StepResult:
        result = super().step(plan)
        choices: list[tuple[Choice, ...]] = []
        for span in plan.spans:
            said = self.says[self.said : self.said + len(span.draws)]
            choices.append(tuple(Choice(token, -0.5, ((self.other, -2.0),)) for token in said))
            self.said += len(said)
        return StepResult(tuple(choices), result.logits_RV)


def model(tokenizer: Tokenizer, chat_format: ChatFormat | None, says: Sequence[int], other: int = 0) -> Any:
    """As much of a `Model` as is asked here."""
    engine = Engine(Scripted(tokenizer.vocab_size, says, other), context_length=2048, stop_ids=tokenizer.stop_ids, num_pages=64)
    facts = ModelFacts(name="tiny", context_length=2048, vocab_size=tokenizer.vocab_size, fingerprint="x")
    return types.SimpleNamespace(
        name="tiny",
        tokenizer=tokenizer,
        chat_format=chat_format,
        provider=LocalProvider(engine, tokenizer, chat_format, facts),
        collect=lambda ids, events: collect("tiny", ids, events, has_text=True),
    )


def says(text: str) -> list[int]:
    return [*BYTES.encode(text, bos=False), BYTES.special_ids["<|eot_id|>"]]


def test_a_guard_gives_a_verdict_with_its_probability() -> None:
    guard = Guard(BYTES, "guard3")
    verdict = asking.moderate(model(BYTES, guard, says("\n\nunsafe\nS2")), QUESTION, None)
    assert verdict == Verdict(False, (Category("S2", "Non-Violent Crimes"),), pytest.approx(math.exp(-0.5)))
    safe = asking.moderate(model(BYTES, guard, says("safe"), other=guard.unsafe_id), QUESTION, None)
    assert safe == Verdict(True, (), pytest.approx(math.exp(-2.0)))
    own = asking.moderate(model(BYTES, guard, says("unsafe\nX")), QUESTION, [{"code": "X", "name": "Puns"}])
    assert own.categories == (Category("X", "Puns"),)


def test_only_guards_give_verdicts_and_other_answers_are_none() -> None:
    with pytest.raises(UsageError, match=r"tiny is no guard \(its chat format is chatml\)"):
        asking.moderate(model(BYTES, ChatML(BYTES), says("safe")), QUESTION, None)
    with pytest.raises(UsageError, match="tiny gave no verdict but 'Who knows'"):
        asking.moderate(model(BYTES, Guard(BYTES, "guard3"), says("Who knows")), QUESTION, None)


def test_a_model_that_was_taught_so_fills_in(tmp_path: Any) -> None:
    data = (GOLDEN / "small.model").read_bytes()
    for name in ("PRE", "SUF", "MID", "EOT"):
        piece = f"▁<{name}>".encode()
        data += bytes((0x0A, len(piece) + 4, 0x0A, len(piece))) + piece + b"\x18\x03"
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = load_tokenizer(kind="sentencepiece", path=tmp_path / "tokenizer.model")
    answer = [*tokenizer.encode("the end", bos=False), tokenizer.vocab_size - 1]
    output = asking.infill(model(tokenizer, None, answer), "a", "b", False, None, GREEDY)
    assert output.text == "the end" and output.prompt_token_ids == Infilling(tokenizer).render("a", "b")
    with pytest.raises(UsageError, match="not taught to fill in"):
        asking.infill(model(BYTES, None, []), "a", "b", False, None, GREEDY)


def test_a_request_reads_messages_tools_stops_and_the_date() -> None:
    asked = asking.chat_request(GREEDY, QUESTION, max_tokens=5, stop="x", date="today", tools=["brave_search"], format="meta")
    assert asked.messages[0].content == "How?" and asked.stop == ("x",) and asked.format == "meta" and len(asked.tools) == 1
    day = datetime.datetime.strptime(asked.date or "", "%d %b %Y").date()
    assert abs((day - datetime.date.today()).days) <= 1
    fixed = asking.chat_request(GREEDY, QUESTION, max_tokens=None, stop=(), date=None, tools=(), format="template")
    assert fixed.date is None and fixed.tools == ()
    with pytest.raises(UsageError, match="stop is int"):
        asking.stop_texts(5)  # type: ignore[arg-type]
