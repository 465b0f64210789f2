"""What a loaded model has of words: its tokenizer and chat formats, found when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.family.finding import Found
    from herd.family.release import Release
    from herd.text.formats import ChatFormat, Formats
    from herd.text.tokenizer import Tokenizer


class Words:
    """Tokenizer and chat formats, where the files have them. Which formats is found out when somebody wants to chat: `find_formats`
    gives the published one and Meta's own."""

    def __init__(self, tokenizer: Tokenizer | None = None, find_formats: Callable[[], Formats] = lambda: (None, None)) -> None:
        self.tokenizer = tokenizer
        self._find_formats = find_formats

    @cached_property
    def formats(self) -> Formats:
        return self._find_formats()

    @property
    def chat_format(self) -> ChatFormat | None:
        return self.formats[0]


def stop_ids(checkpoint: Checkpoint, words: Words) -> set[int]:
    """Tokens that end an answer: what the files name as ends, and every control token that is one by its name."""
    return {*checkpoint.stop_ids, *(words.tokenizer.stop_ids if words.tokenizer is not None else ())}


def words_of(found: Found, checkpoint: Checkpoint, wanted: str | None = None) -> Words:
    """Tokenizer and chat format. A file without a template has the format that the family knows for its release, if it is one.
    `UsageError` for a wanted format whose control tokens the vocabulary does not have."""
    source = checkpoint.tokenizer
    if source is None:
        return Words()
    from herd.models.architecture import num_embeddings
    from herd.text.tokenizer import load_tokenizer

    known = num_embeddings(checkpoint.config)
    tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=known)
    words = Words(tokenizer, lambda: _formats(tokenizer, checkpoint.chat_template, found.release, wanted))
    if wanted is not None and words.chat_format is not None:
        _check_vocabulary(words.chat_format, wanted, found.name)
    return words


def _check_vocabulary(chat_format: ChatFormat, wanted: str, model: str) -> None:
    from herd.errors import FileProblem, UsageError
    from herd.text.messages import Message, Role

    try:
        chat_format.render([Message(Role.USER, "?")])
    except FileProblem as problem:
        reason = f"chat_format is {wanted}, which {model} cannot be asked in: {problem}"
        raise UsageError(f"{reason} Leave it out, or name the model's own.") from None


def _formats(tokenizer: Tokenizer, template: str | None, release: Release | None, wanted: str | None) -> Formats:
    """The published format (or the one that is wanted), and Meta's own."""
    from herd.text.formats import NAMES, choose_format, meta_format

    name = wanted or (release.chat_format if release is not None else None)
    chat_format = choose_format(tokenizer, template, wanted or (name if name in NAMES and template is None else None))
    return chat_format, None if chat_format is None else meta_format(chat_format, name)
