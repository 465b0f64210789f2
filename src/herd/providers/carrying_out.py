"""What an engine's process is asked besides answers: counting, tokens to text and back, embeddings, adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from herd.errors import UsageError
from herd.providers.embedding import Embeddings
from herd.providers.frames import AddAdapter, Call, Count, Decode, Done, Embed, Encode, Frame, Problem, Refused, RemoveAdapter

if TYPE_CHECKING:
    from herd.providers.local import LocalProvider


def carry_out(frame: Call, provider: LocalProvider, embeddings: Embeddings, send: Callable[[Frame], None]) -> None:
    """Does what a call asks for and sends its outcome, or why not; embeddings come later, as steps of answers leave time for them."""
    try:
        match frame.operation:
            case Count(request):
                send(Done(frame.number, len(provider.prompt(request)[0])))
            case Encode(text, bos, specials):
                send(Done(frame.number, provider.tokenizer.encode(text, bos=bos, specials=specials)))
            case Decode(ids):
                send(Done(frame.number, _decoded(provider, list(ids))))
            case Embed():
                _embed(frame.number, frame.operation, provider, embeddings, send)
            case AddAdapter(name, path):
                provider.add_adapter(name, path)
                send(Done(frame.number, None))
            case RemoveAdapter(name):
                provider.remove_adapter(name)
                send(Done(frame.number, None))
    except Exception as problem:
        send(Refused(frame.number, Problem.of(problem)))


def _decoded(provider: LocalProvider, ids: list[int]) -> str:
    tokenizer = provider.tokenizer
    for token in ids:
        if not 0 <= token < tokenizer.vocab_size:
            raise UsageError(f"There is no token {token}; ids go from 0 to {tokenizer.vocab_size - 1}.", param="tokens")
    return tokenizer.decode(ids, skip_specials=False)


def _embed(number: int, asked: Embed, provider: LocalProvider, embeddings: Embeddings, send: Callable[[Frame], None]) -> None:
    if not asked.inputs:
        raise UsageError("There are no texts to embed; give at least one.", param="input")
    texts = [provider.encode(each) if isinstance(each, str) else list(each) for each in asked.inputs]
    embeddings.add(number, asked.caller.name, texts, send)
    provider.engine.wake()
