"""What answers of chats and completions have in common on the wire: ids, counts, reasons, probabilities."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from herd.providers.base import TokenLogprob, Usage
from herd.sampling.stop import StopReason

SEED_BITS = 53
"""Seeds that are drawn here are numbers that JavaScript can hold."""

_REASONS = {StopReason.END: "stop", StopReason.STOP_TEXT: "stop", StopReason.LENGTH: "length", StopReason.CANCELLED: "length"}


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def drawn_seed() -> int:
    return secrets.randbits(SEED_BITS)


def finish_reason(reason: StopReason) -> str:
    return _REASONS[reason]


def usage_value(usages: Sequence[Usage], prompts: int = 1) -> dict[str, Any]:
    """Tokens of all answers. A prompt counts once, however many answers it has: `usages` are in the order of prompts, an equal number
    for each."""
    each = max(1, len(usages) // prompts)
    first = usages[::each]
    prompt, answer = sum(usage.prompt_tokens for usage in first), sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in first), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def token_text(data: bytes) -> str:
    """A token as text. What is half of a character is written out in bytes, as OpenAI does: `bytes:\\xe2\\x82`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """JSON has no infinities; what is impossible is very unlikely."""
    return logprob if math.isfinite(logprob) else -9999.0


def chat_logprobs(tokens: Sequence[TokenLogprob], num_top: int) -> dict[str, Any]:
    """The `logprobs` of a choice of a chat. The token that ended the answer is one of them."""
    return {"content": [_chat_logprob(token, num_top) for token in tokens], "refusal": None}


def _chat_logprob(token: TokenLogprob, num_top: int) -> dict[str, Any]:
    alternatives = zip(token.top[:num_top], token.top_data[:num_top], strict=False)
    return {
        **_entry(token.data, token.logprob),
        "top_logprobs": [_entry(data, logprob) for (_, logprob), data in alternatives],
    }


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(data), "logprob": finite(logprob), "bytes": list(data)}


class TextLogprobs:
    """The `logprobs` of a completion, in pieces: `offset` is where in the text the next token begins."""

    def __init__(self, num_top: int, offset: int = 0) -> None:
        self._num_top = num_top
        self._offset = offset

    def push(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """What the next tokens add. A prompt's first token has no probability, so it says null."""
        texts = [token_text(token.data) for token in tokens]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if math.isnan(token.logprob) else finite(token.logprob) for token in tokens],
            "top_logprobs": [self._alternatives(token, text) for token, text in zip(tokens, texts, strict=True)],
            "text_offset": offsets,
        }

    def _alternatives(self, token: TokenLogprob, text: str) -> dict[str, float] | None:
        """The most likely texts, and the one that came, as OpenAI tells them. Of two tokens of one text the likelier one counts."""
        if math.isnan(token.logprob):
            return None
        found: dict[str, float] = {}
        for (_, logprob), data in zip(token.top[: self._num_top], token.top_data[: self._num_top], strict=False):
            found.setdefault(token_text(data), finite(logprob))
        found.setdefault(text, finite(token.logprob))
        return found
