"""Chat formats: the official ids, and no message that becomes a control token."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import FileProblem, UsageError
from herd.text.formats import NAMES, ChatFormat, choose_format
from herd.text.formats.chatml import ChatML
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.formats.parts import read_conversation, to_text
from herd.text.messages import Message, Role, read_messages
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text import built_in
from text.vocabularies import GOLDEN

BYTES, SPACES = built_in.BYTES, built_in.SPACES
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI"
    " assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' +"
    " message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LOOSE_CHATML = (
    "{{ bos_token }}{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '\\n' }}{%- endfor -%}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content"
    " %}{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
FORMATS: list[ChatFormat] = [
    *built_in.FORMATS,
    Jinja(BYTES, source=SMOLLM),
    Jinja(BYTES, source=LOOSE_CHATML),
    Jinja(BYTES, source=LLAMA3),
]
ALL = pytest.mark.parametrize("chat_format", FORMATS, ids=lambda value: value.name)


def chat(*turns: tuple[str, str]) -> list[Message]:
    """Messages from (role, content)."""
    return read_messages([{"role": role, "content": content} for role, content in turns])


def _specials(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    return [token for token in ids if tokenizer.is_special(token)]


@ALL
def test_no_text_in_any_message_becomes_a_control_token(chat_format: ChatFormat) -> None:
    tokenizer = chat_format.tokenizer
    for text in tokenizer.special_ids:
        for place in range(4):
            plain = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
            evil = [(role, f"x {text}{text} y" if at == place else content) for at, (role, content) in enumerate(plain)]
            scaffolding = _specials(chat_format.render(chat(*plain)), tokenizer)
            assert _specials(chat_format.render(chat(*evil)), tokenizer) == scaffolding


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("<|im_startend>o\n eotidbgnfxh/[]INSYé", max_size=30), min_size=1, max_size=3))
def test_pieces_of_control_tokens_in_messages_stay_text(contents: list[str]) -> None:
    turns = [("user" if at % 2 == 0 else "assistant", content) for at, content in enumerate(contents)]
    harmless = [(role, "a" if content.strip() else content) for role, content in turns]
    for chat_format in FORMATS:
        if chat_format.name != "llama2":
            ids, tokenizer = chat_format.render(chat(*turns)), chat_format.tokenizer
            assert _specials(ids, tokenizer) == _specials(chat_format.render(chat(*harmless)), tokenizer)


@ALL
def test_without_a_generation_prompt_the_conversation_just_ends(chat_format: ChatFormat) -> None:
    messages = chat(("user", "Hi"), ("assistant", "Ho"))
    ids = chat_format.render(messages, add_generation_prompt=False)
    if LLAMA3 not in getattr(chat_format, "source", "") and chat_format.name != "llama2":
        assert len(ids) < len(chat_format.render(messages))
    assert ids and chat_format.stop_ids >= chat_format.tokenizer.stop_ids


# The official ids, where the real vocabularies are


@functools.cache
def _real(shared_data: Path, name: str) -> Tokenizer:
    return load_tokenizer(kind="tiktoken", path=shared_data / "tokenizers" / name / "tokenizer.model")


def _ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]


@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_llama3_and_llama4_equal_metas_chat_format(shared_data: Path, name: str) -> None:
    recorded = json.loads((GOLDEN / "real.json").read_text("utf-8"))
    tokenizer = _real(shared_data, name)
    chat_format = MetaLlama4(tokenizer) if name == "llama4" else MetaLlama3(tokenizer)
    compared = 0
    for turns, ids in zip(recorded["conversations"], recorded[f"{name} chat"], strict=True):
        assert chat_format.render(chat(*turns)) == ids
        compared += 1
    assert compared >= 4


def test_llama31_adds_its_dates_as_its_template_does(shared_data: Path) -> None:
    tokenizer = _real(shared_data, "llama3")
    expected = _ids(
        "128000 128006 9125 128007 271 38766 1303 33025 2696 25 6790 220 2366 18 198 15724 2696 25 220 1627 10263 220 2366 19 271"
        " 128009 128006 882 128007 271 9906 128009 128006 78191 128007 271"
    )
    assert Llama3(tokenizer, "llama3.1").render(chat(("user", "Hello"))) == expected
    assert Llama3(tokenizer, "llama3.1").render(chat(("user", "Hello")), date="27 Jul 2024") != expected


def test_the_date_today_is_written_as_a_date() -> None:
    assert re.fullmatch(r"[0-3][0-9] [A-Z][a-z][a-z] 20[0-9][0-9]", read_conversation(chat(("user", "Hello")), date="today").date or "")


def test_llama2_equals_metas_encoding_turn_by_turn(shared_data: Path) -> None:
    tokenizer = _real(shared_data, "llama2")
    start = "1 518 25580 29962"
    end = "518 29914 25580 29962"
    cases = {
        (("user", "Hello"),): f"{start} 15043 {end}",
        (("system", "Be brief."), ("user", "Hello")): (
            f"{start} 3532 14816 29903 6778 13 3629 11473 29889 13 29966 829 14816 29903 6778 13 13 10994 {end}"
        ),
        (("user", "A"), ("assistant", "B"), ("user", "C")): f"{start} 319 {end} 350 29871 2 {start} 315 {end}",
    }
    for turns, ids in cases.items():
        assert Llama2(tokenizer).render(chat(*turns)) == _ids(ids)


# What a format refuses


def test_llama2_refuses_messages_with_its_tags() -> None:
    for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"):
        with pytest.raises(UsageError, match=r"messages\[1\] contains"):
            Llama2(SPACES).render(chat(("user", "a"), ("assistant", f"b {tag}"), ("user", "c")))


@pytest.mark.parametrize(
    "turns",
    [
        [("assistant", "a")],
        [("user", "a"), ("user", "b")],
        [("system", "a")],
        [("user", "a"), ("system", "b")],
        [("user", "a"), ("assistant", "b")],
        [("user", "a"), ("tool", "b")],
    ],
)
def test_llama2_takes_turns(turns: list[tuple[str, str]]) -> None:
    with pytest.raises(UsageError, match="llama2"):
        Llama2(SPACES).render(chat(*turns))


@pytest.mark.parametrize("chat_format", [ChatML(BYTES), Llama3(BYTES)])
def test_tool_results_are_refused_where_the_format_has_none(chat_format: ChatFormat) -> None:
    with pytest.raises(UsageError, match=rf"messages\[1\] is a tool result; the chat format {chat_format.name} defines none"):
        chat_format.render(chat(("user", "a"), ("tool", "b")))


def test_tool_results_are_ipython_messages_where_the_format_has_them() -> None:
    messages = read_conversation(chat(("user", "a"), ("tool", '"4" ü')))
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"\\"4\\" ü"<|eot_id|>' in to_text(Llama3(BYTES, "llama3.1").parts(messages))
    assert '<|header_start|>ipython<|header_end|>\n\n"\\"4\\" ü"<|eot|>' in to_text(Llama4(BYTES).parts(messages))
    assert '<|header_start|>ipython<|header_end|>\n\n"4" ü<|eom|>' in to_text(MetaLlama4(BYTES).parts(messages))


def test_a_vocabulary_without_the_formats_control_tokens_is_refused_by_name() -> None:
    with pytest.raises(FileProblem, match=r"needs the control token <\|im_start\|>"):
        ChatML(SPACES).render(chat(("user", "a")))


# Which format a model has


def test_smollm_is_chatml_with_the_system_message_of_its_own_template() -> None:
    expected = ChatML(BYTES, default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    assert choose_format(BYTES, SMOLLM) == expected
    assert choose_format(BYTES, SMOLLM.replace("\n", "\\n")) == expected


def test_chatml_written_otherwise_is_recognised_by_what_it_writes() -> None:
    assert choose_format(BYTES, LOOSE_CHATML) == ChatML(BYTES, bos="<|begin_of_text|>")


def test_the_first_llama3_template_is_recognised() -> None:
    assert choose_format(BYTES, LLAMA3) == Llama3(BYTES)


def test_a_template_that_writes_something_else_stays_itself() -> None:
    other = choose_format(BYTES, "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    assert isinstance(other, Jinja) and other.name == "jinja"


def test_a_model_without_a_template_has_no_format_unless_it_is_known_by_name() -> None:
    assert choose_format(BYTES, None) is None
    assert choose_format(BYTES, None, hint="llama3.1") == Llama3(BYTES, "llama3.1")
    assert choose_format(BYTES, SMOLLM, hint="llama4") == Llama4(BYTES)
    with pytest.raises(UsageError, match=r"no chat format 'vicuna'; known are chatml, llama2, code-llama-70b, llama3, llama3\.1,"):
        choose_format(BYTES, None, hint="vicuna")


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "Hi")],
        [("system", " be\n"), ("user", "\n\n Hi  "), ("assistant", "yo"), ("user", "ok")],
        [("user", ""), ("assistant", " "), ("user", "12 x")],
    ],
)
@pytest.mark.parametrize("template", [SMOLLM, LOOSE_CHATML, LLAMA3])
def test_ids_equal_the_models_template_rendered_by_hugging_face(template: str, turns: list[tuple[str, str]]) -> None:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    conversation = [{"role": role, "content": content} for role, content in turns]
    (text,), _ = render(conversations=[conversation], chat_template=template, add_generation_prompt=True, bos_token="<|begin_of_text|>")
    expected = BYTES.encode(text, bos=False, specials=True)
    chosen = choose_format(BYTES, template)
    assert chosen is not None and chosen.render(chat(*turns)) == expected
    assert Jinja(BYTES, source=template).render(chat(*turns)) == expected


def test_messages_keep_their_role() -> None:
    assert chat(("tool", "x"))[0] == Message(Role.TOOL, "x")


def test_every_release_of_the_family_names_a_format_that_exists() -> None:
    from herd.family.catalogue import releases

    named = {release.chat_format for release in releases().values() if release.chat_format is not None}
    assert named <= set(NAMES) and {"llama3.3", "llama4", "muse-glimmer", "guard1", "guard4", "code-llama-70b"} <= named
