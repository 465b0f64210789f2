"""What the bodies of several endpoints have in common: shapes of values, and how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from herd.errors import UsageError
from herd.sampling.params import SamplingParams
from herd.server.openai.chunks import Frame
from herd.server.reading import Body
from herd.server.settings import LIMITS


def one_or_list(value: object) -> str:
    """Which branch of a union is meant; pydantic then reports what is wrong with that one."""
    return "list" if isinstance(value, list) else "one"


def known(name: str, *values: str) -> BeforeValidator:
    """An object has this field, and it is one of these values: said in our words before pydantic looks for the branch of a union."""
    message = f"Its {name} is not one of {', '.join(values)}"

    def check(value: object) -> object:
        if isinstance(value, dict) and value.get(name) not in values:
            raise PydanticCustomError(f"herd_{name}", message)
        return value

    return BeforeValidator(check)


Name = Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)]
TokenId = Annotated[int, Field(ge=0, le=LIMITS.tokens)]
StopText = Annotated[str, Field(min_length=1, max_length=LIMITS.stop_characters)]
StopTexts = Annotated[
    Annotated[StopText, Tag("one")] | Annotated[list[StopText], Field(max_length=LIMITS.stop_texts), Tag("list")],
    Discriminator(one_or_list),
]
MetadataValue = Annotated[str, Field(max_length=512)]
MetadataKey = Annotated[str, Field(max_length=64)]

CACHE_IS_AUTOMATIC = "beginnings of prompts that were seen before are found without being told, and each key finds its own only"
KEY_SAYS_WHO = "the key says whose request it is"
CALLER_FIELDS: Mapping[str, str] = {
    "user": KEY_SAYS_WHO,
    "safety_identifier": KEY_SAYS_WHO,
    "prompt_cache_key": CACHE_IS_AUTOMATIC,
    "prompt_cache_retention": CACHE_IS_AUTOMATIC,
    "prompt_cache_options": CACHE_IS_AUTOMATIC,
    "cache_prompt": CACHE_IS_AUTOMATIC,
}
"""Fields on whose behalf and how a request runs, that change no answer."""


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool | None = Field(None, description="A last piece tells the tokens of prompt and answer.")
    continuous_usage_stats: bool | None = Field(None, description="Each piece tells the tokens of its answer so far, as vLLM's do.")
    include_obfuscation: bool | None = Field(
        None,
        description="Pieces are padded to sizes that tell nothing of their text, for networks that others can watch. Off unless asked for.",
    )


class SamplingFields(Body):
    """How answers are drawn, and where they end."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "repeat_penalty": "call it repetition_penalty.",
        "min_tokens": "an answer ends where the model ends it; ignore_eos makes it as long as max_tokens.",
        "cache_salt": "cached prompts are apart for each key already; make a key for each tenant with `herd keys`.",
        "use_beam_search": "answers are drawn or taken greedily; ask for n answers.",
        "chat_template": "a server does not run templates that come with a request; start it with --chat-format.",
    }

    model: Name = Field(description="The model that answers, as `/v1/models` lists it; `model:adapter` for one with an adapter.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the most likely token; otherwise logits are divided by it.")
    top_p: float | None = Field(None, ge=0, le=1, description="Only the most likely tokens whose probabilities reach this sum.")
    top_k: int | None = Field(None, ge=-1, le=LIMITS.tokens, description="Only so many of the most likely tokens; 0 or -1 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only tokens at least this share of the most likely one's probability.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted once from the logit of each token of the answer.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted as often as a token occurs in the answer.")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Makes tokens of prompt and answer less likely; 1 changes nothing."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=LIMITS.logit_bias, description="Token ids to what is added to their logits."
    )
    seed: int | None = Field(None, ge=0, le=LIMITS.seed, description="The same request and seed give the same answer.")
    stop: StopTexts | None = Field(None, description="Texts at which the answer ends; they are no part of it.")
    n: int | None = Field(None, ge=1, le=LIMITS.choices, description="How many answers.")
    stream: bool | None = Field(None, description="Whether the answer comes in pieces, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    ignore_eos: bool | None = Field(None, description="The model's own end does not end the answer: for measurements.")

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def is_counted(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def is_padded(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    def frame(self, head: dict[str, Any], seed: int) -> Frame:
        """What the chunks of a stream share, as `stream_options` want it."""
        return Frame(head, seed, has_usage=self.include_usage, is_counted=self.is_counted, is_padded=self.is_padded)

    def check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise UsageError("stream_options is only for answers that are streamed; set stream, or leave it out.", param="stream_options")

    def sampling(self, recommended: Mapping[str, float], *, seed: int, logprobs: int, vocab_size: int) -> SamplingParams:
        """Parameters of a draw. recommended: what counts where the body says nothing. logprobs: alternatives of each token."""
        known = SamplingParams.names()
        values: dict[str, Any] = {name: value for name, value in recommended.items() if name in known}
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        if self.top_k is not None:
            values["top_k"] = max(0, self.top_k)
        values |= {"logit_bias": self._biases(vocab_size), "seed": seed, "logprobs": logprobs}
        return SamplingParams(**values)

    def _biases(self, vocab_size: int) -> dict[int, float]:
        biases: dict[int, float] = {}
        for text, bias in (self.logit_bias or {}).items():
            if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < vocab_size):
                raise UsageError(f"logit_bias names {text!r:.40}; expected token ids from 0 to {vocab_size - 1}.", param="logit_bias")
            biases[int(text)] = float(bias)
        if len(biases) != len(self.logit_bias or {}):
            raise UsageError("logit_bias names a token twice.", param="logit_bias")
        return biases
