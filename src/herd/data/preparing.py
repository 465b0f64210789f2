"""Samples on their way into a run: tokenised, held to a length, and everything that falls out counted with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from herd.data.account import Account
from herd.data.dedup import text_of
from herd.data.lengths import TOO_LONG, check_policy, limited
from herd.data.samples import Chat, Judged, Passage, Preference, Sample, Task
from herd.data.tokenising import Example, Tokenising
from herd.errors import UsageError

REFUSED = "the chat format does not have what it needs"
NOTHING = "no token of it is learned"
UNWRITTEN = "a text beside a call of a tool is not written by the chat format"
SPELLED = "a text spells a control token of the model, and is learned as that text"


def prepared(
    samples: Iterable[Sample], tokenising: Tokenising, account: Account, *, max_tokens: int | None = None, too_long: str = "drop"
) -> Iterator[tuple[Example, ...]]:
    """The examples of each sample that is left: of a conversation or text those to learn from, of a preference the chosen and the
    rejected one, of a judged answer or a task the one. max_tokens, too_long: as of `lengths.limited`; preferences, judged answers and
    tasks that are too long are dropped whatever the policy is, as a part of an answer cannot be judged."""
    check_policy(max_tokens, too_long)
    for sample in samples:
        if (spelled := _control(sample, tokenising)) is not None:
            account.note(SPELLED, sample.place, spelled)
        try:
            examples = tokenised(sample, tokenising)
            if not examples:
                account.drop_kept(NOTHING, sample.place)
                continue
        except UsageError as problem:
            account.drop_kept(REFUSED, sample.place, str(problem))
            continue
        if isinstance(sample, Chat) and (missing := _unwritten(sample, examples, tokenising)) is not None:
            account.note(UNWRITTEN, sample.place, missing)
        if isinstance(sample, Chat | Passage):
            kept = account.num_kept
            examples = tuple(limited(examples, max_tokens, too_long, account))
            account.num_kept = kept if examples else kept - 1  # a record counts once, however many examples it is
            if not examples:
                continue
        elif max_tokens is not None and (longest := max(len(example.tokens) for example in examples)) > max_tokens:
            account.drop_kept(TOO_LONG, sample.place, f"{longest:,} tokens, {max_tokens:,} allowed")
            continue
        if not isinstance(sample, Task) and not all(example.num_learned for example in examples):
            account.drop_kept(NOTHING, sample.place)
            continue
        yield examples


def _unwritten(sample: Chat, examples: tuple[Example, ...], tokenising: Tokenising) -> str | None:
    """What an assistant says beside a call where its format has room for the call alone."""
    for at, message in enumerate(sample.messages):
        text = message.text.strip()
        if message.tool_calls and text and not any(text in tokenising.tokenizer.decode(example.tokens) for example in examples):
            return f"messages[{at}] says {text!r:.80}"
    return None


def _control(sample: Sample, tokenising: Tokenising) -> str | None:
    """A control token that a sample's text spells: likely a leftover of another format."""
    tokenizer = tokenising.tokenizer
    parts = tokenizer.split_specials(text_of(sample))
    return next((tokenizer.special_text(part) for part in parts if not isinstance(part, str)), None)


def tokenised(sample: Sample, tokenising: Tokenising) -> tuple[Example, ...]:
    """The examples of one sample, whatever it is. `UsageError` for what the chat format refuses."""
    match sample:
        case Preference():
            return tokenising.pair(sample)
        case Judged():
            return (tokenising.judged(sample),)
        case Task():
            return (tokenising.prompt(sample),)
        case _:
            return tokenising.examples(sample)
