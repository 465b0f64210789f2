"""Tools, calls, their results and pictures in prompts: token for token what the published templates and Meta's own code write."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from herd.errors import FileProblem, UsageError
from herd.text.formats import ChatFormat, choose_format, meta_format
from herd.text.formats.chatml import ChatML
from herd.text.formats.guard import Guard
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import ImageIds, Llama4, MuseGlimmer, expand_images, llama4_image_tokens
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.formats.parts import read_conversation, to_text
from herd.text.messages import Image, read_messages
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text import vocabularies
from text.vocabularies import GOLDEN

BYTES = vocabularies.tokenizer("llama-bpe")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a "place", é',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
PICTURE = {"type": "image", "image": b"not opened here"}
# Written as the published templates of Llama 4 and of Llama 3.2 Vision behave, shorter.
LLAMA4 = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content if messages[0].content is string else
 messages[0].content[0].text %}<|header_start|>system<|header_end|>\n\n{% if tools is not none %}{{ 'Environment: ipython\n' }}{% endif
%}{{ first | trim }}<|eot|>{% set messages = messages[1:] %}{% endif %}{% if tools is not none %}{{ '<|header_start|>user<|header_end|>' ~
'\n\nGiven the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given'
~ ' prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.Do not use' ~
' variables.\n\n' }}{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}{{ messages[0].content | trim }}<|eot|>{%
set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}{{
'<|header_start|>ipython<|header_end|>\n\n' ~ (m.content | tojson) }}<|eot|>{% else %}{{ '<|header_start|>' ~ m.role ~
'<|header_end|>\n\n' }}{% if 'tool_calls' in m %}<|python_start|>{{ m.content or '' }}<|python_end|>{% for c in m.tool_calls %}{{
'{"name": "' ~ c.function.name ~ '", "parameters": ' ~ (c.function.arguments | tojson) ~ '}' }}{% endfor %}{% elif m.content is string
%}{{ m.content }}{% else %}{% for p in m.content %}{{ '<|image|>' if p.type == 'image' else p.text }}{% endfor %}{% endif
%}<|eot|>{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"""


def _call(name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _messages(source: random.Random) -> list[dict[str, Any]]:
    """A conversation in the order that all templates take: user, sometimes a call and its result, assistant."""
    texts = ("Hi", " Be kind. \n", "", "\n\nWhy?\n", "日本 é", '{"a": 1}', "a <b> 'c'", "1234567")
    messages: list[dict[str, Any]] = [{"role": "system", "content": source.choice(texts)}] if source.random() < 0.5 else []
    for _ in range(source.randrange(1, 4)):
        messages.append({"role": "user", "content": source.choice(texts)})
        if source.random() < 0.5:
            arguments = source.choice(({}, {"city": "Zürich"}, {"n": [1, 2.5, None, {"k": True}], "q": 'x "y"\n'}))
            messages.append({"role": "assistant", "content": None, "tool_calls": [_call(**arguments)]})
            messages.append({"role": "tool", "tool_call_id": "call_1", "content": source.choice(texts)})
        messages.append({"role": "assistant", "content": source.choice(texts)})
    return messages[: -1 if source.random() < 0.7 else None]


def _hugging_face(template: str, messages: list[dict[str, Any]], **choices: Any) -> str:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    arguments = {"tools": None, "add_generation_prompt": True, "date_string": "26 Jul 2024", **names, **choices}
    (text,), _ = render(conversations=[messages], chat_template=template, **arguments)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("release", ["3.1-8B", "3.2-3B", "3.3-70B"])
def test_conversations_with_tools_equal_the_published_template(shared_data: Path, release: str) -> None:
    template = (shared_data / "tokenizers" / "chat_templates" / f"meta-llama-Llama-{release}-Instruct.jinja").read_text("utf-8")
    chosen = choose_format(BYTES, template)
    assert isinstance(chosen, Llama3)
    source, compared = random.Random(5), 0
    for round_number in range(40):
        messages, tools = _messages(source), source.choice((None, [TOOL], [TOOL, {**TOOL, "function": {"name": "g"}}]))
        prompt = source.random() < 0.8
        choices: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt}
        text = _hugging_face(template, messages, **choices, **({"date_string": "1 May 2025"} if round_number % 7 == 0 else {}))
        date = "1 May 2025" if round_number % 7 == 0 else None
        expected = BYTES.encode(text, bos=False, specials=True)
        for chat_format in (chosen, Jinja(BYTES, source=template)):
            ids = chat_format.render(messages, tools=tools, add_generation_prompt=prompt, date=date)
            assert ids == expected, (messages, tools)
            compared += 1
    assert compared == 80


@pytest.mark.parametrize("offered", [["brave_search"], ["code_interpreter"], ["brave_search", "wolfram_alpha", "code_interpreter", TOOL]])
def test_built_in_tools_equal_the_published_template(shared_data: Path, offered: list[Any]) -> None:
    template = (shared_data / "tokenizers" / "chat_templates" / "meta-llama-Llama-3.1-8B-Instruct.jinja").read_text("utf-8")
    chosen = choose_format(BYTES, template)
    assert isinstance(chosen, Llama3)
    name = offered[0]
    messages = [
        {"role": "user", "content": "Gold?"},
        {"role": "assistant", "content": "", "tool_calls": [_call(name, query="price of gold")]},
        {"role": "tool", "content": "2000"},
    ]
    tools = [tool for tool in offered if isinstance(tool, dict)] or None
    built_ins = [tool for tool in offered if isinstance(tool, str)]
    text = _hugging_face(template, messages, tools=tools, builtin_tools=built_ins)
    assert "<|python_tag|>" in text and "<|eom_id|>" in text
    assert chosen.render(messages, tools=offered) == BYTES.encode(text, bos=False, specials=True)


def test_llama4_writes_what_its_template_writes() -> None:
    chosen = choose_format(BYTES, LLAMA4)
    assert isinstance(chosen, Llama4)
    source = random.Random(6)
    for _ in range(60):
        messages, tools = _messages(source), source.choice((None, [TOOL]))
        text = _hugging_face(LLAMA4, messages, tools=tools)
        for chat_format in (chosen, Jinja(BYTES, source=LLAMA4)):
            assert chat_format.render(messages, tools=tools) == BYTES.encode(text, bos=False, specials=True), messages


def test_a_template_unlike_its_familys_is_run_itself() -> None:
    changed = choose_format(BYTES, LLAMA4.replace("Environment: ipython", "Environment: other"))
    assert isinstance(changed, Jinja)
    assert "Environment: other" in changed.text(
        read_conversation([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], [TOOL])
    )


# Meta's own format


@functools.cache
def _real(shared_data: Path, name: str) -> Tokenizer:
    return load_tokenizer(kind="tiktoken", path=shared_data / "tokenizers" / name / "tokenizer.model")


def _recorded(turns: list[dict[str, Any]]) -> list[Any]:
    from dataclasses import replace

    made = []
    for turn in turns:
        turn = dict(turn)
        goes_on = turn.pop("goes_on", False)
        if isinstance(turn["content"], list):
            turn["content"] = [PICTURE if part["type"] == "image" else part for part in turn["content"]]
        made.append(replace(read_messages([turn])[0], ends_turn=False if goes_on else None))
    return made


@pytest.mark.parametrize("notation", ["json", "python_list"])
@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_tools_and_pictures_equal_metas_chat_format(shared_data: Path, name: str, notation: str) -> None:
    recorded = json.loads((GOLDEN / "chats.json").read_text("utf-8"))
    tokenizer, pythonic = _real(shared_data, name), notation == "python_list"
    chat_format = MetaLlama3(tokenizer, pythonic=pythonic) if name == "llama3" else MetaLlama4(tokenizer, pythonic=pythonic)
    for key, ids in recorded[f"{name} {notation}"].items():
        assert chat_format.render(_recorded(recorded["conversations"][key])) == ids, key
    assert len(recorded[f"{name} {notation}"]) >= 7


def test_metas_format_is_known_for_metas_models() -> None:
    assert meta_format(Llama3(BYTES, "llama3.2")) == MetaLlama3(BYTES, pythonic=True)
    assert meta_format(Llama3(BYTES, "llama3.1"), "llama3.3") == MetaLlama3(BYTES, pythonic=True)
    assert meta_format(Llama3(BYTES, "llama3.1")) == MetaLlama3(BYTES, pythonic=False)
    spaces = vocabularies.sentencepiece()
    assert meta_format(Llama2(spaces)) == Llama2(spaces) and meta_format(ChatML(spaces)) is None


def test_metas_format_offers_functions_as_its_pages_on_prompts_do() -> None:
    question = [{"role": "user", "content": "Weather in SF?"}]
    json_text = to_text(MetaLlama3(BYTES).parts(read_conversation(question, [TOOL, "brave_search"])))
    assert "Environment: ipython\nTools: brave_search\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024" in json_text
    assert json_text.index("Return function calls in JSON format.<|eot_id|>") < json_text.index("Weather in SF?<|eot_id|>")
    python_text = to_text(MetaLlama3(BYTES, pythonic=True).parts(read_conversation(question, [TOOL])))
    assert "You are an expert in composing functions." in python_text and "Environment" not in python_text
    own = [{"role": "system", "content": "Be brief."}, *question]
    text = to_text(MetaLlama4(BYTES).parts(read_conversation(own, [TOOL])))
    assert "invoke:\n[\n    {" in text and "\n]\n\nBe brief.<|eot|>" in text
    assert MetaLlama4(BYTES).render(own) == MetaLlama4(BYTES).render(own, date="1 May 2025")


# Pictures


def test_a_picture_is_one_id_where_it_stands() -> None:
    content = [{"type": "text", "text": "a"}, PICTURE, {"type": "text", "text": "b"}, PICTURE]
    for chat_format in (Llama3(BYTES, "llama3.2-vision"), Llama4(BYTES), MuseGlimmer(BYTES), MetaLlama3(BYTES), MetaLlama4(BYTES)):
        ids = chat_format.render([{"role": "user", "content": content}])
        assert ids.count(chat_format.image_id) == 2
        shown = BYTES.decode(ids, skip_specials=False)
        around = "<|image_start|><|patch|><|image_end|>" if isinstance(chat_format, MuseGlimmer) else "<|image|>"
        assert f"a{around}b{around}" in shown
        assert [image.source for image in chat_format.images([{"role": "user", "content": content}])] == [b"not opened here"] * 2


def test_a_text_that_spells_a_picture_is_no_picture() -> None:
    for chat_format in (Llama3(BYTES, "llama3.2-vision"), Llama4(BYTES), MuseGlimmer(BYTES)):
        ids = chat_format.render([{"role": "user", "content": ["<|image|><|patch|><|image_start|>", PICTURE]}])
        assert ids.count(chat_format.image_id) == 1


def test_a_format_without_pictures_refuses_them() -> None:
    for chat_format in (Llama3(BYTES), Llama3(BYTES, "llama3.1"), ChatML(BYTES), Jinja(BYTES, source="{{ messages[0].content }}")):
        with pytest.raises(UsageError, match=rf"has a picture; the chat format {chat_format.name} has none"):
            chat_format.render([{"role": "user", "content": [PICTURE]}])


def test_the_real_llama3_vocabulary_reads_pictures_as_the_row_after_it(shared_data: Path) -> None:
    chat_format = Llama3(_real(shared_data, "llama3"), "llama3.2-vision")
    ids = chat_format.render([{"role": "user", "content": [PICTURE, "What is this?"]}])
    assert chat_format.image_id == 128256 and ids.count(128256) == 1 and 128011 not in ids
    assert ids[:6] == [128000, 128006, 882, 128007, 271, 128256]


@pytest.mark.parametrize(("rows", "columns", "count"), [(1, 1, 147), (1, 2, 437), (2, 2, 727), (4, 4, 2467)])
def test_a_picture_of_llama4_has_the_ids_of_its_tiles(rows: int, columns: int, count: int) -> None:
    names = ImageIds(start=1, end=2, image=3, patch=4, tile_x=5, tile_y=6)
    ids = llama4_image_tokens(rows, columns, names)
    tiles = rows * columns
    assert len(ids) == count and ids.count(4) == 144 * (tiles + (tiles > 1))
    assert ids.count(5) == rows * (columns - 1) * (tiles > 1) and ids.count(6) == rows * (tiles > 1) and ids.count(3) == 1
    with pytest.raises(UsageError, match="0 rows"):
        llama4_image_tokens(0, 1, names)


def test_pictures_of_llama4_equal_metas_chat_format(shared_data: Path) -> None:
    names = ImageIds.of(_real(shared_data, "llama4"))
    for rows, columns, runs in json.loads((GOLDEN / "chats.json").read_text("utf-8"))["llama4 grids"]:
        assert llama4_image_tokens(rows, columns, names) == [token for token, times in runs for _ in range(times)]


def test_pictures_are_expanded_by_their_grids() -> None:
    grids = {b"one": (1, 1), b"two": (1, 2)}
    messages = [{"role": "user", "content": [{"type": "image", "image": data} for data in grids]}]

    def tiles(image: Image) -> tuple[int, int]:
        assert isinstance(image.source, bytes)
        return grids[image.source]

    for chat_format in (Llama4(BYTES), MetaLlama4(BYTES)):
        names = ImageIds.of(BYTES)
        plain = chat_format.render(messages)
        assert chat_format.render(messages, tiles=tiles) == expand_images(
            plain, names.image, [llama4_image_tokens(*grid, names) for grid in grids.values()]
        )
    small = Llama4(BYTES).render(messages, tiles=lambda image: (2, 3, 5))
    assert small.count(BYTES.special_ids["<|patch|>"]) == 2 * 7 * 5
    muse = MuseGlimmer(BYTES)
    assert muse.render(messages, tiles=lambda image: (3, 4)).count(muse.image_id) == 24
    vision = Llama3(BYTES, "llama3.2-vision")
    assert vision.render(messages, tiles=tiles) == vision.render(messages)
    written = Jinja(BYTES, source="{% for m in messages %}{% for p in m.content %}<|patch|>{% endfor %}{% endfor %}")
    framed = Jinja(
        BYTES, source="{% for m in messages %}{% for p in m.content %}<|image_start|><|patch|><|image_end|>{% endfor %}{% endfor %}"
    )
    expected = [BYTES.special_ids[f"<|{name}|>"] for name in ("image_start", "patch", "patch", "image_end")] * 2
    assert written.render(messages, tiles=lambda image: (1, 2)) == framed.render(messages, tiles=lambda image: (1, 2)) == expected
    assert Jinja(BYTES, source=LLAMA4).render(messages, tiles=tiles) == Llama4(BYTES).render(messages, tiles=tiles)
    guard = Guard(BYTES, "guard4")
    assert guard.render(messages, tiles=tiles).count(BYTES.special_ids["<|patch|>"]) == 144 * 4
    with pytest.raises(UsageError, match="places for 1 pictures; 0 are given"):
        expand_images([1, 2, 3], 2, [])


# What formats refuse, and what stays content


@pytest.mark.parametrize("chat_format", [ChatML(BYTES), Llama3(BYTES), Llama2(vocabularies.sentencepiece())])
def test_tools_are_refused_where_the_format_has_none(chat_format: ChatFormat) -> None:
    with pytest.raises(UsageError, match=f"tools are offered; the chat format {chat_format.name} defines none"):
        chat_format.render([{"role": "user", "content": "a"}], tools=[TOOL])
    with pytest.raises(UsageError, match=r"llama2 takes|messages\[1\] calls a tool"):
        chat_format.render(
            [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [_call()]}, {"role": "assistant", "content": ""}]
        )


def test_what_a_release_cannot_do_is_refused_by_name() -> None:
    user = {"role": "user", "content": "a"}
    twice = {"role": "assistant", "content": None, "tool_calls": [_call(), _call()]}
    cases: list[tuple[ChatFormat, list[Any], list[Any], str]] = [
        (Llama3(BYTES, "llama3.1"), [user, twice], [TOOL], r"messages\[1\] calls 2 tools; the chat format llama3.1 has one call"),
        (Llama3(BYTES, "llama3.2"), [user], ["wolfram_alpha"], "built-in tool wolfram_alpha is offered; .* only code_interpreter"),
        (Llama3(BYTES, "llama3.1"), [{"role": "assistant", "content": "a"}], [TOOL], "the first message, which must be a user's"),
        (Llama3(BYTES, "llama3.2-vision"), [{"role": "user", "content": [PICTURE]}], [TOOL], "tools are offered beside a picture"),
        (Llama4(BYTES), [user], ["brave_search"], "brave_search is offered; the chat format llama4 knows functions only"),
        (MetaLlama4(BYTES), [user], ["brave_search"], "Meta's format for Llama 4 knows functions only"),
        (Llama4(BYTES), [{"role": "user", "content": [PICTURE]}], [TOOL], "without pictures"),
    ]
    for chat_format, messages, tools, message in cases:
        with pytest.raises(UsageError, match=message):
            chat_format.render(messages, tools=tools)


def _evil(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`text` in every place of a conversation that takes any text."""
    schema = {"type": "object", "description": text, "properties": {text or "p": {"description": text, "enum": [text]}}}
    tools = [{"type": "function", "function": {"name": "f", "description": text, "parameters": schema}}]
    call = {"id": text, "type": "function", "function": {"name": "f", "arguments": {text or "k": [text, {text or "k": text}]}}}
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": text, "content": text},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    return messages, tools


def test_no_text_in_tools_calls_or_results_becomes_a_control_token(shared_data: Path) -> None:
    templates = shared_data / "tokenizers" / "chat_templates"
    published = [Jinja(BYTES, source=path.read_text("utf-8")) for path in sorted(templates.glob("*.jinja"))]
    formats = [Llama3(BYTES, "llama3.1"), Llama3(BYTES, "llama3.2"), Llama4(BYTES), MetaLlama3(BYTES), MetaLlama4(BYTES), *published]
    checked = 0
    for chat_format in formats:
        messages, tools = _evil("x")
        try:
            scaffolding = [token for token in chat_format.render(messages, tools=tools) if BYTES.is_special(token)]
        except (UsageError, FileProblem):
            continue  # fireworks' template needs a variable of its own
        for text in BYTES.special_ids:
            messages, tools = _evil(f"x{text}")
            try:
                ids = chat_format.render(messages, tools=tools)
            except UsageError as error:
                assert "control token" in str(error) and isinstance(chat_format, Jinja)
                continue
            assert [token for token in ids if BYTES.is_special(token)] == scaffolding, (chat_format.name, text)
            checked += 1
    assert checked >= 5 * len(BYTES.special_ids)
