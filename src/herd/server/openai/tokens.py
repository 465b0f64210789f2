"""`/tokenize` and `/detokenize`: the model's own tokenizer, in the forms that vLLM's and llama.cpp's clients know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import ChatRequest
from herd.sampling.params import SamplingParams
from herd.server.chosen_model import only_model
from herd.server.house import house_of
from herd.server.openai.chat import fetch_rules
from herd.server.openai.fields import Name, TokenId
from herd.server.openai.messages import Messages, read_conversation, with_pictures
from herd.server.openai.shapes import Detokenized, Tokens
from herd.server.openai.tools import ToolFields
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply

MAX_PIECES = 4096
"""Tokens whose texts are told."""


class TokenizeBody(ToolFields):
    """A text, or a conversation."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        "add_generation_prompt": "a conversation is counted as it is when it is answered",
    }
    REFUSED: ClassVar[Mapping[str, str]] = {
        **ToolFields.REFUSED,
        "with_pieces": "ask with return_token_strs.",
        "continue_final_message": "an answer always begins a message of its own.",
        "chat_template": "a server does not run templates that come with a request; start it with --chat-format.",
    }

    model: Name | None = Field(None, description="Whose tokenizer; need not be said where there is one model.")
    prompt: str | None = Field(None, description="A text.")
    content: str | None = Field(None, description="As prompt, in llama.cpp's form.")
    messages: Messages | None = Field(None, description="A conversation, instead of a text; its tokens are counted.")
    add_special_tokens: bool | None = Field(None, description="Whether the beginning-of-text token comes first; true unless told.")
    add_special: bool | None = Field(None, description="As add_special_tokens, in llama.cpp's form, where it is false unless told.")
    parse_special: bool | None = Field(None, description="Whether names of control tokens in the text become those tokens.")
    return_token_strs: bool | None = Field(None, description="Whether the text of each token is told, one by one.")

    def text(self) -> str | None:
        """The text, or None for a conversation. `UsageError` unless there is exactly one of them."""
        given = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "neither prompt, content nor messages"
            raise UsageError(f"The request has {said}; expected one of prompt, content or messages.", param=given[1] if given else "prompt")
        return self.prompt if self.prompt is not None else self.content

    @property
    def has_beginning(self) -> bool | None:
        """Whether the text begins as the model was trained (None), or without its beginning-of-text token."""
        if self.content is not None:
            return None if self.add_special else False
        return False if self.add_special_tokens is False else None


class DetokenizeBody(Body):
    """Token ids."""

    model: Name | None = Field(None, description="Whose tokenizer; need not be said where there is one model.")
    tokens: Annotated[list[TokenId], Field(max_length=1 << 24)]


@operation("Turn a text into token ids", body=TokenizeBody, reply=Tokens)
async def tokenize(request: Request) -> Response:
    """The ids of a text, with their number and the model's context; of a conversation, the number of tokens that its prompt has."""
    body = await read_body(request, TokenizeBody)
    text = body.text()
    house = house_of(request)
    async with house.use(request, only_model(request, body.model)) as service:
        context = service.facts.context_length
        if text is None:
            assert body.messages is not None
            messages = await with_pictures(read_conversation(body.messages), fetch_rules(house.settings))
            tools, choice = body.offered()
            asked = ChatRequest(messages=messages, sampling=SamplingParams(), tools=tools, tool_choice=choice)
            return reply({"count": await service.count(asked), "max_model_len": context})
        ids = await service.encode(text, bos=body.has_beginning, specials=bool(body.parse_special))
        found: dict[str, Any] = {"count": len(ids), "max_model_len": context, "tokens": ids}
        if body.return_token_strs:
            if len(ids) > MAX_PIECES:
                raise UsageError(f"The text has {len(ids)} tokens; texts of at most {MAX_PIECES} are told.", param="return_token_strs")
            found["token_strs"] = [await service.decode([each]) for each in ids]
    return reply(found)


@operation("Turn token ids into a text", body=DetokenizeBody, reply=Detokenized)
async def detokenize(request: Request) -> Response:
    """The text of token ids; control tokens have none."""
    body = await read_body(request, DetokenizeBody)
    async with house_of(request).use(request, only_model(request, body.model)) as service:
        if body.tokens and (largest := max(body.tokens)) >= service.facts.vocab_size:
            raise UsageError(f"tokens has {largest}; the model's vocabulary is 0 to {service.facts.vocab_size - 1}.", param="tokens")
        text = await service.decode(body.tokens)
    return reply({"prompt": text, "content": text})


ROUTES = (
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
)
