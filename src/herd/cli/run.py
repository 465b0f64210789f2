"""`herd run`: one prompt, one answer. Made for scripts and pipes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import SAMPLING, Examples, given, held_to, holding_options, load_model, loading_options, readable, sampling_options
from herd.cli.sessions import Kept, session_options
from herd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from herd.api import Model, Output
    from herd.providers.base import Event

MAX_PROMPT_BYTES = 64 << 20


@click.command(
    cls=Examples,
    short_help="Continue a text, or ask one thing.",
    examples="""
    herd run smollm2-135m-instruct "Once upon a time"          continue a text
    herd run smollm2-135m-instruct --chat "Name two colours"   ask, as in a chat
    cat notes.txt | herd run ./model.gguf -n 100               the prompt from a pipe
    herd run ./model.gguf "2 + 2 =" -t 0 --json                ids, log-probabilities and times as JSON
    herd run ./model.bin --tokens 1,403,407 --json             token ids in, for models without a tokenizer
    herd run ./model.gguf --session s.herd "Once upon" -n 9    kept in a file; call it again to go on from there
    herd run ./model.gguf --chat "Alice is 7" --json-schema person.json     an answer that is JSON of a schema
    """,
)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--chat", "as_chat", is_flag=True, help="Ask the prompt as a message, in the model's chat format.")
@click.option("--system", metavar="TEXT", help="With --chat: who the model should be.")
@click.option("--tokens", metavar="IDS", help="Token ids instead of a text, separated by commas.")
@click.option("--logprobs", type=int, metavar="N", help="With --json: N alternatives for each token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
@session_options
@holding_options
@sampling_options
@loading_options
def run(model: str, prompt: str | None, as_chat: bool, system: str | None, tokens: str | None, as_json: bool, **options: Any) -> None:
    """Continue a text, given as an argument or through a pipe.

    Without PROMPT (or with -) the text is read from standard input, less one newline at its end. With --session the prompt comes
    after what the file holds, and may be left out.
    """
    if system is not None and not as_chat:
        raise UsageError("--system is for --chat; a plain prompt has no roles.")
    if options["logprobs"] is not None and not as_json:
        raise UsageError("--logprobs is for --json; plain output has no place for them.")
    from herd.cli.output import print_json, say

    kept = Kept.of(options)
    asked = _prompt(prompt, tokens, as_chat, may_be_empty=kept.exists and not as_chat)
    before = time.perf_counter()
    loaded = load_model(model, options)
    with loaded:
        load_s = time.perf_counter() - before
        kept.open(loaded)
        ids, events = _ask(loaded, asked, as_chat, system, options, kept)
        output = loaded.collect(ids, events if as_json else _printed(loaded, events))
        if as_json:
            print_json(_object(loaded, output, load_s))
        else:
            say("\n")
        kept.save(loaded, output)


def _prompt(prompt: str | None, tokens: str | None, as_chat: bool, *, may_be_empty: bool) -> str | list[int]:
    if tokens is not None:
        if prompt is not None or as_chat:
            raise UsageError("--tokens is the whole prompt; leave out the text and --chat.")
        try:
            return [int(part) for part in tokens.replace(",", " ").split()]
        except ValueError as error:
            raise UsageError(f"--tokens is {tokens!r:.60}; expected whole numbers separated by commas.") from error
    if prompt is not None and prompt != "-":
        return readable(prompt, "The prompt")
    return _from_pipe(prompt == "-", may_be_empty)


def _from_pipe(is_asked_for: bool, may_be_empty: bool) -> str:
    if may_be_empty and not is_asked_for and (sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()):
        return ""
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not is_asked_for):
        raise UsageError('There is no prompt. Give one: herd run MODEL "text", or pipe one in: cat file | herd run MODEL')
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"The prompt from standard input is longer than {MAX_PROMPT_BYTES} bytes.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not valid UTF-8 (at byte {error.start}). Convert it, for example with iconv.") from error
    if not text and not may_be_empty:
        raise UsageError("Standard input was empty, and there is no prompt as an argument.")
    return text.removesuffix("\n")


def _ask(
    loaded: Model, asked: str | list[int], as_chat: bool, system: str | None, options: dict[str, Any], kept: Kept
) -> tuple[list[int], Iterator[Event]]:
    """The prompt's ids, and the answer as it comes."""
    from herd.api.holding import read_response_format
    from herd.providers.base import CompletionRequest

    sampling, held = given(options, (*SAMPLING, "logprobs")), held_to(options)
    if as_chat:
        assert isinstance(asked, str)
        messages = kept.asked(asked, None if system is None else readable(system, "--system"))
        request = loaded.chat_request(messages, max_tokens=options["max_tokens"], stop=options["stop"], response_format=held, **sampling)
        return loaded.chat_token_ids(request), loaded.provider.chat(request)
    ids = kept.before(loaded, asked)
    params = loaded.sampling(sampling)
    return ids, loaded.provider.complete(
        CompletionRequest(
            prompt=ids, sampling=params, max_tokens=options["max_tokens"], stop=options["stop"], constraint=read_response_format(held)
        )
    )


def _printed(loaded: Model, events: Iterator[Event]) -> Iterator[Event]:
    """Shows the answer's text as it passes. Without a tokenizer its token ids are what can be printed."""
    from herd.cli.output import say
    from herd.providers.base import Failed, Text

    for event in events:
        match event:
            case Text(text, tokens):
                say(text if loaded.has_tokenizer else "".join(f"{item.token} " for item in tokens))
            case Failed():
                say("\n")
        yield event


def _object(loaded: Model, out: Output, load_s: float) -> dict[str, Any]:
    usage = out.usage
    later, new = max(usage.completion_tokens - 1, 0), usage.prompt_tokens - usage.cached_tokens
    return {
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "prompt_token_ids": out.prompt_token_ids,
        "token_ids": out.token_ids,
        "text": out.text if loaded.has_tokenizer else None,
        "logprobs": out.logprobs,
        "top_logprobs": out.top,
        "stop_reason": out.stop_reason.value,
        "stop_text": out.stop_text,
        "seed": out.seed,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "cached_tokens": usage.cached_tokens},
        "timings": {
            "load_s": load_s,
            "prompt_s": usage.prompt_s,
            "decode_s": usage.decode_s,
            "prompt_tokens_per_s": new / usage.prompt_s if usage.prompt_s else None,
            "decode_tokens_per_s": later / usage.decode_s if usage.decode_s and later else None,
        },
    }
