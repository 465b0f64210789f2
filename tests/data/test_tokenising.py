"""Samples as ids: loss lies on answers and their ends, on nothing else, whatever texts say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.reading import Place
from herd.data.samples import Chat, Judged, Passage, Preference, Task
from herd.data.tokenising import Example, Tokenising
from herd.errors import UsageError
from herd.text.formats.chatml import ChatML
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.messages import Image, Message, Role, read_messages
from herd.text.tools import ToolCall
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
SPACES = vocabularies.sentencepiece()
PLACE = Place(Path("data.jsonl"), 1)
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*turns: tuple[str, Any], **rest: Any) -> Chat:
    return Chat(PLACE, tuple(read_messages([{"role": role, "content": content} for role, content in turns])), **rest)


def texts(example: Example, tokenizer: Any = BYTES) -> list[str]:
    """The runs of tokens that carry loss, as texts."""
    runs: list[list[int]] = [[]]
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if weight:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [b"".join(map(tokenizer.token_bytes, run)).decode() for run in runs if run]


DIALOGUE = chat(("system", "s"), ("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."))


def test_loss_lies_on_every_answer_with_its_end_on_the_last_or_on_all() -> None:
    (example,) = Tokenising(BYTES, ChatML(BYTES)).examples(DIALOGUE)
    assert texts(example) == ["1.<|im_end|>", "2.<|im_end|>"]
    assert [BYTES.special_text(example.tokens[at]) for at in example.formatting] == ["<|im_end|>"] * 2
    (last,) = Tokenising(BYTES, ChatML(BYTES), learn="last").examples(DIALOGUE)
    assert texts(last) == ["2.<|im_end|>"] and last.tokens == example.tokens and len(last.formatting) == 1
    (whole,) = Tokenising(BYTES, ChatML(BYTES), learn="all").examples(DIALOGUE)
    assert whole.weights == (0.0, *(1.0,) * (len(whole.tokens) - 1)) and whole.tokens == example.tokens
    with pytest.raises(UsageError, match="expected one of answers, last, all"):
        Tokenising(BYTES, None, learn="some")


def test_answers_of_weight_0_carry_no_loss() -> None:
    weighted = chat(*((m.role.value, m.text) for m in DIALOGUE.messages), weights=(0.0, 0.0, 0.0, 0.0, 0.5))
    (example,) = Tokenising(BYTES, ChatML(BYTES)).examples(weighted)
    assert texts(example) == ["2.<|im_end|>"] and set(example.weights) == {0.0, 0.5}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(" \nab<|im_end|>[/INST]é", max_size=10), min_size=2, max_size=6), st.sampled_from(["answers", "last", "all"]))
def test_control_tokens_come_from_the_format_alone(contents: list[str], learn: str) -> None:
    turns = [("assistant" if at % 2 else "user", content) for at, content in enumerate(contents[: len(contents) // 2 * 2])]
    harmless = [(role, "a") for role, _ in turns]
    for chat_format in (ChatML(BYTES), Llama3(BYTES, "llama3.1"), Llama4(BYTES)):
        tokenising = Tokenising(BYTES, chat_format, learn=learn)
        ids, plain = ([t for t in tokenising.examples(chat(*each))[0].tokens if BYTES.is_special(t)] for each in (turns, harmless))
        assert ids == plain


def test_calls_of_tools_are_learned_with_their_ends() -> None:
    messages = read_messages([{"role": "user", "content": "u"}])
    call = Message(Role.ASSISTANT, "", (ToolCall("", "f", {"x": 1}),))
    sample = Chat(PLACE, (*messages, call, Message(Role.TOOL, "4"), Message(Role.ASSISTANT, "four")))
    (example,) = Tokenising(BYTES, Llama3(BYTES, "llama3.1")).examples(sample)
    assert texts(example) == ['{"name": "f", "parameters": {"x": 1}}<|eot_id|>', "four<|eot_id|>"]


def test_a_forgetful_template_gives_an_example_for_each_answer() -> None:
    sample = chat(("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "<think>y</think>d"))
    found = Tokenising(BYTES, Jinja(BYTES, source=FORGETFUL)).examples(sample)
    assert [texts(example) for example in found] == [["<think>x</think>b<|im_end|>"], ["<think>y</think>d<|im_end|>"]]
    (last,) = Tokenising(BYTES, Jinja(BYTES, source=FORGETFUL), learn="last").examples(sample)
    assert texts(last) == ["<think>y</think>d<|im_end|>"]


def test_plain_text_is_learned_as_a_whole_with_its_end() -> None:
    (example,) = Tokenising(BYTES, None).examples(Passage(PLACE, "abc <|im_end|>"))
    end = BYTES.eos_ids[0]
    assert example.tokens[-1] == end and BYTES.decode(example.tokens) == "abc <|im_end|>" and example.tokens.count(end) == 1
    assert example.weights == (0.0, *(1.0,) * (len(example.tokens) - 1))


@pytest.mark.parametrize("tokenizer", [BYTES, SPACES], ids=["bytes", "spaces"])
@pytest.mark.parametrize(("prompt", "answer"), [("2+2=", "4"), ("a", "b c"), ("x \n", "\n y"), ("", "z"), ("é", "🦙")])
def test_without_a_chat_format_completions_follow_their_prompts(tokenizer: Any, prompt: str, answer: str) -> None:
    sample = chat(("user", prompt), ("assistant", answer), is_plain=True)
    (example,) = Tokenising(tokenizer, None).examples(sample)
    (learned,) = texts(example, tokenizer)
    ended = tokenizer.special_text(tokenizer.eos_ids[0])
    assert learned.removeprefix(" " if not prompt else "") == answer + ended
    asked = tokenizer.encode(prompt)
    assert list(example.tokens[: len(asked)]) == asked and example.weights[0] == 0
    with pytest.raises(UsageError, match=r"data.jsonl:1: is a conversation, and the model has no chat format"):
        Tokenising(tokenizer, None).examples(DIALOGUE)


def test_pairs_share_their_prompt_and_carry_loss_on_the_answer_alone() -> None:
    prompt, answers = DIALOGUE.messages[:4], [(Message(Role.ASSISTANT, text),) for text in ("good", "bad")]
    chosen, rejected = Tokenising(BYTES, ChatML(BYTES), learn="all").pair(Preference(PLACE, prompt, *answers))
    assert (texts(chosen), texts(rejected)) == (["good<|im_end|>"], ["bad<|im_end|>"])
    begin = chosen.weights.index(1.0)
    assert chosen.tokens[:begin] == rejected.tokens[:begin] and list(chosen.tokens[:begin]) == ChatML(BYTES).render(prompt)
    assert len(chosen.formatting) == 1 and BYTES.special_text(chosen.tokens[chosen.formatting[0]]) == "<|im_end|>"
    plain = Preference(PLACE, DIALOGUE.messages[1:2], *answers, is_plain=True)
    assert [texts(each) for each in Tokenising(BYTES, None).pair(plain)] == [["good<|end_of_text|>"], ["bad<|end_of_text|>"]]


def test_judged_answers_and_prompts_of_tasks() -> None:
    tokenising = Tokenising(BYTES, ChatML(BYTES))
    judged = Judged(PLACE, DIALOGUE.messages[:2], DIALOGUE.messages[2:3], is_good=False)
    assert texts(tokenising.judged(judged)) == ["1.<|im_end|>"]
    prompt = tokenising.prompt(Task(PLACE, DIALOGUE.messages[:2], {"answer": "1"}))
    assert list(prompt.tokens) == ChatML(BYTES).render(DIALOGUE.messages[:2]) and prompt.num_learned == 0
    plain = Tokenising(BYTES, None).prompt(Task(PLACE, DIALOGUE.messages[1:2], {"answer": "1"}, is_plain=True))
    assert list(plain.tokens) == BYTES.encode("One?")


def test_pictures_stand_where_their_ids_do_and_carry_no_loss() -> None:
    image = Image(b"x")
    asked = Message(Role.USER, (image, *read_messages([{"role": "user", "content": "What?"}])[0].parts))
    sample = Chat(PLACE, (asked, Message(Role.ASSISTANT, "Red.")))

    def tiles(_image: Image) -> tuple[int, int]:
        return 1, 2

    for learn in ("answers", "all"):
        (example,) = Tokenising(BYTES, Llama4(BYTES), learn=learn, tiles=tiles).examples(sample)
        (shown,) = example.pictures
        assert shown.image is image and shown.end - shown.begin > 3 * 144
        assert not any(example.weights[shown.begin : shown.end]) and texts(example)[-1].endswith("Red.<|eot|>")
    prompt = Tokenising(BYTES, Llama4(BYTES), tiles=tiles).prompt(Task(PLACE, (asked,)))
    assert prompt.pictures == (shown,) and prompt.tokens == example.tokens[: len(prompt.tokens)]


def test_llama2_learns_what_stands_between_its_tags() -> None:
    sample = chat(("user", "u"), ("assistant", "Yes. "), ("user", "v"), ("assistant", "No."))
    (example,) = Tokenising(SPACES, Llama2(SPACES)).examples(sample)
    assert texts(example, SPACES) == [" Yes. </s>", " No. </s>"]
