"""Whether words fit to numbers: tokenizer against embedding, chat format against the template that came with the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from herd.checkpoints.checkpoint import Checkpoint
from herd.convert.findings import Finding, Outcome
from herd.errors import HerdError, UsageError
from herd.models.architecture import num_embeddings
from herd.text.formats.choose import choose_format, meta_format
from herd.text.formats.jinja import Jinja
from herd.text.formats.parts import ChatFormat, Conversation, read_conversation, to_text
from herd.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = ("Hello, world!", "  two  spaces\n\n\tand a tab ", "naïve café — Zürich 東京 🦙", "x = [1, 2.5, -3]  # 12345678")
CONVERSATIONS = {
    "a question": [("user", "One?")],
    "a system message and a question": [("system", "Be brief."), ("user", "One?")],
    "two questions": [("user", "One?"), ("assistant", "1."), ("user", "Two?")],
    "spaces around messages": [("system", " \n a \n"), ("user", "\t b  "), ("assistant", "\n\nc\n"), ("user", " d")],
}


def check_tokenizer(checkpoint: Checkpoint) -> tuple[Finding, Tokenizer | None]:
    """The tokenizer against the embedding, and texts there and back."""
    source = checkpoint.tokenizer
    rows = num_embeddings(checkpoint.config)
    if source is None:
        return Finding("tokenizer", Outcome.WARNING, "there is none; the model takes token ids only"), None
    try:
        tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=rows)
    except HerdError as problem:
        return Finding("tokenizer", Outcome.PROBLEM, str(problem)), None
    lost = [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text, bos=False)) != text]
    if lost:
        return Finding("tokenizer", Outcome.PROBLEM, f"{lost[0]!r} does not come back from its tokens"), tokenizer
    spare = rows - tokenizer.vocab_size
    said = f"{tokenizer.vocab_size:,} tokens for {rows:,} rows of the embedding"
    if spare:
        said += f"; {spare} rows have no token"
    outside = [index for index in checkpoint.stop_ids if index >= tokenizer.vocab_size]
    if outside:
        return Finding("tokenizer", Outcome.PROBLEM, f"{said}; the ids {outside} are to end an answer and are no tokens"), tokenizer
    if not checkpoint.stop_ids and not tokenizer.stop_ids:
        return Finding("tokenizer", Outcome.WARNING, f"{said}; no token ends an answer"), tokenizer
    return Finding("tokenizer", Outcome.GOOD, said), tokenizer


def check_format(checkpoint: Checkpoint, tokenizer: Tokenizer | None, known_as: str | None) -> Finding:
    """The format that chats use against the template; `known_as` is the format's name in the family."""
    if tokenizer is None:
        return Finding("chat format", Outcome.SKIPPED, "without a tokenizer there is no chat")
    template = checkpoint.chat_template
    if template is None:
        said = f"no template in its files; chats use the family's {known_as}" if known_as else "no template in its files: a base model"
        return Finding("chat format", Outcome.GOOD, said)
    try:
        chosen = choose_format(tokenizer, template)
        assert chosen is not None
        return _against_template(chosen, Jinja(tokenizer, source=template), known_as)
    except HerdError as problem:
        return Finding("chat format", Outcome.PROBLEM, str(problem))


def _against_template(chosen: ChatFormat, jinja: Jinja, known_as: str | None) -> Finding:
    """Where the chosen format and Meta's own differ from the template."""
    probes = {name: read_conversation([{"role": role, "content": text} for role, text in turns]) for name, turns in CONVERSATIONS.items()}
    with contextlib.suppress(UsageError):  # a template may refuse a conversation; a damaged one is a `FileProblem`
        chosen.parts(next(iter(probes.values())))
    own = next(_differences(chosen, jinja, probes), None)
    if own is not None:
        return Finding("chat format", Outcome.PROBLEM, f"{chosen.name} is not what the template writes: {own}")
    said = (
        "the template itself; it is none of the known formats" if isinstance(chosen, Jinja) else f"{chosen.name}, as the template writes it"
    )
    metas = meta_format(chosen, known_as)
    if metas is None or metas.name == chosen.name:
        return Finding("chat format", Outcome.GOOD, said)
    apart = list(_differences(metas, jinja, probes))
    if apart:
        said += f"\nMeta's own format (format='meta') differs from it: {apart[0]}"
    return Finding("chat format", Outcome.GOOD, said)


def _differences(format_: ChatFormat, jinja: Jinja, probes: dict[str, Conversation]) -> Iterator[str]:
    for name, conversation in probes.items():
        theirs = jinja.probe(conversation)
        try:
            ours: str | None = to_text(format_.parts(conversation))
        except HerdError:
            ours = None
        if ours == theirs:
            continue
        if ours is None or theirs is None:
            yield f"{name} is refused by {'the template' if theirs is None else 'the format'} only"
            continue
        at = next((index for index, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two), min(len(ours), len(theirs)))
        before, one, two = ours[max(0, at - 20) : at], theirs[at : at + 30], ours[at : at + 30]
        yield f"in {name}, after {before!r}, the template writes {one!r} and the format {two!r}"
