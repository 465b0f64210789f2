"""The tokenizer of a model that is trained from nothing: a file, a folder, or another model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from herd.checkpoints.checkpoint import Fact, TokenizerSource
from herd.checkpoints.huggingface_text import read_about
from herd.errors import UsageError
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.training.opening import open_here

LARGEST_ID = 2**31
PICTURE = "<|patch|>"


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer, where it was read from, and what its files say of chats and ends."""

    tokenizer: Tokenizer
    source: TokenizerSource
    chat_template: str | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def picture_token(self) -> int | None:
        """What stands for a piece of a picture in a Llama 4's prompt, if the vocabulary has it."""
        return self.tokenizer.special_ids.get(PICTURE)


def read_words(named: str) -> Words:
    """The tokenizer that `named` means. `UsageError` if it is nothing or has none."""
    if not named:
        raise UsageError(
            "No tokenizer was given: --tokenizer takes a folder or file of `herd train tokenizer`, or a model.", param="tokenizer"
        )
    path = Path(named)
    folder = path.parent if path.name == "tokenizer.json" else path
    if (folder / "tokenizer.json").is_file() and not (folder / "config.json").is_file():
        facts: dict[str, Fact] = {}
        about = read_about(folder, {}, LARGEST_ID, facts)
    else:
        checkpoint = open_here(named)
        try:
            if checkpoint.tokenizer is None:
                raise UsageError(f"{named} has no tokenizer; take another, or train one: herd train tokenizer.", param="tokenizer")
            return _words(checkpoint.tokenizer, checkpoint.chat_template, checkpoint.stop_ids)
        finally:
            checkpoint.close()
    assert about.tokenizer is not None, "there is a tokenizer.json"
    return _words(about.tokenizer, about.chat_template, about.stop_ids)


def _words(source: TokenizerSource, template: str | None, stop_ids: tuple[int, ...]) -> Words:
    tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config)
    return Words(tokenizer, source, template, stop_ids or tuple(tokenizer.eos_ids))
