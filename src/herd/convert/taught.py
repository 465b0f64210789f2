"""A checkpoint whose model was taught a chat format that its files do not name: it gets the template, so that whoever reads what is written
from it chats in that format."""

from __future__ import annotations

from herd.checkpoints.checkpoint import Checkpoint
from herd.text.formats import ChatFormat, choose_format
from herd.text.formats.templates import template_of
from herd.text.tokenizer import load_tokenizer


def with_format(checkpoint: Checkpoint, chat_format: ChatFormat, notes: list[str] | None = None) -> Checkpoint:
    """The same checkpoint with the template of `chat_format` and the tokens that end its answers. `notes` get told of a format that no
    template is here for; then nothing changes."""
    template = template_of(chat_format)
    if template is None:
        if notes is not None:
            notes.append(f"No template of the chat format {chat_format.name} is written: say --chat-format {chat_format.name} to chat.")
        return checkpoint
    ends = tuple(dict.fromkeys((*checkpoint.stop_ids, *sorted(chat_format.stop_ids))))
    return checkpoint.with_template(template, ends)


def with_format_named(checkpoint: Checkpoint, name: str | None, notes: list[str]) -> Checkpoint:
    """The same for a format by its name; None: none was taught."""
    source = checkpoint.tokenizer
    if name is None or source is None:
        return checkpoint
    tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config)
    chat_format = choose_format(tokenizer, None, name)
    assert chat_format is not None, "a format that is named is there"
    return with_format(checkpoint, chat_format, notes)
