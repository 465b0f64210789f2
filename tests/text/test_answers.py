"""Where answers stand among the ids of a conversation, in every chat format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import FileProblem, UsageError
from herd.text.formats import ChatFormat, choose_format
from herd.text.formats.answers import answered
from herd.text.formats.chatml import ChatML
from herd.text.formats.code_llama_70b import CodeLlama70B
from herd.text.formats.guard import Guard
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4, MuseGlimmer
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.messages import Message, Role, read_messages
from text import built_in, vocabularies

BYTES, SPACES = built_in.BYTES, built_in.SPACES
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Earlier answers lose their reasoning, as the templates of models that think do it.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No token between question and answer, and a generation prompt whether it is asked for or not.
ALWAYS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:{% else %}"
    " {{ m.content }}<|end_of_text|>{% endif %}{% endfor %}"
)
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
PREFILLED = CHATML.replace("assistant\n{% endif", "assistant\n<answer>{% endif")
FORMATS: list[ChatFormat] = [
    *built_in.FORMATS,
    Jinja(BYTES, source=CHATML),
    Jinja(BYTES, source=ALWAYS),
]
STRIPPED = ("llama2", "llama3", "llama3.1", "llama3.2")
ALL = pytest.mark.parametrize("chat_format", FORMATS, ids=lambda value: value.name)


def chat(*turns: tuple[str, Any]) -> list[Message]:
    return read_messages([{"role": role, **(content if isinstance(content, dict) else {"content": content})} for role, content in turns])


def written(chat_format: ChatFormat, content: str) -> str:
    """An answer with its end, as the format writes them."""
    tokenizer = chat_format.tokenizer
    text = content.strip() if chat_format.name in STRIPPED else content
    if chat_format.name == "llama2":
        return f"{text} </s>"
    ends = {"llama4": "<|eot|>", "muse-glimmer": "<|eot|>", "meta-llama4": "<|eot|>", "chatml": "<|im_end|>", "jinja": "<|im_end|>"}
    if getattr(chat_format, "source", "") == ALWAYS:
        return f" {text}<|end_of_text|>"
    assert tokenizer.special_ids
    return text + ends.get(chat_format.name, "<|eot_id|>")


def decoded(chat_format: ChatFormat, ids: Sequence[int]) -> str:
    text = b"".join(map(chat_format.tokenizer.token_bytes, ids)).decode()
    return text.removeprefix(" ") if chat_format.name == "llama2" else text


CONTENTS = st.text(" \n\tab.é🦙<|im_end|>\r1", max_size=12)
CONVERSATIONS = st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(pairs=CONVERSATIONS, system=st.none() | CONTENTS)
def test_answers_are_what_the_assistant_says_and_its_end_and_the_prompt_is_the_one_that_asks(
    pairs: list[tuple[str, str]], system: str | None
) -> None:
    turns = [("user", "u")] if system is None else [("system", system), ("user", "u")]
    turns = turns[:-1] + [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    messages = chat(*turns)
    for chat_format in FORMATS:
        found = answered(chat_format, messages)
        assert len(found) == 1
        ids, answers = found[0].ids, found[0].answers
        assert [answer.message for answer in answers] == [at for at, m in enumerate(messages) if m.role is Role.ASSISTANT]
        for answer in answers:
            text = decoded(chat_format, ids[answer.begin : answer.end])
            assert text == written(chat_format, messages[answer.message].text), chat_format.name
        first = answers[0]
        assert list(ids[: first.begin]) == chat_format.render(messages[: first.message])
        whole = chat_format.render(messages, add_generation_prompt=False)
        is_cut = any(messages[answer.message].text[:1].isspace() for answer in answers)
        assert list(ids) == whole or is_cut, chat_format.name
        assert b"".join(map(chat_format.tokenizer.token_bytes, ids)) == b"".join(map(chat_format.tokenizer.token_bytes, whole))


def test_a_token_that_would_lie_over_the_border_is_cut_there() -> None:
    chat_format = Llama4(vocabularies.tokenizer("llama4"))
    messages = chat(("user", "u"), ("assistant", "\n\na"))
    (found,) = answered(chat_format, messages)
    assert list(found.ids[: found.answers[0].begin]) == chat_format.render(messages[:1])
    assert decoded(chat_format, found.ids[found.answers[0].begin :]) == "\n\na<|eot|>"


@pytest.mark.parametrize(
    "chat_format", [Llama3(BYTES, "llama3.1"), Llama4(BYTES), MetaLlama3(BYTES), MetaLlama4(BYTES)], ids=lambda f: f.name
)
def test_calls_of_tools_are_answers_and_their_results_are_not(chat_format: ChatFormat) -> None:
    call = {"tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]}
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
    messages = chat(("user", "1+2?"), ("assistant", call), ("tool", "3"), ("assistant", "It is 3."))
    (found,) = answered(chat_format, messages, tools=tools)
    assert list(found.ids) == chat_format.render(messages, tools=tools, add_generation_prompt=False)
    asked, told = (decoded(chat_format, found.ids[answer.begin : answer.end]) for answer in found.answers)
    assert "add" in asked and asked.endswith(("<|eot_id|>", "<|eot|>", "<|eom|>")) and told.startswith("It is 3.")
    parsed = chat_format.parse(found.ids[found.answers[0].begin : found.answers[0].end])
    assert parsed.tool_calls == messages[1].tool_calls


def test_the_call_of_a_built_in_tool_ends_with_its_own_token() -> None:
    chat_format = Llama3(BYTES, "llama3.1")
    call = {"tool_calls": [{"function": {"name": "brave_search", "arguments": {"query": "q"}}}]}
    (found,) = answered(chat_format, chat(("user", "?"), ("assistant", call)), tools=["brave_search"])
    (answer,) = found.answers
    assert decoded(chat_format, found.ids[answer.begin :]) == '<|python_tag|>brave_search.call(query="q")<|eom_id|>'


def test_a_template_that_writes_the_past_otherwise_gives_each_answer_a_conversation_of_its_own() -> None:
    chat_format = Jinja(BYTES, source=FORGETFUL)
    messages = chat(("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "<think>y</think>d"))
    found = answered(chat_format, messages)
    assert [[answer.message for answer in each.answers] for each in found] == [[1], [3]]
    texts = [decoded(chat_format, each.ids[each.answers[0].begin : each.answers[0].end]) for each in found]
    assert texts == ["<think>x</think>b<|im_end|>", "<think>y</think>d<|im_end|>"]
    for each in found:
        answer = each.answers[0]
        assert list(each.ids[: answer.begin]) == chat_format.render(messages[: answer.message])


def test_an_answer_that_the_prompt_begins_is_learned_from_there_on() -> None:
    chat_format = Jinja(BYTES, source=PREFILLED.replace("{{ m.content }}", "{{ m.content.split('<answer>')[-1] }}"))
    messages = chat(("user", "a"), ("assistant", "<answer>b"), ("user", "c"), ("assistant", "<answer>\n\nd "))
    found = answered(chat_format, messages)
    texts = [decoded(chat_format, each.ids[each.answers[0].begin : each.answers[0].end]) for each in found]
    assert texts == ["b<|im_end|>", "d <|im_end|>"]
    for each in found:
        answer = each.answers[0]
        assert list(each.ids[: answer.begin]) == chat_format.render(messages[: answer.message])


def test_reasoning_is_learned_as_the_template_of_a_model_that_thinks_asks_for_it(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "chat_templates" / "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    known = vocabularies.gguf("llama-bpe")
    tokens, kinds = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    end = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    tokenizer = vocabularies.tokenizer("llama-bpe", tokens=[*tokens, end], token_type=[*kinds, 3], eos_token_id=len(tokens))
    chat_format = choose_format(tokenizer, path.read_text("utf-8"))
    assert chat_format is not None
    messages = chat(("user", "One?"), ("assistant", "<think>\nEasy.\n</think>\n\n1."))
    (found,) = answered(chat_format, messages)
    (answer,) = found.answers
    assert list(found.ids[: answer.begin]) == chat_format.render(messages[:1])
    assert decoded(chat_format, found.ids[answer.begin : answer.end]) == f"Easy.\n</think>\n\n1.{end}"


@pytest.mark.parametrize(
    ("chat_format", "expected"),
    [
        (Jinja(BYTES, source=ENDLESS), "ends messages.1. with no control token"),
        (Jinja(BYTES, source=PREFILLED), "writes messages.1. otherwise than the prompt that asks for it"),
        (CodeLlama70B(vocabularies.sentencepiece()), "needs the control token <step>|writes messages.1. otherwise"),
        (Guard(BYTES, "guard3"), "writes messages.1. otherwise than the prompt"),
    ],
    ids=["endless", "prefilled", "code-llama-70b", "guard"],
)
def test_formats_of_which_the_answer_cannot_be_told_are_refused_by_name(chat_format: ChatFormat, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        answered(chat_format, chat(("user", "u"), ("assistant", "a")))
    assert chat_format.name in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [([("user", "u")], "no message of the assistant"), ([("assistant", "a"), ("user", "u")], r"messages\[0\] is the assistant's")],
)
def test_conversations_without_an_answer_to_learn_are_refused(turns: list[tuple[str, str]], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        answered(ChatML(BYTES), chat(*turns))


@pytest.mark.parametrize(
    "chat_format", [Llama4(BYTES), MuseGlimmer(BYTES), Llama3(BYTES, "llama3.2-vision"), MetaLlama4(BYTES)], ids=lambda f: f.name
)
def test_pictures_are_expanded_and_answers_stay_where_they_are(chat_format: ChatFormat) -> None:
    picture = {"type": "image", "image": b"x"}
    turns = ("user", [picture, "What?"]), ("assistant", "One."), ("user", ["And ", picture, "?"]), ("assistant", "Two.")
    messages = chat(*turns)
    grids = iter([(1, 1), (2, 1)] * 2)

    def tiles(_image: object) -> tuple[int, int]:
        return next(grids)

    (found,) = answered(chat_format, messages, tiles=tiles)
    assert list(found.ids) == chat_format.render(messages, add_generation_prompt=False, tiles=tiles)
    texts = [decoded(chat_format, found.ids[answer.begin : answer.end]) for answer in found.answers]
    assert [text[:4] for text in texts] == ["One.", "Two."] and all(len(text) < 20 for text in texts)
    assert len(found.pictures) == 2
    outside = [token for at, token in enumerate(found.ids) if not any(begin <= at < end for begin, end in found.pictures)]
    assert chat_format.image_id not in outside


def test_published_templates_are_learned_from_as_they_are_answered(shared_data: Path) -> None:
    folder = shared_data / "tokenizers" / "chat_templates"
    messages = chat(("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."))
    learned, refused = [], []
    for path in sorted(folder.glob("*.jinja")):
        chat_format = choose_format(BYTES, path.read_text("utf-8"))
        assert chat_format is not None
        try:
            found = answered(chat_format, messages)
        except (UsageError, FileProblem) as problem:
            refused.append((path.name, str(problem)))
            continue
        for each in found:
            for answer in each.answers:
                prompt = chat_format.render(messages[: answer.message])
                assert list(each.ids[: answer.begin]) == prompt, path.name
                assert messages[answer.message].text in decoded(chat_format, each.ids[answer.begin : answer.end])
        learned.append(path.name)
    # Some need tools to be offered; those that think write the beginning of an answer into the prompt only.
    known = ("fails: TypeError", "is undefined", "otherwise than the prompt")
    assert all(any(sign in text for sign in known) for _, text in refused), refused
    assert len([name for name in learned if name.startswith("meta-llama")]) >= 3, (learned, refused)
