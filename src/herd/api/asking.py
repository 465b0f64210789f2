"""What `Model` is asked: sampling parameters, texts to continue, chats, what stands between two texts, and verdicts of a guard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from herd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from herd.api.model import Model
    from herd.api.output import Output
    from herd.providers.base import ChatRequest, CompletionRequest, Event, TokenLogprob
    from herd.sampling.params import SamplingParams
    from herd.text.formats.guard import Category, Verdict
    from herd.text.messages import Message
    from herd.text.tools import BuiltIn, Tool


def sampling_params(recommended: Mapping[str, float], given: Mapping[str, Any]) -> SamplingParams:
    """What is recommended, with what was given put over it. `UsageError` for an unknown name."""
    from herd.sampling.params import SamplingParams

    known = SamplingParams.names()
    for name in given:
        if name not in known:
            close = did_you_mean(name, (*known, "max_tokens", "stop"))
            raise UsageError(f"{name!r} is not a sampling parameter{close} Known are {', '.join(known)}.")
    values = {name: value for name, value in recommended.items() if name in known}
    return SamplingParams(**{**values, **{name: value for name, value in given.items() if value is not None}})


def completion_request(
    sampling: SamplingParams,
    prompt: list[int],
    max_tokens: int | None,
    stop: str | Iterable[str],
    adapter: str | None,
    response_format: object,
) -> CompletionRequest:
    """Token ids to continue, as the provider takes them. `UsageError` names what is wrong with stop texts or the format."""
    from herd.api.holding import read_response_format
    from herd.providers.base import CompletionRequest

    return CompletionRequest(
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop_texts(stop),
        adapter=adapter,
        constraint=read_response_format(response_format),
    )


def chat_request(
    sampling: SamplingParams,
    messages: Iterable[Message | Mapping[str, Any]],
    *,
    max_tokens: int | None = None,
    stop: str | Iterable[str] = (),
    date: str | None = None,
    tools: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] = (),
    format: str = "template",
    adapter: str | None = None,
    response_format: object = None,
    tool_choice: object = "auto",
    parallel_tool_calls: bool = True,
) -> ChatRequest:
    """A chat as the provider takes it. `UsageError` names what is wrong with messages, tools or stop texts."""
    from herd.api.holding import read_response_format, read_tool_choice
    from herd.providers.base import ChatRequest
    from herd.text.formats.parts import today
    from herd.text.messages import read_messages, read_tools

    return ChatRequest(
        messages=read_messages(messages),
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop_texts(stop),
        date=today() if date == "today" else date,
        tools=read_tools(tools),
        format=format,
        adapter=adapter,
        tool_choice=read_tool_choice(tool_choice, parallel_tool_calls),
        constraint=read_response_format(response_format),
    )


CHAT_OPTIONS = frozenset(chat_request.__kwdefaults__ or ())
"""What can be said of a chat besides how its tokens are chosen."""


def infill(model: Model, prefix: str, suffix: str, suffix_first: bool, max_tokens: int | None, sampling: SamplingParams) -> Output:
    """See `Model.infill`."""
    from herd.providers.base import CompletionRequest
    from herd.text.formats.infilling import Infilling

    infilling = Infilling(model.tokenizer)
    ids = infilling.render(prefix, suffix, suffix_first=suffix_first)
    request = CompletionRequest(prompt=ids, sampling=sampling, max_tokens=max_tokens, stop_ids=infilling.stop_ids)
    return model.collect(ids, model.provider.complete(request))


def moderate(
    model: Model, messages: Iterable[Message | Mapping[str, Any]], categories: Iterable[Category | Mapping[str, str] | str] | None
) -> Verdict:
    """See `Model.moderate`."""
    from herd.providers.moderating import read_verdict, verdict_request
    from herd.text.formats.guard import Guard, read_categories
    from herd.text.messages import read_messages

    guard = model.chat_format
    if not isinstance(guard, Guard):
        raise UsageError(f"{model.name} is no guard (its chat format is {guard.name}), so it gives no verdicts. Load a Llama Guard.")
    if categories is not None:
        guard = replace(guard, categories=read_categories(categories))
    asked = verdict_request(read_messages(messages))
    return read_verdict(model.name, guard, _tokens(model.provider.chat(asked, guard)))


def _tokens(events: Iterable[Event]) -> Iterator[TokenLogprob]:
    """All tokens of an answer. Raises what made it fail."""
    from herd.providers.base import Failed, Text

    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Text):
            yield from event.tokens


def stop_texts(stop: str | Iterable[str]) -> tuple[str, ...]:
    """One text or several; each is checked by the request."""
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Iterable):
        raise UsageError(f"stop is {type(stop).__name__}; expected a text or a list of texts.")
    return tuple(stop)


def texts(given: str | Iterable[str]) -> list[str]:
    """One text or several, as a list."""
    if not isinstance(given, Iterable):
        raise UsageError(f"texts is {type(given).__name__}; expected a text or a list of texts.")
    return [given] if isinstance(given, str) else list(given)


def token_ids(tokens: object, name: str) -> list[int]:
    """Token ids as a list; each is checked by the engine. `UsageError` for what is no sequence of them."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise UsageError(f"{name} is {type(tokens).__name__}; expected {'a text or ' if name == 'prompt' else ''}token ids.")
    return list(tokens)
