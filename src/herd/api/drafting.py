"""What tries drafted tokens beside a model: a search in the text so far, or a smaller model.

draft="lookup" | a model's name --open--> its own backend --> ModelDrafter --> Speculation
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.api.choosing import make_backend
from herd.api.words import Words, words_of
from herd.errors import UsageError
from herd.family.progress import Progress

if TYPE_CHECKING:
    from herd.api.choices import Choices
    from herd.backends.base import Backend
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.speculative import Speculation
    from herd.family.finding import Found


def speculation_for(choices: Choices, backend: Backend, words: Words, context: int, progress: Progress) -> Speculation | None:
    """What tries drafted tokens, if it was asked for. `UsageError` for a draft model with another vocabulary."""
    if choices.draft == "off":
        return None
    from herd.engine.speculative import Speculation

    if choices.draft == "lookup":
        from herd.engine.lookup import LookupDrafter

        return Speculation(LookupDrafter())
    from herd.backends.base import PAGE_TOKENS
    from herd.checkpoints.open import open_checkpoint
    from herd.engine.draft_model import ModelDrafter
    from herd.engine.memory import available_bytes, default_num_pages
    from herd.family.finding import find_model

    found = find_model(choices.draft, progress=progress)
    with ExitStack() as opened:
        checkpoint = open_checkpoint(found.path)
        opened.callback(checkpoint.close)
        _check_vocabulary(found, checkpoint, backend, words_of(found, checkpoint), words)
        drafting = make_backend(checkpoint, replace(choices, adapter=None, tensor_parallel=1))  # small: one device holds it
        opened.callback(drafting.close)
        length = min(context, checkpoint.config.context_length)
        pages = default_num_pages(-(-length // PAGE_TOKENS), 1, drafting.page_bytes(), available_bytes())
        drafter = ModelDrafter(drafting, length, pages, checkpoint.close)
        opened.pop_all()
        return Speculation(drafter)


def _check_vocabulary(found: Found, checkpoint: Checkpoint, backend: Backend, theirs: Words, ours: Words) -> None:
    """`UsageError` unless every token id means the same in both models."""
    size = checkpoint.config.vocab_size
    if size != backend.vocab_size:
        raise UsageError(f"{found.name} cannot draft for this model: it has {size} tokens, not {backend.vocab_size}.")
    one, other = theirs.tokenizer, ours.tokenizer
    if one is None or other is None:
        return
    for token in range(min(one.vocab_size, other.vocab_size)):
        if one.token_bytes(token) != other.token_bytes(token):
            spelled = f"{one.token_bytes(token)!r:.40} and {other.token_bytes(token)!r:.40}"
            raise UsageError(f"{found.name} cannot draft for this model: token {token} is {spelled}. Both need the same vocabulary.")
