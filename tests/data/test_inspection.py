"""`herd tune inspect`: what is counted and shown is what a run would learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import chat_model
from herd.cli.tune_inspect import inspect as command
from herd.data.inspection import inspect, runs
from herd.data.lengths import NOTHING_LEFT, TOO_LONG
from herd.data.preparing import NOTHING, REFUSED, SPELLED, UNWRITTEN
from herd.data.tokenising import Tokenising
from herd.errors import FileProblem, UsageError
from herd.text.formats.chatml import ChatML
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
TOKENISING = Tokenising(BYTES, ChatML(BYTES))
ASK, SAY = {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}


def chats(tmp_path: Path, *values: dict[str, Any]) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def test_everything_is_counted(tmp_path: Path) -> None:
    long = {"messages": [ASK, {"role": "assistant", "content": "word " * 200}]}
    near = {"messages": [{"role": "user", "content": "how ARE you"}, SAY]}
    path = chats(tmp_path, {"messages": [ASK, SAY]}, {"messages": [ASK, SAY]}, near, long, {"messages": [ASK]})
    found = inspect([path], TOKENISING, max_tokens=100, near=0.6)
    account = found.account
    assert (account.num_read, account.num_kept) == (5, 3)
    assert account.drops[TOO_LONG].count == 1 and sum(tally.count for tally in account.drops.values()) == 2
    assert (found.exact, found.near, len(found.lengths), len(found.shown)) == (1, 1, 3, 3)
    example = TOKENISING.chat_format and found.shown[0][0]
    assert example and found.num_learned == sum(group[0].num_learned for group in found.shown)
    assert found.num_tokens == sum(found.lengths) and sum(count for _, _, count in found.histogram()) == 3
    assert found.quantiles[0] == min(found.lengths) and found.quantiles[100] == max(found.lengths)
    assert [(run.kind, run.text) for run in runs(example, TOKENISING)][-3:] == [
        ("learned", "Well."),
        ("ends", "<|im_end|>"),
        ("read", "\n"),
    ]
    cut = inspect([path], TOKENISING, max_tokens=100, too_long="cut")
    assert cut.account.num_kept == 4 and max(cut.lengths) == 100


def test_what_is_shown_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = chats(tmp_path, *({"messages": [{"role": "user", "content": f"u{at}"}, SAY]} for at in range(30)))
    drawn = [[group[0].place for group in inspect([path], TOKENISING, examples=4, seed=seed).shown] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 4
    assert inspect([path], TOKENISING, examples=0).shown == []


def test_runs_with_nothing_to_learn_are_refused_with_the_reasons(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(FileProblem, match=f"0 records are left to learn from: dropped 1: {REFUSED}.*tools are offered"):
        inspect([chats(tmp_path, {"messages": [ASK, SAY], "tools": tools})], TOKENISING)
    weighted = [ASK, {**SAY, "weight": 1}, ASK, {**SAY, "weight": 0}]
    with pytest.raises(FileProblem, match=NOTHING):
        inspect([chats(tmp_path, {"messages": weighted})], Tokenising(BYTES, ChatML(BYTES), learn="last"))
    with pytest.raises(FileProblem, match=NOTHING_LEFT):
        inspect([chats(tmp_path, {"messages": [ASK, SAY]})], TOKENISING, max_tokens=4, too_long="cut")
    with pytest.raises(UsageError, match="what happens to long examples"):
        inspect([chats(tmp_path, {"messages": [ASK, SAY]})], TOKENISING, too_long="squeeze")


def test_control_tokens_that_texts_spell_are_noted(tmp_path: Path) -> None:
    found = inspect([chats(tmp_path, {"messages": [ASK, {"role": "assistant", "content": "x<|eot_id|>"}]})], TOKENISING)
    assert found.account.notes[SPELLED].detail == "<|eot_id|>"


def test_texts_that_a_format_does_not_write_are_noted(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "Let me look.", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    path = chats(tmp_path, {"messages": [ASK, call, {"role": "tool", "content": "4"}, SAY]})
    found = inspect([path], Tokenising(BYTES, Llama3(BYTES, "llama3.1")))
    assert found.account.notes[UNWRITTEN].detail == "messages[1] says 'Let me look.'"
    assert UNWRITTEN not in inspect([path], Tokenising(BYTES, Llama4(BYTES))).account.notes


@pytest.mark.parametrize(
    ("value", "sides"),
    [
        ({"prompt": "u", "chosen": "good", "rejected": "bad"}, 2),
        (
            {
                "conversations": [{"from": "human", "value": "u"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            2,
        ),
        ({"prompt": "u", "completion": "a", "label": True}, 1),
        ({"prompt": "u", "answer": "4"}, 1),
    ],
)
def test_other_shapes_than_chats_can_be_inspected(tmp_path: Path, value: dict[str, Any], sides: int) -> None:
    found = inspect([chats(tmp_path, value)], TOKENISING)
    assert len(found.shown[0]) == sides and (found.num_learned > 0) == ("answer" not in value)
    with pytest.raises(FileProblem, match=TOO_LONG):
        inspect([chats(tmp_path, value)], TOKENISING, max_tokens=3)


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(chat_model.write(tmp_path_factory.mktemp("model")))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def test_the_command_shows_what_carries_loss(tmp_path: Path, model: str) -> None:
    path = chats(
        tmp_path, {"messages": [ASK, SAY]}, {"messages": [ASK]}, {"messages": [ASK, {"role": "assistant", "content": "\x1b[31mred"}]}
    )
    result = run("--model", model, "--data", str(path), "--max-tokens", "200", "--near", "0.9")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "3 records of the shape messages, 2 kept"
    assert lines[1].startswith("dropped 1: there is no answer to learn (first at ") and "chat format   chatml" in lines
    assert "«Well.<|im_end|>»" in result.output and "\x1b" not in result.output and "\N{REPLACEMENT CHARACTER}[31mred" in result.output
    assert "duplicates    0 exactly, 0 nearly" in lines and any(line.startswith("packed        1 rows of 200 tokens") for line in lines)
    assert any("tokens  ####" in line for line in lines)


def test_the_command_prints_json_and_writes_a_page(tmp_path: Path, model: str) -> None:
    said = {"role": "assistant", "content": "<b>&é</b>"}
    path, page = chats(tmp_path, {"messages": [ASK, said]}), tmp_path / "seen.html"
    result = run("--model", model, "--data", str(path), "--json", "--html", str(page), "--learn", "last")
    told = json.loads(result.output)
    assert (told["read"], told["kept"], told["examples"], told["learn"], told["chat_format"]) == (1, 1, 1, "last", "chatml")
    learned = [run["text"] for run in told["shown"][0][0]["runs"] if run["weight"]]
    assert learned == ["<b>&é</b>", "<|im_end|>"] and told["learned_tokens"] == sum(
        len(run["ids"]) for run in told["shown"][0][0]["runs"] if run["weight"]
    )
    text = page.read_text("utf-8")
    assert "<b>" not in text and "&lt;" in text and "<span class=ends title='id 258, weight 1'>&lt;|im_end|&gt;</span>" in text


def test_the_command_refuses_a_model_without_words_and_data_without_records(tmp_path: Path, model: str) -> None:
    path = chats(tmp_path, {"messages": [ASK]})
    with pytest.raises(FileProblem, match="0 records are left"):
        run("--model", model, "--data", str(path))
    bare = chat_model.write(tmp_path / "bare", has_tokenizer=False)
    with pytest.raises(UsageError, match="has no tokenizer"):
        run("--model", str(bare), "--data", str(path))
    with pytest.raises(FileProblem, match="no such file"):
        run("--model", model, "--data", str(tmp_path / "none.jsonl"))
