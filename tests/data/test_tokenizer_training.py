"""Vocabularies that are learned: loaded by herd and by transformers to the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.cli.train_tokenizer import tokenizer as command
from herd.data.tokenising import Tokenising
from herd.data.tokenizer_training import MANNERS, train_tokenizer
from herd.errors import FileProblem, UsageError
from herd.text.formats import choose_format
from herd.text.formats.answers import answered
from herd.text.formats.llama3 import Llama3
from herd.text.messages import read_messages
from herd.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [Path(__file__).read_text("utf-8").replace("<|", "< |"), "The cat sat on the mat. Der Hund läuft 1234 mal.\r\n\n" * 3]
CHAT = [{"role": role, "content": text} for role, text in (("user", " One? "), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."))]


def loaded(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return load_tokenizer(kind="tokenizer.json", path=folder / "tokenizer.json", config=config), config


@pytest.fixture(scope="module", params=MANNERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    trained = train_tokenizer(TEXTS, 400, path, manner=request.param, more=["<|reserved_0|>"])
    assert trained.size == 400 and trained.bytes_per_token > 1.5 and trained.num_characters == sum(map(len, TEXTS))
    assert trained.num_merges + trained.num_controls + 256 == 400
    return path


def test_control_tokens_come_last_and_are_never_made_of_text(folder: Path) -> None:
    tokenizer, _ = loaded(folder)
    controls = (*MANNERS[folder.name[:6]].controls, "<|reserved_0|>")
    assert [tokenizer.special_ids[name] for name in controls] == list(range(400 - len(controls), 400))
    assert tokenizer.vocab_size == 400 and tokenizer.bos_id == tokenizer.special_ids["<|begin_of_text|>"] and tokenizer.adds_bos
    assert not any(map(tokenizer.is_special, tokenizer.encode("<|eot_id|><|eot|>", bos=False)))


def test_transformers_reads_the_same_ids_and_the_same_chats(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer, config = loaded(folder)
    chat_format = choose_format(tokenizer, config["chat_template"])
    assert chat_format is not None
    for text in (*TEXTS, "Hi 12345 é🦙\n\n  x", ""):
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
    ids = theirs.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    assert chat_format.render(CHAT, add_generation_prompt=False) == ids
    assert (theirs.bos_token, theirs.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    (found,) = answered(chat_format, read_messages(CHAT))
    assert len(found.answers) == 2


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=60))
def test_every_text_comes_back(folder: Path, text: str) -> None:
    tokenizer, _ = loaded(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_data_gives_the_same_vocabulary(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(TEXTS, 350, tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    tokenizer, config = loaded(tmp_path / "a")
    chat_format = choose_format(tokenizer, config["chat_template"])
    assert isinstance(chat_format, Llama3) and chat_format.name == "llama3"
    assert Tokenising(tokenizer, chat_format).learn == "answers"


@pytest.mark.parametrize(
    ("size", "more", "expected"),
    [
        (264, {}, "the size is 264; expected 265"),
        (1 << 21, {}, "to 1,048,576"),
        (100_000, {}, "the data gives .* tokens at most"),
        (400, {"manner": "lama3"}, "did you mean 'llama3'"),
        (400, {"more": ["<|eot_id|>"]}, "is given twice"),
        (400, {"more": [" x"]}, "expected a short printable name"),
    ],
)
def test_sizes_and_names_that_cannot_be_are_refused(tmp_path: Path, size: int, more: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        train_tokenizer(TEXTS, size, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_vocabulary_and_replaces_none_by_accident(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    words = ["--data", str(tmp_path / "a.txt"), "--size", "300", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0 and "300 tokens (256 bytes, 36 merges, 8 control)" in result.output
    with pytest.raises(UsageError, match="has a vocabulary already"):
        CliRunner().invoke(command, words, catch_exceptions=False)
    told = json.loads(CliRunner().invoke(command, [*words, "--force", "--json"], catch_exceptions=False).output)
    assert told["size"] == 300 and told["data"]["shape"] == "text"
    (tmp_path / "b.txt").write_text(" ")
    with pytest.raises(FileProblem, match="the file is empty"):
        CliRunner().invoke(
            command, ["--data", str(tmp_path / "b.txt"), "--size", "300", "--out", str(tmp_path / "x")], catch_exceptions=False
        )
